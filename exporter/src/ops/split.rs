//! A tensor cut into parts. <https://onnx.ai/onnx/operators/onnx__Split.html>

use super::{Attribute, Op};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType, axis};

/// x cut along `axis` into parts of `sizes`, which the second input tells when the graph runs, or into `parts` of equal size; the
/// gradient is the parts' gradients one after the other.
#[derive(Debug, Clone)]
struct Split {
    axis: i64,
    parts: usize,
    /// Where they are not equal.
    sizes: Option<Vec<usize>>,
}

impl Op for Split {
    fn name(&self) -> &'static str {
        "Split"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        let equal = self.sizes.is_none().then_some(("num_outputs", Attribute::Int(self.parts as i64)));
        [("axis", Attribute::Int(self.axis))].into_iter().chain(equal).collect()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (Some(x), true) = (inputs.first(), inputs.len() == 1 + usize::from(self.sizes.is_some())) else {
            return Err(format!("{} inputs, expected x, and the sizes where they differ", inputs.len()));
        };
        let axis = axis(self.axis, x.rank())?;
        let part = |size: usize| {
            let mut shape = x.shape.clone();
            shape[axis] = size.into();
            x.reshaped(shape)
        };
        match (x.shape[axis], &self.sizes) {
            (Dim::Fixed(size), None) if self.parts > 0 && size % self.parts == 0 => {
                Ok(vec![part(size / self.parts); self.parts])
            }
            (Dim::Fixed(size), Some(sizes)) if sizes.iter().sum::<usize>() == size => {
                Ok(sizes.iter().map(|&size| part(size)).collect())
            }
            (dim, None) => Err(format!("dimension {dim} cannot be cut into {} equal parts", self.parts)),
            (dim, Some(sizes)) => Err(format!("dimension {dim} cannot be cut into parts of {sizes:?}")),
        }
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let parts =
            (0..self.parts).map(|part| node.gradient(graph, part)).collect::<Result<Vec<Value>, GraphError>>()?;
        let mut gradients = vec![None; node.inputs.len()];
        gradients[0] = Some(graph.concat(&parts, self.axis)?);
        Ok(gradients)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let axis = ndarray::Axis(axis(self.axis, inputs[0].ndim()).unwrap());
        let equal = vec![inputs[0].len_of(axis) / self.parts.max(1); self.parts];
        let mut first = 0;
        let parts = self.sizes.as_ref().unwrap_or(&equal).iter().map(|&size| {
            first += size;
            inputs[0].slice_axis(axis, (first - size..first).into()).to_owned()
        });
        parts.collect()
    }
}

impl Graph {
    /// x cut along `axis` into `parts` of equal size.
    ///
    /// # Errors
    /// The dimension is not fixed or not a multiple of `parts`.
    pub fn split(&mut self, x: Value, axis: i64, parts: usize) -> Result<Vec<Value>, GraphError> {
        self.apply(Split { axis, parts, sizes: None }, &[x])
    }

    /// x cut along `axis` into parts of these sizes, of which those of none are left out.
    ///
    /// # Errors
    /// They are not as many as the dimension.
    pub fn split_at(&mut self, x: Value, axis: i64, sizes: &[usize]) -> Result<Vec<Value>, GraphError> {
        let sizes: Vec<usize> = sizes.iter().copied().filter(|size| *size > 0).collect();
        let known = self.integers(&sizes.iter().map(|&size| size as i64).collect::<Vec<_>>());
        self.apply(Split { axis, parts: sizes.len(), sizes: Some(sizes) }, &[x, known])
    }
}

#[cfg(test)]
mod tests {
    use super::Split;
    use crate::testing::{check_gradient, float, indices, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        let equal = |axis, parts| Split { axis, parts, sizes: None };
        check_gradient(equal(-1, 3), &[float(&[2, 6])]);
        check_gradient(equal(0, 2), &[float(&[4, 3])]);
        check_gradient(Split { axis: 1, parts: 2, sizes: Some(vec![4, 2]) }, &[float(&[2, 6]), indices(&[4, 2])]);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        assert!(refused(Split { axis: 1, parts: 4, sizes: None }, &[float(&[2, 6])]).contains("4 equal parts"));
        let op = Split { axis: 1, parts: 2, sizes: Some(vec![4, 1]) };
        assert!(refused(op, &[float(&[2, 6]), indices(&[4, 1])]).contains("[4, 1]"));
    }
}
