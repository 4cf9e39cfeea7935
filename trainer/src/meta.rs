//! The outer gradient of one persona: how the model should begin, so that the inner loop goes far.

use tch::{Kind, Tensor};

use crate::error::{Result, TrainError};
use crate::inner::{self, Support};
use crate::model::Model;
use crate::tensors::TokenBatch;

/// The outer gradient of one persona.
#[derive(Debug)]
pub struct MetaGradient {
    /// The gradient by θ_0, one a tensor.
    pub gradient: Vec<Tensor>,
    /// The gradient by the logarithm of each α, f32 `[A]`, where it was asked for (MAML and FOMAML).
    pub rates: Option<Tensor>,
    /// The loss that the outer loop lowers: L_query(θ_S), in nats a token; for Reptile the last support loss.
    pub loss: f64,
}

/// The derivative of L_query(θ_S) by θ_0, with one α a tensor; and by log α where `learn_rates`.
///
/// From θ_{s+1} = θ_s − α ⊙ g_s(θ_s) follows, with v the derivative by θ_{s+1} and H_s the Hessian of the support loss
/// of step s at θ_s, that the derivative by θ_s is v − H_s (α ⊙ v), and that step s adds −α ⟨v, g_s⟩ to the derivative by
/// log α (Li et al. 2017, with one rate a tensor). So v begins as ∇L_query(θ_S) and walks the states backwards. The graph
/// of the last inner step is kept until then; those before it are computed again, one at a time: the memory does not
/// grow with S (but for the states themselves), and S = 1 repeats nothing.
///
/// # Errors
/// A loss is not finite; what libtorch says.
pub fn meta_gradient(
    model: &Model,
    start: &[Tensor],
    support: &Support,
    query: &TokenBatch,
    rates: &[f32],
    exact: bool,
    learn_rates: bool,
) -> Result<MetaGradient> {
    let count = support.steps().len();
    let mut states = vec![start.iter().map(|tensor| Ok(tensor.f_detach()?)).collect::<Result<Vec<_>>>()?];
    // The gradients of first order that the derivative by α needs; the exact walk computes them again.
    let mut gradients = Vec::new();
    let mut kept = None;
    for (step, batch) in support.steps().enumerate() {
        let state = states.last().map(Vec::as_slice).unwrap_or_default();
        let (loss, gradient) = if exact && step + 1 == count {
            let curved = Curved::new(model, state, batch)?;
            let (loss, gradient) = (curved.loss, curved.gradient()?);
            kept = Some(curved);
            (loss, gradient)
        } else {
            inner::loss_and_gradient(model, state, batch)?
        };
        inner::finite(loss, step)?;
        let next = inner::descend(state, &gradient, rates)?;
        if learn_rates && !exact {
            gradients.push(gradient);
        }
        states.push(next);
    }

    let adapted = states.pop().unwrap_or_default();
    let (loss, mut v) = inner::loss_and_gradient(model, &adapted, query)?;
    drop(adapted);
    if !loss.is_finite() {
        let what = "the loss on the query dialogues";
        let place = "the end of the inner loop".to_owned();
        return Err(TrainError::NotFinite { what, value: loss, place, remedy: "--inner-lr" });
    }

    let mut by_rate = learn_rates.then(|| vec![0.0; rates.len()]);
    if exact {
        for (batch, state) in support.steps().zip(&states).rev() {
            let curved = match kept.take() {
                Some(curved) => curved,
                None => Curved::new(model, state, batch)?,
            };
            if let Some(sums) = &mut by_rate {
                add_products(sums, &v, &curved.gradient()?)?;
            }
            let scaled: Vec<Tensor> =
                v.iter().zip(rates).map(|(v, &rate)| Ok(v.f_mul_scalar(f64::from(rate))?)).collect::<Result<_>>()?;
            for (v, product) in v.iter_mut().zip(&curved.times(&scaled)?) {
                // Undefined where the gradient does not depend on the tensor.
                if product.defined() {
                    let _ = v.f_sub_(product)?;
                }
            }
        }
    } else if let Some(sums) = &mut by_rate {
        for gradient in &gradients {
            add_products(sums, &v, gradient)?;
        }
    }
    let rates = by_rate.map(|sums| {
        let scaled: Vec<f32> = sums.iter().zip(rates).map(|(sum, &rate)| (-sum * f64::from(rate)) as f32).collect();
        Ok::<_, TrainError>(Tensor::f_from_slice(&scaled)?.f_to_device(model.device())?)
    });
    Ok(MetaGradient { gradient: v, rates: rates.transpose()?, loss })
}

/// Adds ⟨v, g⟩ of each tensor to its sum.
fn add_products(sums: &mut [f64], v: &[Tensor], gradient: &[Tensor]) -> Result<()> {
    for ((sum, v), gradient) in sums.iter_mut().zip(v).zip(gradient) {
        *sum += v.f_mul(gradient)?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(())
}

/// Reptile's gradient.
///
/// # Errors
/// A loss is not finite; what libtorch says.
pub fn reptile(model: &Model, start: &[Tensor], support: &Support, rates: &[f32]) -> Result<MetaGradient> {
    let adapted = inner::adapt(model, start, support, rates)?;
    let way = start.iter().zip(&adapted.parameters).zip(rates);
    let gradient = way
        .map(|((from, to), &rate)| Ok(from.f_detach()?.f_sub(to)?.f_div_scalar(f64::from(rate))?))
        .collect::<Result<_>>()?;
    Ok(MetaGradient { gradient, rates: None, loss: adapted.losses.last().copied().unwrap_or_default() })
}

/// A loss with its gradient as a graph, to be differentiated once more.
struct Curved {
    loss: f64,
    at: Vec<Tensor>,
    gradient: Vec<Tensor>,
}

impl Curved {
    fn new(model: &Model, at: &[Tensor], batch: &TokenBatch) -> Result<Self> {
        let at = inner::leaves(at)?;
        let loss = model.at(&at)?.loss(batch)?;
        let gradient = inner::defined(Tensor::f_run_backward(&[&loss], &at, true, true)?, &at)?;
        Ok(Self { loss: loss.f_double_value(&[])?, at, gradient })
    }

    /// ∇L, apart from the graph.
    fn gradient(&self) -> Result<Vec<Tensor>> {
        self.gradient.iter().map(|gradient| Ok(gradient.f_detach()?)).collect()
    }

    /// H u, with H the Hessian of the loss: the gradient of ∇L · u (Pearlmutter 1994, by double backward).
    fn times(self, u: &[Tensor]) -> Result<Vec<Tensor>> {
        let products = self.gradient.iter().zip(u).map(|(gradient, u)| Ok(gradient.f_mul(u)?.f_sum(None)?));
        let dot = Tensor::f_stack(&products.collect::<Result<Vec<_>>>()?, 0)?.f_sum(None)?;
        Ok(Tensor::f_run_backward(&[&dot], &self.at, false, false)?)
    }
}
