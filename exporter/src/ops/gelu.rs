//! The tanh approximation of GELU (Hendrycks & Gimpel 2016, section 2). <https://onnx.ai/onnx/operators/onnx__Gelu.html>

use super::{Attribute, Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::TensorType;

/// √(2/π)
pub(super) const SCALE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
pub(super) const CUBIC: f64 = 0.044715;

/// Of one number.
pub(super) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + (SCALE * (x + CUBIC * x * x * x)).tanh())
}

/// y = x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))). Its gradient keeps nothing of the forward pass but x.
#[derive(Debug, Clone, Copy)]
struct Gelu;

impl Op for Gelu {
    fn name(&self) -> &'static str {
        "Gelu"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("approximate", Attribute::Text("tanh"))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::unary(inputs)
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        Ok(vec![Some(graph.gelu_gradient(dy, node.inputs[0])?)])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![inputs[0].mapv(gelu)]
    }
}

impl Graph {
    /// GELU in its tanh approximation.
    ///
    /// # Errors
    /// x is not f32.
    pub fn gelu(&mut self, x: Value) -> Result<Value, GraphError> {
        self.apply_one(Gelu, &[x])
    }
}

#[cfg(test)]
mod tests {
    use super::Gelu;
    use crate::testing::{check_gradient, float, values};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(Gelu, &[float(&[3, 5])]);
        check_gradient(Gelu, &[values(&[-6.0, -3.0, -0.75, -1e-3, 0.0, 0.1, 2.0, 5.0])]);
    }
}
