//! √x, element by element. <https://onnx.ai/onnx/operators/onnx__Sqrt.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = √x.
#[derive(Debug, Clone, Copy)]
struct Sqrt;

impl Op for Sqrt {
    fn name(&self) -> &'static str {
        "Sqrt"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::unary(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![inputs[0].mapv(|x| x.sqrt())]
    }
}

impl Graph {
    /// √x.
    ///
    /// # Errors
    /// x is not f32.
    pub fn sqrt(&mut self, x: Value) -> Result<Value, GraphError> {
        self.apply_one(Sqrt, &[x])
    }
}
