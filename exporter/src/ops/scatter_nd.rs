//! Rows added where their numbers say. <https://onnx.ai/onnx/operators/onnx__ScatterND.html>

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// y = x, then y[indices[i…, 0], :] += updates[i…, :]; x \[N, …\], indices \[I…, 1\].
#[derive(Debug, Clone, Copy)]
struct ScatterNd;

impl Op for ScatterNd {
    fn name(&self) -> &'static str {
        "ScatterND"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("reduction", Attribute::Text("add"))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, indices, updates] = arity(inputs)?;
        match (&x.shape[..], &indices.shape[..]) {
            ([_, row @ ..], [number @ .., Dim::Fixed(1)]) if updates.shape == [number, row].concat() => {
                Ok(vec![x.clone()])
            }
            _ => Err("expected [N, …], [I…, 1] and [I…, …]".into()),
        }
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let mut y = inputs[0].clone();
        let rows = inputs[1].len();
        let updates = inputs[2].to_shape([&[rows], &y.shape()[1..]].concat()).unwrap().to_owned();
        for (&index, update) in inputs[1].iter().zip(updates.outer_iter()) {
            let mut row = y.index_axis_mut(ndarray::Axis(0), index as usize);
            row += &update;
        }
        vec![y]
    }
}

impl Graph {
    /// x with each row of `updates` added to the row whose number `indices` holds.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn scatter_add_rows(&mut self, x: Value, indices: Value, updates: Value) -> Result<Value, GraphError> {
        self.apply_one(ScatterNd, &[x, indices, updates])
    }
}
