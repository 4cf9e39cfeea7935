//! Derivatives by libtorch's reverse mode, twice: for any tensors that learn.

use tch::Tensor;

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

impl Autograd<'_> {
    /// The loss at θ, and its gradient.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn gradient(&self, at: &[Tensor], batch: &TokenBatch) -> Result<(f64, Vec<Tensor>)> {
        let at = leaves(at)?;
        let loss = self.model.at(&at)?.loss(batch)?;
        let gradient = Tensor::f_run_backward(&[&loss], &at, false, false)?;
        Ok((loss.f_double_value(&[])?, defined(gradient, &at)?))
    }

    /// The same, to be differentiated once more.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn curved(&self, at: &[Tensor], batch: &TokenBatch) -> Result<Graph> {
        let at = leaves(at)?;
        let loss = self.model.at(&at)?.loss(batch)?;
        let gradient = defined(Tensor::f_run_backward(&[&loss], &at, true, true)?, &at)?;
        Ok(Graph { loss: loss.f_double_value(&[])?, at, gradient })
    }
}

impl Graph {
    /// The loss.
    pub(crate) fn loss(&self) -> f64 {
        self.loss
    }

    /// Its gradient.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn gradient(&self) -> Result<Vec<Tensor>> {
        self.gradient.iter().map(|gradient| Ok(gradient.f_detach()?)).collect()
    }

    /// H u: the gradient of ∇L · u (Pearlmutter 1994, by double backward).
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn times(self, u: &[Tensor]) -> Result<Vec<Tensor>> {
        let products = self.gradient.iter().zip(u).map(|(gradient, u)| Ok(gradient.f_mul(u)?.f_sum(None)?));
        let dot = Tensor::f_stack(&products.collect::<Result<Vec<_>>>()?, 0)?.f_sum(None)?;
        // Undefined where the gradient does not depend on the tensor.
        defined(Tensor::f_run_backward(&[&dot], &self.at, false, false)?, &self.at)
    }
}
