//! What a run will take, said before its first step: memory from the shapes, time from the first validation.

use std::fmt;

use marionette_dialogues::Example;
use marionette_models::params::{self, TensorSpec};
use marionette_models::{ModelConfig, bundle};

use super::Run;
use super::options::{Gradient, Precision, RateRule};
use crate::data::Persona;
use crate::engine::ROWS;
use crate::host;

/// Bytes of an f32.
const F32: f64 = 4.0;
/// What the program and libtorch take before any tensor, in MiB.
const PROGRAM: f64 = 280.0;

/// What a run will take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// The peak, in MiB.
    pub peak: f64,
    /// Of that, parameters with all their copies: states, gradients, moments.
    pub parameters: f64,
    /// And the graphs of all workers.
    pub graphs: f64,
    /// Workers.
    pub workers: usize,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peak, parameters, graphs, workers } = self;
        write!(f, "forecast: about {peak:.0} MiB at the peak ({parameters:.0} of parameters, {graphs:.0} of graphs")?;
        match workers {
            1 => write!(f, ")"),
            _ => write!(f, " in {workers} workers; --workers 1 takes less)"),
        }
    }
}

/// The largest batch: tokens, targets, and the longest row.
#[derive(Debug, Clone, Copy)]
struct Largest {
    tokens: f64,
    targets: f64,
    length: f64,
}

fn largest(personas: &[Persona], windows: usize) -> Largest {
    let all = || personas.iter().flat_map(Persona::windows);
    let read = |example: &Example| {
        example.sequence.ids.len() + example.choices.iter().map(|choice| choice.ids.len()).max().unwrap_or(0)
    };
    let length = all().map(|example| example.sequence.ids.len()).max().unwrap_or(0) as f64;
    let tokens = all().map(read).max().unwrap_or(0) * windows;
    let targets = all().map(|example| example.sequence.targets()).max().unwrap_or(0) * windows;
    Largest { tokens: tokens as f64, targets: targets as f64, length }
}

/// The numbers that are held while a batch is computed: per token and block normalisations, products and activations, per head
/// the probabilities; of one block what is being made; and what the head holds.
struct Held<'a> {
    config: &'a ModelConfig,
    /// How many blocks something is held of: those from the first on that learns.
    blocks: usize,
    /// The adapters' bottleneck, 0 without adapters.
    bottleneck: f64,
    /// Whether the derivatives are those of `crate::engine`.
    by_hand: bool,
    /// Whether attention is computed by kernels, which keep no probabilities.
    fused: bool,
}

impl Held<'_> {
    /// With so many vectors of width D, of the MLP's width and of the bottleneck's, and matrices of probabilities.
    fn blocks(&self, at: Largest, [d, f, r, p]: [f64; 4]) -> f64 {
        let config = self.config;
        // Where kernels compute attention, what it gives is kept in the probabilities' place.
        let [d, p] = if self.fused { [d + p, 0.0] } else { [d, p] };
        let scores = config.n_head as f64 * at.length;
        let inner = (config.mlp.parts() * config.n_inner) as f64;
        let block = d * config.n_embd as f64 + f * inner + r * self.bottleneck + p * scores;
        let made = if self.fused { 0.0 } else { 3.0 * scores } + 2.0 * inner;
        at.tokens * (self.blocks as f64 * block + made)
    }

    fn head(&self, at: Largest) -> f64 {
        let rows = if self.by_hand { 4.0 * at.targets.min(ROWS as f64) } else { 3.0 * at.targets };
        rows * self.config.vocab_size as f64
    }

    /// What a walk back needs.
    fn first_order(&self, at: Largest) -> f64 {
        let adapters = if self.bottleneck > 0.0 { 2.0 } else { 0.0 };
        let counts = if self.by_hand { [7.0, 1.0, 2.0, 1.0] } else { [10.0 + adapters, 2.0, 4.0, 1.0] };
        self.blocks(at, counts)
    }

    /// The most of an exact outer gradient: the last inner step waits while the query is walked through, then it is walked
    /// through again.
    fn exact(&self, inner: Largest, query: Largest) -> f64 {
        let (waits, again) = match self.by_hand {
            true => (self.blocks(inner, [12.0, 2.0, 6.0, 1.0]), self.blocks(inner, [19.0, 3.0, 8.0, 2.0])),
            false => (1.5 * self.first_order(inner), 2.5 * self.first_order(inner)),
        };
        (waits + self.first_order(query) + self.head(query)).max(again + self.head(inner))
    }
}

/// The memory that a run will take.
pub(super) fn memory(run: &Run) -> Memory {
    let (config, model) = (run.config, &run.model);
    let count = |table: &[TensorSpec]| table.iter().map(TensorSpec::len).sum::<usize>() as f64;
    let (learned, base) = (count(model.table()), count(&params::base_table(model.config())));
    let frozen = if learned < base { base } else { 0.0 };
    let (outer, recipe) = (&config.outer, &config.model.inner_loop);
    let rounded = if outer.precision == Precision::Bf16 { 0.5 } else { 0.0 };
    let workers = run.compute.workers.max(1);
    // θ_0, two moments, the sum of gradients; and of a worker in training the states of the inner loop, v, a gradient, and
    // what is being made of them.
    let own = match outer.gradient {
        Gradient::Normal => 2,
        Gradient::Maml => recipe.steps + 4,
        Gradient::Fomaml if outer.inner_rate == RateRule::Learned => recipe.steps + 3,
        Gradient::Fomaml | Gradient::Reptile => 4,
    };
    // A validation needs three copies a worker beside the first three; a checkpoint, two.
    let copies = (4 + own * workers).max(3 + 3 * workers);
    // A byte for four, or half a byte and two numbers of 16 bits for 32 values.
    let held = match config.model.frozen {
        bundle::Precision::Int8 => 0.25,
        bundle::Precision::Int4 => 0.157,
        bundle::Precision::Fp32 | bundle::Precision::Fp16 => 1.0 + rounded,
    };
    let parameters = frozen * held + learned * copies as f64;

    let personas = &run.personas;
    let data = &config.data;
    let bottleneck = if model.parts().adapters { config.model.adapter.bottleneck as f64 } else { 0.0 };
    let by_hand = model.learns_exactly_adapters();
    let fused = by_hand && host::computes(outer.precision.kind(), model.device());
    let below = if learned < base { model.first_adapted().unwrap_or(0) } else { 0 };
    let blocks = model.config().n_layer - below;
    let held = Held { config: model.config(), blocks, bottleneck, by_hand, fused };
    // A window is learned from as a dialogue is; the query's are read at once.
    let windows = personas.iter().map(Persona::most_windows).max().unwrap_or(0);
    let inner = largest(personas, recipe.dialogues_per_step.min(data.support_dialogues * windows));
    let query = largest(personas, data.query_dialogues * windows);
    // Where the embedding learns, its gradient is the sum of two, of what is read and of the head.
    let embedding = if learned < base { 0.0 } else { 2.0 * (model.config().vocab_size * model.config().n_embd) as f64 };
    let once = |at| held.first_order(at) + held.head(at);
    let graphs = match outer.gradient {
        Gradient::Normal | Gradient::Reptile => once(inner),
        Gradient::Fomaml => once(inner).max(once(query)),
        Gradient::Maml => held.exact(inner, query),
    } + embedding;
    let mib = |floats: f64| floats * F32 / f64::from(1 << 20);
    let (parameters, graphs) = (mib(parameters), mib(graphs * workers as f64));
    Memory { peak: PROGRAM + parameters + graphs, parameters, graphs, workers }
}

/// The seconds that the meta-iterations and validations will take, from those of one validation. Counted in forward passes
/// over a token: a backward pass costs one more, two where the base learns; differentiating it again twice as much.
pub(super) fn seconds(run: &Run, validation: f64) -> f64 {
    let config = run.config;
    let (recipe, data, outer) = (&config.model.inner_loop, &config.data, &config.outer);
    let mean = |personas: &[Persona]| {
        let tokens: usize = personas.iter().flat_map(Persona::windows).map(|example| example.sequence.ids.len()).sum();
        tokens as f64 / personas.iter().map(|persona| persona.dialogues.len()).sum::<usize>().max(1) as f64
    };
    let dialogues = |personas: &[Persona]| {
        personas.iter().map(|persona| persona.dialogues.len()).sum::<usize>() as f64 / personas.len().max(1) as f64
    };
    let split = |personas: &[Persona]| {
        let support = dialogues(personas).min(data.support_dialogues as f64);
        let query = (dialogues(personas) - support).clamp(1.0, data.query_dialogues as f64);
        let step = support.min(recipe.dialogues_per_step as f64);
        (mean(personas) * step, mean(personas) * query, mean(personas) * support)
    };
    let steps = recipe.steps as f64;
    let both = if run.model.table().len() > params::adapter_table(run.model.config(), &config.model.adapter).len() {
        3.0
    } else {
        2.0
    };
    let (step, query, support) = split(&run.personas);
    let task = both
        * match outer.gradient {
            Gradient::Normal => support + query,
            Gradient::Reptile => steps.max((support + query) / step.max(1.0)) * step,
            Gradient::Fomaml => steps * step + query,
            Gradient::Maml => (3.0 * steps - 1.0) * step + query,
        };
    let (step, query, _) = split(&run.held);
    let tried = if outer.inner_rate == RateRule::Chosen { 3.0 } else { 1.0 };
    let judged = tried * (steps * both * step + query) + query;
    // Personas side by side come in waves.
    let waves = |count: usize| count.div_ceil(run.compute.workers.max(1)) as f64;
    let unit = validation / (judged * waves(run.held.len())).max(1.0);
    let plan = &outer.plan;
    let iterations = plan.iterations as f64;
    let validations = iterations / plan.validate_every as f64;
    unit * (iterations * task * waves(plan.meta_batch)) + validations * validation
}
