//! a ≤ b, element by element, with broadcasting. <https://onnx.ai/onnx/operators/onnx__LessOrEqual.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = a ≤ b.
#[derive(Debug, Clone, Copy)]
struct LessOrEqual;

impl Op for LessOrEqual {
    fn name(&self) -> &'static str {
        "LessOrEqual"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::comparison(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        elementwise::zip(inputs, |a, b| f64::from(a <= b))
    }
}

impl Graph {
    /// a ≤ b, broadcast: truth values.
    ///
    /// # Errors
    /// The types do not fit or the shapes do not broadcast.
    pub fn less_or_equal(&mut self, a: Value, b: Value) -> Result<Value, GraphError> {
        self.apply_one(LessOrEqual, &[a, b])
    }
}
