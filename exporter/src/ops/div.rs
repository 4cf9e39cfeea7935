//! a / b, element by element, with broadcasting. <https://onnx.ai/onnx/operators/onnx__Div.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = a / b.
#[derive(Debug, Clone, Copy)]
struct Div;

impl Op for Div {
    fn name(&self) -> &'static str {
        "Div"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::arithmetic(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        elementwise::zip(inputs, |a, b| a / b)
    }
}

impl Graph {
    /// a / b, broadcast.
    ///
    /// # Errors
    /// The types do not fit or the shapes do not broadcast.
    pub fn div(&mut self, a: Value, b: Value) -> Result<Value, GraphError> {
        self.apply_one(Div, &[a, b])
    }
}
