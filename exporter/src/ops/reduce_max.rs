//! The largest over some axes. <https://onnx.ai/onnx/operators/onnx__ReduceMax.html>

use super::reduction::Axes;
use super::{Attribute, Op};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// The largest over some axes.
#[derive(Debug, Clone)]
struct ReduceMax(Axes);

impl Op for ReduceMax {
    fn name(&self) -> &'static str {
        "ReduceMax"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.0.infer(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![self.0.fold(inputs[0], f64::NEG_INFINITY, f64::max)]
    }
}

impl Graph {
    /// The largest over some axes; with `keep`, the axes stay as dimensions of 1.
    ///
    /// # Errors
    /// x has no such axis.
    pub fn reduce_max(&mut self, x: Value, axes: &[i64], keep: bool) -> Result<Value, GraphError> {
        let axes = Axes::new(axes, keep);
        let inputs = axes.inputs(self, x);
        self.apply_one(ReduceMax(axes), &inputs)
    }
}
