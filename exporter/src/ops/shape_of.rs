//! One dimension's number when the graph runs. <https://onnx.ai/onnx/operators/onnx__Shape.html>

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// The length of x along an axis, i64\[1\].
#[derive(Debug, Clone, Copy)]
struct Shape {
    axis: usize,
}

impl Op for Shape {
    fn name(&self) -> &'static str {
        "Shape"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("start", Attribute::Int(self.axis as i64)), ("end", Attribute::Int(self.axis as i64 + 1))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = arity(inputs)?;
        if self.axis >= x.rank() {
            return Err(format!("axis {} is not one of {} dimensions", self.axis, x.rank()));
        }
        Ok(vec![TensorType::i64([1.into()])])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![ndarray::arr1(&[inputs[0].shape()[self.axis] as f64]).into_dyn()]
    }
}

impl Graph {
    /// The length of x along an axis, i64\[1\].
    pub(crate) fn length(&mut self, x: Value, axis: usize) -> Result<Value, GraphError> {
        self.apply_one(Shape { axis }, &[x])
    }
}
