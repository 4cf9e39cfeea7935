//! What the inner and the outer loop ask of a loss: its gradient, and products of its Hessian with a vector.

use tch::Tensor;

use crate::autograd::Autograd;
use crate::engine::Engine;
use crate::error::Result;
use crate::model::Model;
use crate::tensors::TokenBatch;

/// The derivatives of a model's loss by the tensors that learn. `'a` is the life of the batches.
pub(crate) trait Derivative<'a> {
    /// What is kept of a step so that it can be done again for less.
    type Trace;
    /// A step of which everything is kept.
    type Curved: Curved;

    /// The loss at θ, and its gradient.
    ///
    /// # Errors
    /// What libtorch says.
    fn gradient(&self, at: &[Tensor], batch: &'a TokenBatch) -> Result<(f64, Vec<Tensor>)>;

    /// The same with a trace, which is small unless it is to be `detailed`.
    ///
    /// # Errors
    /// What libtorch says.
    fn traced(&self, at: &[Tensor], batch: &'a TokenBatch, detailed: bool) -> Result<(f64, Vec<Tensor>, Self::Trace)>;

    /// The same, to be differentiated once more. Where the step is not `alone`, it leaves as much memory as a detailed
    /// trace needs.
    ///
    /// # Errors
    /// What libtorch says.
    fn curved(&self, at: &[Tensor], batch: &'a TokenBatch, alone: bool) -> Result<Self::Curved>;

    /// The same of a step that left a trace.
    ///
    /// # Errors
    /// What libtorch says.
    fn again(&self, at: &[Tensor], batch: &'a TokenBatch, trace: Self::Trace) -> Result<Self::Curved>;

    /// H u, with H the Hessian of the loss where `curved` is.
    ///
    /// # Errors
    /// What libtorch says.
    fn times(&self, curved: Self::Curved, u: &[Tensor], batch: &'a TokenBatch) -> Result<Vec<Tensor>>;
}

/// A loss that can be differentiated twice.
pub(crate) trait Curved {
    /// The loss; not a number where the step was done again from a trace.
    fn loss(&self) -> f64;

    /// Its gradient.
    ///
    /// # Errors
    /// What libtorch says.
    fn gradient(&self) -> Result<Vec<Tensor>>;
}

/// Something to compute with either implementation of [`Derivative`].
pub(crate) trait With<'a> {
    /// What comes of it.
    type Output;

    /// Computes it.
    ///
    /// # Errors
    /// What the computation says.
    fn with(self, derivative: &impl Derivative<'a>) -> Result<Self::Output>;
}

/// Computes with the fastest implementation that there is for a model and its batches.
///
/// # Errors
/// What the computation says.
pub(crate) fn with<'a, W: With<'a>>(
    model: &Model,
    mut batches: impl Iterator<Item = &'a TokenBatch>,
    work: W,
) -> Result<W::Output> {
    if batches.all(|batch| batch.choices.is_none())
        && let Some(engine) = Engine::new(model)?
    {
        return work.with(&engine);
    }
    work.with(&Autograd { model })
}
