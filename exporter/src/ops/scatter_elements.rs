//! Elements put or added to where their numbers say. <https://onnx.ai/onnx/operators/onnx__ScatterElements.html>

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = x, then at each place p of `indices`, with q being p but for q[axis] = indices[p], y[q] = updates[p], or y[q] += updates[p]. Indices
/// and updates are of one shape, which is that of x but for the axis.
#[derive(Debug, Clone, Copy)]
struct ScatterElements {
    axis: usize,
    add: bool,
}

impl Op for ScatterElements {
    fn name(&self) -> &'static str {
        "ScatterElements"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        let reduction = if self.add { "add" } else { "none" };
        vec![("axis", Attribute::Int(self.axis as i64)), ("reduction", Attribute::Text(reduction))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, indices, updates] = arity(inputs)?;
        let is_same = |axis: usize| axis == self.axis || x.shape[axis] == indices.shape[axis];
        if x.rank() != indices.rank() || indices.shape != updates.shape || !(0..x.rank()).all(is_same) {
            return Err(format!("expected indices and updates of the shape of x but for axis {}", self.axis));
        }
        Ok(vec![x.clone()])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let mut y = inputs[0].clone();
        for (at, &update) in inputs[2].indexed_iter() {
            let mut to = at.clone();
            to[self.axis] = inputs[1][&at] as usize;
            y[&to] = if self.add { y[&to] + update } else { update };
        }
        vec![y]
    }
}

impl Graph {
    /// x \[N, V\] with each element of `updates` \[N, K\] added to its row, in the column that `indices` \[N, K\] holds.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn scatter_add_elements(&mut self, x: Value, indices: Value, updates: Value) -> Result<Value, GraphError> {
        self.apply_one(ScatterElements { axis: 1, add: true }, &[x, indices, updates])
    }

    /// x \[B, H, C, d\] with each element of `updates` \[B, H, T, d\] in the place along C that `indices` \[B, H, T, d\] holds. ONNX
    /// Runtime copies nothing where x and the result are one buffer.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn scatter_elements(&mut self, x: Value, indices: Value, updates: Value) -> Result<Value, GraphError> {
        self.apply_one(ScatterElements { axis: 2, add: false }, &[x, indices, updates])
    }
}
