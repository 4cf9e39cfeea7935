//! The logarithm of softmax over the last dimension. <https://onnx.ai/onnx/operators/onnx__LogSoftmax.html>

use super::{Attribute, Op, elementwise};
use crate::autodiff::Backward;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// yⱼ = xⱼ − log Σₖ exp xₖ. ∂x = ∂y − exp(y) Σₖ ∂yₖ.
#[derive(Debug, Clone, Copy)]
struct LogSoftmax;

impl Op for LogSoftmax {
    fn name(&self) -> &'static str {
        "LogSoftmax"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("axis", Attribute::Int(-1))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::unary(inputs)
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let softmax = graph.exp(node.outputs[0])?;
        let sum = graph.reduce_sum(dy, &[-1], true)?;
        let product = graph.mul(softmax, sum)?;
        Ok(vec![Some(graph.sub(dy, product)?)])
    }

    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array> {
        let mut y = inputs[0].clone();
        for mut row in y.rows_mut() {
            let most = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
            row.mapv_inplace(|x| x - most - sum.ln());
        }
        vec![y]
    }
}

impl Graph {
    /// log softmax over the last dimension.
    ///
    /// # Errors
    /// x is not f32.
    pub fn log_softmax(&mut self, x: Value) -> Result<Value, GraphError> {
        self.apply_one(LogSoftmax, &[x])
    }
}

#[cfg(test)]
mod tests {
    use super::LogSoftmax;
    use crate::testing::{check_gradient, float, values};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(LogSoftmax, &[float(&[5])]);
        check_gradient(LogSoftmax, &[float(&[3, 4])]);
        check_gradient(LogSoftmax, &[values(&[30.0, 0.0, -30.0])]);
    }
}
