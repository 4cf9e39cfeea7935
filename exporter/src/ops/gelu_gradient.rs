//! The gradient of [`super::gelu`].

use marionette_models::bundle::DataType;

use super::gelu::{CUBIC, SCALE};
use super::{Domain, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// ∂x = ∂y σ (1 + w (1 − σ)).
///
/// With (1 + tanh u)/2 = σ(2u), GELU is y = x σ(v), v = x (a + c x²), a = 2√(2/π), c = 0.044715 a. So
/// ∂y/∂x = σ + x σ (1 − σ) (a + 3 c x²) = σ (1 + w (1 − σ)), w = x (a + 3 c x²): one transcendental.
#[derive(Debug, Clone, Copy)]
struct GeluGradient;

impl Op for GeluGradient {
    fn name(&self) -> &'static str {
        "GeluGradient"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [dy, x] = arity(inputs)?;
        if dy != x || x.dtype != DataType::F32 {
            return Err("expected two of one shape, of f32".into());
        }
        Ok(vec![x.clone()])
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [dy, x] = [inputs[0], inputs[1]];
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
        let one = graph.scalar(1.0);
        let rest = graph.sub(one, sigma)?;
        let bend = graph.mul(w, rest)?;
        let factor = graph.add(bend, one)?;
        let derivative = graph.mul(sigma, factor)?;
        Ok(vec![graph.mul(dy, derivative)?])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let derivative = inputs[1].mapv(|x| {
            let tanh = (SCALE * (x + CUBIC * x.powi(3))).tanh();
            0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * SCALE * (1.0 + 3.0 * CUBIC * x * x)
        });
        vec![derivative * inputs[0]]
    }
}

impl Graph {
    /// The gradient of GELU at x, times `dy` of the same shape.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn gelu_gradient(&mut self, dy: Value, x: Value) -> Result<Value, GraphError> {
        self.apply_one(GeluGradient, &[dy, x])
    }
}

#[cfg(test)]
mod tests {
    use super::GeluGradient;
    use crate::testing::{check_body, float};

    #[test]
    fn the_body_is_what_the_operator_is() {
        check_body(GeluGradient, &[float(&[3, 5]), float(&[3, 5])], 1e-6);
    }
}
