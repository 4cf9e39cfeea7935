//! The largest of values after one another. <https://onnx.ai/onnx/operators/onnx__MaxPool.html>

use marionette_models::bundle::DataType;

use super::{Attribute, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// The largest of each `length` values of the last axis, or of fewer at its end: x f32\[B, C, K\], y \[B, C, ⌈K / length⌉\].
#[derive(Debug, Clone, Copy)]
struct MaxPool {
    length: usize,
}

impl Op for MaxPool {
    fn name(&self) -> &'static str {
        "MaxPool"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        let length = || Attribute::Ints(vec![self.length as i64]);
        vec![("ceil_mode", Attribute::Int(1)), ("kernel_shape", length()), ("strides", length())]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = arity(inputs)?;
        match x.shape[..] {
            [batch, channels, Dim::Fixed(width)] if x.dtype == DataType::F32 => {
                Ok(vec![TensorType::f32([batch, channels, width.div_ceil(self.length).into()])])
            }
            _ => Err(format!("x is {x}, expected f32[B, C, K] with a fixed K")),
        }
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let largest = |part: ndarray::ArrayViewD<'_, f64>| {
            part.map_axis(ndarray::Axis(2), |values| values.fold(f64::NEG_INFINITY, |a, &b| a.max(b)))
        };
        let parts: Vec<_> = inputs[0].axis_chunks_iter(ndarray::Axis(2), self.length).map(largest).collect();
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        vec![ndarray::stack(ndarray::Axis(2), &views).unwrap()]
    }
}

impl Graph {
    /// The largest of each `length` values of the last of three axes.
    ///
    /// # Errors
    /// x has other axes, or the last one is not fixed.
    pub fn max_pool(&mut self, x: Value, length: usize) -> Result<Value, GraphError> {
        self.apply_one(MaxPool { length }, &[x])
    }
}

#[cfg(test)]
mod tests {
    use super::MaxPool;
    use crate::graph::Op as _;
    use crate::testing::{float, refused};

    #[test]
    fn the_last_values_may_be_fewer() {
        let x = ndarray::arr3(&[[[-3.0, -1.0, -2.0, -5.0, -4.0]], [[1.0, 2.0, 4.0, 3.0, 9.0]]]).into_dyn();
        let expected = ndarray::arr3(&[[[-1.0, -2.0, -4.0]], [[2.0, 4.0, 9.0]]]).into_dyn();
        assert_eq!(MaxPool { length: 2 }.evaluate(&[&x]), [expected]);
        assert!(refused(MaxPool { length: 2 }, &[float(&[2, 5])]).contains("expected f32[B, C, K]"));
    }
}
