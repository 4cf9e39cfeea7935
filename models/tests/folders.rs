//! Model folders as people have them: in shards, with heads for other tasks, behind links, or no model at all.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use marionette_models::checkpoint::{self, Base, CONFIG_JSON, MODEL_SAFETENSORS, Storage};
use marionette_models::params::base_table;
use marionette_models::safetensors_file::{self, FileMetadata, RawTensor};
use marionette_models::{Gpt2Shape, HostTensor, ModelConfig, TensorSpec};
use serde_json::{Value, json};

const INDEX: &str = "model.safetensors.index.json";
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:abab\nsize 548105171\n";

fn base() -> Base {
    let config: ModelConfig = Gpt2Shape { vocab_size: 7, n_positions: 5, n_embd: 4, n_layer: 1, n_head: 2 }.into();
    let tensor = |spec: &TensorSpec| HostTensor {
        shape: spec.shape.clone(),
        values: (0..spec.len()).map(|i| (i % 64) as f32 / 64.0).collect(),
    };
    let tensors = base_table(&config).iter().map(|spec| (spec.name.clone(), tensor(spec))).collect();
    Base { config, tensors, notes: Vec::new() }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = base();
    checkpoint::write_base(folder.path(), &base.config, &base.tensors, Storage::F32).unwrap();
    folder
}

fn change_tensors(dir: &Path, change: impl FnOnce(&mut BTreeMap<String, RawTensor>)) {
    change_tensors_of(&dir.join(MODEL_SAFETENSORS), change);
}

fn change_tensors_of(path: &Path, change: impl FnOnce(&mut BTreeMap<String, RawTensor>)) {
    let (mut raw, _) = safetensors_file::read(path).unwrap();
    change(&mut raw);
    safetensors_file::write(path, &raw, FileMetadata::HuggingFace).unwrap();
}

fn set(dir: &Path, field: &str, value: Value) {
    let path = dir.join(CONFIG_JSON);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[field] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// Takes a folder's weights apart into `a.safetensors` and `b.safetensors`.
fn take_apart(dir: &Path) {
    let (mut raw, _) = safetensors_file::read(&dir.join(MODEL_SAFETENSORS)).unwrap();
    fs::remove_file(dir.join(MODEL_SAFETENSORS)).unwrap();
    let half = raw.keys().nth(raw.len() / 2).unwrap().clone();
    let second = raw.split_off(&half);
    let mut map = serde_json::Map::new();
    for (shard, tensors) in [("a.safetensors", raw), ("b.safetensors", second)] {
        map.extend(tensors.keys().map(|name| (name.clone(), shard.into())));
        safetensors_file::write(&dir.join(shard), &tensors, FileMetadata::HuggingFace).unwrap();
    }
    fs::write(dir.join(INDEX), json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string()).unwrap();
}

fn refusal(dir: &Path) -> String {
    let error = checkpoint::read_base(dir).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.contains(dir.to_str().unwrap()), "{error}");
    error
}

#[test]
fn shards_are_read_as_their_index_says() {
    let folder = folder();
    let dir = folder.path();
    take_apart(dir);
    assert_eq!(checkpoint::read_base(dir).unwrap(), base());

    let index = fs::read_to_string(dir.join(INDEX)).unwrap();
    for outside in ["../a.safetensors", "/etc/a.safetensors", "x/../a.safetensors"] {
        fs::write(dir.join(INDEX), index.replacen("a.safetensors", outside, 1)).unwrap();
        let error = refusal(dir);
        assert!(error.contains(INDEX) && error.contains(outside) && error.contains("of this folder"), "{error}");
    }
    // A tensor that lies elsewhere than the index says.
    fs::write(dir.join(INDEX), index.replacen("b.safetensors", "a.safetensors", 1)).unwrap();
    assert!(refusal(dir).contains("a.safetensors: "), "{}", refusal(dir));
    assert!(refusal(dir).contains("is missing, but model.safetensors.index.json says it is here"));
    // A tensor that is nowhere.
    let whole = fs::read(dir.join("a.safetensors")).unwrap();
    change_tensors_of(&dir.join("a.safetensors"), |raw| drop(raw.remove("h.0.attn.c_attn.bias")));
    fs::write(dir.join(INDEX), index.replacen("\"h.0.attn.c_attn.bias\":\"a.safetensors\",", "", 1)).unwrap();
    assert!(refusal(dir).contains("model.safetensors.index.json: h.0.attn.c_attn.bias: is missing, expected"));
    fs::write(dir.join("a.safetensors"), whole).unwrap();
    fs::write(dir.join(INDEX), "{}").unwrap();
    assert!(refusal(dir).contains("is no index of tensors and files"));

    fs::write(dir.join(INDEX), &index).unwrap();
    let second = dir.join("b.safetensors");
    let (mut raw, _) = safetensors_file::read(&second).unwrap();
    let (first, _) = safetensors_file::read(&dir.join("a.safetensors")).unwrap();
    let (name, tensor) = first.into_iter().next().unwrap();
    raw.insert(name.clone(), tensor);
    safetensors_file::write(&second, &raw, FileMetadata::HuggingFace).unwrap();
    let error = refusal(dir);
    assert!(
        error.contains(&format!("b.safetensors: {name}: is in ")) && error.contains("a.safetensors too"),
        "{error}"
    );
    fs::remove_file(second).unwrap();
    assert!(refusal(dir).contains("b.safetensors: is missing, but model.safetensors.index.json names it"));
}

#[test]
fn heads_for_other_tasks_are_passed_over_and_noted() {
    let folder = folder();
    change_tensors(folder.path(), |raw| {
        raw.insert("multiple_choice_head.summary.weight".into(), RawTensor::f32(&[1, 4], &[0.0; 4]));
        raw.insert("multiple_choice_head.summary.bias".into(), RawTensor::f32(&[1], &[0.0]));
        raw.insert("score.weight".into(), RawTensor::f32(&[2, 4], &[0.0; 8]));
    });
    let found = checkpoint::read_base(folder.path()).unwrap();
    assert_eq!(found.tensors, base().tensors);
    assert_eq!(found.notes.len(), 2, "{:?}", found.notes);
    assert!(found.notes[0].contains("multiple_choice_head.* is passed over"), "{:?}", found.notes);
}

#[test]
fn an_untied_gpt2_is_taken_where_its_head_is_the_embedding() {
    let folder = folder();
    let dir = folder.path();
    set(dir, "tie_word_embeddings", false.into());
    assert!(refusal(dir).contains("lm_head.weight: is missing, but config.json has tie_word_embeddings false"));
    change_tensors(dir, |raw| drop(raw.insert("lm_head.weight".into(), raw["wte.weight"].clone())));
    let found = checkpoint::read_base(dir).unwrap();
    assert_eq!((&found.config, &found.tensors), (&base().config, &base().tensors));
    assert!(found.notes[0].contains("lm_head.weight equals wte.weight"), "{:?}", found.notes);
    change_tensors(dir, |raw| drop(raw.insert("lm_head.weight".into(), RawTensor::f32(&[7, 4], &[0.5; 28]))));
    let error = refusal(dir);
    assert!(
        error.contains("lm_head.weight: differs from wte.weight, but a GPT-2 with a head of its own is not supported"),
        "{error}"
    );
    set(dir, "tie_word_embeddings", true.into());
    assert!(refusal(dir).contains("lm_head.weight: differs from wte.weight, but config.json does not have tie_word"));
}

#[test]
fn gelu_fast_and_a_list_of_ends_are_understood() {
    let folder = folder();
    set(folder.path(), "activation_function", "gelu_fast".into());
    set(folder.path(), "eos_token_id", json!([6]));
    assert_eq!(checkpoint::read_base(folder.path()).unwrap(), base());
}

#[cfg(unix)]
#[test]
fn links_are_followed_as_a_hub_cache_has_them() {
    use std::os::unix::fs::symlink;
    let folder = folder();
    let snapshot = folder.path().join("snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    for file in [CONFIG_JSON, MODEL_SAFETENSORS] {
        symlink(Path::new("../..").join(file), snapshot.join(file)).unwrap();
    }
    assert_eq!(checkpoint::read_base(&snapshot).unwrap(), base());
    // A link that leads nowhere is named, whatever lies beside it.
    fs::remove_file(folder.path().join(MODEL_SAFETENSORS)).unwrap();
    assert!(refusal(&snapshot).contains("model.safetensors: cannot be read"));
}

#[test]
fn what_is_no_model_says_what_it_is() {
    let folder = folder();
    let dir = folder.path();
    fs::write(dir.join(MODEL_SAFETENSORS), POINTER).unwrap();
    let error = refusal(dir);
    assert!(error.contains("model.safetensors: is git-lfs's pointer") && error.contains("git lfs pull"), "{error}");
    fs::rename(dir.join(MODEL_SAFETENSORS), dir.join("pytorch_model.bin")).unwrap();
    let error = refusal(dir);
    assert!(error.contains("pytorch_model.bin beside it is not read") && error.contains("save_pretrained"), "{error}");
    fs::remove_file(dir.join("pytorch_model.bin")).unwrap();
    fs::rename(dir.join(CONFIG_JSON), dir.join("adapter_config.json")).unwrap();
    let error = refusal(dir);
    assert!(error.contains("holds adapters of PEFT") && error.contains("merge_and_unload"), "{error}");
    fs::write(dir.join(CONFIG_JSON), POINTER).unwrap();
    fs::remove_file(dir.join("adapter_config.json")).unwrap();
    assert!(refusal(dir).contains("config.json: is git-lfs's pointer"));
}
