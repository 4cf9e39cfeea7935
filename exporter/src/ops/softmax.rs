//! Softmax over the last dimension. <https://onnx.ai/onnx/operators/onnx__Softmax.html>

use super::{Attribute, Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::TensorType;

/// yⱼ = exp xⱼ / Σₖ exp xₖ. ∂x = y (∂y − Σₖ ∂yₖ yₖ).
#[derive(Debug, Clone, Copy)]
struct Softmax;

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "Softmax"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("axis", Attribute::Int(-1))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::unary(inputs)
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let y = node.outputs[0];
        let product = graph.mul(dy, y)?;
        let sum = graph.reduce_sum(product, &[-1], true)?;
        let centred = graph.sub(dy, sum)?;
        Ok(vec![Some(graph.mul(y, centred)?)])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let mut y = inputs[0].clone();
        for mut row in y.rows_mut() {
            let most = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            row.mapv_inplace(|x| (x - most).exp());
            let sum = row.sum();
            row /= sum;
        }
        vec![y]
    }
}

impl Graph {
    /// Softmax over the last dimension.
    ///
    /// # Errors
    /// x is not f32.
    pub fn softmax(&mut self, x: Value) -> Result<Value, GraphError> {
        self.apply_one(Softmax, &[x])
    }
}

#[cfg(test)]
mod tests {
    use super::Softmax;
    use crate::testing::{check_gradient, float, values};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(Softmax, &[float(&[4])]);
        check_gradient(Softmax, &[float(&[2, 2, 3, 3])]);
        // What the attention mask makes of scores.
        check_gradient(Softmax, &[values(&[0.5, -1e30, 1.5, -1e30])]);
    }
}
