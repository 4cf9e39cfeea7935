//! Numbers of another type. <https://onnx.ai/onnx/operators/onnx__Cast.html>

use marionette_models::bundle::DataType;

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = x as another type; of a byte beyond the range of signed ones, the one with the same bits (as ONNX Runtime does; ONNX leaves it
/// open).
#[derive(Debug, Clone, Copy)]
struct Cast {
    to: DataType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "Cast"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("to", Attribute::Int(self.to.onnx().into()))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = arity(inputs)?;
        Ok(vec![TensorType { dtype: self.to, shape: x.shape.clone() }])
    }

    /// f64 has all values of the types that are cast.
    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![inputs[0].clone()]
    }
}

impl Graph {
    /// x as another type.
    ///
    /// # Errors
    /// None for a value of this graph.
    pub fn cast(&mut self, x: Value, to: DataType) -> Result<Value, GraphError> {
        self.apply_one(Cast { to }, &[x])
    }
}
