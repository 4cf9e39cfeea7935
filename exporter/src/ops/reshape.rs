//! The same elements in another shape. <https://onnx.ai/onnx/operators/onnx__Reshape.html>

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, Shape, TensorType, elements};

/// y holds the elements of x in row-major order, in a shape that the second input tells when the graph runs; the gradient
/// goes back into x's shape.
#[derive(Debug, Clone)]
struct Reshape {
    shape: Shape,
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "Reshape"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, _] = arity(inputs)?;
        let y = x.reshaped(self.shape.clone());
        if elements(&x.shape) != elements(&y.shape) {
            return Err(format!("{y} does not have as many elements"));
        }
        Ok(vec![y])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let shape = graph.shape(node.inputs[0]).to_vec();
        Ok(vec![Some(graph.reshape(dy, &shape)?), None])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let known: f64 = inputs[1].iter().filter(|&&dim| dim >= 0.0).product();
        let gap = inputs[0].len() as f64 / known;
        let shape: Vec<usize> = inputs[1].iter().map(|&dim| if dim < 0.0 { gap } else { dim } as usize).collect();
        vec![inputs[0].to_shape(shape).unwrap().to_owned()]
    }
}

impl Graph {
    /// x in another shape of as many elements.
    ///
    /// # Errors
    /// The shape has more or fewer, or no value has one of its dimensions.
    pub fn reshape(&mut self, x: Value, shape: &[Dim]) -> Result<Value, GraphError> {
        let target = self.reshape_target(shape)?;
        self.reshape_to(x, shape, target)
    }

    /// x in another shape, which `target` tells when the graph runs.
    pub(crate) fn reshape_to(&mut self, x: Value, shape: &[Dim], target: Value) -> Result<Value, GraphError> {
        self.apply_one(Reshape { shape: shape.to_vec() }, &[x, target])
    }
}

#[cfg(test)]
mod tests {
    use super::Reshape;
    use crate::testing::{check_gradient, float, indices, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        for (from, to) in [(&[6][..], &[2, 3][..]), (&[2, 3, 2], &[4, 3]), (&[1], &[])] {
            let shape = to.iter().map(|&dim| (dim as usize).into()).collect();
            check_gradient(Reshape { shape }, &[float(from), indices(to)]);
        }
    }

    #[test]
    fn another_number_of_elements_is_refused() {
        let op = Reshape { shape: vec![4.into()] };
        assert!(refused(op, &[float(&[2, 3]), indices(&[4])]).contains("as many elements"));
    }
}
