//! Dimensions in another order. <https://onnx.ai/onnx/operators/onnx__Transpose.html>

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{TensorType, axis};

/// Dimension i of y is dimension `permutation[i]` of x; the gradient goes back by the inverse permutation.
#[derive(Debug, Clone)]
struct Transpose {
    permutation: Vec<usize>,
}

impl Op for Transpose {
    fn name(&self) -> &'static str {
        "Transpose"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("perm", Attribute::Ints(self.permutation.iter().map(|&i| i as i64).collect()))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = arity(inputs)?;
        let mut sorted = self.permutation.clone();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..x.rank()) {
            return Err(format!("{:?} is no order of {} dimensions", self.permutation, x.rank()));
        }
        Ok(vec![x.reshaped(self.permutation.iter().map(|&i| x.shape[i]).collect::<Vec<_>>())])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let mut inverse = vec![0; self.permutation.len()];
        for (to, &from) in self.permutation.iter().enumerate() {
            inverse[from] = to;
        }
        Ok(vec![Some(graph.transpose(dy, &inverse)?)])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![inputs[0].clone().permuted_axes(self.permutation.clone()).as_standard_layout().into_owned()]
    }
}

impl Graph {
    /// x with dimension `permutation[i]` as its dimension i.
    ///
    /// # Errors
    /// `permutation` is not one of x's dimensions.
    pub fn transpose(&mut self, x: Value, permutation: &[usize]) -> Result<Value, GraphError> {
        self.apply_one(Transpose { permutation: permutation.to_vec() }, &[x])
    }

    /// x with its last two dimensions exchanged; of a matrix that is a transposed one already, that one.
    ///
    /// # Errors
    /// x has fewer than two.
    pub fn matrix_transpose(&mut self, x: Value) -> Result<Value, GraphError> {
        let made_by = self.nodes.iter().rev().find(|node| node.outputs == [x]);
        if let Some(node) = made_by.filter(|node| node.op.name() == "Transpose" && self.shape(x).len() == 2) {
            return Ok(node.inputs[0]);
        }
        let rank = self.shape(x).len();
        let mut permutation: Vec<usize> = (0..rank).collect();
        if let (Ok(row), Ok(column)) = (axis(-2, rank), axis(-1, rank)) {
            permutation.swap(row, column);
        }
        self.transpose(x, &permutation)
    }
}

#[cfg(test)]
mod tests {
    use super::Transpose;
    use crate::testing::{check_gradient, float, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(Transpose { permutation: vec![1, 0] }, &[float(&[2, 3])]);
        check_gradient(Transpose { permutation: vec![2, 0, 1] }, &[float(&[2, 3, 4])]);
        check_gradient(Transpose { permutation: vec![0, 2, 1, 3] }, &[float(&[2, 3, 2, 2])]);
    }

    #[test]
    fn what_is_no_permutation_is_refused() {
        assert!(refused(Transpose { permutation: vec![0, 0] }, &[float(&[2, 3])]).contains("no order"));
    }
}
