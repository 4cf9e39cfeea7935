//! The tanh approximation of GELU (Hendrycks & Gimpel 2016, section 2). <https://onnx.ai/onnx/operators/onnx__Gelu.html>

use super::{Attribute, Op, elementwise};
use crate::autodiff::Backward;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// √(2/π)
const SCALE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
const CUBIC: f64 = 0.044715;

/// y = x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).
///
/// With (1 + tanh u)/2 = σ(2u), y = x σ(v), v = x (a + c x²), a = 2√(2/π), c = 0.044715 a. So
/// ∂y/∂x = σ + x σ (1 − σ) (a + 3 c x²) = σ (1 + w − w σ), w = x (a + 3 c x²): one transcendental, and nothing kept from the
/// forward pass but x.
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
        let x = node.inputs[0];
        let square = graph.mul(x, x)?;
        // x (a + k x²)
        let cubic = |graph: &mut Graph, k: f64| {
            let (a, k) = (graph.scalar((2.0 * SCALE) as f32), graph.scalar(k as f32));
            let scaled = graph.mul(square, k)?;
            let sum = graph.add(scaled, a)?;
            graph.mul(x, sum)
        };
        let v = cubic(graph, 2.0 * SCALE * CUBIC)?;
        let sigma = graph.sigmoid(v)?;
        let w = cubic(graph, 6.0 * SCALE * CUBIC)?;
        let w_sigma = graph.mul(w, sigma)?;
        let difference = graph.sub(w, w_sigma)?;
        let one = graph.scalar(1.0);
        let factor = graph.add(difference, one)?;
        let derivative = graph.mul(sigma, factor)?;
        Ok(vec![Some(graph.mul(dy, derivative)?)])
    }

    #[cfg(test)]
    fn evaluate(&self, inputs: &[&crate::testing::Array]) -> Vec<crate::testing::Array> {
        vec![inputs[0].mapv(|x| 0.5 * x * (1.0 + (SCALE * (x + CUBIC * x * x * x)).tanh()))]
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
