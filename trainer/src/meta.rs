//! The outer gradient of one persona: how the model should begin, so that the inner loop goes far.

use tch::{Kind, Tensor};

use crate::derivative::{Curved, Derivative, Trace};
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

/// With at most so many steps the last but one leaves a detailed trace; with more, their states take the room of it.
const TRACED: usize = 3;

/// The derivative of L_query(θ_S) by θ_0, with one α a tensor; and by log α where `learn_rates`.
///
/// From θ_{s+1} = θ_s − α ⊙ g_s(θ_s) follows, with v the derivative by θ_{s+1} and H_s the Hessian of the support loss
/// of step s at θ_s, that the derivative by θ_s is v − H_s (α ⊙ v), and that step s adds −α ⟨v, g_s⟩ to the derivative by
/// log α (Li et al. 2017, with one rate a tensor). So v begins as ∇L_query(θ_S) and walks the states backwards. What the
/// last inner step computed is kept until then; the steps before it are done again, one at a time. The states, one a step,
/// are all that grows with S; where they are few, their room is used to spare work (up to S = 3), and S = 1 repeats nothing.
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
    let derivative = Derivative::of(model, support.steps().chain([query]))?;
    let count = support.steps().len();
    let mut state = start.iter().map(|tensor| Ok(tensor.f_detach()?)).collect::<Result<Vec<_>>>()?;
    let mut steps = Vec::new();
    for (step, batch) in support.steps().enumerate() {
        let loss;
        if !exact {
            let (found, gradient) = derivative.gradient(&state, batch)?;
            loss = found;
            state = inner::descend(&state, &gradient, rates)?;
            if learn_rates {
                steps.push(Step::Gradient(gradient));
            }
        } else if step + 1 < count {
            let (found, gradient, trace) = derivative.traced(&state, batch, step + 2 == count && count <= TRACED)?;
            loss = found;
            let next = inner::descend(&state, &gradient, rates)?;
            steps.push(Step::Again(std::mem::replace(&mut state, next), trace));
        } else {
            let curved = derivative.curved(&state, batch, count == 1)?;
            loss = curved.loss();
            state = inner::descend(&state, &curved.gradient()?, rates)?;
            steps.push(Step::Kept(curved));
        }
        inner::finite(loss, step)?;
    }

    let (loss, mut v) = derivative.gradient(&state, query)?;
    drop(state);
    if !loss.is_finite() {
        let what = "the loss on the query dialogues";
        let place = "the end of the inner loop".to_owned();
        return Err(TrainError::NotFinite { what, value: loss, place, remedy: "--inner-lr" });
    }

    let mut by_rate = learn_rates.then(|| vec![0.0; rates.len()]);
    let batches: Vec<&TokenBatch> = support.steps().collect();
    for (step, batch) in steps.into_iter().zip(batches).rev() {
        let curved = match step {
            Step::Gradient(gradient) => {
                if let Some(sums) = &mut by_rate {
                    add_products(sums, &v, &gradient)?;
                }
                continue;
            }
            Step::Again(state, trace) => trace.again(&state, batch)?,
            Step::Kept(curved) => curved,
        };
        if let Some(sums) = &mut by_rate {
            add_products(sums, &v, &curved.gradient()?)?;
        }
        let scaled: Vec<Tensor> =
            v.iter().zip(rates).map(|(v, &rate)| Ok(v.f_mul_scalar(f64::from(rate))?)).collect::<Result<_>>()?;
        for (v, product) in v.iter_mut().zip(&curved.times(&scaled, batch)?) {
            let _ = v.f_sub_(product)?;
        }
    }
    let by_rate = by_rate.map(|sums| {
        let scaled: Vec<f32> = sums.iter().zip(rates).map(|(sum, &rate)| (-sum * f64::from(rate)) as f32).collect();
        let device = v.first().map_or(tch::Device::Cpu, Tensor::device);
        Ok::<_, TrainError>(Tensor::f_from_slice(&scaled)?.f_to_device(device)?)
    });
    Ok(MetaGradient { gradient: v, rates: by_rate.transpose()?, loss })
}

/// What the walk back needs of an inner step.
enum Step<'d, 'a> {
    /// Its gradient, where only the derivative by α needs it.
    Gradient(Vec<Tensor>),
    /// θ_s, and what makes it cheaper to do the step again.
    Again(Vec<Tensor>, Trace<'d, 'a>),
    /// Everything, of the last step.
    Kept(Curved<'d, 'a>),
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
