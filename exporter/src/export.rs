//! The bundle: weights, graphs, adapters, tokenizer and manifest, all of it or nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use marionette_dialogues::{EncodeError, Encoder, tokenizer_from_bytes};
use marionette_models::bundle::{
    self, ADAPTERS, BundleWriter, FORMAT_VERSION, Manifest, Operators, PROBE, Precision, TOKENIZER, WEIGHTS,
};
use marionette_models::safetensors_file::{self, FileMetadata};
use marionette_models::{AdapterConfig, FileError, ModelConfig, checkpoint};
use prost::Message as _;

use crate::calibration::Calibration;
use crate::error::{ExportError, GraphError};
use crate::graph::Graph;
use crate::source::Source;
use crate::standard::standard;
use crate::weights::Weights;
use crate::{graphs, memory, onnx};

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

/// Writes a bundle to `out`: all of it, or nothing. It stops soon after `interrupted` is set.
///
/// # Errors
/// `out` exists and is no bundle; the graphs of this model cannot be built; writing fails or is interrupted.
pub fn export(
    source: &Source,
    precision: Precision,
    operators: Operators,
    out: &Path,
    interrupted: &AtomicBool,
) -> Result<Exported, ExportError> {
    let config = &source.base.config;
    let weights = Weights::new(config, precision, operators)?;
    weights.check(&source.base.tensors)?;
    let mut interfaces = BTreeMap::new();
    let mut nodes = BTreeMap::new();
    let mut contents: Vec<(&str, Vec<u8>)> = Vec::new();
    for (name, file) in bundle::graphs(&source.adapter) {
        let (graph, doc) = build(file, config, &source.adapter, &weights)?;
        let graph = match operators {
            Operators::Ort => graph,
            Operators::Standard => standard(&graph)?,
        };
        let model = onnx::model(&graph, name, doc, &weights)?;
        nodes.insert(file, model.graph.as_ref().map_or(0, |graph| graph.node.len()));
        let memory =
            matches!(file, bundle::ADAPT | bundle::ADAPT_RECOMPUTED | bundle::BELOW).then(|| memory::of_a_run(&graph));
        interfaces.insert(name.to_owned(), onnx::interface(&graph, file, memory));
        contents.push((file, model.encode_to_vec()));
    }
    let refuse = |problem: String| FileError::new(&out.join(ADAPTERS), problem);
    let raw = checkpoint::adapters_to_raw(&source.adapters).map_err(|(name, problem)| refuse(problem).at(name))?;
    contents.push((
        ADAPTERS,
        safetensors_file::to_bytes(&raw, FileMetadata::Ours(&source.adapters_metadata)).map_err(refuse)?,
    ));
    let tokenizer = source.tokenizer.to_json()?;
    // As the device will read it.
    let read = tokenizer_from_bytes(&tokenizer, &out.join(TOKENIZER)).map_err(EncodeError::from)?;
    Encoder::new(read, source.prompt.clone(), config.n_positions, config.vocab_size)?;
    contents.push((TOKENIZER, tokenizer));
    contents.extend(source.probe.as_ref().map(|probe| (PROBE, probe.clone())));

    // What Φ was learned beside is what is stored.
    let calibration = match source.frozen == precision {
        true => Calibration::default(),
        false => Calibration::new(source, &weights, interrupted)?,
    };
    let mut writer = BundleWriter::create(out)?;
    let stopped = |error| if interrupted.load(Ordering::SeqCst) { ExportError::Interrupted } else { error };
    writer
        .file(WEIGHTS, |w| weights.write(&source.base.tensors, &calibration, &mut Stoppable { inner: w, interrupted }))
        .map_err(|error| stopped(error.into()))?;
    for (name, bytes) in contents {
        writer
            .file(name, |w| Stoppable { inner: w, interrupted }.write_all(&bytes))
            .map_err(|error| stopped(error.into()))?;
    }
    let count = |tensors: &marionette_models::Tensors| tensors.values().map(|tensor| tensor.values.len()).sum();
    let manifest = writer.finish(Manifest {
        format_version: FORMAT_VERSION,
        producer: format!("marionette-export {}", env!("CARGO_PKG_VERSION")),
        model: config.clone(),
        prompt: source.prompt.clone(),
        adapter: source.adapter,
        base_sha256: source.base_sha256.clone(),
        precision,
        operators,
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

/// A writer that fails once the user has interrupted.
struct Stoppable<'a> {
    inner: &'a mut dyn Write,
    interrupted: &'a AtomicBool,
}

impl Write for Stoppable<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.interrupted.load(Ordering::SeqCst) {
            // Not of the kind `Interrupted`: that one means "try again".
            return Err(io::Error::other("interrupted"));
        }
        self.inner.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// One of the bundle's graphs, and what it is.
fn build(
    file: &str,
    config: &ModelConfig,
    adapter: &AdapterConfig,
    weights: &Weights,
) -> Result<(Graph, &'static str), GraphError> {
    match file {
        bundle::GENERATE => Ok((
            graphs::generate(config, adapter, weights)?,
            "A decoder with adapters: logits after the last token, and the key-value cache",
        )),
        bundle::SCORE => {
            Ok((graphs::score(config, adapter, weights)?, "A decoder with adapters: log-probabilities of given tokens"))
        }
        bundle::BELOW => Ok((
            graphs::below(config, adapter, weights)?,
            "A decoder below its adapters: what the first of their blocks takes",
        )),
        bundle::ADAPT_RECOMPUTED => Ok((
            graphs::adapt_recomputed(config, adapter, weights)?,
            "A decoder with adapters: one step of gradient descent on the adapters, with activations computed twice",
        )),
        _ => Ok((
            graphs::adapt(config, adapter, weights)?,
            "A decoder with adapters: one step of gradient descent on the adapters, with loss and gradient norm",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_writer_writes_no_more() {
        let interrupted = AtomicBool::new(false);
        let mut sink = Vec::new();
        let mut writer = Stoppable { inner: &mut sink, interrupted: &interrupted };
        writer.write_all(b"before").unwrap();
        interrupted.store(true, Ordering::SeqCst);
        assert!(writer.write_all(b"after").is_err());
        assert_eq!(sink, b"before");
    }
}
