//! The adapt graph: one SGD step of the adapters.

use marionette_dialogues::Batch;
use marionette_models::bundle;

use super::{Bound, Engine};
use crate::error::Result;
use crate::session::Buffer;

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
    graph: Bound,
    loss: Buffer,
    gradient_norm: Buffer,
    /// Where a step writes the updated adapters. Afterwards they change places with the engine's: no copy.
    updated: Vec<Buffer>,
}

impl Engine {
    /// One step: Φ ← Φ − α ∇L on a batch, α one a tensor in the adapter table's order. The adapters stay as they were where
    /// the loss or the gradient is not finite.
    ///
    /// # Errors
    /// The graph cannot be opened or run.
    pub fn adapt_step(&mut self, batch: &Batch, learning_rate: &[f32]) -> Result<Step> {
        let mut adaptation = match self.adapt.take() {
            Some(adaptation) => adaptation,
            None => self.open_adaptation()?,
        };
        let step = self.step(&mut adaptation, batch, learning_rate);
        self.adapt = Some(adaptation);
        step
    }

    fn open_adaptation(&self) -> Result<Adaptation> {
        let mut graph = self.open_graph(bundle::ADAPT)?;
        let (mut loss, mut gradient_norm) = (Buffer::zeros(&[])?, Buffer::zeros(&[])?);
        graph.output_buffer("loss", &mut loss)?;
        graph.output_buffer("gradient_norm", &mut gradient_norm)?;
        let updated = self.table.iter().map(|spec| Buffer::zeros(&spec.shape)).collect::<Result<_, _>>()?;
        Ok(Adaptation { graph: Bound::new(graph), loss, gradient_norm, updated })
    }

    fn step(&mut self, adaptation: &mut Adaptation, batch: &Batch, learning_rate: &[f32]) -> Result<Step> {
        let Adaptation { graph, loss, gradient_norm, updated } = adaptation;
        graph.bind_adapters(&self.table, &self.adapters, self.version)?;
        for (spec, buffer) in self.table.iter().zip(updated.iter_mut()) {
            graph.graph.output_buffer(&format!("updated.{}", spec.name), buffer)?;
        }
        let tokens = [batch.rows, batch.length];
        graph.graph.input("input_ids", &tokens, &batch.ids)?;
        graph.graph.input("loss_mask", &tokens, &batch.mask)?;
        graph.graph.input("learning_rate", &[learning_rate.len()], learning_rate)?;
        graph.graph.run()?;
        let first = |buffer: &Buffer| buffer.values().first().copied().unwrap_or(f32::NAN);
        let step = Step { loss: first(loss), gradient_norm: first(gradient_norm) };
        if step.is_finite() {
            std::mem::swap(&mut self.adapters, updated);
            self.adapters_changed();
        }
        Ok(step)
    }
}
