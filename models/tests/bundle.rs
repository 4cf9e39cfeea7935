//! Bundles: written whole, opened only when everything is what the manifest says.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use marionette_models::bundle::{
    self, Bundle, BundleWriter, DataType, Dim, GraphInterface, Manifest, Operators, Precision, ValueInfo,
};
use marionette_models::checkpoint;
use marionette_models::digest;
use marionette_models::onnx::{self, ModelProto};
use marionette_models::params::adapter_table;
use marionette_models::safetensors_file::{self, FileMetadata};
use marionette_models::{
    AdapterConfig, Gpt2Shape, HostTensor, InnerLoop, LearningRate, ModelConfig, PromptForm, Tensors,
};
use prost::Message as _;

fn manifest() -> Manifest {
    let interface = |file: &str| GraphInterface {
        file: file.to_owned(),
        inputs: vec![ValueInfo {
            name: "x".into(),
            dtype: DataType::F32,
            shape: vec![Dim::Symbol("batch".into()), Dim::Fixed(4)],
        }],
        outputs: vec![],
        memory: None,
    };
    Manifest {
        format_version: bundle::FORMAT_VERSION,
        producer: "test".into(),
        model: ModelConfig {
            n_inner: 8,
            ..Gpt2Shape { vocab_size: 7, n_positions: 5, n_embd: 4, n_layer: 1, n_head: 2 }.into()
        },
        prompt: PromptForm::plain(6),
        adapter: AdapterConfig { bottleneck: 2 },
        base_sha256: "0".repeat(64),
        precision: Precision::Fp32,
        operators: Operators::Ort,
        inner_loop: InnerLoop { steps: 5, dialogues_per_step: 5, learning_rate: LearningRate::Shared(0.1) },
        persona_text: false,
        files: BTreeMap::new(),
        graphs: bundle::GRAPHS.iter().map(|(name, file)| ((*name).to_owned(), interface(file))).collect(),
    }
}

/// A graph with the manifest's interface: one addition of one external weight.
fn graph() -> ModelProto {
    let dim = |value| onnx::DimensionProto { value: Some(value) };
    let entry = |key: &str, value: &str| onnx::StringStringEntryProto { key: key.into(), value: value.into() };
    let shape = vec![dim(onnx::Dimension::Parameter("batch".into())), dim(onnx::Dimension::Value(4))];
    ModelProto {
        ir_version: 10,
        opset_import: vec![onnx::OperatorSetIdProto { domain: String::new(), version: 20 }],
        graph: Some(onnx::GraphProto {
            input: vec![onnx::ValueInfoProto {
                name: "x".into(),
                r#type: Some(onnx::TypeProto {
                    tensor_type: Some(onnx::TensorTypeProto {
                        elem_type: onnx::data_type::FLOAT,
                        shape: Some(onnx::TensorShapeProto { dim: shape }),
                    }),
                }),
            }],
            node: vec![onnx::NodeProto {
                op_type: "Add".into(),
                attribute: vec![onnx::AttributeProto::default()],
                ..Default::default()
            }],
            initializer: vec![onnx::TensorProto {
                dims: vec![4],
                data_type: onnx::data_type::FLOAT,
                name: "w".into(),
                external_data: vec![entry("location", "weights.bin"), entry("offset", "16"), entry("length", "16")],
                data_location: onnx::DATA_EXTERNAL,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn write(dir: &Path, graph: &ModelProto, manifest: Manifest) -> Result<Manifest, marionette_models::FileError> {
    let mut writer = BundleWriter::create(dir)?;
    for (_, file) in bundle::GRAPHS {
        writer.file(file, |w| w.write_all(&graph.encode_to_vec()))?;
    }
    writer.file(bundle::WEIGHTS, |w| w.write_all(&[0; 32]))?;
    let adapters: Tensors = adapter_table(&manifest.model, &manifest.adapter)
        .into_iter()
        .map(|spec| (spec.name.clone(), HostTensor { values: vec![0.5; spec.len()], shape: spec.shape }))
        .collect();
    let raw = checkpoint::adapters_to_raw(&adapters).unwrap();
    let bytes = safetensors_file::to_bytes(&raw, FileMetadata::Ours(&BTreeMap::new())).unwrap();
    writer.file(bundle::ADAPTERS, |w| w.write_all(&bytes))?;
    writer.file(bundle::TOKENIZER, |w| w.write_all(b"{}"))?;
    writer.finish(manifest)
}

fn bundle() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("bundle");
    write(&dir, &graph(), manifest()).unwrap();
    (folder, dir)
}

/// The error of opening a bundle after `change`.
fn refusal(change: impl FnOnce(&Path)) -> String {
    let (_folder, dir) = bundle();
    change(&dir);
    let error = Bundle::open(&dir).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.contains(dir.to_str().unwrap()), "{error}");
    error
}

/// The error of opening a bundle whose graphs were changed by `change`, with digests that fit.
fn graph_refusal(change: impl FnOnce(&mut ModelProto)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = graph();
    change(&mut graph);
    write(&folder.path().join("b"), &graph, manifest()).unwrap();
    Bundle::open(&folder.path().join("b")).unwrap_err().to_string()
}

fn edit_manifest(dir: &Path, from: &str, to: &str) {
    let path = dir.join(bundle::MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn a_bundle_round_trips() {
    let (folder, dir) = bundle();
    let opened = Bundle::open(&dir).unwrap();
    assert_eq!(opened.manifest().model, manifest().model);
    assert_eq!(opened.adapters().unwrap().len(), 8);
    assert!(opened.probe().unwrap().is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    // Over an old bundle, the same again.
    write(&dir, &graph(), manifest()).unwrap();
    assert_eq!(Bundle::open(&dir).unwrap().manifest(), opened.manifest());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_failed_write_leaves_nothing_and_foreign_folders_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("b");
    let mut writer = BundleWriter::create(&dir).unwrap();
    assert!(writer.file(bundle::WEIGHTS, |_| Err(std::io::Error::other("disk full"))).is_err());
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("thesis.txt"), "mine").unwrap();
    assert!(write(&dir, &graph(), manifest()).unwrap_err().to_string().contains("no bundle"));
    assert_eq!(fs::read_to_string(dir.join("thesis.txt")).unwrap(), "mine");
}

#[test]
fn cut_changed_missing_and_extra_files_are_refused() {
    let (_folder, dir) = bundle();
    let names: Vec<String> = Bundle::open(&dir).unwrap().manifest().files.keys().cloned().collect();
    for name in names {
        let cut = refusal(|dir| {
            let bytes = fs::read(dir.join(&name)).unwrap();
            fs::write(dir.join(&name), &bytes[..bytes.len() - 1]).unwrap();
        });
        assert!(cut.contains(&name) && cut.contains("the manifest says"), "{cut}");
        let flipped = refusal(|dir| {
            let mut bytes = fs::read(dir.join(&name)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(dir.join(&name), bytes).unwrap();
        });
        assert!(flipped.contains(&name) && flipped.contains("SHA-256"), "{flipped}");
        let missing = refusal(|dir| fs::remove_file(dir.join(&name)).unwrap());
        assert!(missing.contains(&name) && missing.contains("is missing"), "{missing}");
    }
    let extra = refusal(|dir| fs::write(dir.join("extra"), "").unwrap());
    assert!(extra.contains("extra") && extra.contains("not in the manifest"), "{extra}");
    let whole = fs::read(dir.join(bundle::MANIFEST)).unwrap();
    for length in (0..whole.len() - 2).step_by(41) {
        refusal(|dir| fs::write(dir.join(bundle::MANIFEST), &whole[..length]).unwrap());
    }
}

#[cfg(unix)]
#[test]
fn links_to_regular_files_are_followed_and_their_digests_checked() {
    use std::os::unix::fs::symlink;
    // A backup made of hard links: both are bundles.
    let (folder, dir) = bundle();
    let backup = folder.path().join("backup");
    fs::create_dir(&backup).unwrap();
    for entry in fs::read_dir(&dir).unwrap() {
        let name = entry.unwrap().file_name();
        fs::hard_link(dir.join(&name), backup.join(&name)).unwrap();
    }
    Bundle::open(&backup).unwrap();
    Bundle::open(&dir).unwrap();
    // A hub's cache: the files lie elsewhere under their digests, the manifest as well.
    let (snapshot, blobs) = (folder.path().join("snapshots/abc"), folder.path().join("blobs"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::rename(&backup, &blobs).unwrap();
    for entry in fs::read_dir(&blobs).unwrap() {
        let name = entry.unwrap().file_name();
        symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    Bundle::open(&snapshot).unwrap();
    let error = |change: &dyn Fn(&Path)| {
        let path = snapshot.join(bundle::WEIGHTS);
        fs::remove_file(&path).unwrap();
        change(&path);
        let error = Bundle::open(&snapshot).unwrap_err().to_string();
        assert!(error.contains(bundle::WEIGHTS), "{error}");
        error
    };
    // What a link leads to is checked as a file is.
    let other = folder.path().join("other");
    fs::write(&other, [1; 32]).unwrap();
    assert!(error(&|path| symlink(&other, path).unwrap()).contains("SHA-256"));
    // The right bytes, where ONNX Runtime would not follow.
    fs::copy(blobs.join(bundle::WEIGHTS), &other).unwrap();
    assert!(error(&|path| symlink(&other, path).unwrap()).contains("another folder than"));
    assert!(error(&|path| symlink("nowhere", path).unwrap()).contains("cannot be read"));
    assert!(error(&|path| symlink("/dev/null", path).unwrap()).contains("regular file"));
    assert!(error(&|path| symlink(&blobs, path).unwrap()).contains("regular file"));
    assert!(error(&|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())).contains("regular file"));
    fs::remove_file(snapshot.join(bundle::WEIGHTS)).unwrap();
    fs::create_dir(snapshot.join(bundle::WEIGHTS)).unwrap();
    assert!(Bundle::open(&snapshot).unwrap_err().to_string().contains("regular file"));
}

#[test]
fn what_systems_leave_in_folders_is_passed_over() {
    let (_folder, dir) = bundle();
    for litter in [".DS_Store", "Thumbs.db", "desktop.ini", "Desktop.ini", "._weights.bin"] {
        fs::write(dir.join(litter), "").unwrap();
    }
    Bundle::open(&dir).unwrap();
    assert!(refusal(|dir| fs::write(dir.join("Thumbs.db.exe"), "").unwrap()).contains("not in the manifest"));
}

#[test]
fn wrong_manifests_are_refused_by_field() {
    for (from, to, expected) in [
        ("\"format_version\": 2", "\"format_version\": 3", "format_version: is 3, this program reads up to 2"),
        ("\"format_version\": 2", "\"format_version\": \"x\"", "format_version: expected 2"),
        ("\"format_version\": 2", "\"format_version\": 1", "format_version: is 1, this program reads 2 (export"),
        ("\"producer\"", "\"format_version\": 2, \"producer\"", "is there twice"),
        ("\"producer\"", "\"surprise\": 1, \"producer\"", "surprise"),
        ("\"n_head\": 2", "\"n_head\": 3", "model.n_kv_head"),
        ("\"weights.bin\": {", "\"../weights.bin\": {", "no plain file name"),
        ("\"weights.bin\": {", "\"/weights.bin\": {", "no plain file name"),
        ("\"weights.bin\": {", "\"C:weights.bin\": {", "no plain file name"),
        ("\"weights.bin\": {", "\"w.bin\": {", "weights.bin is not listed"),
        ("\"file\": \"adapt.onnx\"", "\"file\": \"score.onnx\"", "\"adapt\" is missing or does not name"),
        ("\"learning_rate\": 0.1", "\"learning_rate\": [0.1]", "inner_loop.learning_rate: has 1 values"),
        ("\"bottleneck\": 2", "\"bottleneck\": 0", "adapter.bottleneck"),
    ] {
        let error = refusal(|dir| edit_manifest(dir, from, to));
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn hostile_graphs_are_refused_although_their_digests_fit() {
    fn weight(graph: &mut ModelProto) -> &mut onnx::TensorProto {
        &mut graph.graph.as_mut().unwrap().initializer[0]
    }
    fn node(graph: &mut ModelProto) -> &mut onnx::NodeProto {
        &mut graph.graph.as_mut().unwrap().node[0]
    }
    fn external(key: &str, value: &str) -> impl FnOnce(&mut ModelProto) {
        move |graph| {
            let entry = weight(graph).external_data.iter_mut().find(|entry| entry.key == key).unwrap();
            entry.value = value.to_owned();
        }
    }
    /// Adds a function that is as it should be, but for one change.
    fn function(change: impl FnOnce(&mut onnx::FunctionProto)) -> impl FnOnce(&mut ModelProto) {
        move |graph| {
            let mut function = onnx::FunctionProto {
                name: "f".into(),
                domain: "marionette".into(),
                node: vec![node(graph).clone()],
                opset_import: vec![onnx::OperatorSetIdProto { domain: String::new(), version: 20 }],
                ..onnx::FunctionProto::default()
            };
            change(&mut function);
            graph.functions.push(function);
        }
    }
    for path in ["../weights.bin", "/etc/passwd", "C:\\weights.bin", "adapters.safetensors", ""] {
        let error = graph_refusal(external("location", path));
        assert!(error.contains("initializer w: external data lies in"), "{error}");
    }
    for (key, value) in [("offset", "-1"), ("offset", "17"), ("offset", "18446744073709551615"), ("length", "15")] {
        let error = graph_refusal(external(key, value));
        assert!(error.contains("does not lie within weights.bin"), "{key} {value}: {error}");
    }
    for (error, expected) in [
        (graph_refusal(|g| weight(g).dims = vec![-4]), "impossible shape"),
        (graph_refusal(|g| weight(g).dims = vec![i64::MAX, i64::MAX]), "impossible shape"),
        (graph_refusal(|g| weight(g).data_type = onnx::data_type::INT64), "does not lie within"),
        (graph_refusal(|g| g.opset_import[0].version = 99), "version 99 is not known"),
        (graph_refusal(|g| g.opset_import[0].domain = "evil.ops".into()), "\"evil.ops\" version 20 is not known"),
        (graph_refusal(|g| node(g).domain = "com.microsoft".into()), "is not imported"),
        (graph_refusal(|g| node(g).attribute[0].g = Some(onnx::Opaque {})), "holds a graph"),
        (graph_refusal(|g| g.training_info.push(onnx::Opaque {})), "training information"),
        (graph_refusal(function(|f| f.domain = "ai.onnx".into())), "function f: is of the domain \"ai.onnx\""),
        (
            graph_refusal(function(|f| {
                (f.opset_import[0].domain, f.opset_import[0].version) = ("marionette".into(), 1)
            })),
            "made of operators of \"marionette\" itself",
        ),
        (graph_refusal(function(|f| f.node[0].domain = "marionette".into())), "is not imported"),
        (graph_refusal(function(|f| f.node[0].attribute[0].g = Some(onnx::Opaque {}))), "holds a graph"),
        (graph_refusal(|g| g.graph.as_mut().unwrap().input[0].name = "y".into()), "\"y\" differs from \"x\""),
        (graph_refusal(|g| g.graph.as_mut().unwrap().input.clear()), "are 0, the manifest says 1"),
        (graph_refusal(|g| g.graph = None), "graph: is missing"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn other_operators_than_the_manifest_says_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = graph();
    graph.opset_import.push(onnx::OperatorSetIdProto { domain: "com.microsoft".into(), version: 1 });
    let standard = Manifest { operators: Operators::Standard, ..manifest() };
    write(&folder.path().join("b"), &graph, standard).unwrap();
    let error = Bundle::open(&folder.path().join("b")).unwrap_err().to_string();
    assert!(error.contains("imports \"com.microsoft\", but the manifest says standard"), "{error}");
    // Without it the same graph is taken.
    write(&folder.path().join("c"), &graph, manifest()).unwrap();
    assert!(Bundle::open(&folder.path().join("c")).is_ok());
}

#[test]
fn a_file_that_is_no_graph_is_refused_although_its_digest_fits() {
    let (_folder, dir) = bundle();
    let path = dir.join(bundle::SCORE);
    let old = fs::read(&path).unwrap();
    fs::write(&path, vec![0xff; old.len()]).unwrap();
    let text = fs::read_to_string(dir.join(bundle::MANIFEST)).unwrap();
    // All three graphs are the same file here, so only the third digest, score.onnx's, is replaced.
    let digest = digest::sha256(&old);
    let at = text.find(bundle::SCORE).unwrap();
    let (head, tail) = text.split_at(at);
    let text = head.to_owned() + &tail.replacen(&digest, &digest::sha256(&vec![0xff; old.len()]), 1);
    fs::write(dir.join(bundle::MANIFEST), text).unwrap();
    let error = Bundle::open(&dir).unwrap_err().to_string();
    assert!(error.contains("is no ONNX model"), "{error}");
}
