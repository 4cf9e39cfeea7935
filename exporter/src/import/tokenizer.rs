//! The tokenizer in a GGUF file's metadata, as the files of a Hugging Face folder.

use marionette_models::FileError;
use serde_json::{Value, json};

use super::fields::Fields;

/// Token types (`llama_token_type` in llama.h).
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

/// How texts are cut into words before merging: what Hugging Face has for the name in `tokenizer.ggml.pre`, and whether a word that is a
/// token as a whole is not merged.
fn pre_tokenizer(name: &str) -> Option<(Value, bool)> {
    let byte_level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let split = |pattern: &str| {
        let split =
            json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    };
    match name {
        "default" | "gpt-2" | "gpt2" => Some((byte_level(true), false)),
        "smollm" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            Some((json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] }), false))
        }
        "llama-bpe" | "llama3" | "llama-v3" => Some((
            split(
                "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
            ),
            true,
        )),
        _ => None,
    }
}

/// `tokenizer.json`, and `tokenizer_config.json` with the chat template.
pub(super) fn files(fields: &Fields<'_>) -> Result<[Value; 2], FileError> {
    let model = fields.text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        let problem = format!("is {model}, expected gpt2, a byte-level BPE: others are not supported");
        return Err(fields.refuse("tokenizer.ggml.model", &problem));
    }
    let name = fields.text_or("tokenizer.ggml.pre", "default")?;
    let Some((pre_tokenizer, ignore_merges)) = pre_tokenizer(name) else {
        let problem = format!("is {name}, expected default, gpt-2, smollm or llama-bpe: others are not supported");
        return Err(fields.refuse("tokenizer.ggml.pre", &problem));
    };
    let tokens = fields.texts("tokenizer.ggml.tokens")?;
    let types = fields.integers("tokenizer.ggml.token_type")?;
    if types.len() != tokens.len() {
        let problem = format!("has {} types for {} tokens", types.len(), tokens.len());
        return Err(fields.refuse("tokenizer.ggml.token_type", &problem));
    }
    let mut merges = Vec::new();
    for (index, merge) in fields.texts("tokenizer.ggml.merges")?.into_iter().enumerate() {
        // Tokens have no spaces: byte-level BPE spells them otherwise.
        match merge.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => merges.push(json!([left, right])),
            _ => return Err(fields.refuse("tokenizer.ggml.merges", &format!("{index} is not two tokens: {merge:?}"))),
        }
    }
    let added: Vec<Value> = tokens
        .iter()
        .zip(&types)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (content, kind))| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL })
        })
        .collect();
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    if vocabulary.len() != tokens.len() {
        return Err(fields.refuse("tokenizer.ggml.tokens", "has a token twice"));
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocabulary, "merges": merges }
    });
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
    for (name, key) in [("bos_token", "tokenizer.ggml.bos_token_id"), ("eos_token", "tokenizer.ggml.eos_token_id")] {
        if fields.0.get(key).is_some() {
            let id = fields.count(key)?;
            let token = tokens.get(id).ok_or_else(|| fields.refuse(key, &format!("is {id}, which is no token")))?;
            config[name] = json!(token);
        }
    }
    config["add_bos_token"] = json!(fields.truth_or("tokenizer.ggml.add_bos_token", false)?);
    if fields.0.get("tokenizer.chat_template").is_some() {
        config["chat_template"] = json!(fields.text("tokenizer.chat_template")?);
    }
    Ok([tokenizer, config])
}
