//! What several modules need.

use std::path::{Path, PathBuf};

use marionette_dialogues::{
    DataError, Dialogue, Encoder, Exchange, FileSummary, Redaction, Rules, Tokenizer, read_persona,
    tokenizer_from_bytes,
};
use marionette_models::PromptForm;

/// A path under the data that only developers and CI have, or `None` and a message; with `CI` set it must be there.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(path);
    if !path.exists() {
        assert!(std::env::var_os("CI").is_none(), "{} is not there, and CI has it", path.display());
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// What was understood of one persona's files, and the dialogues.
pub fn of_persona(
    paths: &[PathBuf],
    rules: &Rules,
    redaction: Option<&Redaction>,
) -> Result<(Vec<FileSummary>, Vec<Dialogue>), DataError> {
    let mut dialogues = Vec::new();
    let files = read_persona(paths, rules, redaction, &mut |dialogue| dialogues.push(dialogue))?;
    Ok((files, dialogues))
}

pub fn dialogue(persona: &[&str], turns: &[(&str, &str)]) -> Dialogue {
    Dialogue {
        persona: persona.iter().map(|sentence| (*sentence).into()).collect(),
        partner_persona: Vec::new(),
        exchanges: turns.iter().map(|&(partner, reply)| Exchange::new(partner, reply)).collect(),
        line: 1,
    }
}

/// `a` 0, `b` 1, `c` 2, space 3, `ab` 4, `<|endoftext|>` 5.
pub fn tiny_tokenizer() -> Tokenizer {
    let json = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 5, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4}, "merges": [["a", "b"]]}}"#;
    tokenizer_from_bytes(json.as_bytes(), Path::new("tiny.json")).unwrap()
}

pub fn tiny_encoder(n_positions: usize) -> Encoder {
    Encoder::new(tiny_tokenizer(), PromptForm::plain(5), n_positions, 6).unwrap()
}
