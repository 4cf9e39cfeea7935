//! Bundles of format 1, which a former exporter wrote: opened, and refused where they are not what it wrote.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

use std::fs;
use std::path::{Path, PathBuf};

use marionette_models::bundle::{self, Bundle, GENERATE, MANIFEST, SCORE, SUMS};
use marionette_models::onnx::{AttributeProto, ModelProto, attribute_type};
use marionette_models::{Gpt2Shape, ModelConfig, PromptForm, digest};
use prost::Message as _;
use tempfile::TempDir;

const BUNDLES: [&str; 2] = ["fp32-ort", "int8-ort"];

fn copied(name: &str) -> (TempDir, PathBuf) {
    let from = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/format-1")).join(name);
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let dir = folder.path().to_owned();
    (folder, dir)
}

/// The error of opening a bundle after `change`.
fn refusal(change: impl FnOnce(&Path)) -> String {
    let (_folder, dir) = copied(BUNDLES[0]);
    change(&dir);
    let error = Bundle::open(&dir).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.contains(dir.to_str().unwrap()), "{error}");
    error
}

fn edit_manifest(dir: &Path, from: &str, to: &str) {
    let path = dir.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Changes a graph, with a length and a digest that fit.
fn edit_graph(dir: &Path, change: impl FnOnce(&mut ModelProto)) {
    let path = dir.join(SCORE);
    let old = fs::read(&path).unwrap();
    let mut graph = ModelProto::decode(&old[..]).unwrap();
    change(&mut graph);
    let new = graph.encode_to_vec();
    fs::write(path, &new).unwrap();
    edit_manifest(dir, &digest::sha256(&old), &digest::sha256(&new));
    edit_manifest(dir, &format!("\"bytes\": {}", old.len()), &format!("\"bytes\": {}", new.len()));
}

fn heads_of_keys() -> AttributeProto {
    AttributeProto { name: "kv_num_heads".into(), r#type: attribute_type::INT, i: 2, ..Default::default() }
}

#[test]
fn format_1_is_read_as_todays_manifest() {
    for name in BUNDLES {
        let (_folder, dir) = copied(name);
        let bundle = Bundle::open(&dir).unwrap();
        let shape = Gpt2Shape { vocab_size: 300, n_positions: 64, n_embd: 16, n_layer: 2, n_head: 2 };
        let expected = ModelConfig { n_inner: 32, eos_token_id: 256, ..shape.into() };
        let manifest = bundle.manifest();
        assert_eq!((manifest.format_version, &manifest.model), (1, &expected));
        assert_eq!(manifest.prompt, PromptForm::plain(256));
        assert_eq!(bundle.adapters().unwrap().len(), 16);
    }
}

/// There is none unless somebody adds it; then it counts.
#[test]
fn a_digest_that_is_there_is_checked() {
    let (_folder, dir) = copied(BUNDLES[0]);
    bundle::seal(&dir).unwrap();
    Bundle::open(&dir).unwrap();
    let change = |dir: &Path| edit_manifest(dir, "\"persona_text\": false", "\"persona_text\": true");
    let error = refusal(|dir| {
        bundle::seal(dir).unwrap();
        change(dir);
    });
    assert!(error.contains("manifest.json: has another digest than SHA256SUMS says"), "{error}");
    for content in ["", "nothing"] {
        let error = refusal(|dir| fs::write(dir.join(SUMS), content).unwrap());
        assert!(error.contains("manifest.json: has another digest than SHA256SUMS says"), "{error}");
    }
    let error = refusal(|dir| fs::create_dir(dir.join(SUMS)).unwrap());
    assert!(error.contains("SHA256SUMS"), "{error}");
}

#[test]
fn wrong_manifests_are_refused_by_field() {
    for (from, to, expected) in [
        ("\"format_version\": 1", "\"format_version\": 0", "is 0, this program reads 1 and 2"),
        ("\"producer\"", "\"surprise\": 1, \"producer\"", "unknown field `surprise`"),
        ("\"producer\"", "\"prompt\": {}, \"producer\"", "unknown field `prompt`"),
        ("\"vocab_size\"", "\"family\": \"llama\", \"vocab_size\"", "unknown field `family`"),
        ("\"gelu_new\"", "\"swi_glu\"", "unknown variant `swi_glu`"),
        ("\"n_head\": 2", "\"n_head\": 3", "model.n_head: is 3, which does not divide n_embd = 16"),
        ("\"n_head\": 2", "\"n_head\": 0", "model.n_head: is 0"),
        ("\"layer_norm_epsilon\": 0.00001", "\"layer_norm_epsilon\": 7", "model.layer_norm_epsilon: is 7"),
        ("\"eos_token_id\": 256", "\"eos_token_id\": 300", "model.eos_token_id: is 300"),
        // Those of before the second way to adapt.
        ("\"adapt-recomputed.onnx\": {", "\"prefill.onnx\": {", "adapt-recomputed.onnx is not listed"),
    ] {
        let error = refusal(|dir| edit_manifest(dir, from, to));
        assert!(error.contains("manifest.json: ") && error.contains(expected), "{to}: {error}");
        assert!(error.ends_with(" (export the model, or the run, again)"), "{error}");
    }
    for (to, expected) in [
        ("\"format_version\": 2", "unknown field `activation_function`"),
        ("\"format_version\": 3", "is 3, this program reads 1 and 2 (use a newer marionette)"),
    ] {
        let error = refusal(|dir| edit_manifest(dir, "\"format_version\": 1", to));
        assert!(error.contains("manifest.json: ") && error.contains(expected), "{error}");
    }
}

/// The operators of format 1 are those that its exporter wrote, in format 1 alone.
#[test]
fn attention_has_the_attributes_of_its_format() {
    let error = refusal(|dir| {
        edit_graph(dir, |graph| {
            let nodes = &mut graph.graph.as_mut().unwrap().node;
            let node = nodes.iter_mut().find(|node| node.op_type == "BranchedAttention").unwrap();
            node.attribute.push(heads_of_keys());
        });
    });
    assert!(error.contains("kv_num_heads: is none that this operator has") && error.contains("(export"), "{error}");
    let error = refusal(|dir| {
        edit_graph(dir, |graph| {
            let function = graph.functions.iter_mut().find(|function| function.name == "BranchedAttention").unwrap();
            function.attribute.push("kv_num_heads".into());
        });
    });
    assert!(error.contains("takes or gives something else") && error.contains("(export"), "{error}");
    // A graph of then under a manifest of today.
    let (_folder, dir) = copied(BUNDLES[0]);
    let mut manifest = Bundle::open(&dir).unwrap().manifest().clone();
    manifest.format_version = bundle::FORMAT_VERSION;
    let read = |file: &str| fs::read(dir.join(file)).unwrap();
    let audit = |name: &str, file: &str, manifest: &bundle::Manifest| {
        bundle::audit(&dir.join(file), &read(file), &manifest.graphs[name], manifest, 1 << 20)
    };
    let error = audit("score", SCORE, &manifest).unwrap_err().to_string();
    assert!(error.contains("BranchedAttention: takes or gives something else"), "{error}");
    // Without attention of ours, the two formats are one.
    audit("generate", GENERATE, &manifest).unwrap();
}
