//! Graphs of a bundle, as they are checked before ONNX Runtime sees them.

use std::collections::BTreeMap;
use std::path::Path;

use marionette_exporter::weights::Weights;
use marionette_exporter::{graphs, onnx};
use marionette_models::bundle::{self, FORMAT_VERSION, FileEntry, Manifest, Operators, Precision};
use marionette_models::{AdapterConfig, Gpt2Shape, InnerLoop, ModelConfig, PromptForm};
use prost::Message as _;

use crate::parsers::refused;

const ADAPTER: AdapterConfig = AdapterConfig::in_all_blocks(2);

fn model() -> ModelConfig {
    let shape = Gpt2Shape { vocab_size: 8, n_positions: 8, n_embd: 4, n_layer: 1, n_head: 1 };
    ModelConfig { n_inner: 8, ..shape.into() }
}

/// A manifest whose only graph with an interface is the scoring one.
pub fn manifest() -> Manifest {
    let entry = || FileEntry { bytes: 1, sha256: "0".repeat(64) };
    let names = [bundle::WEIGHTS, bundle::ADAPTERS, bundle::TOKENIZER];
    let files = bundle::GRAPHS.iter().map(|(_, file)| *file).chain(names);
    let weights = Weights::new(&model(), Precision::Fp32, Operators::Ort).expect("a model of a usual shape");
    let graph = graphs::score(&model(), &ADAPTER, &weights).expect("a model of a usual shape");
    let interfaces = bundle::GRAPHS.iter().map(|(name, file)| {
        let interface = onnx::interface(&graph, file, None);
        ((*name).to_owned(), interface)
    });
    Manifest {
        format_version: FORMAT_VERSION,
        producer: "fuzz".into(),
        model: model(),
        prompt: PromptForm::plain(7),
        adapter: ADAPTER,
        base_sha256: "0".repeat(64),
        precision: Precision::Fp32,
        operators: Operators::Ort,
        inner_loop: InnerLoop::default(),
        persona_text: false,
        files: files.map(|file| (file.to_owned(), entry())).collect::<BTreeMap<_, _>>(),
        graphs: interfaces.collect(),
    }
}

/// The scoring graph as it is exported.
pub fn seeds() -> Vec<Vec<u8>> {
    let weights = Weights::new(&model(), Precision::Fp32, Operators::Ort).expect("a model of a usual shape");
    let graph = graphs::score(&model(), &ADAPTER, &weights).expect("a model of a usual shape");
    let proto = onnx::model(&graph, "score", "", &weights).expect("a graph of ours");
    vec![proto.encode_to_vec()]
}

/// A graph, under the manifest of the seed.
pub fn audit(data: &[u8]) {
    static MANIFEST: std::sync::OnceLock<Manifest> = std::sync::OnceLock::new();
    let manifest = MANIFEST.get_or_init(manifest);
    let Some(interface) = manifest.graphs.get("score") else { return };
    refused(bundle::audit(Path::new("score.onnx"), data, interface, manifest, 1 << 20));
}
