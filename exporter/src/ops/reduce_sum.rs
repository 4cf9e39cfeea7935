//! The sum over some axes. <https://onnx.ai/onnx/operators/onnx__ReduceSum.html>

use super::reduction::Axes;
use super::{Attribute, Op};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType};

/// The sum over some axes.
#[derive(Debug, Clone)]
struct ReduceSum(Axes);

impl Op for ReduceSum {
    fn name(&self) -> &'static str {
        "ReduceSum"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.0.infer(inputs)
    }

    /// Every element of a group has the group's gradient.
    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let shape = graph.shape(node.inputs[0]).to_vec();
        let dy = self.0.keep(graph, dy, &shape)?;
        Ok(vec![Some(graph.expand(dy, &shape)?), None])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![self.0.fold(inputs[0], 0.0, |a, b| a + b)]
    }
}

impl Graph {
    /// The sum over some axes; with `keep`, the axes stay as dimensions of 1.
    ///
    /// # Errors
    /// x has no such axis.
    pub fn reduce_sum(&mut self, x: Value, axes: &[i64], keep: bool) -> Result<Value, GraphError> {
        let axes = Axes::new(axes, keep);
        let inputs = axes.inputs(self, x);
        self.apply_one(ReduceSum(axes), &inputs)
    }

    /// Undoes a broadcast: sums `gradient` over the axes along which a value of `shape` was repeated.
    ///
    /// # Errors
    /// `shape` does not broadcast to the gradient's.
    pub fn sum_to(&mut self, gradient: Value, shape: &[Dim]) -> Result<Value, GraphError> {
        let from = self.shape(gradient).to_vec();
        let missing = from.len().saturating_sub(shape.len());
        let axes: Vec<i64> = (0..from.len())
            .filter(|&i| i < missing || (shape[i - missing] == Dim::Fixed(1) && from[i] != Dim::Fixed(1)))
            .map(|i| i as i64)
            .collect();
        if axes.is_empty() {
            return Ok(gradient);
        }
        let sum = self.reduce_sum(gradient, &axes, false)?;
        if self.shape(sum) == shape { Ok(sum) } else { self.reshape(sum, shape) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Axes, ReduceSum};
    use crate::testing::{check_gradient, float, indices, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        for (shape, axes) in [(&[3][..], &[0][..]), (&[2, 3, 4], &[1]), (&[2, 3, 4], &[0, -1])] {
            for keep in [false, true] {
                check_gradient(ReduceSum(Axes::new(axes, keep)), &[float(shape), indices(axes)]);
            }
        }
    }

    #[test]
    fn an_axis_that_is_not_there_is_refused() {
        assert!(refused(ReduceSum(Axes::new(&[2], false)), &[float(&[2, 3]), indices(&[2])]).contains("axis 2"));
    }
}
