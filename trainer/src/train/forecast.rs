//! What a run will take, said before its first step: memory from the shapes, time from the first validation.

use std::fmt;

use marionette_dialogues::Example;
use marionette_models::Gpt2Config;
use marionette_models::params::{self, TensorSpec};

use super::Run;
use super::options::{Gradient, Precision, RateRule};
use crate::data::Persona;

/// Bytes of an f32.
const F32: f64 = 4.0;
/// What the program and libtorch take before any tensor, in MiB.
const PROGRAM: f64 = 330.0;

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

fn largest(personas: &[Persona], dialogues: usize) -> Largest {
    let all = || personas.iter().flat_map(|persona| &persona.dialogues);
    let read = |example: &Example| {
        example.sequence.ids.len() + example.choices.iter().map(|choice| choice.ids.len()).max().unwrap_or(0)
    };
    let length = all().map(|example| example.sequence.ids.len()).max().unwrap_or(0) as f64;
    let tokens = all().map(read).max().unwrap_or(0) * dialogues;
    let targets = all().map(|example| example.sequence.targets()).max().unwrap_or(0) * dialogues;
    Largest { tokens: tokens as f64, targets: targets as f64, length }
}

/// The numbers that a graph of first order keeps for the backward pass: per token and block its normalisations, products and
/// activations, per head its scores; and the logits of each target, thrice.
fn graph(config: &Gpt2Config, bottleneck: f64, at: Largest) -> f64 {
    let (d, f, h) = (config.n_embd as f64, config.n_inner as f64, config.n_head as f64);
    let block = 13.0 * d + 2.0 * f + 4.0 * bottleneck + 3.0 * h * at.length;
    at.tokens * config.n_layer as f64 * block + 3.0 * at.targets * config.vocab_size as f64
}

/// The memory that a run will take.
pub(super) fn memory(run: &Run) -> Memory {
    let (config, model) = (run.config, &run.model);
    let count = |table: &[TensorSpec]| table.iter().map(TensorSpec::len).sum::<usize>() as f64;
    let (learned, base) = (count(model.table()), count(&params::base_table(model.config())));
    let frozen = if learned < base { base } else { 0.0 };
    let (outer, recipe) = (&config.outer, &config.model.inner_loop);
    let rounded = if outer.precision == Precision::Bf16 { 0.5 } else { 0.0 };
    let exact = outer.gradient == Gradient::Maml;
    // θ_0, two moments, the sum of gradients.
    let shared = frozen * (1.0 + rounded) + 4.0 * learned;
    // Of a worker: the states of the inner loop, v, a gradient, and what is being made of them.
    let states = match outer.gradient {
        Gradient::Normal => 0,
        Gradient::Maml => recipe.steps + 1,
        Gradient::Fomaml | Gradient::Reptile => recipe.steps.min(1) + 1,
    };
    let gradients = if exact { 4 } else { 2 };
    let stored = if outer.inner_rate == RateRule::Learned && !exact { recipe.steps } else { 0 };
    let own = learned * (states + gradients + stored) as f64;
    let bottleneck = config.model.adapter.bottleneck as f64;
    let personas = &run.personas;
    let inner = graph(
        model.config(),
        bottleneck,
        largest(personas, recipe.dialogues_per_step.min(config.data.support_dialogues)),
    );
    let query = graph(model.config(), bottleneck, largest(personas, config.data.query_dialogues));
    let graphs = match outer.gradient {
        Gradient::Normal | Gradient::Reptile => inner,
        Gradient::Fomaml => inner.max(query),
        // The last inner step's, of second order, lives on while the query's is made.
        Gradient::Maml => 2.5 * inner + query,
    };
    let workers = run.compute.workers.max(1);
    let mib = |floats: f64| floats * F32 / f64::from(1 << 20);
    let (parameters, graphs) = (mib(shared + own * workers as f64), mib(graphs * workers as f64));
    Memory { peak: PROGRAM + parameters + graphs, parameters, graphs, workers }
}

/// The seconds that the meta-iterations and validations will take, from those of one validation. Counted in forward passes
/// over a token: a backward pass costs one more, two where the base learns; differentiating it again twice as much.
pub(super) fn seconds(run: &Run, validation: f64) -> f64 {
    let config = run.config;
    let (recipe, data, outer) = (&config.model.inner_loop, &config.data, &config.outer);
    let mean = |personas: &[Persona]| {
        let all = || personas.iter().flat_map(|persona| &persona.dialogues);
        let tokens: usize = all().map(|example| example.sequence.ids.len()).sum();
        tokens as f64 / all().count().max(1) as f64
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
