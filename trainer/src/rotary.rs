//! Rotary position embedding (Su et al. 2021): values i and i + dh / 2 of a head, at position p, are turned by the angle
//! p · base^(−2 i / dh).

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// The angles of some positions.
pub(crate) struct Rotary {
    /// \[…, T, dh / 2\].
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// For positions i64 \[…, T\], in the kind of what will be turned.
    pub(crate) fn new(positions: &Tensor, head_dim: usize, base: f32, kind: Kind) -> Result<Self> {
        let device = positions.device();
        // Angles of far positions need more than f32's 24 bits to be exact.
        let exponents = Tensor::f_arange((head_dim / 2) as i64, (Kind::Double, Device::Cpu))?
            .f_mul_scalar(-2.0 / head_dim as f64)?;
        let frequencies = Tensor::f_full([1], f64::from(base), (Kind::Double, Device::Cpu))?.f_pow(&exponents)?;
        let angles = positions.f_to_kind(Kind::Double)?.f_unsqueeze(-1)?.f_mul(&frequencies.f_to_device(device)?)?;
        Ok(Self { cos: angles.f_cos()?.f_to_kind(kind)?, sin: angles.f_sin()?.f_to_kind(kind)? })
    }

    /// Cosines and sines, contiguous, and the sines of turning back, \[…, T, dh / 2\] each.
    pub(crate) fn angles(&self) -> Result<[Tensor; 3]> {
        Ok([self.cos.f_contiguous()?, self.sin.f_contiguous()?, self.sin.f_neg()?.f_contiguous()?])
    }

    /// The same with a dimension of size 1 at `dim`, for the heads.
    pub(crate) fn unsqueeze(&self, dim: i64) -> Result<Self> {
        Ok(Self { cos: self.cos.f_unsqueeze(dim)?, sin: self.sin.f_unsqueeze(dim)? })
    }

    /// x \[…, T, dh\] turned forward.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.turn(x, &self.sin)
    }

    /// x turned back, which is also how adjoints go.
    pub(crate) fn back(&self, x: &Tensor) -> Result<Tensor> {
        self.turn(x, &self.sin.f_neg()?)
    }

    fn turn(&self, x: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let half = self.cos.size().last().copied().unwrap_or(0);
        let (a, b) = (x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?);
        let first = a.f_mul(&self.cos)?.f_sub(&b.f_mul(sin)?)?;
        let second = b.f_mul(&self.cos)?.f_add(&a.f_mul(sin)?)?;
        Ok(Tensor::f_cat(&[first, second], -1)?)
    }
}
