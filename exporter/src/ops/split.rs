//! A tensor cut into equal parts. <https://onnx.ai/onnx/operators/onnx__Split.html>

use super::{Attribute, Op, arity};
use crate::autodiff::Backward;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType, axis};

/// x cut along `axis` into `parts` of equal size; the gradient is the parts' gradients one after the other.
#[derive(Debug, Clone, Copy)]
struct Split {
    axis: i64,
    parts: usize,
}

impl Op for Split {
    fn name(&self) -> &'static str {
        "Split"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("axis", Attribute::Int(self.axis)), ("num_outputs", Attribute::Int(self.parts as i64))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = arity(inputs)?;
        let axis = axis(self.axis, x.rank())?;
        let mut shape = x.shape.clone();
        match shape[axis] {
            Dim::Fixed(size) if self.parts > 0 && size % self.parts == 0 => shape[axis] = (size / self.parts).into(),
            dim => return Err(format!("dimension {dim} cannot be cut into {} equal parts", self.parts)),
        }
        Ok(vec![x.reshaped(shape); self.parts])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let parts =
            (0..self.parts).map(|part| node.gradient(graph, part)).collect::<Result<Vec<Value>, GraphError>>()?;
        Ok(vec![Some(graph.concat(&parts, self.axis)?)])
    }

    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array> {
        let axis = ndarray::Axis(axis(self.axis, inputs[0].ndim()).unwrap());
        let size = inputs[0].len_of(axis) / self.parts;
        inputs[0].axis_chunks_iter(axis, size).map(|part| part.to_owned()).collect()
    }
}

impl Graph {
    /// x cut along `axis` into `parts` of equal size.
    ///
    /// # Errors
    /// The dimension is not fixed or not a multiple of `parts`.
    pub fn split(&mut self, x: Value, axis: i64, parts: usize) -> Result<Vec<Value>, GraphError> {
        self.apply(Split { axis, parts }, &[x])
    }
}

#[cfg(test)]
mod tests {
    use super::Split;
    use crate::testing::{check_gradient, float, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(Split { axis: -1, parts: 3 }, &[float(&[2, 6])]);
        check_gradient(Split { axis: 0, parts: 2 }, &[float(&[4, 3])]);
    }

    #[test]
    fn unequal_parts_are_refused() {
        assert!(refused(Split { axis: 1, parts: 4 }, &[float(&[2, 6])]).contains("4 equal parts"));
    }
}
