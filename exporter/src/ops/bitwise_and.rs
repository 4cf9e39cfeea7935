//! The and of each bit, element by element, with broadcasting. <https://onnx.ai/onnx/operators/onnx__BitwiseAnd.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = a ∧ b.
#[derive(Debug, Clone, Copy)]
struct BitwiseAnd;

impl Op for BitwiseAnd {
    fn name(&self) -> &'static str {
        "BitwiseAnd"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::arithmetic(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        elementwise::zip(inputs, |a, b| f64::from(a as u8 & b as u8))
    }
}

impl Graph {
    /// a ∧ b, broadcast.
    ///
    /// # Errors
    /// The types do not fit or the shapes do not broadcast.
    pub fn bitwise_and(&mut self, a: Value, b: Value) -> Result<Value, GraphError> {
        self.apply_one(BitwiseAnd, &[a, b])
    }
}
