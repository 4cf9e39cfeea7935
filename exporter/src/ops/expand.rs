//! A broadcast made real. <https://onnx.ai/onnx/operators/onnx__Expand.html>

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, Shape, TensorType, broadcast};

/// x repeated to a shape that the second input tells when the graph runs.
#[derive(Debug, Clone)]
struct Expand {
    shape: Shape,
}

impl Op for Expand {
    fn name(&self) -> &'static str {
        "Expand"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, _] = arity(inputs)?;
        if broadcast(&x.shape, &self.shape)? != self.shape {
            return Err("does not broadcast to the wanted shape".into());
        }
        Ok(vec![x.reshaped(self.shape.clone())])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![inputs[0].broadcast(crate::array::to_shape(inputs[1])).unwrap().to_owned()]
    }
}

impl Graph {
    /// x repeated to `shape`.
    ///
    /// # Errors
    /// x does not broadcast to it, or no value has one of the dimensions.
    pub fn expand(&mut self, x: Value, shape: &[Dim]) -> Result<Value, GraphError> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        let tensor = self.shape_tensor(shape)?;
        self.apply_one(Expand { shape: shape.to_vec() }, &[x, tensor])
    }
}
