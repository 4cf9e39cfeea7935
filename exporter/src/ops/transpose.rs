//! Dimensions in another order. <https://onnx.ai/onnx/operators/onnx__Transpose.html>

use super::{Attribute, Op, arity};
use crate::autodiff::Backward;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

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

    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array> {
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
