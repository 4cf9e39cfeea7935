//! Byte-level BPE: reading, training and writing tokenizers; text to ids and ids to text.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use marionette_models::error::one_line;
use marionette_models::{FileError, files};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value, json};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{AddedToken, AddedVocabulary};

use crate::byte_level::byte_of;
use crate::panics::caught;
use crate::{DataError, EncodeError};

/// GPT-2's only control token: it ends every utterance.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The most bytes that a tokenizer's file may have; GPT-2's own `tokenizer.json` has 1.4 MB.
const LARGEST_FILE: u64 = 64 << 20;

/// A byte-level BPE tokenizer in which a control token can only be asked for by its id: text that spells one, or any
/// other token that was added to the vocabulary, is encoded as the ordinary characters it is made of.
#[derive(Clone)]
pub struct Tokenizer {
    /// Without the added tokens, so that no text can match one.
    text: tokenizers::Tokenizer,
    added: AddedVocabulary,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tokenizer").field("largest_id", &self.largest_id()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Takes over what the library read, where it is byte-level BPE; else says what it is.
    fn new(mut whole: tokenizers::Tokenizer) -> Result<Self, String> {
        let ModelWrapper::BPE(model) = whole.get_model() else {
            return Err("its model is not BPE".into());
        };
        if model.dropout.is_some_and(|probability| probability > 0.0) {
            return Err("its BPE drops merges at random".into());
        }
        if !matches!(whole.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err("its decoder is not ByteLevel".into());
        }
        // Written again, one of the two would be lost.
        let mut ids: Vec<u32> = model.get_vocab().into_values().collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("it gives the id {} to two tokens", pair[0]));
        }
        whole.with_truncation(None).map_err(|error| error.to_string())?;
        whole.with_padding(None);
        let added = whole.get_added_vocabulary().clone();
        whole.with_added_vocabulary(AddedVocabulary::new());
        Ok(Self { text: whole, added })
    }

    /// The ids of a text; empty for an empty text.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] where the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        match caught(|| self.text.encode_fast(text, false)) {
            Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
            Ok(Err(error)) => Err(EncodeError::Tokenizer(error.to_string())),
            Err(panic) => Err(EncodeError::Tokenizer(panic)),
        }
    }

    /// The text of ids, without control tokens and without ids that the vocabulary lacks; bytes that are not UTF-8
    /// become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            self.append_bytes(id, &mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Appends the bytes that a token stands for.
    pub(crate) fn append_bytes(&self, id: u32, bytes: &mut Vec<u8>) {
        if let Some(added) = self.added.get_added_tokens_decoder().get(&id) {
            if !added.special {
                bytes.extend_from_slice(added.content.as_bytes());
            }
            return;
        }
        let Some(token) = self.text.id_to_token(id) else {
            return;
        };
        match token.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
            Some(spelled) => bytes.extend(spelled),
            None => bytes.extend_from_slice(token.as_bytes()),
        }
    }

    /// The id of a token given as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.added.get_vocab().get(token).copied().or_else(|| self.text.token_to_id(token))
    }

    /// A token as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.added.simple_id_to_token(id).or_else(|| self.text.id_to_token(id))
    }

    /// Whether a token was added to the vocabulary, as control tokens are.
    pub fn is_added(&self, id: u32) -> bool {
        self.added.get_added_tokens_decoder().contains_key(&id)
    }

    /// The ids of a text of which every part that spells an added token is that token: for a chat template, never for what
    /// somebody says.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_controls(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut whole = self.text.clone();
        whole.with_added_vocabulary(self.added.clone());
        match caught(|| whole.encode_fast(text, false)) {
            Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
            Ok(Err(error)) => Err(EncodeError::Tokenizer(error.to_string())),
            Err(panic) => Err(EncodeError::Tokenizer(panic)),
        }
    }

    /// The id of `<|endoftext|>`.
    pub fn end_of_text_id(&self) -> Option<u32> {
        self.token_to_id(END_OF_TEXT)
    }

    /// The largest id, which must be below the embedding's rows; 0 for an empty vocabulary.
    pub fn largest_id(&self) -> u32 {
        let model = self.text.get_vocab(false).into_values().max();
        let added = self.added.get_added_tokens_decoder().keys().copied().max();
        model.max(added).unwrap_or(0)
    }

    /// The contents of a `tokenizer.json`; the same bytes for the same tokenizer.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] where the library cannot write it.
    pub fn to_json(&self) -> Result<Vec<u8>, EncodeError> {
        let mut whole = self.text.clone();
        whole.with_added_vocabulary(self.added.clone());
        whole.to_string(false).map(String::into_bytes).map_err(|error| EncodeError::Tokenizer(error.to_string()))
    }
}

/// Reads the tokenizer of a folder in Hugging Face's layout: `tokenizer.json`, or else `vocab.json` and `merges.txt`, with
/// `added_tokens.json` where there is one.
///
/// # Errors
/// [`DataError`] where they are missing, larger than 64 MiB, not what they should be, or not a byte-level BPE.
pub fn load_tokenizer(folder: impl AsRef<Path>) -> Result<Tokenizer, DataError> {
    let folder = folder.as_ref();
    let one = folder.join("tokenizer.json");
    if one.exists() {
        return tokenizer_from_bytes(&read_whole(&one)?, &one);
    }
    let (vocab_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocab_path.exists() || !merges_path.exists() {
        return Err(DataError::file(
            folder,
            "has no tokenizer, expected tokenizer.json, or vocab.json and merges.txt",
            "copy the tokenizer's files from where the model came from",
        ));
    }
    let mut vocab = read_vocabulary(&vocab_path)?;
    let merges = String::from_utf8(read_whole(&merges_path)?)
        .map_err(|error| refuse(&merges_path, &format!("is not UTF-8: {error}")))?;
    let mut pairs = Vec::new();
    for (index, line) in merges.lines().enumerate() {
        if line.is_empty() || (index == 0 && line.starts_with("#version")) {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                pairs.push(json!([left, right]));
            }
            _ => {
                return Err(DataError {
                    line: Some(index + 1),
                    ..refuse(&merges_path, "expected two tokens and a space between")
                });
            }
        }
    }
    let added = added_tokens(folder, &mut vocab)?;
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let whole = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": pairs }
    });
    tokenizer_from_bytes(whole.to_string().as_bytes(), &vocab_path)
}

/// The tokens that lie beside the vocabulary of merges, each of which joins it, so that it keeps its id: `<|endoftext|>`, and those of
/// `added_tokens.json`, of which those are control tokens that `special_tokens_map.json` names.
fn added_tokens(folder: &Path, vocab: &mut Map<String, Value>) -> Result<Vec<Value>, DataError> {
    let (path, special_path) = (folder.join("added_tokens.json"), folder.join("special_tokens_map.json"));
    let mut added = match path.exists() {
        true => read_vocabulary(&path)?,
        false => Map::new(),
    };
    let special = match path.exists() && special_path.exists() {
        true => unique(&read_whole(&special_path)?, &special_path)?,
        false => Value::Null,
    };
    for (token, id) in &added {
        let other = vocab.iter().find(|(name, value)| (*name == token) != (*value == id));
        if let Some((name, value)) = other {
            return Err(refuse(&path, &format!("gives {token:?} the id {id}, but vocab.json gives {name:?} {value}")));
        }
    }
    vocab.extend(added.clone());
    if let Some(id) = vocab.get(END_OF_TEXT) {
        added.insert(END_OF_TEXT.to_owned(), id.clone());
    }
    let mut added: Vec<(String, Value)> = added.into_iter().collect();
    added.sort_by_key(|(_, id)| id.as_u64());
    let entry = |(token, id): (String, Value)| {
        let is_special = token == END_OF_TEXT || names(&special, &token);
        json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": is_special })
    };
    Ok(added.into_iter().map(entry).collect())
}

/// Whether a `special_tokens_map.json` names a token: as a text, as an object's `content`, or in a list of such.
fn names(map: &Value, token: &str) -> bool {
    match map {
        Value::String(text) => text == token,
        Value::Array(entries) => entries.iter().any(|entry| names(entry, token)),
        Value::Object(fields) => fields.values().any(|value| names(value, token)),
        _ => false,
    }
}

fn read_vocabulary(path: &Path) -> Result<Map<String, Value>, DataError> {
    unique(&read_whole(path)?, path)
}

/// Parses JSON in which each name is there once.
fn unique<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T, DataError> {
    marionette_models::json::from_slice(bytes)
        .map_err(|error| refuse(path, &format!("is not the JSON of a tokenizer: {}", one_line(&error.to_string()))))
}

/// Reads a tokenizer from the contents of a `tokenizer.json`; `path` is what errors name.
///
/// # Errors
/// [`DataError`] for contents that are not a tokenizer, that make the parser panic, or that are not a byte-level BPE.
pub fn tokenizer_from_bytes(bytes: &[u8], path: &Path) -> Result<Tokenizer, DataError> {
    // Of two entries of one name the library takes the last, another reader perhaps the first.
    unique::<IgnoredAny>(bytes, path)?;
    match caught(|| tokenizers::Tokenizer::from_bytes(bytes)) {
        Ok(Ok(whole)) => Tokenizer::new(whole).map_err(|problem| refuse(path, &problem)),
        Ok(Err(error)) => Err(refuse(path, &format!("is not a tokenizer: {}", one_line(&error.to_string())))),
        Err(panic) => Err(refuse(path, &format!("is not a tokenizer: {}", one_line(&panic)))),
    }
}

fn refuse(path: &Path, problem: &str) -> DataError {
    DataError::file(path, problem, "use a byte-level BPE tokenizer, copied whole from where the model came from")
}

fn read_whole(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let file = files::open_regular(path).map_err(|error| refuse(path, &error.problem))?;
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refuse(path, &format!("cannot be read: {error}")))?;
    if files::is_lfs_pointer(&bytes) {
        let FileError { problem, remedy, .. } = files::lfs_pointer(path);
        return Err(DataError::file(path, problem, remedy.unwrap_or_default()));
    }
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(refuse(path, "is larger than 64 MiB"));
    }
    Ok(bytes)
}

/// Trains a byte-level BPE tokenizer whose ids are all below `vocab_size`: the 256 bytes, then merges of pairs that
/// occur at least twice, most frequent first, and `<|endoftext|>` last, as in GPT-2. Fewer tokens come out where the
/// texts have fewer pairs. The same texts give the same tokenizer.
///
/// # Errors
/// [`EncodeError::VocabularyTooSmall`] below 257 tokens; [`EncodeError::Tokenizer`] where training fails.
pub fn train_bpe<'text>(
    texts: impl IntoIterator<Item = &'text str>,
    vocab_size: usize,
) -> Result<Tokenizer, EncodeError> {
    const SMALLEST: usize = 257;
    if vocab_size < SMALLEST {
        return Err(EncodeError::VocabularyTooSmall { vocab_size, smallest: SMALLEST });
    }
    let texts: Vec<&str> = texts.into_iter().collect();
    let mut trainer = TrainerWrapper::from(
        BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size - 1)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build(),
    );
    let byte_level = ByteLevel::default().add_prefix_space(false);
    let mut whole = tokenizers::Tokenizer::new(BPE::default());
    whole.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let failed = |error: tokenizers::Error| EncodeError::Tokenizer(error.to_string());
    caught(|| whole.train(&mut trainer, texts.into_iter()).map(|_| ()))
        .map_err(EncodeError::Tokenizer)?
        .map_err(failed)?;
    whole.add_special_tokens(&[AddedToken::from(END_OF_TEXT, true)]);
    Tokenizer::new(whole).map_err(EncodeError::Tokenizer)
}

/// Writes a tokenizer as a `tokenizer.json` at `path`.
///
/// # Errors
/// [`DataError`] where it cannot be written.
pub fn save_tokenizer(tokenizer: &Tokenizer, path: impl AsRef<Path>) -> Result<(), DataError> {
    let path = path.as_ref();
    let remedy = "check that the folder exists and has room";
    let json = tokenizer.to_json().map_err(|error| DataError::file(path, error.to_string(), remedy))?;
    std::fs::write(path, json).map_err(|error| DataError::file(path, format!("cannot be written: {error}"), remedy))
}

/// Turns ids into text one by one, never giving half a character. (The library's `DecodeStream` never gives a U+FFFD at the end, be it
/// broken off or meant, since it waits for what completes it and has no end; and it takes the letters of added tokens for bytes: "é"
/// becomes U+FFFD.)
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    bytes: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder at the beginning of a text.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, bytes: Vec::new() }
    }

    /// Takes the next id and gives the text that it completes, if any. All that `push` and `finish` give is what
    /// [`Tokenizer::decode`] gives for all ids.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.tokenizer.append_bytes(id, &mut self.bytes);
        let mut piece = String::new();
        loop {
            let (valid, invalid) = match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    piece.push_str(text);
                    self.bytes.clear();
                    break;
                }
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            piece.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
            let Some(invalid) = invalid else {
                self.bytes.drain(..valid);
                break;
            };
            piece.push(char::REPLACEMENT_CHARACTER);
            self.bytes.drain(..valid + invalid);
        }
        (!piece.is_empty()).then_some(piece)
    }

    /// Ends the text and gives what is left of it: U+FFFD for a character that was never completed.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.bytes);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}
