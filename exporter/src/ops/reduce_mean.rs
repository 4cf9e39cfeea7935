//! The mean over some axes. <https://onnx.ai/onnx/operators/onnx__ReduceMean.html>

use super::reduction::Axes;
use super::{Attribute, Op};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// The mean over some axes.
#[derive(Debug, Clone)]
struct ReduceMean(Axes);

impl Op for ReduceMean {
    fn name(&self) -> &'static str {
        "ReduceMean"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.0.infer(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let sum = self.0.fold(inputs[0], 0.0, |a, b| a + b);
        let count = inputs[0].len() as f64 / sum.len() as f64;
        vec![sum / count]
    }
}

impl Graph {
    /// The mean over some axes; with `keep`, the axes stay as dimensions of 1.
    ///
    /// # Errors
    /// x has no such axis.
    pub fn reduce_mean(&mut self, x: Value, axes: &[i64], keep: bool) -> Result<Value, GraphError> {
        let axes = Axes::new(axes, keep);
        let inputs = axes.inputs(self, x);
        self.apply_one(ReduceMean(axes), &inputs)
    }
}
