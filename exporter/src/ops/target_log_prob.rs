//! The logarithm of the probability that softmax gives to one class of each row: what a loss needs of a whole row of logits.

use marionette_models::bundle::DataType;
use ndarray::{Axis, Ix2};

use super::target_log_prob_gradient::TargetLogProbGradient;
use super::{Domain, Op, arity, no_gradient};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::TensorType;

/// z_t − l with l = log Σ exp z, for rows z of logits \[N, V\] and targets t i64\[N\]: \[N\], and l, \[N\].
#[derive(Debug, Clone, Copy)]
pub(super) struct TargetLogProb;

impl Op for TargetLogProb {
    fn name(&self) -> &'static str {
        "TargetLogProb"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [logits, targets] = arity(inputs)?;
        match logits.shape[..] {
            [rows, _] if logits.dtype == DataType::F32 && targets.dtype == DataType::I64 && targets.shape == [rows] => {
                Ok(vec![TensorType::f32([rows]); 2])
            }
            _ => Err("expected logits f32[N, V] and targets i64[N]".into()),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [logits, targets] = [inputs[0], inputs[1]];
        let rows = graph.shape(targets)[0];
        let log_sum = graph.log_sum_exp(logits)?;
        let column = graph.reshape(targets, &[rows, 1.into()])?;
        let chosen = graph.gather_elements(logits, column)?;
        let chosen = graph.reshape(chosen, &[rows])?;
        Ok(vec![graph.sub(chosen, log_sum)?, log_sum])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        if node.output_gradients[1].is_some() {
            return Err(no_gradient(self.name(), "the loss depends on its sums"));
        }
        let dy = node.gradient(graph, 0)?;
        let inputs = [dy, node.inputs[0], node.inputs[1], node.outputs[1]];
        Ok(vec![Some(graph.apply_one(TargetLogProbGradient, &inputs)?), None])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let logits = inputs[0].view().into_dimensionality::<Ix2>().unwrap();
        let log_sums = logits.map_axis(Axis(1), |row| {
            let greatest = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            greatest + row.fold(0.0, |sum, z| sum + (z - greatest).exp()).ln()
        });
        let chosen = logits.outer_iter().zip(inputs[1]).zip(&log_sums);
        let log_probs: ndarray::Array1<f64> = chosen.map(|((row, &target), sum)| row[target as usize] - sum).collect();
        vec![log_probs.into_dyn(), log_sums.into_dyn()]
    }
}

impl Graph {
    /// The log-probability of each row's target: logits \[N, V\], targets i64\[N\], to \[N\].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn target_log_prob(&mut self, logits: Value, targets: Value) -> Result<Value, GraphError> {
        Ok(self.apply(TargetLogProb, &[logits, targets])?[0])
    }
}

#[cfg(test)]
mod tests {
    use super::TargetLogProb;
    use crate::testing::{check_body, check_gradient_of, float, indices, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient_of(TargetLogProb, &[float(&[3, 5]), indices(&[4, 0, 2])], 1);
    }

    #[test]
    fn the_body_is_what_the_operator_is() {
        check_body(TargetLogProb, &[float(&[3, 5]), indices(&[4, 0, 2])], 1e-12);
    }

    #[test]
    fn other_shapes_are_refused() {
        assert!(refused(TargetLogProb, &[float(&[3, 5]), indices(&[4, 0])]).contains("i64[N]"));
    }
}
