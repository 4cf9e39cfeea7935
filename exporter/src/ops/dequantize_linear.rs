//! Integers back to floating point. <https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html>

use marionette_models::bundle::DataType;

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// y = q s: q \[N, K\] of 4 bits, s \[N, K / block\], one for each block of a row; y is of s's type.
#[derive(Debug, Clone, Copy)]
struct DequantizeLinear {
    block: usize,
}

impl Op for DequantizeLinear {
    fn name(&self) -> &'static str {
        "DequantizeLinear"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("axis", Attribute::Int(1)), ("block_size", Attribute::Int(self.block as i64))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [integers, scales] = arity(inputs)?;
        let is_float = matches!(scales.dtype, DataType::F32 | DataType::F16);
        if integers.dtype != DataType::U4 || !is_float {
            return Err("expected integers of u4 and scales of f32 or f16".into());
        }
        match (&integers.shape[..], &scales.shape[..]) {
            ([rows, Dim::Fixed(width)], [same, Dim::Fixed(blocks)])
                if rows == same && blocks * self.block == *width =>
            {
                Ok(vec![TensorType { dtype: scales.dtype, shape: integers.shape.clone() }])
            }
            _ => Err("the scales do not fit the integers".into()),
        }
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let value = |i: ndarray::IxDyn| inputs[0][&i] * inputs[1][[i[0], i[1] / self.block]];
        vec![crate::array::Array::from_shape_fn(inputs[0].shape(), value)]
    }
}

impl Graph {
    /// A matrix \[N, K\] of 4-bit integers in floating point; `scales` \[N, K / block\].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn dequantize_linear(&mut self, integers: Value, scales: Value, block: usize) -> Result<Value, GraphError> {
        self.apply_one(DequantizeLinear { block }, &[integers, scales])
    }
}
