//! Layer normalisation (Ba et al. 2016), y = x̂ ⊙ γ + β with x̂ = r (x − mean x), r = 1 / √(var x + ε), a row at a time.
//!
//! Its Jacobian without γ is J v = r (v − mean v − x̂ mean(v ⊙ x̂)), which is symmetric: it takes tangents forward and
//! adjoints back.

use tch::Tensor;

use crate::error::Result;
use crate::model::Model;

pub(super) struct Norm {
    scale: Tensor,
    shift: Tensor,
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

impl Tape {
    /// J v, where mean(v ⊙ x̂) is known.
    fn jacobian(&self, v: &Tensor, k: &Tensor) -> Result<Tensor> {
        let mut out = v.f_sub(&mean(v)?)?;
        let _ = out.f_addcmul_(&self.hat, &k.f_neg()?)?.f_mul_(&self.r)?;
        Ok(out)
    }
}

impl Norm {
    pub(super) fn new(model: &Model, scale: &str, shift: &str, epsilon: f64) -> Result<Self> {
        Ok(Self { scale: model.frozen(scale)?, shift: model.frozen(shift)?, epsilon })
    }

    pub(super) fn tape(&self, x: &Tensor) -> Result<Tape> {
        let none = None::<&Tensor>;
        let (hat, _, r) = x.f_native_layer_norm(self.scale.size(), none, none, self.epsilon)?;
        Ok(Tape { hat, r })
    }

    /// y.
    pub(super) fn output(&self, tape: &Tape) -> Result<Tensor> {
        Ok(self.shift.f_addcmul(&tape.hat, &self.scale)?)
    }

    /// p = ȳ ⊙ γ, the adjoint of x̂, in the place of ȳ; tangents likewise.
    pub(super) fn scaled(&self, mut y_bar: Tensor) -> Result<Tensor> {
        Ok(y_bar.f_mul_(&self.scale)?)
    }

    /// x̄ = J p.
    pub(super) fn backward(&self, tape: &Tape, p: &Tensor) -> Result<Tensor> {
        tape.jacobian(p, &row_mean(p, &tape.hat)?)
    }

    /// The tangent of the tape.
    pub(super) fn tangent(&self, tape: &Tape, x_dot: &Tensor) -> Result<Tangent> {
        let k = row_mean(x_dot, &tape.hat)?;
        Ok(Tangent { hat: tape.jacobian(x_dot, &k)?, k })
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
        let mut out = tape.jacobian(&s, &k)?;
        let _ = out.f_addcmul_(&tangent.hat, &row_mean(p, &tape.hat)?.f_mul(&tape.r)?.f_neg()?)?;
        Ok(out)
    }
}
