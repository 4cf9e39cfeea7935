//! Rows of a matrix of 4- or 8-bit integers.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GatherBlockQuantized>

use marionette_models::bundle::DataType;

use super::{Attribute, Domain, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// y\[i…, :\] = (q\[indices\[i…\], :\] − 2^(bits − 1)) s, q \[V, D · bits / 8\] bytes, s \[V, D / block\].
#[derive(Debug, Clone, Copy)]
struct GatherBlockQuantized {
    bits: usize,
    block: usize,
}

impl Op for GatherBlockQuantized {
    fn name(&self) -> &'static str {
        "GatherBlockQuantized"
    }

    fn domain(&self) -> Domain {
        Domain::Microsoft
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![
            ("bits", Attribute::Int(self.bits as i64)),
            ("block_size", Attribute::Int(self.block as i64)),
            ("gather_axis", Attribute::Int(0)),
            ("quantize_axis", Attribute::Int(1)),
        ]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [integers, indices, scales] = arity(inputs)?;
        if integers.dtype != DataType::U8 || indices.dtype != DataType::I64 || scales.dtype != DataType::F32 {
            return Err("expected integers of u8, indices of i64 and scales of f32".into());
        }
        match (&integers.shape[..], &scales.shape[..]) {
            ([rows, Dim::Fixed(bytes)], [same, Dim::Fixed(blocks)])
                if rows == same && bytes * 8 / self.bits == blocks * self.block =>
            {
                Ok(vec![TensorType::f32([&indices.shape[..], &[Dim::Fixed(blocks * self.block)]].concat())])
            }
            _ => Err("the scales do not fit the integers".into()),
        }
    }

    #[cfg(test)]
    fn evaluate(&self, inputs: &[&crate::testing::Array]) -> Vec<crate::testing::Array> {
        let width = inputs[2].shape()[1] * self.block;
        let value = |row: usize, d: usize| {
            let byte = inputs[0][[row, d * self.bits / 8]];
            crate::testing::quantised(self.bits, byte, d) * inputs[2][[row, d / self.block]]
        };
        let rows = inputs[1].iter().flat_map(|&row| (0..width).map(move |d| value(row as usize, d)));
        let shape = [inputs[1].shape(), &[width]].concat();
        vec![crate::testing::Array::from_shape_vec(shape, rows.collect()).unwrap()]
    }
}

impl Graph {
    /// The rows of a quantised matrix whose numbers `indices` holds.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn gather_block_quantized(
        &mut self,
        [integers, scales]: [Value; 2],
        indices: Value,
        bits: usize,
        block: usize,
    ) -> Result<Value, GraphError> {
        self.apply_one(GatherBlockQuantized { bits, block }, &[integers, indices, scales])
    }
}
