//! |x|, element by element. <https://onnx.ai/onnx/operators/onnx__Abs.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = |x|.
#[derive(Debug, Clone, Copy)]
struct Abs;

impl Op for Abs {
    fn name(&self) -> &'static str {
        "Abs"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::unary(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![inputs[0].mapv(f64::abs)]
    }
}

impl Graph {
    /// |x|.
    ///
    /// # Errors
    /// x is not f32.
    pub fn abs(&mut self, x: Value) -> Result<Value, GraphError> {
        self.apply_one(Abs, &[x])
    }
}
