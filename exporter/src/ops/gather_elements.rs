//! One element of each row. <https://onnx.ai/onnx/operators/onnx__GatherElements.html>

use marionette_models::bundle::DataType;

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::TensorType;

/// y[n, k] = x[n, indices[n, k]], x \[N, V\], indices \[N, K\]. ∂y/∂x puts the gradient where the elements were.
#[derive(Debug, Clone, Copy)]
struct GatherElements;

impl Op for GatherElements {
    fn name(&self) -> &'static str {
        "GatherElements"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("axis", Attribute::Int(1))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, indices] = arity(inputs)?;
        match (&x.shape[..], &indices.shape[..], indices.dtype) {
            ([rows, _], [same, _], DataType::I64) if rows == same => Ok(vec![x.reshaped(indices.shape.clone())]),
            _ => Err("expected [N, V] and indices i64[N, K]".into()),
        }
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let shape = graph.shape(node.inputs[0]).to_vec();
        let zeros = graph.zeros(&shape)?;
        Ok(vec![Some(graph.scatter_add_elements(zeros, node.inputs[1], dy)?), None])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let mut y = inputs[1].clone();
        for (at, value) in y.indexed_iter_mut() {
            *value = inputs[0][[at[0], *value as usize]];
        }
        vec![y]
    }
}

impl Graph {
    /// The elements of each row of x whose columns `indices` holds.
    ///
    /// # Errors
    /// x is not [N, V] or the indices are not i64\[N, K\].
    pub fn gather_elements(&mut self, x: Value, indices: Value) -> Result<Value, GraphError> {
        self.apply_one(GatherElements, &[x, indices])
    }
}

#[cfg(test)]
mod tests {
    use super::GatherElements;
    use crate::testing::{check_gradient, float, indices_of, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(GatherElements, &[float(&[3, 4]), indices_of(&[3, 1], &[3, 0, 3])]);
        check_gradient(GatherElements, &[float(&[2, 3]), indices_of(&[2, 3], &[1, 1, 0, 2, 2, 2])]);
    }

    #[test]
    fn other_rows_are_refused() {
        assert!(refused(GatherElements, &[float(&[3, 4]), indices_of(&[2, 1], &[0, 0])]).contains("[N, V]"));
    }
}
