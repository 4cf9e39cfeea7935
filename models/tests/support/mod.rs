//! A bundle that is as it should be, made of as little as possible.

#![allow(dead_code, clippy::unwrap_used, reason = "not every test uses all; what fails here fails a test")]

use std::collections::BTreeMap;
use std::path::Path;

use marionette_models::bundle::{
    self, BundleWriter, DataType, Dim, GraphInterface, Manifest, Operators, Precision, ValueInfo,
};
use marionette_models::checkpoint;
use marionette_models::onnx::{self, ModelProto};
use marionette_models::params::adapter_table;
use marionette_models::safetensors_file::{self, FileMetadata};
use marionette_models::{
    AdapterConfig, Gpt2Shape, HostTensor, InnerLoop, LearningRate, ModelConfig, PromptForm, Tensors,
};
use prost::Message as _;

pub fn manifest() -> Manifest {
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
        adapter: AdapterConfig::in_all_blocks(2),
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
pub fn graph() -> ModelProto {
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
                input: vec!["x".into(), "w".into()],
                output: vec!["y".into()],
                ..Default::default()
            }],
            initializer: vec![onnx::TensorProto {
                dims: vec![4],
                data_type: onnx::data_type::FLOAT,
                name: "w".into(),
                external_data: vec![entry("location", "weights.bin"), entry("offset", "0"), entry("length", "16")],
                data_location: onnx::DATA_EXTERNAL,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn write(dir: &Path, graph: &ModelProto, manifest: Manifest) -> Result<Manifest, marionette_models::FileError> {
    write_with(dir, &graph.encode_to_vec(), &[0; 32], manifest)
}

/// A bundle whose graphs and weights are these bytes, with digests that fit.
pub fn write_with(
    dir: &Path,
    graph: &[u8],
    weights: &[u8],
    manifest: Manifest,
) -> Result<Manifest, marionette_models::FileError> {
    let mut writer = BundleWriter::create(dir)?;
    for (_, file) in bundle::GRAPHS {
        writer.file(file, |w| w.write_all(graph))?;
    }
    writer.file(bundle::WEIGHTS, |w| w.write_all(weights))?;
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
