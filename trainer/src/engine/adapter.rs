//! The adapter (Houlsby et al. 2019, figure 2), y = x + gelu(h) U + u with h = x D + d: x and y [N, D], h [N, R], the
//! down-projection D [D, R] and d, the up-projection U [R, D] and u.

use tch::Tensor;

use super::gelu;
use crate::error::{Result, TrainError};

/// The tensors of one adapter, or a direction in which they move.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    down: &'a Tensor,
    down_bias: &'a Tensor,
    up: &'a Tensor,
    up_bias: &'a Tensor,
}

impl<'a> Weights<'a> {
    /// The two adapters of a block, in the order of `marionette_models::params::adapter_table`.
    ///
    /// # Errors
    /// There are not eight tensors.
    pub(super) fn pair(tensors: &'a [Tensor]) -> Result<[Self; 2]> {
        let [down, down_bias, up, up_bias, down_2, down_bias_2, up_2, up_bias_2] = tensors else {
            return Err(TrainError::Torch(format!("a block has {} adapter tensors, expected 8", tensors.len())));
        };
        let second = Self { down: down_2, down_bias: down_bias_2, up: up_2, up_bias: up_bias_2 };
        Ok([Self { down, down_bias, up, up_bias }, second])
    }
}

/// What the walk back needs: x and h.
pub(super) struct Tape {
    x: Tensor,
    h: Tensor,
}

/// The walk back: e = ȳ Uᵀ and h̄, [N, R].
pub(super) struct Adjoint {
    e: Tensor,
    h_bar: Tensor,
}

/// The tangents of the tape; x has none where it does not depend on Φ.
pub(super) struct Tangent {
    x: Option<Tensor>,
    h: Tensor,
}

/// The gradient by D, d, U and u.
pub(super) type Gradient = [Tensor; 4];

fn transpose(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_transpose(0, 1)?)
}

/// The sum over the rows.
fn columns(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_sum_dim_intlist(0, false, None)?)
}

/// y and the tape.
pub(super) fn forward(x: Tensor, at: Weights) -> Result<(Tensor, Tape)> {
    let h = at.down_bias.f_addmm(&x, at.down)?;
    let y = at.up_bias.f_addmm(&gelu::value(&h)?, at.up)?.f_add_(&x)?;
    Ok((y, Tape { x, h }))
}

impl Tape {
    /// x, [N, D].
    pub(super) fn input(&self) -> Tensor {
        self.x.shallow_clone()
    }

    /// e = ȳ Uᵀ, h̄ = e ⊙ gelu′(h).
    pub(super) fn backward(&self, at: Weights, y_bar: &Tensor) -> Result<Adjoint> {
        let e = y_bar.f_mm(&transpose(at.up)?)?;
        let h_bar = gelu::slope_times(&self.h, &e)?;
        Ok(Adjoint { e, h_bar })
    }

    /// The gradient by the adapter: xᵀ h̄, Σ h̄, gelu(h)ᵀ ȳ, Σ ȳ.
    pub(super) fn gradient(&self, adjoint: &Adjoint, y_bar: &Tensor) -> Result<Gradient> {
        let by_down = transpose(&self.x)?.f_mm(&adjoint.h_bar)?;
        let by_up = transpose(&gelu::value(&self.h)?)?.f_mm(y_bar)?;
        Ok([by_down, columns(&adjoint.h_bar)?, by_up, columns(y_bar)?])
    }

    /// ẏ = ẋ + ġ U + gelu(h) U̇ + u̇ with ḣ = ẋ D + x Ḋ + ḋ and ġ = gelu′(h) ⊙ ḣ, where `u` moves the adapter.
    pub(super) fn tangent(&self, x_dot: Option<Tensor>, at: Weights, u: Weights) -> Result<(Tensor, Tangent)> {
        let mut h = u.down_bias.f_addmm(&self.x, u.down)?;
        let mut y = u.up_bias.f_addmm(&gelu::value(&self.h)?, u.up)?;
        if let Some(x_dot) = &x_dot {
            let _ = h.f_addmm_(x_dot, at.down)?;
            let _ = y.f_add_(x_dot)?;
        }
        let _ = y.f_addmm_(&gelu::slope_times(&self.h, &h)?, at.up)?;
        Ok((y, Tangent { x: x_dot, h }))
    }

    /// The tangents of e and h̄, and of the gradient:
    /// ė = ȳ̇ Uᵀ + ȳ U̇ᵀ, h̄̇ = ė ⊙ gelu′(h) + e ⊙ gelu″(h) ⊙ ḣ; by D ẋᵀ h̄ + xᵀ h̄̇, by U ġᵀ ȳ + gelu(h)ᵀ ȳ̇.
    pub(super) fn tangent_backward(
        &self,
        adjoint: &Adjoint,
        tangent: &Tangent,
        (y_bar, y_bar_dot): (&Tensor, &Tensor),
        at: Weights,
        u: Weights,
    ) -> Result<(Tensor, Gradient)> {
        let e_dot = y_bar_dot.f_mm(&transpose(at.up)?)?.f_addmm_(y_bar, &transpose(u.up)?)?;
        let mut h_bar_dot = gelu::slope_times(&self.h, &e_dot)?;
        let _ = h_bar_dot.f_addcmul_(&gelu::curvature(&self.h)?.f_mul_(&tangent.h)?, &adjoint.e)?;
        let mut by_down = transpose(&self.x)?.f_mm(&h_bar_dot)?;
        if let Some(x_dot) = &tangent.x {
            let _ = by_down.f_addmm_(&transpose(x_dot)?, &adjoint.h_bar)?;
        }
        let by_up = transpose(&gelu::value(&self.h)?)?
            .f_mm(y_bar_dot)?
            .f_addmm_(&transpose(&gelu::slope_times(&self.h, &tangent.h)?)?, y_bar)?;
        let gradient = [by_down, columns(&h_bar_dot)?, by_up, columns(y_bar_dot)?];
        Ok((h_bar_dot, gradient))
    }
}

impl Adjoint {
    /// x̄ = ȳ + h̄ Dᵀ.
    pub(super) fn x_bar(&self, at: Weights, y_bar: &Tensor) -> Result<Tensor> {
        Ok(y_bar.f_addmm(&self.h_bar, &transpose(at.down)?)?)
    }

    /// The tangent of x̄, ȳ̇ + h̄̇ Dᵀ + h̄ Ḋᵀ.
    pub(super) fn x_bar_dot(&self, at: Weights, u: Weights, y_bar_dot: &Tensor, h_bar_dot: &Tensor) -> Result<Tensor> {
        let mut out = y_bar_dot.f_addmm(h_bar_dot, &transpose(at.down)?)?;
        Ok(out.f_addmm_(&self.h_bar, &transpose(u.down)?)?)
    }
}
