//! The meta-gradient: how the query loss after the inner loop changes with the adapters before it (Finn et al. 2017).

use tch::Tensor;

use crate::error::{Result, TrainError};
use crate::gpt2::Gpt2;
use crate::inner::{self, Support};
use crate::tensors::TokenBatch;

/// How much of the inner loop the meta-gradient goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The gradient of the query loss at θ_S, as if the inner loop were a constant shift (first-order MAML).
    First,
    /// The exact derivative by θ_0.
    Second,
}

/// The meta-gradient of one persona.
#[derive(Debug)]
pub struct MetaGradient {
    /// d L_query(θ_S) / d θ_0, one a tensor.
    pub gradient: Vec<Tensor>,
    /// L_query(θ_0), in nats a token.
    pub loss_before: f64,
    /// L_query(θ_S), in nats a token.
    pub loss_after: f64,
}

/// The meta-gradient at `start`, with one α a tensor.
///
/// From θ_{s+1} = θ_s − α ⊙ g_s(θ_s) follows, with v the derivative by θ_{s+1} and H_s the Hessian of the support loss
/// of step s at θ_s, that the derivative by θ_s is v − H_s (α ⊙ v). So v begins as ∇L_query(θ_S) and walks the stored
/// states backwards. Only one step's graph is alive at a time: the memory does not grow with S.
///
/// # Errors
/// A loss is not finite; what libtorch says.
pub fn meta_gradient(
    model: &Gpt2,
    start: &[Tensor],
    support: &Support,
    query: &TokenBatch,
    rates: &[f32],
    order: Order,
) -> Result<MetaGradient> {
    let loss_before = inner::loss(model, start, query)?;
    let trajectory = inner::adapt(model, start, support, rates)?;
    let (loss_after, mut v) = inner::loss_and_gradient(model, trajectory.last(), query)?;
    if !loss_after.is_finite() {
        let what = "the loss on the query dialogues";
        let place = "the end of the inner loop".to_owned();
        return Err(TrainError::NotFinite { what, value: loss_after, place, remedy: "--inner-lr" });
    }
    if order == Order::Second {
        for (batch, state) in support.steps().zip(&trajectory.states).rev() {
            let scaled: Vec<Tensor> =
                v.iter().zip(rates).map(|(v, &rate)| Ok(v.f_mul_scalar(f64::from(rate))?)).collect::<Result<_>>()?;
            let product = hessian_vector(model, state, batch, &scaled)?;
            for (v, product) in v.iter_mut().zip(&product) {
                // Undefined where the gradient does not depend on the tensor.
                if product.defined() {
                    let _ = v.f_sub_(product)?;
                }
            }
        }
    }
    Ok(MetaGradient { gradient: v, loss_before, loss_after })
}

/// H u, with H the Hessian of the batch's loss at `at`: the gradient of ∇L · u (Pearlmutter 1994, by double backward).
fn hessian_vector(model: &Gpt2, at: &[Tensor], batch: &TokenBatch, u: &[Tensor]) -> Result<Vec<Tensor>> {
    let adapters = inner::leaves(at)?;
    let loss = model.loss(Some(&adapters), batch)?;
    let gradient = Tensor::f_run_backward(&[&loss], &adapters.tensors, true, true)?;
    let products = gradient.iter().zip(u).map(|(gradient, u)| Ok(gradient.f_mul(u)?.f_sum(None)?));
    let dot = Tensor::f_stack(&products.collect::<Result<Vec<_>>>()?, 0)?.f_sum(None)?;
    Ok(Tensor::f_run_backward(&[&dot], &adapters.tensors, false, false)?)
}
