//! One or the other. <https://onnx.ai/onnx/operators/onnx__Where.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{TensorType, broadcast};

/// y = a where the condition holds, else b, with broadcasting.
#[derive(Debug, Clone, Copy)]
struct Where;

impl Op for Where {
    fn name(&self) -> &'static str {
        "Where"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [condition, a, b] = arity(inputs)?;
        if condition.dtype != DataType::Bool || a.dtype != b.dtype {
            return Err("expected truth values and two tensors of one type".into());
        }
        Ok(vec![a.reshaped(broadcast(&condition.shape, &broadcast(&a.shape, &b.shape)?)?)])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let shape = crate::array::broadcast_shape(inputs);
        let [condition, a, b] = [0, 1, 2].map(|i| inputs[i].broadcast(shape.clone()).unwrap());
        vec![ndarray::Zip::from(&condition).and(&a).and(&b).map_collect(|&c, &x, &y| if c != 0.0 { x } else { y })]
    }
}

impl Graph {
    /// a where the condition holds, else b.
    ///
    /// # Errors
    /// The types do not fit or the shapes do not broadcast.
    pub fn choose(&mut self, condition: Value, a: Value, b: Value) -> Result<Value, GraphError> {
        self.apply_one(Where, &[condition, a, b])
    }
}
