//! σ(x) = 1 / (1 + e⁻ˣ), element by element. <https://onnx.ai/onnx/operators/onnx__Sigmoid.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = σ(x) = 1 / (1 + e⁻ˣ).
#[derive(Debug, Clone, Copy)]
struct Sigmoid;

impl Op for Sigmoid {
    fn name(&self) -> &'static str {
        "Sigmoid"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::unary(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![inputs[0].mapv(|x| 1.0 / (1.0 + (-x).exp()))]
    }
}

impl Graph {
    /// σ(x) = 1 / (1 + e⁻ˣ).
    ///
    /// # Errors
    /// x is not f32.
    pub fn sigmoid(&mut self, x: Value) -> Result<Value, GraphError> {
        self.apply_one(Sigmoid, &[x])
    }
}
