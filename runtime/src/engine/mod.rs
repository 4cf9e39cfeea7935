//! A bundle at work: its graphs, opened when first needed, over one set of adapters.

mod adapt;
mod below;
mod generate;
mod rows;
mod score;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;

use marionette_dialogues::{Encoder, tokenizer_from_bytes};
use marionette_models::bundle::{self, Bundle, Manifest, Opening};
use marionette_models::{FileError, HostTensor, TensorSpec, Tensors, files, params};

use crate::error::Result;
use crate::memory;
use crate::session::{Buffer, Graph, GraphOptions, OnnxRuntime, Provider};

pub use adapt::{Activations, Step};
pub use rows::{RowId, Rows};
pub use score::Scored;

/// A tokenizer of more than this many bytes is refused; GPT-2's has 1.4 MB.
const MAX_TOKENIZER: u64 = 64 << 20;

/// On what, and with how many threads, the graphs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The execution provider.
    pub provider: Provider,
    /// Threads within an operator; ONNX Runtime's choice where none is given.
    pub threads: Option<NonZeroUsize>,
    /// Whether operators of our own have our kernels on the processor; else ONNX Runtime executes their bodies, as other runtimes do.
    pub kernels: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { provider: Provider::default(), threads: None, kernels: true }
    }
}

/// A bundle at work.
///
/// The adapters are inputs of every graph, bound to the same buffers: changing persona writes a few megabytes and reloads
/// nothing.
pub struct Engine {
    runtime: &'static OnnxRuntime,
    options: Options,
    dir: PathBuf,
    manifest: Manifest,
    table: Vec<TensorSpec>,
    adapters: Vec<Buffer>,
    /// Counts the changes of the adapters, so that a graph knows when to bind them again.
    version: u64,
    generate: Option<generate::Generation>,
    score: Option<Bound>,
    adapt: Option<adapt::Adaptation>,
    below: below::Below,
}

/// A graph, and the version of the adapters that it has bound.
pub(crate) struct Bound {
    pub(crate) graph: Graph,
    version: u64,
    /// Whether the graph takes adapters for each row of the batch, of which there is one here.
    of_each_row: bool,
}

impl Engine {
    /// Loads ONNX Runtime and the bundle's meta-learned adapters. No graph is opened yet.
    ///
    /// # Errors
    /// ONNX Runtime or the provider cannot be had; the adapters are wrong.
    pub fn open(bundle: &Bundle, options: Options) -> Result<Self> {
        let runtime = OnnxRuntime::load()?;
        runtime.require(options.provider)?;
        let manifest = bundle.manifest().clone();
        let table = params::adapter_table(&manifest.model, &manifest.adapter);
        let adapters = table.iter().map(|spec| Buffer::zeros(&spec.shape)).collect::<Result<_, _>>()?;
        let mut engine = Self {
            runtime,
            options,
            dir: bundle.dir().to_owned(),
            manifest,
            table,
            adapters,
            version: 0,
            generate: None,
            score: None,
            adapt: None,
            below: below::Below::default(),
        };
        engine.set_adapters(&bundle.adapters()?)?;
        Ok(engine)
    }

    /// What the bundle says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The loaded ONNX Runtime.
    pub fn runtime(&self) -> &'static OnnxRuntime {
        self.runtime
    }

    /// The execution provider in use.
    pub fn provider(&self) -> Provider {
        self.options.provider
    }

    /// Makes these the adapters of all graphs.
    ///
    /// # Errors
    /// A tensor is missing or misshapen.
    pub fn set_adapters(&mut self, adapters: &Tensors) -> Result<()> {
        for (spec, buffer) in self.table.iter().zip(&mut self.adapters) {
            let wrong = |problem: String| FileError::new(&self.dir, problem).at(&spec.name);
            buffer.values_mut().copy_from_slice(values_of(spec, adapters).map_err(wrong)?);
        }
        self.adapters_changed();
        Ok(())
    }

    /// Whether the bundle's generation takes adapters for each row of a batch. (Bundles of before 0.2.0 have one set for all rows.)
    fn has_rows(&self) -> bool {
        let generate = self.manifest.graphs.values().find(|graph| graph.file == bundle::GENERATE);
        let inputs = generate.into_iter().flat_map(|graph| &graph.inputs);
        let rank = |name: &str| inputs.clone().find(|input| input.name == name).map(|input| input.shape.len());
        self.table.first().is_some_and(|spec| rank(&spec.name) == Some(spec.shape.len() + 1))
    }

    /// The adapters as they are.
    pub fn adapters(&self) -> Tensors {
        let copy = |(spec, buffer): (&TensorSpec, &Buffer)| {
            (spec.name.clone(), HostTensor { shape: spec.shape.clone(), values: buffer.values().to_vec() })
        };
        self.table.iter().zip(&self.adapters).map(copy).collect()
    }

    /// The bytes that the adapters take.
    pub(crate) fn adapter_bytes(&self) -> u64 {
        self.table.iter().map(|spec| 4 * spec.len() as u64).sum()
    }

    /// What the adapters made of the past is worth nothing under others.
    fn adapters_changed(&mut self) {
        self.version += 1;
        if let Some(generation) = &mut self.generate {
            generation.forget();
        }
    }

    /// Closes the graphs and frees their memory; they open again when needed.
    pub fn close_graphs(&mut self) {
        self.generate = None;
        self.score = None;
        self.adapt = None;
        self.below = below::Below::default();
        memory::trim();
    }

    fn open_graph(&self, file: &str) -> Result<Graph> {
        let options = GraphOptions {
            provider: self.options.provider,
            threads: self.options.threads,
            kernels: self.options.kernels,
            // Measured at GPT-2 small: without the pattern a step's peak is 360 MiB lower at the same speed; without
            // prepacking the weights stay mapped from the file, 600 MiB less at the same speed of a step, of scoring and
            // of prefill. Only decoding, a row at a time, is slower without (about a tenth). Where not our kernels make them, products of
            // integers are made with packed matrices or packed anew in every call.
            memory_pattern: !matches!(file, bundle::ADAPT | bundle::ADAPT_RECOMPUTED | bundle::BELOW),
            prepacking: file == bundle::GENERATE || self.manifest.precision.is_integer(),
            // Moving takes 1 ms a MiB, and saves a twentieth of each token's time.
            huge_pages_after: (file == bundle::GENERATE).then_some(256),
        };
        Ok(Graph::open(self.runtime, &self.dir.join(file), options)?)
    }
}

/// An adapter's values, where they are there and of its shape.
fn values_of<'a>(spec: &TensorSpec, adapters: &'a Tensors) -> std::result::Result<&'a [f32], String> {
    let tensor = adapters.get(&spec.name).ok_or("is missing from the adapters")?;
    if tensor.shape != spec.shape || tensor.values.len() != spec.len() {
        return Err(format!("has shape {:?}, expected {:?}", tensor.shape, spec.shape));
    }
    Ok(&tensor.values)
}

impl Bound {
    fn new(graph: Graph) -> Self {
        Self { graph, version: 0, of_each_row: false }
    }

    /// Binds the adapters where they changed since they were bound.
    fn bind_adapters(&mut self, table: &[TensorSpec], adapters: &[Buffer], version: u64) -> Result<()> {
        if self.version != version {
            for (spec, buffer) in table.iter().zip(adapters) {
                match self.of_each_row {
                    true => self.graph.input_part(&spec.name, buffer, 0, &generate::of_rows(1, spec))?,
                    false => self.graph.input_buffer(&spec.name, buffer)?,
                }
            }
            self.version = version;
        }
        Ok(())
    }
}

/// Opens a folder's bundle for words: its engine and its encoder. The tokenizer is read while the weights are verified, which takes as long.
///
/// # Errors
/// As [`Bundle::open`], [`Engine::open`] and [`encoder`].
pub fn open(dir: &Path, options: Options) -> Result<(Engine, Encoder)> {
    // The device first: that it is missing is known at once, and the bundle may be large.
    OnnxRuntime::load()?.require(options.provider)?;
    let opening = Opening::new(dir)?;
    thread::scope(|scope| {
        let reading = scope.spawn(|| encoder_of(opening.dir(), opening.manifest()));
        let engine = Engine::open(&opening.verify_weights()?, options)?;
        let encoder = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((engine, encoder))
    })
}

/// The encoder of a bundle, which trainer and device share.
///
/// # Errors
/// The tokenizer is wrong or does not fit the model.
pub fn encoder(bundle: &Bundle) -> Result<Encoder> {
    encoder_of(bundle.dir(), bundle.manifest())
}

fn encoder_of(dir: &Path, manifest: &Manifest) -> Result<Encoder> {
    let path = dir.join(bundle::TOKENIZER);
    let bytes = files::read_limited(&path, MAX_TOKENIZER)?;
    let tokenizer = tokenizer_from_bytes(&bytes, &path)?;
    let Manifest { model, prompt, persona_text, .. } = manifest;
    let encoder = Encoder::new(tokenizer, prompt.clone(), model.n_positions, model.vocab_size)
        .map_err(|error| FileError::new(&path, error))?;
    Ok(encoder.with_persona_text(*persona_text))
}
