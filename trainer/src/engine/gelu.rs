//! The tanh approximation of GELU (Hendrycks and Gimpel 2016): gelu(x) = x (1 + t) / 2 with t = tanh(w) and
//! w = c (x + a x³), c = √(2/π), a = 0.044715; with its first two derivatives.

use tch::Tensor;

use crate::error::Result;

const A: f64 = 0.044_715;
const C: f64 = 0.797_884_560_802_865_4;

/// gelu(x).
pub(super) fn value(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_gelu("tanh")?)
}

/// gelu′(x) ⊙ y.
pub(super) fn slope_times(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok(x.f_gelu_backward(y, "tanh")?)
}

/// gelu″(x) = (1 − t²) (c (1 + 6 a x²) − x t w′²), with w′ = c (1 + 3 a x²).
pub(super) fn curvature(x: &Tensor) -> Result<Tensor> {
    let square = x.f_square()?;
    let affine = |slope: f64, shift: f64| -> Result<Tensor> {
        let mut out = square.f_mul_scalar(slope)?;
        Ok(out.f_add_scalar_(shift)?)
    };
    let mut t = affine(A * C, C)?.f_mul_(x)?.f_tanh_()?;
    let bend = affine(3.0 * A * C, C)?.f_square_()?.f_mul_(&t)?.f_mul_(x)?;
    let mut out = affine(6.0 * A * C, C)?.f_sub_(&bend)?;
    Ok(out.f_mul_(&t.f_square_()?.f_neg_()?.f_add_scalar_(1.0)?)?)
}
