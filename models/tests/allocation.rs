//! What sizes that a file only declares may cost: nothing is read, and no memory taken, before they were found to be the model's.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::path::Path;

use marionette_models::bundle::Precision;
use marionette_models::checkpoint::{self, CONFIG_JSON, MODEL_SAFETENSORS, Storage};
use marionette_models::params::{adapter_table, base_table};
use marionette_models::probe::{Probe, sample};
use marionette_models::safetensors_file::{self, FileMetadata, RawTensor};
use marionette_models::{AdapterConfig, FileError, Gpt2Shape, HostTensor, ModelConfig, TensorSpec, Tensors};
use serde_json::{Value, json};

/// The system's allocator, which knows how much a thread has and had at most.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    HELD.set(HELD.get() + bytes);
    PEAK.set(PEAK.get().max(HELD.get()));
}

// SAFETY: all is left to the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    // `vec![0; n]` asks for zeros: without this it would be touched as well.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were held at a time while `work` ran, beyond those held before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get() - before)
}

const MIB: isize = 1 << 20;
const HUGE: usize = 6_000_000_000;
const ADAPTER: AdapterConfig = AdapterConfig::in_all_blocks(2);

fn config() -> ModelConfig {
    Gpt2Shape { vocab_size: 7, n_positions: 5, n_embd: 4, n_layer: 1, n_head: 2 }.into()
}

fn tensors(table: &[TensorSpec]) -> Tensors {
    let tensor = |spec: &TensorSpec| HostTensor { shape: spec.shape.clone(), values: vec![0.5; spec.len()] };
    table.iter().map(|spec| (spec.name.clone(), tensor(spec))).collect()
}

fn probe() -> Probe {
    let after = tensors(&adapter_table(&config(), &ADAPTER));
    Probe {
        frozen: Precision::Int8,
        input_ids: vec![1, 2, 3],
        loss_mask: vec![false, true, true],
        batch: 1,
        length: 3,
        losses: vec![1.0, 0.5],
        adapters_after: after.into_iter().map(|(name, tensor)| (name, sample(&tensor.values))).collect(),
        log_probs: vec![-1.0; 2],
        logits: vec![0.0; 7],
    }
}

/// Makes a tensor of a file huge, or adds it: as the first of the file, and a hole. The others keep their bytes.
fn inflate(path: &Path, name: &str) {
    let bytes = fs::read(path).unwrap();
    let begin = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..begin]).unwrap();
    // Without checksum, as a file of before: what is refused is refused for its size.
    if let Some(Value::Object(metadata)) = header.get_mut("__metadata__") {
        metadata.remove("marionette_sha256");
    }
    let (mut end, mut data) = (HUGE, Vec::new());
    header.insert(name.to_owned(), json!({ "dtype": "F32", "shape": [HUGE / 4], "data_offsets": [0, end] }));
    for (key, info) in &mut header {
        if key != "__metadata__" && key != name {
            let [first, last] = [0, 1].map(|i| info["data_offsets"][i].as_u64().unwrap() as usize);
            data.extend_from_slice(&bytes[begin + first..begin + last]);
            info["data_offsets"] = json!([end, end + last - first]);
            end += last - first;
        }
    }
    let json = serde_json::to_vec(&header).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(&(json.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&json).unwrap();
    file.seek_relative(HUGE as i64).unwrap();
    file.write_all(&data).unwrap();
    file.set_len((8 + json.len() + end) as u64).unwrap();
}

/// The error of `read`, which takes little memory.
fn refused<T>(most: isize, read: impl FnOnce() -> Result<T, FileError>) -> String {
    let (result, bytes) = peak(read);
    let error = result.err().unwrap().to_string();
    assert!(bytes < most, "{} MiB for: {error}", bytes / MIB);
    assert!(!error.contains('\n'), "{error}");
    error
}

fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    checkpoint::write_base(folder.path(), &config(), &tensors(&base_table(&config())), Storage::F32).unwrap();
    folder
}

#[test]
fn a_huge_tensor_is_judged_by_the_header() {
    for (name, problem) in [
        ("foreign", "foreign: does not belong to this model"),
        ("h.0.attn_adapter.down.weight", "has shape [1500000000], expected [4, 2]"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapters.safetensors");
        checkpoint::write_adapters(&path, &tensors(&adapter_table(&config(), &ADAPTER)), &BTreeMap::new()).unwrap();
        inflate(&path, name);
        let error = refused(MIB, || checkpoint::read_adapters(&path, &config(), &ADAPTER));
        assert!(error.contains(problem), "{error}");
        assert!(refused(MIB, || safetensors_file::read(&path)).contains("expected at most 268435456"));
    }
    for (name, problem) in [
        ("foreign", "foreign: does not belong to this model"),
        ("logits", "logits: has shape [1500000000], expected [7]"),
        ("losses", "losses: has shape [1500000000], expected [steps]"),
        ("input_ids", "input_ids: has shape [1500000000], expected [batch, tokens]"),
        ("after.h.0.mlp_adapter.up.bias", "has shape [1500000000], expected [4]"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe.safetensors");
        probe().write(&path).unwrap();
        assert_eq!(Probe::read(&path, &config(), &ADAPTER).unwrap(), probe());
        inflate(&path, name);
        let error = refused(MIB, || Probe::read(&path, &config(), &ADAPTER));
        assert!(error.contains(problem), "{error}");
    }
    for (name, problem) in [
        ("foreign", "foreign: does not belong to this model"),
        ("wte.weight", "wte.weight: has shape [1500000000], expected [7, 4]"),
        ("lm_head.weight", "lm_head.weight: has shape [1500000000], expected [7, 4]"),
    ] {
        let folder = model();
        inflate(&folder.path().join(MODEL_SAFETENSORS), name);
        let error = refused(MIB, || checkpoint::read_base(folder.path()));
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_huge_tensor_that_is_passed_over_is_not_read() {
    for name in ["score.weight", "h.0.attn.bias"] {
        let folder = model();
        inflate(&folder.path().join(MODEL_SAFETENSORS), name);
        let (base, bytes) = peak(|| checkpoint::read_base(folder.path()).unwrap());
        assert_eq!(base.tensors, tensors(&base_table(&config())));
        assert!(bytes < MIB, "{name}: {bytes}");
    }
}

#[test]
fn a_config_that_says_more_than_the_file_holds_is_refused() {
    let folder = model();
    let path = folder.path().join(CONFIG_JSON);
    let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (field, size, problem) in [
        ("n_embd", 1 << 16, "n_embd: is 65536, expected 1 to 32768"),
        ("n_embd", 1 << 15, "wte.weight: has shape [7, 4], expected [7, 32768]"),
        ("vocab_size", 1 << 21, "vocab_size: is 2097152, expected 1 to 1048576"),
        ("vocab_size", 1 << 20, "wte.weight: has shape [7, 4], expected [1048576, 4]"),
        ("n_layer", 1 << 10, "h.1.ln_1.weight: is missing"),
        ("n_inner", 1 << 18, "n_inner: is 262144, expected 1 to 131072"),
    ] {
        let mut config = written.clone();
        config["n_head"] = if field == "n_embd" { 16.into() } else { config["n_head"].take() };
        config[field] = size.into();
        fs::write(&path, config.to_string()).unwrap();
        let error = refused(16 * MIB, || checkpoint::read_base(folder.path()));
        assert!(error.contains(problem), "{error}");
    }
    let adapters = folder.path().join("adapters.safetensors");
    checkpoint::write_adapters(&adapters, &tensors(&adapter_table(&config(), &ADAPTER)), &BTreeMap::new()).unwrap();
    let wide = ModelConfig { n_embd: 1 << 15, n_layer: 1 << 10, ..config() };
    let error =
        refused(16 * MIB, || checkpoint::read_adapters(&adapters, &wide, &AdapterConfig::in_all_blocks(1 << 15)));
    assert!(error.contains("has shape [4, 2], expected [32768, 32768]"), "{error}");
}

#[test]
fn headers_of_many_entries_are_given_up_early() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let write = |json: &str| {
        fs::write(&path, [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()).unwrap();
    };
    let of = |entries: usize| -> String {
        let entry = |i: usize| format!(r#""t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
        format!("{{{}}}", (0..entries).map(entry).collect::<Vec<_>>().join(","))
    };
    write(&of(1_200_000));
    let error = refused(MIB, || safetensors_file::read(&path));
    assert!(error.contains("bytes, expected at most 25000000"), "{error}");
    write(&of(400_000));
    let error = refused(64 * MIB, || safetensors_file::read(&path));
    assert!(error.contains("more than 100000 entries"), "{error}");
    let texts: Vec<String> = (0..1_200_000).map(|i| format!("\"{i}\":\"\"")).collect();
    write(&format!("{{\"__metadata__\":{{{}}}}}", texts.join(",")));
    let error = refused(64 * MIB, || safetensors_file::read(&path));
    assert!(error.contains("more than 100000 entries"), "{error}");
    let ours = format!("{{{}}}", texts.join(","));
    write(&json!({ "__metadata__": { "marionette": ours } }).to_string());
    let error = refused(96 * MIB, || safetensors_file::read(&path));
    assert!(error.contains("more than 100000 entries"), "{error}");
    let shape = "1,".repeat(10_000_000);
    write(&format!(r#"{{"a":{{"dtype":"U8","shape":[{shape}1],"data_offsets":[0,1]}}}}"#));
    let error = refused(64 * MIB, || safetensors_file::read(&path));
    assert!(error.contains("more than 32 dimensions"), "{error}");
}

#[test]
fn an_index_of_many_tensors_or_shards_is_given_up_early() {
    let folder = model();
    fs::remove_file(folder.path().join(MODEL_SAFETENSORS)).unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    let of = |entries: usize, shards: usize| {
        let entries: Vec<String> = (0..entries).map(|i| format!("\"{i}\":\"{}\"", i % shards)).collect();
        format!("{{\"weight_map\":{{{}}}}}", entries.join(","))
    };
    for (text, problem) in [
        (of(1_200_000, 1), "more than 100000 entries"),
        (of(600, 600), "names 600 shards, expected at most 512"),
        (" ".repeat(17 << 20), "is larger than 16777216 bytes"),
    ] {
        fs::write(&index, text).unwrap();
        let error = refused(128 * MIB, || checkpoint::read_base(folder.path()));
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn the_allocator_counts() {
    let (_, bytes) = peak(|| drop(std::hint::black_box(vec![0_u8; 1 << 20])));
    assert_eq!(bytes, MIB);
    let small = RawTensor::f32(&[1], &[0.5]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small");
    safetensors_file::write(&path, &BTreeMap::from([("a".to_owned(), small)]), FileMetadata::HuggingFace).unwrap();
    assert!(peak(|| safetensors_file::read(&path).unwrap()).1 > 0);
}
