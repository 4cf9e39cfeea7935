use std::path::Path;
use std::sync::Arc;

use marionette_dialogues::{
    END_OF_TEXT, EncodeError, Encoder, StreamDecoder, Tokenizer, load_tokenizer, save_tokenizer, tokenizer_from_bytes,
    train_bpe,
};

use marionette_models::PromptForm;

use crate::helpers::{shared, tiny_tokenizer};

const ODD: &str = "hi  there\t<|endoftext|> naïve 😀 👩\u{200d}🚀 日本\r\n\u{0}end ";

fn trained() -> Tokenizer {
    train_bpe(["the cat sat on the mat .", "the dog sat on the cat !"], 270).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<String>, Option<String>) {
    let mut stream = StreamDecoder::new(Arc::new(tokenizer.clone()));
    (ids.iter().filter_map(|&id| stream.push(id)).collect(), stream.finish())
}

#[test]
fn gpt2_ids_are_the_recorded_ones() {
    let Some(folder) = shared("gpt2-tokenizer") else { return };
    let gpt2 = load_tokenizer(folder).unwrap();
    assert_eq!((gpt2.end_of_text_id(), gpt2.largest_id()), (Some(50256), 50256));
    let recorded = include_str!("../fixtures/gpt2_ids.json");
    let recorded: Vec<serde_json::Value> = serde_json::from_str(recorded).unwrap();
    assert_eq!(recorded.len(), 12);
    for entry in recorded {
        let text = entry["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(entry["ids"].clone()).unwrap();
        assert_eq!(gpt2.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(gpt2.decode(&ids), text);
    }
    let again = tokenizer_from_bytes(&gpt2.to_json().unwrap(), Path::new("again")).unwrap();
    assert_eq!(again.encode(ODD).unwrap(), gpt2.encode(ODD).unwrap());
    assert_eq!(again.end_of_text_id(), Some(50256));
    assert_eq!(again.to_json().unwrap(), gpt2.to_json().unwrap());
}

#[test]
fn a_typed_control_token_is_text() {
    let mut tokenizers = vec![trained()];
    // Added tokens that are not special, and one that takes the spaces before it, are text as well.
    let json = String::from_utf8(trained().to_json().unwrap()).unwrap();
    let more = json.replacen(
        "\"added_tokens\":[",
        r#""added_tokens":[{"id":280,"content":"cat","single_word":false,"lstrip":true,"rstrip":false,"normalized":true,"special":false},"#,
        1,
    );
    assert_ne!(more, json);
    tokenizers.push(tokenizer_from_bytes(more.as_bytes(), Path::new("more")).unwrap());
    if let Some(folder) = shared("gpt2-tokenizer") {
        tokenizers.push(load_tokenizer(folder).unwrap());
    }
    for tokenizer in tokenizers {
        let end = tokenizer.end_of_text_id().unwrap();
        let cat = tokenizer.token_to_id("cat");
        for text in [END_OF_TEXT, "a <|endoftext|> b", "the cat<|endoftext|>", "<|endoftext|><|endoftext|>", ODD] {
            let ids = tokenizer.encode(text).unwrap();
            assert!(!ids.contains(&end), "{text}");
            assert!(cat != Some(280) || !ids.contains(&280), "{text}");
            assert_eq!(tokenizer.decode(&ids), text);
        }
        assert_eq!(tokenizer.decode(&[end]), "");
    }
}

#[test]
fn training_gives_bytes_then_merges_then_the_end_of_text() {
    let tokenizer = trained();
    assert!(tokenizer.largest_id() < 270);
    assert_eq!(tokenizer.end_of_text_id(), Some(tokenizer.largest_id()));
    // " the" occurs twice, "the" at the beginning twice: "th" occurs most often of all pairs after "at".
    assert!(tokenizer.token_to_id("at").is_some_and(|id| id >= 256));
    assert_eq!(tokenizer.decode(&tokenizer.encode(ODD).unwrap()), ODD);
    for _ in 0..3 {
        assert_eq!(trained().to_json().unwrap(), tokenizer.to_json().unwrap());
    }
    let full = train_bpe(["the cat sat on the mat .", "the dog sat on the cat !"], 262).unwrap();
    assert_eq!(full.end_of_text_id(), Some(261));
    assert!(matches!(train_bpe(["a"], 256), Err(EncodeError::VocabularyTooSmall { .. })));
    assert_eq!(train_bpe([], 300).unwrap().end_of_text_id(), Some(256));
}

#[test]
fn a_saved_tokenizer_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    save_tokenizer(&trained(), folder.path().join("tokenizer.json")).unwrap();
    let again = load_tokenizer(folder.path()).unwrap();
    assert_eq!(again.to_json().unwrap(), trained().to_json().unwrap());
    assert_eq!(again.encode(ODD).unwrap(), trained().encode(ODD).unwrap());
    let error = save_tokenizer(&again, folder.path().join("no/tokenizer.json")).unwrap_err();
    assert!(error.to_string().contains("cannot be written"));
}

#[test]
fn a_stream_gives_whole_characters_only() {
    let tokenizer = trained();
    // No merge has seen an emoji: one token a byte.
    let ids = tokenizer.encode("a😀b").unwrap();
    assert_eq!(ids.len(), 6);
    assert_eq!(streamed(&tokenizer, &ids), (vec!["a".into(), "😀".into(), "b".into()], None));
    assert_eq!(streamed(&tokenizer, &ids[..4]), (vec!["a".into()], Some(char::REPLACEMENT_CHARACTER.into())));
    // A character broken off by another: the break shows as soon as it is certain.
    let broken = [&ids[..3], &ids[5..]].concat();
    assert_eq!(streamed(&tokenizer, &broken), (vec!["a".into(), "\u{FFFD}b".into()], None));
    let end = tokenizer.end_of_text_id().unwrap();
    assert_eq!(streamed(&tokenizer, &[end, 9999]), (vec![], None));
    // A U+FFFD that somebody wrote is a character like others, and is not waited with.
    let written = tokenizer.encode("a\u{FFFD}").unwrap();
    assert_eq!(streamed(&tokenizer, &written), (vec!["a".into(), "\u{FFFD}".into()], None));
}

#[test]
fn a_stream_gives_what_decoding_gives() {
    let tokenizer = trained();
    let ids = tokenizer.encode(ODD).unwrap();
    let mut shuffled = ids.clone();
    shuffled.reverse();
    shuffled.extend(ids.iter().step_by(2));
    for ids in [ids, shuffled, (0..256).collect()] {
        let (pieces, rest) = streamed(&tokenizer, &ids);
        assert_eq!(pieces.concat() + &rest.unwrap_or_default(), tokenizer.decode(&ids));
    }
}

#[test]
fn a_wrong_tokenizer_is_an_error_of_one_line() {
    let good = String::from_utf8(tiny_tokenizer().to_json().unwrap()).unwrap();
    let changed = |from: &str, to: &str| {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        bad
    };
    let cases = [
        (String::new(), "is not the JSON of a tokenizer"),
        (good[..good.len() / 2].to_owned(), "is not the JSON of a tokenizer"),
        ("[".repeat(100_000), "is not the JSON of a tokenizer"),
        (changed(r#""dropout":null"#, r#""dropout":0.5"#), "at random"),
        (
            format!(
                r#"{}"model":{{"type":"WordLevel","vocab":{{"a":0}},"unk_token":"a"}}}}"#,
                &good[..good.find("\"model\"").unwrap()]
            ),
            "model is not BPE",
        ),
        (changed(r#""decoder":{"type":"ByteLevel""#, r#""decoder":{"type":"Fuse""#), "decoder is not ByteLevel"),
        // Read by two programs, such a file is two tokenizers.
        (changed(r#""vocab":{"#, r#""vocab":{"twice":7,"twice":8,"#), "the key \"twice\" is there twice"),
        (changed(r#""vocab":{"#, r#""vocab":{"twice":1,"#), "gives the id 1 to two tokens"),
        // The parser cuts the prefix off each merge's second token: out of bounds, a panic.
        (changed(r#""continuing_subword_prefix":null"#, r#""continuing_subword_prefix":"long""#), "is not a tokenizer"),
    ];
    for (json, problem) in cases {
        let message = tokenizer_from_bytes(json.as_bytes(), Path::new("bad.json")).unwrap_err().to_string();
        assert!(message.starts_with("bad.json: ") && message.contains(problem), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_folder_without_a_tokenizer_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let message = || load_tokenizer(folder.path()).unwrap_err().to_string();
    assert!(message().contains("expected tokenizer.json, or vocab.json and merges.txt"));
    std::fs::write(folder.path().join("vocab.json"), r#"{"a": 0, "b": 1, "ab": 2}"#).unwrap();
    assert!(message().contains("has no tokenizer"));
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\nab\n").unwrap();
    assert!(message().contains("merges.txt, line 3: expected two tokens"), "{}", message());
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\n").unwrap();
    assert_eq!(load_tokenizer(folder.path()).unwrap().encode("aba").unwrap(), [2, 0]);
    std::fs::write(folder.path().join("merges.txt"), "a z\n").unwrap();
    assert!(message().contains("is not a tokenizer"), "{}", message());
}

#[test]
fn tokens_added_beside_a_vocabulary_keep_their_ids() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#);
    write("merges.txt", "#version: 0.2\na b\n");
    // Not in the order of their ids, nor right after the vocabulary's.
    write("added_tokens.json", r#"{"<|im_end|>": 9, "<|endoftext|>": 5, "word": 4}"#);
    write("special_tokens_map.json", r#"{"eos_token": "a", "additional_special_tokens": [{"content": "<|im_end|>"}]}"#);
    let tokenizer = load_tokenizer(folder.path()).unwrap();
    for tokenizer in
        [tokenizer.clone(), tokenizer_from_bytes(&tokenizer.to_json().unwrap(), Path::new("again")).unwrap()]
    {
        assert_eq!((tokenizer.end_of_text_id(), tokenizer.token_to_id("<|im_end|>")), (Some(5), Some(9)));
        assert_eq!(tokenizer.largest_id(), 9);
        assert!(tokenizer.is_added(4) && !tokenizer.is_added(2));
        // Control tokens are no text; the word that was added is.
        assert_eq!(tokenizer.decode(&[2, 5, 9, 4, 0]), "abworda");
        assert_eq!(tokenizer.encode("aba").unwrap(), [2, 0]);
    }
    for (added, problem) in [
        (r#"{"<|endoftext|>": 2}"#, "gives \"<|endoftext|>\" the id 2, but vocab.json gives \"ab\" 2"),
        (r#"{"ab": 3}"#, "gives \"ab\" the id 3, but vocab.json gives \"ab\" 2"),
        ("[]", "added_tokens.json: is not the JSON of a tokenizer"),
    ] {
        write("added_tokens.json", added);
        let error = load_tokenizer(folder.path()).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_pointer_of_git_lfs_is_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abab\nsize 1\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vocab.json"), pointer).unwrap();
    std::fs::write(folder.path().join("merges.txt"), "").unwrap();
    let refused = |name: &str| {
        let error = load_tokenizer(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}: is git-lfs's pointer")) && error.contains("git lfs pull"), "{error}");
    };
    refused("vocab.json");
    std::fs::write(folder.path().join("tokenizer.json"), pointer).unwrap();
    refused("tokenizer.json");
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model_is_refused() {
    let of = |end, positions, rows| Encoder::new(tiny_tokenizer(), PromptForm::plain(end), positions, rows);
    assert!(of(5, 8, 6).is_ok());
    assert!(matches!(of(5, 8, 5), Err(EncodeError::VocabularyTooLarge { largest: 5, vocab_size: 5 })));
    assert!(matches!(of(6, 8, 9), Err(EncodeError::NoEndOfText { id: 6 })));
    assert!(matches!(of(5, 1, 6), Err(EncodeError::NoRoom { .. })));
    // `a` as the end of text would let anyone who types it end an utterance.
    assert!(matches!(of(0, 8, 6), Err(EncodeError::TextAsControl { .. })));
}
