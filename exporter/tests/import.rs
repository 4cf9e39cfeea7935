//! `marionette-export import`: a whole GGUF file against what Hugging Face transformers makes of it, and what is refused.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use marionette_dialogues::Encoder;
use marionette_models::{Positions, checkpoint, safetensors_file};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Imports a file as `model` in a new folder.
fn import(gguf: &Path, more: &[&str]) -> (TempDir, Output) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_marionette-export"))
        .arg("import")
        .arg(gguf)
        .args(["--out", folder.path().join("model").to_str().unwrap()])
        .args(more)
        .output()
        .unwrap();
    (folder, output)
}

fn refused(gguf: &Path, more: &[&str], code: i32, part: &str) {
    let (folder, output) = import(gguf, more);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(code) && error.contains(part), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{error}");
}

#[test]
fn a_whole_file_is_what_transformers_makes_of_it() {
    let (folder, output) = import(&fixture("llama.gguf"), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let model = folder.path().join("model");
    // Rows of queries and keys in transformers' order, every block's values to the bit.
    let read = |path: &Path| safetensors_file::read(path).unwrap().0;
    assert_eq!(read(&model.join("model.safetensors")), read(&fixture("llama.safetensors")));
    let config = checkpoint::read_base(&model).unwrap().config;
    assert_eq!((config.n_head, config.n_kv_head, config.head_dim, config.n_inner), (4, 2, 16, 64));
    assert_eq!((config.n_positions, config.norm_epsilon, config.eos_token_id, config.tied), (64, 1e-5, 2, true));
    assert_eq!(config.positions, Positions::Rotary { base: 1000.0 });

    // ChatML's turns; the control tokens are 0 to 2, bytes lie from 3, "the" and " the" are merged.
    let encoder = Encoder::from_folder(&model, &config).unwrap();
    let (form, tokenizer) = (encoder.form(), encoder.tokenizer());
    let word = |text: &str| tokenizer.encode(text).unwrap();
    assert_eq!(form.reply.before, [&[1], &word("assistant\n")[..]].concat());
    assert_eq!(form.reply.after, [&[2], &word("\n")[..]].concat());
    assert_eq!((word("the"), word(" the"), word("<|im_end|>").len()), (vec![260], vec![262], 10));
}

#[test]
fn the_context_can_be_shortened() {
    let (folder, output) = import(&fixture("llama.gguf"), &["--context", "40"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(checkpoint::read_base(&folder.path().join("model")).unwrap().config.n_positions, 40);
    refused(&fixture("llama.gguf"), &["--context", "65"], 2, "--context is 65, expected 1 to 64");
    refused(&fixture("llama.gguf"), &["--context", "0"], 2, "1 to 1048576");
}

#[test]
fn what_it_cannot_be_is_refused() {
    let whole = fs::read(fixture("llama.gguf")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let changed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        let path = scratch.path().join("changed.gguf");
        fs::write(&path, bytes).unwrap();
        path
    };
    for (from, to, part) in [
        ("llama.context_length", "lambs.context_length", "llama.context_length: is missing"),
        ("smollm", "chatgl", "tokenizer.ggml.pre: is chatgl, expected default"),
        ("blk.1.ffn_up.weight", "blk.7.ffn_up.weight", "layers.1.mlp.up_proj.weight: is missing"),
        ("output_norm.weight", "rope_freqs1.weight", "rope_freqs1.weight: does not belong to this model"),
    ] {
        refused(&changed(from, to), &[], 1, part);
    }
    let cut = scratch.path().join("cut.gguf");
    fs::write(&cut, &whole[..whole.len() - 1]).unwrap();
    refused(&cut, &[], 1, "cut.gguf");
    refused(&scratch.path().join("none.gguf"), &[], 1, "none.gguf");
}
