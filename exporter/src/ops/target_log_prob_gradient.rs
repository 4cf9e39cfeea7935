//! The gradient of [`super::target_log_prob`] with respect to the logits.

use marionette_models::bundle::DataType;
use ndarray::{Axis, Ix2};

use super::{Domain, Op, arity};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// ∂z = ∂y (e_t − exp(z − l)), e_t the target's unit vector. Takes ∂y \[N\], logits z \[N, V\], targets i64\[N\], and l, the logarithm of
/// each row's sum of exponentials, \[N\].
#[derive(Debug, Clone, Copy)]
pub(super) struct TargetLogProbGradient;

impl Op for TargetLogProbGradient {
    fn name(&self) -> &'static str {
        "TargetLogProbGradient"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [dy, logits, targets, log_sum] = arity(inputs)?;
        match logits.shape[..] {
            [rows, _]
                if [dy, log_sum] == [&TensorType::f32([rows]); 2]
                    && logits.dtype == DataType::F32
                    && targets.dtype == DataType::I64
                    && targets.shape == [rows] =>
            {
                Ok(vec![logits.clone()])
            }
            _ => Err("expected f32[N], logits f32[N, V], targets i64[N] and f32[N]".into()),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [dy, logits, targets, log_sum] = [inputs[0], inputs[1], inputs[2], inputs[3]];
        let rows = graph.shape(dy)[0];
        let column = [rows, 1.into()];
        let [dy, log_sum] = [graph.reshape(dy, &column)?, graph.reshape(log_sum, &column)?];
        let targets = graph.reshape(targets, &column)?;
        let logarithms = graph.sub(logits, log_sum)?;
        let probabilities = graph.exp(logarithms)?;
        let minus_one = graph.scalar(-1.0);
        let factor = graph.mul(dy, minus_one)?;
        let gradient = graph.mul(probabilities, factor)?;
        Ok(vec![graph.scatter_add_elements(gradient, targets, dy)?])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let mut gradient = inputs[1].clone().into_dimensionality::<Ix2>().unwrap();
        let rows = gradient.axis_iter_mut(Axis(0)).zip(inputs[0]).zip(inputs[2]).zip(inputs[3]);
        for (((mut row, dy), &target), log_sum) in rows {
            row.mapv_inplace(|z| -dy * (z - log_sum).exp());
            row[target as usize] += dy;
        }
        vec![gradient.into_dyn()]
    }
}

#[cfg(test)]
mod tests {
    use super::TargetLogProbGradient;
    use crate::testing::{check_body, float, indices, refused};

    #[test]
    fn the_body_is_what_the_operator_is() {
        let samples = [float(&[3]), float(&[3, 5]), indices(&[4, 0, 2]), float(&[3])];
        check_body(TargetLogProbGradient, &samples, 1e-12);
    }

    #[test]
    fn other_shapes_are_refused() {
        let samples = [float(&[3]), float(&[3, 5]), indices(&[4, 0, 2]), float(&[3, 1])];
        assert!(refused(TargetLogProbGradient, &samples).contains("i64[N] and f32[N]"));
    }
}
