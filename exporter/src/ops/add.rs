//! a + b, element by element, with broadcasting. <https://onnx.ai/onnx/operators/onnx__Add.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::TensorType;

/// y = a + b. ∂y/∂a = ∂y/∂b = 1, each summed over the axes that were broadcast.
#[derive(Debug, Clone, Copy)]
struct Add;

impl Op for Add {
    fn name(&self) -> &'static str {
        "Add"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::arithmetic(inputs)
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let [a, b] = [node.inputs[0], node.inputs[1]];
        let mut gradients = vec![None; 2];
        if node.wanted[0] {
            let da = dy;
            let shape = graph.shape(a).to_vec();
            gradients[0] = Some(graph.sum_to(da, &shape)?);
        }
        if node.wanted[1] {
            let db = dy;
            let shape = graph.shape(b).to_vec();
            gradients[1] = Some(graph.sum_to(db, &shape)?);
        }
        Ok(gradients)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        elementwise::zip(inputs, |a, b| a + b)
    }
}

impl Graph {
    /// a + b, broadcast.
    ///
    /// # Errors
    /// The types differ or the shapes do not broadcast.
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value, GraphError> {
        self.apply_one(Add, &[a, b])
    }
}

#[cfg(test)]
mod tests {
    use super::Add;
    use crate::testing::{check_gradient, float, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(Add, &[float(&[2, 3]), float(&[2, 3])]);
        check_gradient(Add, &[float(&[2, 3]), float(&[3])]);
        check_gradient(Add, &[float(&[]), float(&[4])]);
        check_gradient(Add, &[float(&[3, 1, 2]), float(&[4, 1])]);
    }

    #[test]
    fn shapes_that_do_not_broadcast_are_refused() {
        assert!(refused(Add, &[float(&[2, 3]), float(&[2])]).contains("do not broadcast"));
    }
}
