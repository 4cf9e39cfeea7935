//! Derivatives by libtorch's reverse mode, twice: for any tensors that learn.

use tch::Tensor;

use crate::derivative::{Curved, Derivative};
use crate::error::Result;
use crate::model::Model;
use crate::tensors::TokenBatch;

/// The derivatives of any model.
pub(crate) struct Autograd<'m> {
    pub(crate) model: &'m Model,
}

/// A loss with its gradient as a graph, to be differentiated once more.
pub(crate) struct Graph {
    loss: f64,
    at: Vec<Tensor>,
    gradient: Vec<Tensor>,
}

/// The same values as leaves of a new graph.
fn leaves(parameters: &[Tensor]) -> Result<Vec<Tensor>> {
    parameters.iter().map(|parameter| Ok(parameter.f_detach()?.f_set_requires_grad(true)?)).collect()
}

/// Zeros for the gradients that libtorch leaves undefined, because the tensor has no part in the loss.
fn defined(gradient: Vec<Tensor>, parameters: &[Tensor]) -> Result<Vec<Tensor>> {
    let zero = |(gradient, parameter): (Tensor, &Tensor)| match gradient.defined() {
        true => Ok(gradient),
        false => Ok(parameter.f_detach()?.f_zeros_like()?),
    };
    gradient.into_iter().zip(parameters).map(zero).collect()
}

impl<'a> Derivative<'a> for Autograd<'_> {
    type Trace = ();
    type Curved = Graph;

    fn gradient(&self, at: &[Tensor], batch: &'a TokenBatch) -> Result<(f64, Vec<Tensor>)> {
        let at = leaves(at)?;
        let loss = self.model.at(&at)?.loss(batch)?;
        let gradient = Tensor::f_run_backward(&[&loss], &at, false, false)?;
        Ok((loss.f_double_value(&[])?, defined(gradient, &at)?))
    }

    fn traced(&self, at: &[Tensor], batch: &'a TokenBatch, _: bool) -> Result<(f64, Vec<Tensor>, ())> {
        let (loss, gradient) = self.gradient(at, batch)?;
        Ok((loss, gradient, ()))
    }

    fn curved(&self, at: &[Tensor], batch: &'a TokenBatch, _: bool) -> Result<Graph> {
        let at = leaves(at)?;
        let loss = self.model.at(&at)?.loss(batch)?;
        let gradient = defined(Tensor::f_run_backward(&[&loss], &at, true, true)?, &at)?;
        Ok(Graph { loss: loss.f_double_value(&[])?, at, gradient })
    }

    fn again(&self, at: &[Tensor], batch: &'a TokenBatch, (): ()) -> Result<Graph> {
        self.curved(at, batch, true)
    }

    /// The gradient of ∇L · u (Pearlmutter 1994, by double backward).
    fn times(&self, curved: Graph, u: &[Tensor], _: &'a TokenBatch) -> Result<Vec<Tensor>> {
        let products = curved.gradient.iter().zip(u).map(|(gradient, u)| Ok(gradient.f_mul(u)?.f_sum(None)?));
        let dot = Tensor::f_stack(&products.collect::<Result<Vec<_>>>()?, 0)?.f_sum(None)?;
        // Undefined where the gradient does not depend on the tensor.
        defined(Tensor::f_run_backward(&[&dot], &curved.at, false, false)?, &curved.at)
    }
}

impl Curved for Graph {
    fn loss(&self) -> f64 {
        self.loss
    }

    fn gradient(&self) -> Result<Vec<Tensor>> {
        self.gradient.iter().map(|gradient| Ok(gradient.f_detach()?)).collect()
    }
}
