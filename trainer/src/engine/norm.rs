//! Layer normalisation (Ba et al. 2016), y = x̂ ⊙ γ + β with x̂ = r (x − mean x), r = 1 / √(var x + ε), a row at a time; or root mean
//! square normalisation (Zhang & Sennrich 2019), the same without the means and without β.
//!
//! Its Jacobian without γ is J v = r (v − mean v − x̂ mean(v ⊙ x̂)), in the other r (v − x̂ mean(v ⊙ x̂)); it is symmetric: it
//! takes tangents forward and adjoints back. What follows from it is the same in both.

use std::ops::Range;

use marionette_kernels::norm::{self, Centred};
use marionette_models::params::names;
use marionette_models::{self as models, ModelConfig};
use tch::Tensor;

use crate::error::Result;
use crate::host::{self, values};
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

/// The values of some rows.
fn of(rows: &Range<usize>, width: i64) -> Range<usize> {
    rows.start * width as usize..rows.end * width as usize
}

fn added(mut x: Tensor, addend: Option<&Tensor>) -> Result<Tensor> {
    Ok(match addend {
        Some(addend) => x.f_add_(addend)?,
        None => x,
    })
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

    fn centred(&self) -> Centred {
        if self.shift.is_some() { Centred::Yes } else { Centred::No }
    }

    /// The tape, and y.
    pub(super) fn forward(&self, x: &Tensor) -> Result<(Tape, Tensor)> {
        if host::computes(x.kind(), x.device()) {
            return self.forward_by_kernels(&x.f_contiguous()?);
        }
        let tape = if self.shift.is_some() {
            let none = None::<&Tensor>;
            let (hat, _, r) = x.f_native_layer_norm(self.scale.size(), none, none, self.epsilon)?;
            Tape { hat, r }
        } else {
            let r = row_mean(x, x)?.f_add_scalar_(self.epsilon)?.f_rsqrt_()?;
            Tape { hat: x.f_mul(&r)?, r }
        };
        let y = self.output(&tape)?;
        Ok((tape, y))
    }

    fn forward_by_kernels(&self, x: &Tensor) -> Result<(Tape, Tensor)> {
        let (rows, width) = x.size2()?;
        let (scale, shift) = (values(&self.scale)?, self.shift.as_ref().map(values).transpose()?);
        let (x, centred, epsilon) = (values(x)?, self.centred(), self.epsilon as f32);
        let [hat, r, y] = host::new([&[rows, width], &[rows, 1], &[rows, width]], |all| {
            host::rows(rows as usize, all, |range, out| {
                norm::normalize(centred, &x[of(&range, width)], (scale, shift), epsilon, out);
            });
            Ok(())
        })?;
        Ok((Tape { hat, r }, y))
    }

    /// J v and mean(v ⊙ x̂), and what is added to the first.
    fn jacobian_by_kernels(&self, tape: &Tape, v: &Tensor, addend: Option<&Tensor>) -> Result<[Tensor; 2]> {
        let (rows, width) = tape.hat.size2()?;
        let v = v.f_contiguous()?;
        let (hat, r, v, centred) = (values(&tape.hat)?, values(&tape.r)?, values(&v)?, self.centred());
        let addend = addend.map(values).transpose()?;
        host::new([&[rows, width], &[rows, 1]], |all| {
            host::rows(rows as usize, all, |range, out| {
                let at = of(&range, width);
                let addend = addend.map(|addend| &addend[at.clone()]);
                norm::jacobian_times(centred, [&hat[at.clone()], &r[range]], &v[at], addend, out);
            });
            Ok(())
        })
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

    /// x̄ = J p, and what else there is of x̄.
    pub(super) fn backward(&self, tape: &Tape, p: &Tensor, addend: Option<&Tensor>) -> Result<Tensor> {
        if host::computes(p.kind(), p.device()) {
            let [out, _] = self.jacobian_by_kernels(tape, p, addend)?;
            return Ok(out);
        }
        added(self.jacobian(tape, p, &row_mean(p, &tape.hat)?)?, addend)
    }

    /// The tangent of the tape.
    pub(super) fn tangent(&self, tape: &Tape, x_dot: &Tensor) -> Result<Tangent> {
        if host::computes(x_dot.kind(), x_dot.device()) {
            let [hat, k] = self.jacobian_by_kernels(tape, x_dot, None)?;
            return Ok(Tangent { hat, k });
        }
        let k = row_mean(x_dot, &tape.hat)?;
        Ok(Tangent { hat: self.jacobian(tape, x_dot, &k)?, k })
    }

    /// ẏ.
    pub(super) fn tangent_output(&self, tangent: &Tangent) -> Result<Tensor> {
        Ok(tangent.hat.f_mul(&self.scale)?)
    }

    /// The tangent of x̄ = J p. With h the tangent of x̂ and s = ṗ − r k p (what ṙ adds) it is
    /// J s − r (x̂ mean(p ⊙ h) + h mean(p ⊙ x̂)).
    pub(super) fn tangent_backward(
        &self,
        tape: &Tape,
        tangent: &Tangent,
        p: &Tensor,
        p_dot: Tensor,
        addend: Option<&Tensor>,
    ) -> Result<Tensor> {
        if host::computes(p.kind(), p.device()) {
            return self.tangent_backward_by_kernels(tape, tangent, [p, &p_dot], addend);
        }
        let mut s = p_dot;
        let _ = s.f_addcmul_(p, &tangent.k.f_mul(&tape.r)?.f_neg()?)?;
        // Both terms with x̂ at once.
        let k = row_mean(&s, &tape.hat)?.f_add(&row_mean(p, &tangent.hat)?)?;
        let mut out = self.jacobian(tape, &s, &k)?;
        let _ = out.f_addcmul_(&tangent.hat, &row_mean(p, &tape.hat)?.f_mul(&tape.r)?.f_neg()?)?;
        added(out, addend)
    }

    fn tangent_backward_by_kernels(
        &self,
        tape: &Tape,
        tangent: &Tangent,
        p: [&Tensor; 2],
        addend: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (rows, width) = tape.hat.size2()?;
        let (hat, r, centred) = (values(&tape.hat)?, values(&tape.r)?, self.centred());
        let (hat_dot, k) = (values(&tangent.hat)?, values(&tangent.k)?);
        let [p, p_dot] = [values(p[0])?, values(p[1])?];
        let addend = addend.map(values).transpose()?;
        let [out] = host::new([&[rows, width]], |all| {
            host::rows(rows as usize, all, |range, [out]| {
                let at = of(&range, width);
                let [tape, tangent] = [[&hat[at.clone()], &r[range.clone()]], [&hat_dot[at.clone()], &k[range]]];
                let addend = addend.map(|addend| &addend[at.clone()]);
                norm::jacobian_tangent(centred, tape, tangent, [&p[at.clone()], &p_dot[at]], addend, out);
            });
            Ok(())
        })?;
        Ok(out)
    }
}
