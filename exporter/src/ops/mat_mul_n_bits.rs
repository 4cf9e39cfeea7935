//! A product with a frozen matrix of 4- or 8-bit integers, read once and in small pieces: the operator for few rows.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits>

use marionette_models::bundle::DataType;

use super::{Attribute, Domain, Op};
use crate::shape::{Dim, TensorType};

/// y = x W + b, x \[M, K\], b \[N\] where there is one. W is held as integers \[N, K / block, block · bits / 8\], each block with a
/// scale \[N · K / block\]: w = (q − 2^(bits − 1)) s. The rows of x are rounded to 8 bits, block by block (accuracy level 4), so that
/// the products are those of integers. It has no gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct MatMulNBits {
    pub bits: usize,
    pub block: usize,
    pub inner: usize,
    pub columns: usize,
    pub bias: bool,
}

impl MatMulNBits {
    /// The attributes that say what the matrix is.
    pub fn dimensions(&self) -> Vec<(&'static str, Attribute)> {
        let int = |value: usize| Attribute::Int(value as i64);
        vec![
            ("K", int(self.inner)),
            ("N", int(self.columns)),
            ("bits", int(self.bits)),
            ("block_size", int(self.block)),
        ]
    }
}

impl Op for MatMulNBits {
    fn name(&self) -> &'static str {
        "MatMulNBits"
    }

    fn domain(&self) -> Domain {
        Domain::Microsoft
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        let mut attributes = self.dimensions();
        attributes.push(("accuracy_level", Attribute::Int(4)));
        attributes
    }

    fn empty_inputs(&self) -> &'static [usize] {
        // Zero points and an order of groups.
        if self.bias { &[3, 4] } else { &[] }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (x, integers, scales) = match inputs {
            [x, integers, scales] if !self.bias => (x, integers, scales),
            [x, integers, scales, bias] if self.bias && bias.shape == [Dim::Fixed(self.columns)] => {
                (x, integers, scales)
            }
            _ => return Err(format!("expected x, integers, scales and, where there is one, a bias[{}]", self.columns)),
        };
        let blocks = self.inner / self.block;
        let packed = [self.columns, blocks, self.block * self.bits / 8].map(Dim::Fixed);
        if integers.dtype != DataType::U8 || integers.shape != packed {
            return Err(format!("the integers are {integers}, expected u8{packed:?}"));
        }
        if scales.dtype != DataType::F32 || scales.shape != [Dim::Fixed(self.columns * blocks)] {
            return Err(format!("the scales are {scales}, expected f32[{}]", self.columns * blocks));
        }
        match x.shape[..] {
            [rows, Dim::Fixed(inner)] if inner == self.inner => Ok(vec![TensorType::f32([rows, self.columns.into()])]),
            _ => Err(format!("x is {x}, expected [M, {}]", self.inner)),
        }
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let matrix = ndarray::Array2::from_shape_fn((self.inner, self.columns), |(k, n)| {
            let (block, within) = (k / self.block, k % self.block);
            let byte = inputs[1][[n, block, within * self.bits / 8]];
            crate::array::quantised(self.bits, byte, within) * inputs[2][[n * (self.inner / self.block) + block]]
        });
        let mut y = inputs[0].view().into_dimensionality::<ndarray::Ix2>().unwrap().dot(&matrix).into_dyn();
        if let Some(bias) = inputs.get(3) {
            y += *bias;
        }
        vec![y]
    }
}
