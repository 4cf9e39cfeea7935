//! Elements added to each row. <https://onnx.ai/onnx/operators/onnx__ScatterElements.html>

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = x, then y[n, indices[n, k]] += updates[n, k]; x \[N, V\], indices and updates \[N, K\].
#[derive(Debug, Clone, Copy)]
struct ScatterElements;

impl Op for ScatterElements {
    fn name(&self) -> &'static str {
        "ScatterElements"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("axis", Attribute::Int(1)), ("reduction", Attribute::Text("add"))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, indices, updates] = arity(inputs)?;
        if x.rank() != 2 || indices.shape != updates.shape || indices.shape.first() != x.shape.first() {
            return Err("expected [N, V], [N, K] and [N, K]".into());
        }
        Ok(vec![x.clone()])
    }

    #[cfg(test)]
    fn evaluate(&self, inputs: &[&crate::testing::Array]) -> Vec<crate::testing::Array> {
        let mut y = inputs[0].clone();
        for (at, &update) in inputs[2].indexed_iter() {
            y[[at[0], inputs[1][&at] as usize]] += update;
        }
        vec![y]
    }
}

impl Graph {
    /// x with each element of `updates` added to its row, in the column that `indices` holds.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn scatter_add_elements(&mut self, x: Value, indices: Value, updates: Value) -> Result<Value, GraphError> {
        self.apply_one(ScatterElements, &[x, indices, updates])
    }
}
