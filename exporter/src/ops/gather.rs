//! Rows by their numbers. <https://onnx.ai/onnx/operators/onnx__Gather.html>

use marionette_models::bundle::DataType;

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType};

/// y[i…, :] = x[indices[i…], :], x \[N, …\], indices of any shape. ∂y/∂x adds each row of the gradient to the row that it
/// was taken from.
#[derive(Debug, Clone, Copy)]
struct Gather;

impl Op for Gather {
    fn name(&self) -> &'static str {
        "Gather"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("axis", Attribute::Int(0))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, indices] = arity(inputs)?;
        if indices.dtype != DataType::I64 {
            return Err("expected indices of i64".into());
        }
        let [_, row @ ..] = &x.shape[..] else { return Err("expected rows, not a scalar".into()) };
        Ok(vec![x.reshaped([&indices.shape, row].concat())])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let [x, indices] = [node.inputs[0], node.inputs[1]];
        let shape = graph.shape(x).to_vec();
        let zeros = graph.zeros(&shape)?;
        let one_each = [graph.shape(indices), &[Dim::Fixed(1)]].concat();
        let indices = graph.reshape(indices, &one_each)?;
        Ok(vec![Some(graph.scatter_add_rows(zeros, indices, dy)?), None])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let indices: Vec<usize> = inputs[1].iter().map(|&index| index as usize).collect();
        let rows = inputs[0].select(ndarray::Axis(0), &indices);
        let shape = [inputs[1].shape(), &inputs[0].shape()[1..]].concat();
        vec![rows.into_shape_with_order(shape).unwrap()]
    }
}

impl Graph {
    /// The rows of x whose numbers `indices` holds.
    ///
    /// # Errors
    /// x is a scalar or the indices are not i64.
    pub fn gather(&mut self, x: Value, indices: Value) -> Result<Value, GraphError> {
        self.apply_one(Gather, &[x, indices])
    }
}

#[cfg(test)]
mod tests {
    use super::Gather;
    use crate::testing::{check_gradient, float, indices, indices_of, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(Gather, &[float(&[4]), indices(&[3, 0])]);
        check_gradient(Gather, &[float(&[3, 2]), indices(&[2, 2, 0, 2])]);
        check_gradient(Gather, &[float(&[3, 2, 2]), indices_of(&[2, 2], &[1, 1, 0, 1])]);
    }

    #[test]
    fn indices_of_another_type_are_refused() {
        assert!(refused(Gather, &[float(&[3, 2]), float(&[1])]).contains("i64"));
    }
}
