//! Matrix products with a frozen weight.

use marionette_models::params::names;
use tch::{Device, Kind, Tensor, utils};

use crate::error::Result;
use crate::model::Model;

/// x wᵀ: x [N, I] and w [O, I] to [N, O].
///
/// On a processor and in f32 it goes through oneDNN's inner product (`mkldnn_linear`), which takes w as it lies in memory
/// and is faster there than libtorch's ordinary product (by a sixth for GPT-2 small's blocks, by two thirds for x [128, D]
/// and its embedding, on an AMD EPYC with AVX-512); copying x and the result is included.
///
/// # Errors
/// What libtorch says.
pub(super) fn transposed(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if x.device() == Device::Cpu && x.kind() == Kind::Float && w.kind() == Kind::Float && utils::has_mkldnn() {
        return Ok(x.f_to_mkldnn(Kind::Float)?.f_mkldnn_linear(w, None::<&Tensor>)?.f_to_dense(Kind::Float, false)?);
    }
    Ok(x.f_mm(&w.f_transpose(0, 1)?)?)
}

/// y = x W + b, with W [I, O] and b `[O]` frozen.
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(super) fn new(model: &Model, pair: &names::Pair) -> Result<Self> {
        Ok(Self { weight: model.frozen(&pair.weight)?, bias: model.frozen(&pair.bias)? })
    }

    /// x W + b.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.bias.f_addmm(x, &self.weight)?)
    }

    /// ẋ W, the tangent of y.
    pub(super) fn tangent(&self, x_dot: &Tensor) -> Result<Tensor> {
        Ok(x_dot.f_mm(&self.weight)?)
    }

    /// ȳ Wᵀ, the adjoint of x; of tangents likewise.
    pub(super) fn backward(&self, y_bar: &Tensor) -> Result<Tensor> {
        transposed(y_bar, &self.weight)
    }
}
