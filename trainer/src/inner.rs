//! The inner loop: plain SGD on the support dialogues of one persona.

use marionette_dialogues::Example;
use marionette_models::InnerLoop;
use tch::{Device, Tensor, no_grad};

use crate::derivative::Derivative;
use crate::error::{Result, TrainError};
use crate::model::Model;
use crate::tensors::{self, TokenBatch};

/// The support set, cut into the batches of the inner steps.
#[derive(Debug)]
pub struct Support {
    /// The batches of one pass, or fewer where there are fewer steps.
    batches: Vec<TokenBatch>,
    steps: usize,
}

impl Support {
    /// Cuts the support dialogues as the recipe says ([`InnerLoop::batches`]). Of a dialogue's choices the one at `turn`
    /// is learned from.
    ///
    /// # Errors
    /// A batch has no target.
    pub fn new(recipe: &InnerLoop, examples: &[&Example], turn: usize, device: Device) -> Result<Self> {
        let mut order = recipe.batches(examples.len());
        let steps = order.len();
        // From here on they repeat.
        order.truncate(recipe.steps_per_epoch(examples.len()));
        let batch = |indices: &Vec<usize>| {
            let rows: Vec<&Example> = indices.iter().filter_map(|&index| examples.get(index).copied()).collect();
            TokenBatch::of(&rows, turn, device)
        };
        Ok(Self { batches: order.iter().map(batch).collect::<Result<_>>()?, steps })
    }

    /// All steps on one batch.
    pub fn repeat(batch: TokenBatch, steps: usize) -> Self {
        Self { batches: vec![batch], steps }
    }

    /// The batch of each of the S steps.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &TokenBatch> + ExactSizeIterator {
        let count = if self.batches.is_empty() { 0 } else { self.steps };
        (0..count).map(|step| &self.batches[step % self.batches.len()])
    }

    /// Tokens that all steps read together, padding included.
    pub fn tokens(&self) -> usize {
        self.steps().map(TokenBatch::tokens).sum()
    }
}

/// What the inner loop came to.
#[derive(Debug)]
pub struct Adapted {
    /// θ_S.
    pub parameters: Vec<Tensor>,
    /// The support loss before each of the S steps.
    pub losses: Vec<f64>,
}

/// The loss of a batch, and its gradient for each tensor that learns; zero for one that has no part in it.
///
/// # Errors
/// What libtorch says.
pub fn loss_and_gradient(model: &Model, parameters: &[Tensor], batch: &TokenBatch) -> Result<(f64, Vec<Tensor>)> {
    Derivative::of(model, std::iter::once(batch))?.gradient(parameters, batch)
}

/// θ − α ⊙ g, with one α a tensor. The tensors lie together in one block of memory: a state that outlives its step would
/// else leave holes among what the step gave back.
pub(crate) fn descend(parameters: &[Tensor], gradient: &[Tensor], rates: &[f32]) -> Result<Vec<Tensor>> {
    no_grad(|| {
        let moved = tensors::together(parameters)?;
        for ((moved, gradient), &rate) in moved.iter().zip(gradient).zip(rates) {
            let _ = moved.shallow_clone().f_sub_(&gradient.f_mul_scalar(f64::from(rate))?)?;
        }
        Ok(moved)
    })
}

/// Refuses a support loss that is not finite; `step` counts from 0.
pub(crate) fn finite(loss: f64, step: usize) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    let (what, place) = ("the loss on the support dialogues", format!("inner step {}", step + 1));
    Err(TrainError::NotFinite { what, value: loss, place, remedy: "--inner-lr" })
}

/// S steps θ_{s+1} = θ_s − α ∇L_s(θ_s), with one α a tensor.
///
/// # Errors
/// A loss is not finite; what libtorch says.
pub fn adapt(model: &Model, start: &[Tensor], support: &Support, rates: &[f32]) -> Result<Adapted> {
    let derivative = Derivative::of(model, support.steps())?;
    let mut parameters = start.iter().map(|tensor| Ok(tensor.f_detach()?)).collect::<Result<Vec<_>>>()?;
    let mut losses = Vec::new();
    for (step, batch) in support.steps().enumerate() {
        let (loss, gradient) = derivative.gradient(&parameters, batch)?;
        finite(loss, step)?;
        losses.push(loss);
        parameters = descend(&parameters, &gradient, rates)?;
    }
    Ok(Adapted { parameters, losses })
}

/// The language model's mean loss on a batch, without a gradient.
///
/// # Errors
/// What libtorch says.
pub fn loss(model: &Model, parameters: &[Tensor], batch: &TokenBatch) -> Result<f64> {
    Derivative::of(model, std::iter::once(batch))?.language_loss(parameters, batch)
}
