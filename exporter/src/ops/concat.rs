//! Tensors one after the other along an axis. <https://onnx.ai/onnx/operators/onnx__Concat.html>

use super::{Attribute, Op};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType, axis};

/// The inputs one after the other along `axis`, where their dimensions are fixed; the other dimensions are equal.
#[derive(Debug, Clone, Copy)]
struct Concat {
    axis: i64,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("axis", Attribute::Int(self.axis))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [first, rest @ ..] = inputs else { return Err("expected at least one input".into()) };
        let axis = axis(self.axis, first.rank())?;
        let mut total = 0;
        for input in inputs {
            match input.shape.get(axis) {
                Some(Dim::Fixed(size)) => total += size,
                _ => return Err(format!("dimension {axis} is not fixed")),
            }
        }
        let others = |tensor: &TensorType| {
            let mut shape = tensor.shape.clone();
            shape.remove(axis);
            (tensor.dtype, shape)
        };
        if rest.iter().any(|input| others(input) != others(first)) {
            return Err(format!("types or dimensions other than {axis} differ"));
        }
        let mut shape = first.shape.clone();
        shape[axis] = Dim::Fixed(total);
        Ok(vec![first.reshaped(shape)])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let axis = ndarray::Axis(axis(self.axis, inputs[0].ndim()).unwrap());
        let views: Vec<_> = inputs.iter().map(|input| input.view()).collect();
        vec![ndarray::concatenate(axis, &views).unwrap()]
    }
}

impl Graph {
    /// The inputs one after the other along `axis`.
    ///
    /// # Errors
    /// Their types or other dimensions differ.
    pub fn concat(&mut self, inputs: &[Value], axis: i64) -> Result<Value, GraphError> {
        self.apply_one(Concat { axis }, inputs)
    }
}
