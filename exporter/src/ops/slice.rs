//! A part of a dimension. <https://onnx.ai/onnx/operators/onnx__Slice.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// The elements start to end (not included) of one axis: `length` of them. Inputs: x, start, end, axis, the last three i64\[1\].
#[derive(Debug, Clone, Copy)]
struct Slice {
    axis: usize,
    length: Dim,
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "Slice"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, bounds @ ..] = arity::<4>(inputs)?;
        if bounds.iter().any(|bound| bound.dtype != DataType::I64 || bound.shape != [Dim::Fixed(1)]) {
            return Err("expected a start, an end and an axis, i64[1] each".into());
        }
        let mut shape = x.shape.clone();
        *shape.get_mut(self.axis).ok_or("there is no such axis")? = self.length;
        Ok(vec![x.reshaped(shape)])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let [start, end] = [1, 2].map(|i| inputs[i].sum() as usize);
        vec![inputs[0].slice_axis(ndarray::Axis(self.axis), (start..end).into()).to_owned()]
    }
}

impl Graph {
    /// The first elements of an axis, as many as `end` i64\[1\] says: `length`.
    ///
    /// # Errors
    /// There is no such axis.
    pub fn first(&mut self, x: Value, axis: usize, end: Value, length: Dim) -> Result<Value, GraphError> {
        let (start, of) = (self.integers(&[0]), self.integers(&[axis as i64]));
        self.apply_one(Slice { axis, length }, &[x, start, end, of])
    }
}
