//! The bundle: weights, graphs, adapters, tokenizer and manifest, all of it or nothing.

use std::collections::BTreeMap;
use std::path::Path;

use marionette_models::bundle::{
    self, ADAPTERS, BundleWriter, FORMAT_VERSION, GRAPHS, Manifest, Operators, PROBE, Precision, TOKENIZER, WEIGHTS,
};
use marionette_models::safetensors_file::{self, FileMetadata};
use marionette_models::{AdapterConfig, FileError, Gpt2Config, checkpoint};
use prost::Message as _;

use crate::error::{ExportError, GraphError};
use crate::graph::Graph;
use crate::source::Source;
use crate::weights::Weights;
use crate::{graphs, onnx};

/// What was written.
#[derive(Debug)]
pub struct Exported {
    /// The bundle's manifest.
    pub manifest: Manifest,
    /// The number of nodes of each graph, by the graph's file.
    pub nodes: BTreeMap<&'static str, usize>,
    /// The number of frozen parameters.
    pub frozen_parameters: usize,
    /// The number of the adapters' parameters.
    pub adapter_parameters: usize,
}

/// Writes a bundle to `out`: all of it, or nothing.
///
/// # Errors
/// `out` exists and is no bundle; the graphs of this model cannot be built; writing fails.
pub fn export(source: &Source, precision: Precision, out: &Path) -> Result<Exported, ExportError> {
    let config = &source.base.config;
    let weights = Weights::new(config, precision);
    let mut writer = BundleWriter::create(out)?;

    let mut interfaces = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    for (name, file) in GRAPHS {
        let (graph, doc) = build(file, config, &source.adapter, &weights)?;
        let model = onnx::model(&graph, name, doc, &weights)?;
        nodes.insert(file, model.graph.as_ref().map_or(0, |graph| graph.node.len()));
        interfaces.insert(name.to_owned(), onnx::interface(&graph, file));
        let bytes = model.encode_to_vec();
        writer.file(file, |w| w.write_all(&bytes))?;
    }
    writer.file(WEIGHTS, |w| weights.write(&source.base.tensors, w))?;

    let refuse = |problem: String| FileError::new(&out.join(ADAPTERS), problem);
    let raw = checkpoint::adapters_to_raw(&source.adapters).map_err(|(name, problem)| refuse(problem).at(name))?;
    let bytes = safetensors_file::to_bytes(&raw, FileMetadata::Ours(&source.adapters_metadata)).map_err(refuse)?;
    writer.file(ADAPTERS, |w| w.write_all(&bytes))?;
    let tokenizer = source.tokenizer.to_json()?;
    writer.file(TOKENIZER, |w| w.write_all(&tokenizer))?;
    if let Some(probe) = &source.probe {
        writer.file(PROBE, |w| w.write_all(probe))?;
    }

    let count = |tensors: &marionette_models::Tensors| tensors.values().map(|tensor| tensor.values.len()).sum();
    let manifest = writer.finish(Manifest {
        format_version: FORMAT_VERSION,
        producer: format!("marionette-export {}", env!("CARGO_PKG_VERSION")),
        model: config.clone(),
        adapter: source.adapter,
        base_sha256: source.base_sha256.clone(),
        precision,
        operators: Operators::Ort,
        inner_loop: source.inner_loop.clone(),
        persona_text: source.persona_text,
        files: BTreeMap::new(),
        graphs: interfaces,
    })?;
    Ok(Exported {
        manifest,
        nodes,
        frozen_parameters: count(&source.base.tensors),
        adapter_parameters: count(&source.adapters),
    })
}

/// One of the bundle's graphs, and what it is.
fn build(
    file: &str,
    config: &Gpt2Config,
    adapter: &AdapterConfig,
    weights: &Weights,
) -> Result<(Graph, &'static str), GraphError> {
    match file {
        bundle::GENERATE => Ok((
            graphs::generate(config, adapter, weights)?,
            "GPT-2 with adapters: logits after the last token, and the key-value cache",
        )),
        bundle::SCORE => {
            Ok((graphs::score(config, adapter, weights)?, "GPT-2 with adapters: log-probabilities of given tokens"))
        }
        _ => Ok((
            graphs::adapt(config, adapter, weights)?,
            "GPT-2 with adapters: one step of gradient descent on the adapters, with loss and gradient norm",
        )),
    }
}
