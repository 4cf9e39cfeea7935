//! Model and adapter files: what is read, what is refused.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use marionette_models::checkpoint::{self, CONFIG_JSON, MODEL_SAFETENSORS, Storage};
use marionette_models::params::{adapter_table, base_table};
use marionette_models::safetensors_file::{self, FileMetadata, RawTensor};
use marionette_models::{AdapterConfig, Gpt2Shape, HostTensor, ModelConfig, TensorSpec, Tensors};

const ADAPTER: AdapterConfig = AdapterConfig::in_all_blocks(2);

fn config() -> ModelConfig {
    ModelConfig { n_inner: 8, ..Gpt2Shape { vocab_size: 7, n_positions: 5, n_embd: 4, n_layer: 2, n_head: 2 }.into() }
}

/// Values that f16 holds exactly.
fn tensors(table: &[TensorSpec]) -> Tensors {
    let tensor = |spec: &TensorSpec| HostTensor {
        shape: spec.shape.clone(),
        values: (0..spec.len()).map(|i| (i % 64) as f32 / 64.0).collect(),
    };
    table.iter().map(|spec| (spec.name.clone(), tensor(spec))).collect()
}

/// A model folder whose safetensors entries were changed by `change`.
fn folder_with(change: impl FnOnce(&mut BTreeMap<String, RawTensor>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    checkpoint::write_base(folder.path(), &config(), &tensors(&base_table(&config())), Storage::F32).unwrap();
    let path = folder.path().join(MODEL_SAFETENSORS);
    let (mut raw, _) = safetensors_file::read(&path).unwrap();
    change(&mut raw);
    safetensors_file::write(&path, &raw, FileMetadata::HuggingFace).unwrap();
    folder
}

fn refusal(change: impl FnOnce(&mut BTreeMap<String, RawTensor>)) -> String {
    checkpoint::read_base(folder_with(change).path()).unwrap_err().to_string()
}

#[test]
fn a_model_round_trips_in_every_storage() {
    let expected = tensors(&base_table(&config()));
    for storage in [Storage::F32, Storage::F16] {
        let folder = tempfile::tempdir().unwrap();
        checkpoint::write_base(folder.path(), &config(), &expected, storage).unwrap();
        let base = checkpoint::read_base(folder.path()).unwrap();
        assert_eq!((base.config, &base.tensors), (config(), &expected));
    }
    let bf16 = folder_with(|raw| {
        for tensor in raw.values_mut() {
            let values = tensor.to_f32().unwrap().values;
            tensor.dtype = safetensors::Dtype::BF16;
            tensor.bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        }
    });
    assert_eq!(checkpoint::read_base(bf16.path()).unwrap().tensors, expected);
}

#[test]
fn prefixed_names_mask_buffers_and_a_tied_head_are_understood() {
    let folder = folder_with(|raw| {
        let head = raw["wte.weight"].clone();
        *raw = std::mem::take(raw).into_iter().map(|(name, t)| (format!("transformer.{name}"), t)).collect();
        raw.insert("lm_head.weight".into(), head);
        raw.insert("transformer.h.0.attn.bias".into(), RawTensor::f32(&[1, 1, 1, 1], &[1.0]));
        raw.insert("transformer.h.0.attn.masked_bias".into(), RawTensor::f32(&[], &[-1e4]));
    });
    assert_eq!(checkpoint::read_base(folder.path()).unwrap().tensors, tensors(&base_table(&config())));
}

#[test]
fn every_tensor_is_accounted_for() {
    for (message, expected) in [
        (refusal(|raw| drop(raw.remove("h.1.ln_2.bias"))), "h.1.ln_2.bias: is missing"),
        (
            refusal(|raw| drop(raw.insert("h.2.ln_2.bias".into(), RawTensor::f32(&[1], &[0.0])))),
            "h.2.ln_2.bias: does not",
        ),
        (
            refusal(|raw| raw.get_mut("h.0.attn.c_proj.weight").unwrap().shape = vec![16]),
            "h.0.attn.c_proj.weight: has shape [16], expected [4, 4]",
        ),
        (
            refusal(|raw| drop(raw.insert("ln_f.bias".into(), RawTensor::f32(&[4], &[0.0, f32::NAN, 0.0, 0.0])))),
            "ln_f.bias: value 1 is NaN",
        ),
        (refusal(|raw| drop(raw.insert("ln_f.bias".into(), RawTensor::i64(&[4], &[0; 4])))), "ln_f.bias: has type I64"),
        (
            refusal(|raw| drop(raw.insert("lm_head.weight".into(), RawTensor::f32(&[7, 4], &[0.5; 28])))),
            "lm_head.weight: differs from wte.weight",
        ),
        (
            refusal(|raw| drop(raw.insert("transformer.ln_f.bias".into(), raw["ln_f.bias"].clone()))),
            "ln_f.bias: is there with and without the prefix",
        ),
    ] {
        assert!(message.contains(expected) && message.contains(MODEL_SAFETENSORS), "{message}");
    }
}

#[test]
fn missing_and_foreign_files_are_named() {
    let folder = folder_with(|_| ());
    fs::remove_file(folder.path().join(CONFIG_JSON)).unwrap();
    assert!(checkpoint::read_base(folder.path()).unwrap_err().to_string().contains(CONFIG_JSON));
    let folder = folder_with(|_| ());
    fs::remove_file(folder.path().join(MODEL_SAFETENSORS)).unwrap();
    assert!(checkpoint::read_base(folder.path()).unwrap_err().to_string().contains(MODEL_SAFETENSORS));
    assert!(checkpoint::read_base(Path::new("no/such")).unwrap_err().to_string().contains("is not a folder"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let folder = folder_with(|_| ());
    let path = folder.path().join(MODEL_SAFETENSORS);
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        fs::write(&path, &whole[..length]).unwrap();
        let error = checkpoint::read_base(folder.path()).unwrap_err().to_string();
        assert!(error.contains(MODEL_SAFETENSORS), "cut at {length}: {error}");
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert!(checkpoint::read_base(folder.path()).unwrap_err().to_string().contains("describes"));
}

#[test]
fn lying_headers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let file = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    };
    let many: Vec<String> =
        (0..100_000).map(|i| format!(r#""t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    for (what, bytes) in [
        ("length 2^63", (1_u64 << 63).to_le_bytes().to_vec()),
        ("length over 100 MB", [200_000_000_u64.to_le_bytes().as_slice(), &[b' '; 64]].concat()),
        (
            "duplicate key",
            file(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
                1,
            ),
        ),
        ("overflowing shape", file(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,0]}}"#, 0)),
        (
            "overlap",
            file(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                3,
            ),
        ),
        (
            "gap",
            file(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
                3,
            ),
        ),
        ("size against shape", file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4)),
        ("not JSON", file("hello", 0)),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = safetensors_file::read(&path).unwrap_err().to_string();
        assert!(error.contains("x.safetensors") && !error.contains('\n'), "{what}: {error}");
    }
    // Many tensors are read in bounded time, and refused as what they are.
    fs::write(&path, file(&format!("{{{}}}", many.join(",")), 0)).unwrap();
    let error = checkpoint::read_adapters(&path, &config(), &ADAPTER).unwrap_err().to_string();
    assert!(error.contains("h.0.attn_adapter.down.weight: is missing"), "{error}");
}

#[test]
fn adapters_round_trip_with_metadata_and_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = tensors(&adapter_table(&config(), &ADAPTER));
    let metadata: BTreeMap<String, String> = (0..9).map(|i| (format!("key{i}"), format!("value\n\"{i}\""))).collect();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    checkpoint::write_adapters(&a, &adapters, &metadata).unwrap();
    checkpoint::write_adapters(&b, &adapters, &metadata).unwrap();
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    assert_eq!(checkpoint::read_adapters(&a, &config(), &ADAPTER).unwrap(), (adapters, metadata));
}

#[test]
fn every_bit_of_a_file_of_ours_is_protected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("persona.safetensors");
    let config = ModelConfig { n_layer: 1, ..config() };
    let adapters = tensors(&adapter_table(&config, &ADAPTER));
    let metadata = BTreeMap::from([("name".to_owned(), "ann \"\n\\".to_owned()), ("base".to_owned(), "ab".to_owned())]);
    checkpoint::write_adapters(&path, &adapters, &metadata).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut of_values = 0;
    for bit in 0..8 * whole.len() {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &changed).unwrap();
        for error in [
            checkpoint::read_adapters(&path, &config, &ADAPTER).map(drop).unwrap_err(),
            safetensors_file::read(&path).map(drop).unwrap_err(),
        ] {
            of_values += usize::from(
                error
                    .to_string()
                    .ends_with("was changed since it was written (restore it from a copy, or make it again)"),
            );
        }
    }
    // All of the tensors' bits, but for those that make a value infinite or NaN.
    let values: usize = adapters.values().map(|tensor| tensor.values.len()).sum();
    assert!(of_values > 2 * 30 * values, "{of_values}");
}

#[test]
fn a_file_of_ours_from_before_checksums_is_read_and_one_with_more_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapters.safetensors");
    let adapters = tensors(&adapter_table(&config(), &ADAPTER));
    let metadata = BTreeMap::from([("sha256".to_owned(), "mine".to_owned())]);
    checkpoint::write_adapters(&path, &adapters, &metadata).unwrap();
    let whole = fs::read(&path).unwrap();
    let begin = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&whole[8..begin]).unwrap();
    let write = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut header = header.clone();
        change(header["__metadata__"].as_object_mut().unwrap());
        let json = header.to_string();
        let bytes = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &whole[begin..]].concat();
        fs::write(&path, bytes).unwrap();
        checkpoint::read_adapters(&path, &config(), &ADAPTER).map_err(|error| error.to_string())
    };
    assert_eq!(write(&|_| ()).unwrap(), (adapters.clone(), metadata.clone()));
    assert_eq!(write(&|map| drop(map.remove("marionette_sha256"))).unwrap(), (adapters, metadata));
    let more = write(&|map| drop(map.insert("more".into(), "text".into()))).unwrap_err();
    assert!(more.contains("the metadata has \"more\" beside \"marionette\""), "{more}");
    let alone = write(&|map| drop(map.remove("marionette"))).unwrap_err();
    assert!(alone.contains("\"marionette_sha256\", but not \"marionette\""), "{alone}");
}

#[test]
fn tensors_without_values_are_part_of_the_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    // In the file the wider type is first, where they are read by name.
    let raw = BTreeMap::from([
        ("a".to_owned(), RawTensor::f32(&[0], &[])),
        ("b".to_owned(), RawTensor::i64(&[0, 3], &[])),
        ("c".to_owned(), RawTensor::f16(&[2], &[1.0, 2.0])),
    ]);
    safetensors_file::write(&path, &raw, FileMetadata::Ours(&BTreeMap::new())).unwrap();
    assert_eq!(safetensors_file::read(&path).unwrap().0, raw);
}

#[test]
fn nan_is_never_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("persona");
    let mut adapters = tensors(&adapter_table(&config(), &ADAPTER));
    checkpoint::write_adapters(&path, &adapters, &BTreeMap::new()).unwrap();
    let old = fs::read(&path).unwrap();
    adapters.get_mut("h.1.mlp_adapter.up.bias").unwrap().values[3] = f32::NAN;
    let error = checkpoint::write_adapters(&path, &adapters, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("h.1.mlp_adapter.up.bias: holds NaN"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), old);
}

#[test]
fn the_bytes_are_those_of_the_safetensors_crate() {
    let raw = BTreeMap::from([
        ("b".to_owned(), RawTensor::f16(&[3], &[1.0, -2.5, 0.0])),
        ("a".to_owned(), RawTensor::f16(&[1, 1], &[0.25])),
        ("c".to_owned(), RawTensor::f32(&[2, 2], &[1.0, 2.0, 3.0, 4.0])),
        ("d".to_owned(), RawTensor::i64(&[2], &[7, -7])),
        ("nothing".to_owned(), RawTensor::f32(&[0, 4], &[])),
    ]);
    let views = raw.iter().map(|(name, raw)| {
        (name, safetensors::tensor::TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).unwrap())
    });
    let metadata = [("format".to_owned(), "pt".to_owned())];
    let expected = safetensors::serialize(views, Some(metadata.into())).unwrap();
    assert_eq!(safetensors_file::to_bytes(&raw, FileMetadata::HuggingFace).unwrap(), expected);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.safetensors");
    safetensors_file::write(&path, &raw, FileMetadata::HuggingFace).unwrap();
    assert_eq!(fs::read(&path).unwrap(), expected);
}

#[test]
fn the_digest_of_a_base_stays_what_it_was() {
    // Recorded from the first version that wrote bundles: by it runs, bundles and personas know their base.
    let tiny = checkpoint::read_base(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny")).unwrap();
    let found = marionette_models::digest::base_sha256(&tiny.config, &tiny.tensors);
    assert_eq!(found, "7dc66f0493ce24a6eac6d352b6385611234c854889d3ed7e1b829fd2818396f4");
}
