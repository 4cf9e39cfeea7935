//! The gradient of [`super::swi_glu`].

use super::swi_glu::{dimensions, halves};
use super::{Domain, Op, arity};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// ∂u = ∂y v σ (1 + u (1 − σ)), ∂v = ∂y u σ, side by side, with σ = σ(u). Takes ∂y \[N, F\] and x = (u, v) \[N, 2 F\].
#[derive(Debug, Clone, Copy)]
pub(super) struct SwiGluGradient;

impl Op for SwiGluGradient {
    fn name(&self) -> &'static str {
        "SwiGluGradient"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [dy, x] = arity(inputs)?;
        match *dy == TensorType::f32(dimensions(x)?) {
            true => Ok(vec![x.clone()]),
            false => Err("expected f32[N, F] and f32[N, 2 F]".into()),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let dy = inputs[0];
        let parts = graph.split(inputs[1], -1, 2)?;
        let [u, v] = [parts[0], parts[1]];
        let sigma = graph.sigmoid(u)?;
        let gate = graph.mul(u, sigma)?;
        let d_v = graph.mul(dy, gate)?;
        // σ (1 + u (1 − σ)) = σ + u σ (1 − σ).
        let one = graph.scalar(1.0);
        let rest = graph.sub(one, sigma)?;
        let bend = graph.mul(gate, rest)?;
        let slope = graph.add(sigma, bend)?;
        let along = graph.mul(dy, v)?;
        let d_u = graph.mul(along, slope)?;
        Ok(vec![graph.concat(&[d_u, d_v], -1)?])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let [u, v] = halves(inputs[1]);
        let sigma = u.mapv(|u| 1.0 / (1.0 + (-u).exp()));
        let slope = &sigma * &(1.0 + &u * &(1.0 - &sigma));
        let (d_u, d_v) = (inputs[0] * &v * slope, inputs[0] * &u * sigma);
        vec![ndarray::concatenate(ndarray::Axis(1), &[d_u.view(), d_v.view()]).unwrap()]
    }
}

#[cfg(test)]
mod tests {
    use super::SwiGluGradient;
    use crate::testing::{check_body, float, refused};

    #[test]
    fn the_body_is_what_the_operator_is() {
        check_body(SwiGluGradient, &[float(&[3, 4]), float(&[3, 8])], 1e-12);
        assert!(refused(SwiGluGradient, &[float(&[3, 8]), float(&[3, 8])]).contains("2 F"));
    }
}
