//! What the inner and the outer loop ask of a loss: its gradient, and products of its Hessian with a vector. There are two ways to
//! compute them, and this is where one is chosen.

use tch::{Tensor, no_grad};

use crate::autograd::{Autograd, Graph};
use crate::engine::{self, Engine};
use crate::error::Result;
use crate::model::Model;
use crate::tensors::TokenBatch;

/// The derivatives of a model's loss by the tensors that learn. `'a` is the life of the model and of the batches.
pub(crate) enum Derivative<'a> {
    /// Written out, where exactly the adapters learn.
    ByHand(Box<Engine<'a>>),
    /// By libtorch, for any tensors that learn.
    ByLibtorch(Autograd<'a>),
}

/// What is kept of a step so that it can be done again for less.
pub(crate) enum Trace<'d, 'a> {
    ByHand(&'d Engine<'a>, engine::Trace),
    /// Nothing.
    ByLibtorch(&'d Autograd<'a>),
}

/// A step of which everything is kept: a loss that can be differentiated once more.
pub(crate) enum Curved<'d, 'a> {
    ByHand(&'d Engine<'a>, engine::Recorded),
    ByLibtorch(Graph),
}

impl<'a> Derivative<'a> {
    /// The fastest way that there is for a model and its batches.
    ///
    /// # Errors
    /// A tensor is missing; what libtorch says.
    pub(crate) fn of(model: &'a Model, mut batches: impl Iterator<Item = &'a TokenBatch>) -> Result<Self> {
        let has_choices = batches.any(|batch| batch.choices.is_some());
        Ok(match if has_choices { None } else { Engine::new(model)? } {
            Some(engine) => Self::ByHand(Box::new(engine)),
            None => Self::ByLibtorch(Autograd { model }),
        })
    }

    /// The language model's loss at θ alone.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn language_loss(&self, at: &[Tensor], batch: &'a TokenBatch) -> Result<f64> {
        match self {
            Self::ByHand(engine) => engine.loss(at, batch),
            Self::ByLibtorch(Autograd { model }) => {
                let decoder = model.at(at)?;
                Ok(no_grad(|| decoder.language_loss(batch))?.f_double_value(&[])?)
            }
        }
    }

    /// The loss at θ, and its gradient.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn gradient(&self, at: &[Tensor], batch: &'a TokenBatch) -> Result<(f64, Vec<Tensor>)> {
        match self {
            Self::ByHand(engine) => engine.gradient(at, batch),
            Self::ByLibtorch(autograd) => autograd.gradient(at, batch),
        }
    }

    /// The same with a trace, which is small unless it is to be `detailed`.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn traced(
        &self,
        at: &[Tensor],
        batch: &'a TokenBatch,
        detailed: bool,
    ) -> Result<(f64, Vec<Tensor>, Trace<'_, 'a>)> {
        Ok(match self {
            Self::ByHand(engine) => {
                let (loss, gradient, trace) = engine.traced(at, batch, detailed)?;
                (loss, gradient, Trace::ByHand(engine, trace))
            }
            Self::ByLibtorch(autograd) => {
                let (loss, gradient) = autograd.gradient(at, batch)?;
                (loss, gradient, Trace::ByLibtorch(autograd))
            }
        })
    }

    /// The same, to be differentiated once more. Where the step is not `alone`, it leaves as much memory as a detailed
    /// trace needs.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn curved(&self, at: &[Tensor], batch: &'a TokenBatch, alone: bool) -> Result<Curved<'_, 'a>> {
        Ok(match self {
            Self::ByHand(engine) => Curved::ByHand(engine, engine.curved(at, batch, alone)?),
            Self::ByLibtorch(autograd) => Curved::ByLibtorch(autograd.curved(at, batch)?),
        })
    }
}

impl<'d, 'a> Trace<'d, 'a> {
    /// The step once more, at the same θ, to be differentiated. Its loss is not a number where the trace spares computing it.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn again(self, at: &[Tensor], batch: &'a TokenBatch) -> Result<Curved<'d, 'a>> {
        Ok(match self {
            Self::ByHand(engine, trace) => Curved::ByHand(engine, engine.again(at, batch, trace)?),
            Self::ByLibtorch(autograd) => Curved::ByLibtorch(autograd.curved(at, batch)?),
        })
    }
}

impl<'a> Curved<'_, 'a> {
    /// The loss.
    pub(crate) fn loss(&self) -> f64 {
        match self {
            Self::ByHand(_, recorded) => recorded.loss(),
            Self::ByLibtorch(graph) => graph.loss(),
        }
    }

    /// Its gradient.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn gradient(&self) -> Result<Vec<Tensor>> {
        match self {
            Self::ByHand(_, recorded) => recorded.gradient(),
            Self::ByLibtorch(graph) => graph.gradient(),
        }
    }

    /// H u, with H the Hessian of the loss.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn times(self, u: &[Tensor], batch: &'a TokenBatch) -> Result<Vec<Tensor>> {
        match self {
            Self::ByHand(engine, recorded) => engine.times(recorded, u, batch),
            Self::ByLibtorch(graph) => graph.times(u),
        }
    }
}
