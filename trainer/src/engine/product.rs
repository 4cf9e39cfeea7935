//! Matrix products with a frozen weight.
//!
//! Large ones, on a processor and in f32, go through oneDNN's inner product, which takes the weight as it lies in memory, either
//! way round. With GPT-2 small's shapes on two cores of an AMD EPYC with AVX-512 it does 190 to 200 GFLOP/s, the copies of x
//! and of the result included, where libtorch's ordinary product does 175 to 180; with 128 rows and the embedding 180, where
//! the ordinary product does 100 forward and 150 back. For each number of rows it compiles a program first, which takes 1 or 2 ms:
//! longer than a small product itself.

use marionette_models::params::names;
use tch::{Device, Kind, Tensor, utils};

use crate::error::Result;
use crate::frozen::Weight;
use crate::model::Model;

/// Numbers in a weight from which on oneDNN is worth its programs; the smallest of GPT-2 small has 768².
const LARGE: usize = 1 << 19;

/// Whether oneDNN can and should multiply them.
fn by_onednn(x: &Tensor, w: &Tensor) -> bool {
    let f32_on_host = |x: &Tensor| x.device() == Device::Cpu && x.kind() == Kind::Float;
    w.numel() >= LARGE && f32_on_host(x) && f32_on_host(w) && utils::has_mkldnn()
}

/// x w: x [N, I] and w [I, O] to [N, O].
///
/// # Errors
/// What libtorch says.
pub(super) fn plain(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if by_onednn(x, w) {
        // The walk back through an inner product with w as its weight [O′, I′] is ȳ w.
        let size = [x.size2()?.0, w.size2()?.1];
        let y = Tensor::f_mkldnn_linear_backward_input(size, &x.f_to_mkldnn(Kind::Float)?, w)?;
        return Ok(y.f_to_dense(Kind::Float, false)?);
    }
    Ok(x.f_mm(w)?)
}

/// x wᵀ: x [N, I] and w [O, I] to [N, O].
///
/// # Errors
/// What libtorch says.
pub(super) fn transposed(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if by_onednn(x, w) {
        return Ok(x.f_to_mkldnn(Kind::Float)?.f_mkldnn_linear(w, None::<&Tensor>)?.f_to_dense(Kind::Float, false)?);
    }
    Ok(x.f_mm(&w.f_transpose(0, 1)?)?)
}

/// y = x W + b, with W [I, O] and b `[O]` frozen; without b where there is none. Where W is of integers, rows are rounded as the device
/// rounds them, and derivatives are those of a product whose rows are not: rounding is taken for the identity (Bengio et al. 2013, the
/// straight-through estimator).
pub(super) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn new(model: &Model, pair: &names::Pair) -> Result<Self> {
        let bias = model.config().bias.then(|| model.frozen(&pair.bias)).transpose()?;
        Ok(Self { weight: model.frozen_weight(&pair.weight)?, bias })
    }

    /// x W + b.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.product(x)?;
        Ok(match &self.bias {
            Some(bias) => y.f_add_(bias)?,
            None => y,
        })
    }

    /// ẋ W, the tangent of y.
    pub(super) fn tangent(&self, x_dot: &Tensor) -> Result<Tensor> {
        self.product(x_dot)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Floats(weight) => plain(x, weight),
            Weight::Integers(weight) => weight.forward(x),
        }
    }

    /// ȳ Wᵀ, the adjoint of x; of tangents likewise.
    pub(super) fn backward(&self, y_bar: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Floats(weight) => transposed(y_bar, weight),
            Weight::Integers(weight) => weight.back(y_bar),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(size: [i64; 2], step: f64) -> Tensor {
        let count = size[0] * size[1];
        (Tensor::arange(count, (Kind::Double, Device::Cpu)) * step).sin().reshape(size)
    }

    /// The largest error of x w, over the largest sum of magnitudes: what rounding is in proportion to.
    fn error(found: &Tensor, x: &Tensor, w: &Tensor) -> f64 {
        let expected = x.mm(w);
        assert_eq!(found.size(), expected.size());
        let error = (found.to_kind(Kind::Double) - expected).abs().max();
        error.double_value(&[]) / x.abs().mm(&w.abs()).max().double_value(&[])
    }

    #[test]
    fn products_with_small_and_large_weights_are_those_in_f64() {
        for (inner, outer) in [(7, 5), (1024, 512), (512, 1024)] {
            for rows in [1, 33] {
                let (w, x, y) =
                    (spread([inner, outer], 0.37), spread([rows, inner], 0.71), spread([rows, outer], 0.53));
                let single = |x: &Tensor| x.to_kind(Kind::Float);
                assert_eq!(by_onednn(&single(&x), &single(&w)), inner > 7 && utils::has_mkldnn());
                let forward = error(&plain(&single(&x), &single(&w)).unwrap(), &x, &w);
                let back = error(&transposed(&single(&y), &single(&w)).unwrap(), &y, &w.transpose(0, 1));
                assert!(forward < 1e-6 && back < 1e-6, "{inner} x {outer}, {rows} rows: {forward:.1e}, {back:.1e}");
            }
        }
    }
}
