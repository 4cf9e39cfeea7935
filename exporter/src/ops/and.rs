//! a ∧ b, element by element, with broadcasting. <https://onnx.ai/onnx/operators/onnx__And.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = a ∧ b.
#[derive(Debug, Clone, Copy)]
struct And;

impl Op for And {
    fn name(&self) -> &'static str {
        "And"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::logic(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        elementwise::zip(inputs, |a, b| a * b)
    }
}

impl Graph {
    /// a ∧ b, broadcast: truth values.
    ///
    /// # Errors
    /// The types do not fit or the shapes do not broadcast.
    pub fn and(&mut self, a: Value, b: Value) -> Result<Value, GraphError> {
        self.apply_one(And, &[a, b])
    }
}
