//! log Σ exp over some axes. <https://onnx.ai/onnx/operators/onnx__ReduceLogSumExp.html>

use super::reduction::Axes;
use super::{Attribute, Op};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// log Σ exp over some axes.
#[derive(Debug, Clone)]
struct ReduceLogSumExp(Axes);

impl Op for ReduceLogSumExp {
    fn name(&self) -> &'static str {
        "ReduceLogSumExp"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.0.infer(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array> {
        let together = |a: f64, b: f64| {
            let greater = a.max(b);
            if greater == f64::NEG_INFINITY { greater } else { greater + (-(a - b).abs()).exp().ln_1p() }
        };
        vec![self.0.fold(inputs[0], f64::NEG_INFINITY, together)]
    }
}

impl Graph {
    /// The logarithm of the sum of exponentials over some axes; with `keep`, the axes stay as dimensions of 1.
    ///
    /// # Errors
    /// x has no such axis.
    pub fn reduce_log_sum_exp(&mut self, x: Value, axes: &[i64], keep: bool) -> Result<Value, GraphError> {
        let axes = Axes::new(axes, keep);
        let inputs = axes.inputs(self, x);
        self.apply_one(ReduceLogSumExp(axes), &inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::ReduceLogSumExp;
    use crate::ops::Op as _;
    use crate::ops::reduction::Axes;
    use crate::testing::Array;

    #[test]
    fn it_is_the_logarithm_of_the_sum_and_does_not_overflow() {
        let x = Array::from_shape_vec(vec![2, 3], vec![0.0, 1.0, 2.0, 1000.0, 1000.0, -1e30]).unwrap();
        let y = &ReduceLogSumExp(Axes::new(&[-1], false)).evaluate(&[&x])[0];
        let expected = [(1.0 + 1.0_f64.exp() + 2.0_f64.exp()).ln(), 1000.0 + 2.0_f64.ln()];
        assert!(y.iter().zip(expected).all(|(y, expected)| (y - expected).abs() < 1e-12), "{y}");
    }
}
