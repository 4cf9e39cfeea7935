//! Layer normalisation (Ba et al. 2016), y = x̂ ⊙ γ + β with x̂ = r (x − mean x), r = 1 / √(var x + ε), a row at a time; or root mean
//! square normalisation (Zhang & Sennrich 2019), the same without the means and without β.
//!
//! Its Jacobian without γ is J v = r (v − mean v − x̂ mean(v ⊙ x̂)), in the other r (v − x̂ mean(v ⊙ x̂)); it is symmetric: it
//! takes tangents forward and adjoints back. What follows from it is the same in both.

use marionette_models::params::names;
use marionette_models::{self as models, ModelConfig};
use tch::Tensor;

use crate::error::Result;
use crate::model::Model;

pub(super) struct Norm {
    scale: Tensor,
    /// Of layer normalisation, which takes off the mean.
    shift: Option<Tensor>,
    epsilon: f64,
}

/// What the walk back needs.
pub(super) struct Tape {
    /// x̂, [N, D].
    hat: Tensor,
    /// r, [N, 1].
    r: Tensor,
}

/// The tangent of the tape.
pub(super) struct Tangent {
    /// The tangent of x̂, [N, D].
    hat: Tensor,
    /// mean(x̂ ⊙ ẋ), so that ṙ = −r² k; [N, 1].
    k: Tensor,
}

/// The mean of one ⊙ other over each row, [N, 1].
fn row_mean(one: &Tensor, other: &Tensor) -> Result<Tensor> {
    mean(&one.f_mul(other)?)
}

fn mean(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_mean_dim(-1, true, None)?)
}

impl Norm {
    pub(super) fn new(model: &Model, names: &names::Pair, config: &ModelConfig) -> Result<Self> {
        let shift = match config.norm {
            models::Norm::Layer => Some(model.frozen(&names.bias)?),
            models::Norm::Rms => None,
        };
        Ok(Self { scale: model.frozen(&names.weight)?, shift, epsilon: f64::from(config.norm_epsilon) })
    }

    pub(super) fn tape(&self, x: &Tensor) -> Result<Tape> {
        if self.shift.is_some() {
            let none = None::<&Tensor>;
            let (hat, _, r) = x.f_native_layer_norm(self.scale.size(), none, none, self.epsilon)?;
            return Ok(Tape { hat, r });
        }
        let r = row_mean(x, x)?.f_add_scalar_(self.epsilon)?.f_rsqrt_()?;
        Ok(Tape { hat: x.f_mul(&r)?, r })
    }

    /// J v, where mean(v ⊙ x̂) is known.
    fn jacobian(&self, tape: &Tape, v: &Tensor, k: &Tensor) -> Result<Tensor> {
        let k = k.f_neg()?;
        let mut out = match &self.shift {
            Some(_) => v.f_sub(&mean(v)?)?.f_addcmul_(&tape.hat, &k)?,
            None => v.f_addcmul(&tape.hat, &k)?,
        };
        Ok(out.f_mul_(&tape.r)?)
    }

    /// y.
    pub(super) fn output(&self, tape: &Tape) -> Result<Tensor> {
        Ok(match &self.shift {
            Some(shift) => shift.f_addcmul(&tape.hat, &self.scale)?,
            None => tape.hat.f_mul(&self.scale)?,
        })
    }

    /// p = ȳ ⊙ γ, the adjoint of x̂, in the place of ȳ; tangents likewise.
    pub(super) fn scaled(&self, mut y_bar: Tensor) -> Result<Tensor> {
        Ok(y_bar.f_mul_(&self.scale)?)
    }

    /// x̄ = J p.
    pub(super) fn backward(&self, tape: &Tape, p: &Tensor) -> Result<Tensor> {
        self.jacobian(tape, p, &row_mean(p, &tape.hat)?)
    }

    /// The tangent of the tape.
    pub(super) fn tangent(&self, tape: &Tape, x_dot: &Tensor) -> Result<Tangent> {
        let k = row_mean(x_dot, &tape.hat)?;
        Ok(Tangent { hat: self.jacobian(tape, x_dot, &k)?, k })
    }

    /// ẏ.
    pub(super) fn tangent_output(&self, tangent: &Tangent) -> Result<Tensor> {
        Ok(tangent.hat.f_mul(&self.scale)?)
    }

    /// The tangent of x̄ = J p. With h the tangent of x̂ and s = ṗ − r k p (what ṙ adds) it is
    /// J s − r (x̂ mean(p ⊙ h) + h mean(p ⊙ x̂)).
    pub(super) fn tangent_backward(&self, tape: &Tape, tangent: &Tangent, p: &Tensor, p_dot: Tensor) -> Result<Tensor> {
        let mut s = p_dot;
        let _ = s.f_addcmul_(p, &tangent.k.f_mul(&tape.r)?.f_neg()?)?;
        // Both terms with x̂ at once.
        let k = row_mean(&s, &tape.hat)?.f_add(&row_mean(p, &tangent.hat)?)?;
        let mut out = self.jacobian(tape, &s, &k)?;
        let _ = out.f_addcmul_(&tangent.hat, &row_mean(p, &tape.hat)?.f_mul(&tape.r)?.f_neg()?)?;
        Ok(out)
    }
}
