//! The adapt graph: one SGD step of the adapters.

use marionette_dialogues::Batch;
use marionette_models::FileError;
use marionette_models::bundle::{self, RunMemory};

use super::{Bound, Engine};
use crate::error::Result;
use crate::kernels;
use crate::memory;
use crate::session::Buffer;

/// What becomes of a step's activations between the forward and the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// They are kept.
    #[default]
    Kept,
    /// Only each block's input is kept; the rest is computed twice. The step is the same.
    Recomputed,
}

impl Activations {
    /// What the manifest calls the graph, and its file.
    fn graph(self) -> (&'static str, &'static str) {
        match self {
            Self::Kept => ("adapt", bundle::ADAPT),
            Self::Recomputed => ("adapt-recomputed", bundle::ADAPT_RECOMPUTED),
        }
    }
}

/// What one step gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The loss before the step: the mean negative log-likelihood over the batch's targets, in nats.
    pub loss: f32,
    /// The L2 norm of the gradient of all adapters.
    pub gradient_norm: f32,
}

impl Step {
    /// Whether the step can be believed.
    pub fn is_finite(self) -> bool {
        self.loss.is_finite() && self.gradient_norm.is_finite()
    }
}

pub(super) struct Adaptation {
    activations: Activations,
    graph: Bound,
    loss: Buffer,
    gradient_norm: Buffer,
    /// Of each adapter, what the graph calls its start and what it makes of it.
    names: Vec<[String; 2]>,
    /// Where a step writes the updated adapters. Afterwards they change places with the engine's: no copy.
    updated: Vec<Buffer>,
}

impl Engine {
    /// One step: Φ ← Φ − α ∇L, with L the mean over the targets of all parts of a batch, and α one a tensor in the adapter table's
    /// order. Each part is computed by itself at the same Φ, and in place of the one gradient its share of it is subtracted. The
    /// adapters stay as they were where the loss or the gradient is not finite.
    ///
    /// # Errors
    /// The graph cannot be opened or run.
    pub fn adapt_step(&mut self, parts: &[Batch], learning_rate: &[f32]) -> Result<Step> {
        let mut adaptation = match self.adapt.take() {
            Some(adaptation) => adaptation,
            None => self.open_adaptation(Activations::default())?,
        };
        let step = self.step(&mut adaptation, parts, learning_rate);
        self.adapt = Some(adaptation);
        step
    }

    /// The mean loss over the targets of all parts, with the graph of the steps: no other needs to be open beside it, and it takes as
    /// long as a step.
    ///
    /// # Errors
    /// The graph cannot be opened or run.
    pub fn batch_loss(&mut self, parts: &[Batch]) -> Result<f32> {
        let still = vec![0.0; self.table.len()];
        Ok(self.adapt_step(parts, &still)?.loss)
    }

    /// Opens the graph of the steps to come, and closes one that treats activations otherwise.
    ///
    /// # Errors
    /// The graph cannot be opened.
    pub fn prepare_adaptation(&mut self, activations: Activations) -> Result<()> {
        if self.adapt.as_ref().is_none_or(|adaptation| adaptation.activations != activations) {
            // Not both at a time.
            self.adapt = None;
            memory::trim();
            self.adapt = Some(self.open_adaptation(activations)?);
        }
        self.prepare_below()
    }

    /// The memory that the values of a step take at most, beside the weights.
    ///
    /// # Errors
    /// The manifest does not say, or says what cannot be.
    pub fn step_memory(&self, activations: Activations) -> Result<RunMemory> {
        let mut memory = self.graph_memory(activations.graph().0, 1)?;
        if self.manifest.adapter.first_block > 0 {
            // Each graph keeps what its runs have taken.
            let below = self.graph_memory("below", 0)?;
            memory.constant = memory.constant.saturating_add(below.constant);
            memory.token = memory.token.saturating_add(below.token);
            memory.pair = memory.pair.saturating_add(below.pair);
        }
        if self.manifest.precision.is_integer() {
            // One product's rows are rounded at a time: at most the MLP's or queries, keys and values, and the head's gradient.
            let model = &self.manifest.model;
            let widest = (model.mlp.parts() * model.n_inner).max(model.qkv_width()) as u64;
            memory.token = memory.token.saturating_add(kernels::BYTES_TO_ROUND.saturating_mul(widest));
            memory.target =
                memory.target.saturating_add(kernels::BYTES_TO_ROUND.saturating_mul(model.vocab_size as u64));
        }
        Ok(memory)
    }

    /// What the manifest says of a graph, of which a target takes so many bytes at least.
    fn graph_memory(&self, name: &str, least_target: u64) -> Result<RunMemory> {
        let manifest = self.dir.join(bundle::MANIFEST);
        let memory = self.manifest.graphs.get(name).and_then(|graph| graph.memory);
        let missing = || FileError::new(&manifest, "is missing").at(format!("graphs.{name}.memory"));
        let memory = memory.ok_or_else(missing)?;
        believable(memory, least_target).map_err(|(field, problem)| {
            FileError::new(&manifest, problem).at(format!("graphs.{name}.memory.{field}"))
        })?;
        Ok(memory)
    }

    fn open_adaptation(&self, activations: Activations) -> Result<Adaptation> {
        let mut graph = self.open_graph(activations.graph().1)?;
        let (mut loss, mut gradient_norm) = (Buffer::zeros(&[])?, Buffer::zeros(&[])?);
        graph.output_buffer("loss", &mut loss)?;
        graph.output_buffer("gradient_norm", &mut gradient_norm)?;
        let updated = self.table.iter().map(|spec| Buffer::zeros(&spec.shape)).collect::<Result<_, _>>()?;
        let names = self.table.iter().map(|spec| ["start", "updated"].map(|what| format!("{what}.{}", spec.name)));
        Ok(Adaptation { activations, graph: Bound::new(graph), loss, gradient_norm, names: names.collect(), updated })
    }

    fn step(&mut self, adaptation: &mut Adaptation, parts: &[Batch], learning_rate: &[f32]) -> Result<Step> {
        let Adaptation { graph, loss, gradient_norm, names, updated, .. } = adaptation;
        graph.bind_adapters(&self.table, &self.adapters, self.version)?;
        let all: usize = parts.iter().map(Batch::targets).sum();
        let mut step = Step { loss: 0.0, gradient_norm: 0.0 };
        for (index, part) in parts.iter().enumerate() {
            for (([start, name], buffer), adapter) in names.iter().zip(updated.iter_mut()).zip(&self.adapters) {
                // From the second part on, the sum so far is read and written in its place.
                graph.graph.input_buffer(start, if index == 0 { adapter } else { buffer })?;
                graph.graph.output_buffer(name, buffer)?;
            }
            let share = part.targets() as f32 / all.max(1) as f32;
            let rates: Vec<f32> = learning_rate.iter().map(|rate| rate * share).collect();
            let tokens = [part.rows, part.length];
            graph.graph.input("input_ids", &tokens, &part.ids)?;
            graph.graph.input("loss_mask", &tokens, &part.mask)?;
            graph.graph.input("learning_rate", &[rates.len()], &rates)?;
            if let Some(hidden) = self.hidden(part)? {
                graph.graph.input_buffer("hidden", hidden)?;
            }
            graph.graph.run()?;
            let first = |buffer: &Buffer| buffer.values().first().copied().unwrap_or(f32::NAN);
            step.loss += share * first(loss);
            step.gradient_norm = first(gradient_norm);
        }
        if parts.len() > 1 {
            step.gradient_norm = moved(&self.adapters, updated, learning_rate);
        }
        if step.is_finite() {
            std::mem::swap(&mut self.adapters, updated);
            self.adapters_changed();
        }
        Ok(step)
    }
}

/// Refuses figures of memory that no graph has: a limit would be kept by numbers alone. Each token's activations and each target's
/// logits take something where there are some, and nothing of them a pebibyte.
fn believable(memory: RunMemory, least_target: u64) -> Result<(), (&'static str, String)> {
    const MOST: u64 = 1 << 50;
    let RunMemory { constant, token, pair, target } = memory;
    for (field, least, bytes) in
        [("constant", 0, constant), ("token", 1, token), ("pair", 0, pair), ("target", least_target, target)]
    {
        if !(least..=MOST).contains(&bytes) {
            let remedy = "export the model again";
            return Err((field, format!("is {bytes} bytes, expected {least} to {MOST}; {remedy}")));
        }
    }
    Ok(())
}

/// The L2 norm of (Φ − Φ′) / α, the gradient of a step from Φ to Φ′, over the tensors that move at all.
fn moved(before: &[Buffer], after: &[Buffer], learning_rate: &[f32]) -> f32 {
    let mut squares = 0.0;
    for ((before, after), &rate) in before.iter().zip(after).zip(learning_rate).filter(|(_, rate)| **rate != 0.0) {
        let pairs = before.values().iter().zip(after.values());
        let sum: f64 = pairs.map(|(before, after)| f64::from(before - after).powi(2)).sum();
        squares += sum / f64::from(rate).powi(2);
    }
    squares.sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_memory_that_cannot_be_are_refused_by_their_field() {
        let good = RunMemory { constant: 0, token: 1, pair: 0, target: 1 };
        assert_eq!(believable(good, 1), Ok(()));
        for (field, memory) in [
            ("constant", RunMemory { constant: u64::MAX, ..good }),
            ("token", RunMemory { token: 0, ..good }),
            ("token", RunMemory { token: u64::MAX, ..good }),
            ("pair", RunMemory { pair: (1 << 50) + 1, ..good }),
            ("target", RunMemory { target: 0, ..good }),
            ("token", RunMemory::default()),
        ] {
            let (found, problem) = believable(memory, 1).unwrap_err();
            assert!(found == field && problem.contains("expected"), "{memory:?}: {found} {problem}");
        }
    }
}
