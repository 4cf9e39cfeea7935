//! What the reductions share.

use marionette_models::bundle::DataType;

use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::ops::{Attribute, arity};
use crate::shape::{Dim, TensorType, axis};

/// The axes of a reduction, and whether they stay as dimensions of 1. ONNX takes the axes as an input, an i64 constant.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axes {
    pub axes: Vec<i64>,
    pub keep: bool,
}

impl Axes {
    pub fn new(axes: &[i64], keep: bool) -> Self {
        Self { axes: axes.to_vec(), keep }
    }

    /// The inputs of the node: x, and the axes.
    pub fn inputs(&self, graph: &mut Graph, x: Value) -> [Value; 2] {
        [x, graph.integers(&self.axes)]
    }

    pub fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("keepdims", Attribute::Int(self.keep.into()))]
    }

    pub fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, _] = arity(inputs)?;
        if x.dtype == DataType::Bool {
            return Err("expected numbers".into());
        }
        Ok(vec![x.reshaped(self.reduced(&x.shape, self.keep)?)])
    }

    fn reduced(&self, shape: &[Dim], keep: bool) -> Result<Vec<Dim>, String> {
        let mut dims: Vec<Option<Dim>> = shape.iter().copied().map(Some).collect();
        for &index in &self.axes {
            dims[axis(index, shape.len())?] = keep.then_some(Dim::Fixed(1));
        }
        Ok(dims.into_iter().flatten().collect())
    }

    /// The gradient as if the axes had been kept, so that it broadcasts against the reduction's input.
    pub fn keep(&self, graph: &mut Graph, gradient: Value, input: &[Dim]) -> Result<Value, GraphError> {
        match self.reduced(input, true) {
            Ok(shape) if !self.keep => graph.reshape(gradient, &shape),
            _ => Ok(gradient),
        }
    }

    /// Folds each group of reduced elements with `f`.
    pub fn fold(&self, x: &crate::array::Array, initial: f64, f: impl Fn(f64, f64) -> f64) -> crate::array::Array {
        let mut axes: Vec<usize> = self.axes.iter().map(|&index| axis(index, x.ndim()).unwrap()).collect();
        axes.sort_unstable();
        let mut result = x.clone();
        for &index in axes.iter().rev() {
            result = result.fold_axis(ndarray::Axis(index), initial, |&a, &b| f(a, b));
            if self.keep {
                result.insert_axis_inplace(ndarray::Axis(index));
            }
        }
        result
    }
}
