//! eˣ, element by element. <https://onnx.ai/onnx/operators/onnx__Exp.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = eˣ.
#[derive(Debug, Clone, Copy)]
struct Exp;

impl Op for Exp {
    fn name(&self) -> &'static str {
        "Exp"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::unary(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![inputs[0].mapv(|x| x.exp())]
    }
}

impl Graph {
    /// eˣ.
    ///
    /// # Errors
    /// x is not f32.
    pub fn exp(&mut self, x: Value) -> Result<Value, GraphError> {
        self.apply_one(Exp, &[x])
    }
}
