//! The inner loop: plain SGD on the support dialogues of one persona.

use marionette_dialogues::{Batch, Sequence};
use marionette_models::InnerLoop;
use tch::{Device, Tensor, no_grad};

use crate::error::{Result, TrainError};
use crate::gpt2::{Adapters, Gpt2};
use crate::tensors::TokenBatch;

/// The support set, cut into the batches of the inner steps.
#[derive(Debug)]
pub struct Support {
    /// The batches of one pass, or fewer where there are fewer steps.
    batches: Vec<TokenBatch>,
    steps: usize,
}

impl Support {
    /// Cuts the support dialogues as the recipe says ([`InnerLoop::batches`]).
    ///
    /// # Errors
    /// A batch has no target.
    pub fn new(recipe: &InnerLoop, sequences: &[&Sequence], device: Device) -> Result<Self> {
        let mut order = recipe.batches(sequences.len());
        let steps = order.len();
        // From here on they repeat.
        order.truncate(recipe.steps_per_epoch(sequences.len()));
        let batch = |indices: &Vec<usize>| {
            let rows = indices.iter().filter_map(|&index| sequences.get(index).copied());
            TokenBatch::new(&Batch::new(rows)?, device)
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

/// What the inner loop went through.
#[derive(Debug)]
pub struct Trajectory {
    /// θ_0 … θ_S: the adapters before the first step and after each.
    pub states: Vec<Vec<Tensor>>,
    /// The support loss before each of the S steps.
    pub losses: Vec<f64>,
}

impl Trajectory {
    /// θ_S.
    pub fn last(&self) -> &[Tensor] {
        self.states.last().map(Vec::as_slice).unwrap_or_default()
    }
}

/// The same values as leaves of a new graph.
pub(crate) fn leaves(parameters: &[Tensor]) -> Result<Adapters> {
    let leaf = |parameter: &Tensor| Ok(parameter.f_detach()?.f_set_requires_grad(true)?);
    Ok(Adapters { tensors: parameters.iter().map(leaf).collect::<Result<_>>()? })
}

/// The loss of a batch, and its gradient for each adapter tensor.
///
/// # Errors
/// What libtorch says.
pub fn loss_and_gradient(model: &Gpt2, adapters: &[Tensor], batch: &TokenBatch) -> Result<(f64, Vec<Tensor>)> {
    let adapters = leaves(adapters)?;
    let loss = model.loss(Some(&adapters), batch)?;
    let gradient = Tensor::f_run_backward(&[&loss], &adapters.tensors, false, false)?;
    Ok((loss.f_double_value(&[])?, gradient))
}

/// S steps θ_{s+1} = θ_s − α ∇L_s(θ_s), with one α a tensor.
///
/// # Errors
/// A loss is not finite; what libtorch says.
pub fn adapt(model: &Gpt2, start: &[Tensor], support: &Support, rates: &[f32]) -> Result<Trajectory> {
    let mut states = vec![start.iter().map(|tensor| Ok(tensor.f_detach()?)).collect::<Result<Vec<_>>>()?];
    let mut losses = Vec::new();
    let finite = |value: f64, place: String| match value.is_finite() {
        true => Ok(()),
        false => {
            Err(TrainError::NotFinite { what: "the loss on the support dialogues", value, place, remedy: "--inner-lr" })
        }
    };
    for (step, batch) in support.steps().enumerate() {
        let state = states.last().map(Vec::as_slice).unwrap_or_default();
        let (loss, gradient) = loss_and_gradient(model, state, batch)?;
        finite(loss, format!("inner step {}", step + 1))?;
        losses.push(loss);
        let next = no_grad(|| {
            let moved = state.iter().zip(&gradient).zip(rates);
            moved
                .map(|((parameter, gradient), &rate)| Ok(parameter.f_sub(&gradient.f_mul_scalar(f64::from(rate))?)?))
                .collect::<Result<Vec<_>>>()
        })?;
        states.push(next);
    }
    Ok(Trajectory { states, losses })
}

/// The mean loss of a batch, without a gradient.
///
/// # Errors
/// What libtorch says.
pub fn loss(model: &Gpt2, adapters: &[Tensor], batch: &TokenBatch) -> Result<f64> {
    let adapters = Adapters { tensors: adapters.iter().map(Tensor::shallow_clone).collect() };
    Ok(no_grad(|| model.loss(Some(&adapters), batch))?.f_double_value(&[])?)
}
