//! A tensor of zeros. <https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html>

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, Shape, TensorType};

/// Zeros of a shape that the input tells when the graph runs. The attribute `value` is left out: f32 zero.
#[derive(Debug, Clone)]
struct ConstantOfShape {
    shape: Shape,
}

impl Op for ConstantOfShape {
    fn name(&self) -> &'static str {
        "ConstantOfShape"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [shape] = arity(inputs)?;
        if shape.shape != [Dim::Fixed(self.shape.len())] {
            return Err(format!("expected i64[{}]", self.shape.len()));
        }
        Ok(vec![TensorType::f32(self.shape.clone())])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![crate::array::Array::zeros(crate::array::to_shape(inputs[0]))]
    }
}

impl Graph {
    /// Zeros of f32.
    ///
    /// # Errors
    /// No value has one of the dimensions.
    pub fn zeros(&mut self, shape: &[Dim]) -> Result<Value, GraphError> {
        let tensor = self.shape_tensor(shape)?;
        self.apply_one(ConstantOfShape { shape: shape.to_vec() }, &[tensor])
    }
}
