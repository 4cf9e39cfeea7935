//! The gradient of [`super::rms_normalization`] with respect to its input.

use super::{Domain, Op, arity};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// ∂x = s (g − x̂ mean(g x̂)), g = ∂y w, x̂ = x s, over the last dimension (Zhang & Sennrich 2019, equation 4, differentiated). Takes
/// ∂y, x \[…, D\], w \[D\], and s = 1 / √(mean x² + ε) \[…, 1\].
#[derive(Debug, Clone, Copy)]
pub(super) struct RmsNormalizationGradient;

impl Op for RmsNormalizationGradient {
    fn name(&self) -> &'static str {
        "RmsNormalizationGradient"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [dy, x, scale, inverse] = arity(inputs)?;
        match &x.shape[..] {
            [rest @ .., last]
                if dy == x
                    && *scale == TensorType::f32([*last])
                    && *inverse == TensorType::f32([rest, &[Dim::Fixed(1)]].concat()) =>
            {
                Ok(vec![x.clone()])
            }
            _ => Err("expected twice f32[…, D], f32[D] and f32[…, 1]".into()),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [dy, x, scale, inverse] = [inputs[0], inputs[1], inputs[2], inputs[3]];
        let normal = graph.mul(x, inverse)?;
        let g = graph.mul(dy, scale)?;
        let product = graph.mul(g, normal)?;
        let mean = graph.reduce_mean(product, &[-1], true)?;
        let along = graph.mul(normal, mean)?;
        let rest = graph.sub(g, along)?;
        Ok(vec![graph.mul(rest, inverse)?])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let last = ndarray::Axis(inputs[1].ndim() - 1);
        let normal = inputs[1] * inputs[3];
        let g = inputs[0] * inputs[2];
        let mean = (&g * &normal).mean_axis(last).unwrap().insert_axis(last);
        vec![(&g - &normal * &mean) * inputs[3]]
    }
}

#[cfg(test)]
mod tests {
    use super::RmsNormalizationGradient;
    use crate::testing::{check_body, float, refused};

    #[test]
    fn the_body_is_what_the_operator_is() {
        let samples = [float(&[3, 5]), float(&[3, 5]), float(&[5]), float(&[3, 1])];
        check_body(RmsNormalizationGradient, &samples, 1e-12);
    }

    #[test]
    fn other_shapes_are_refused() {
        let samples = [float(&[3, 5]), float(&[3, 5]), float(&[5]), float(&[3])];
        assert!(refused(RmsNormalizationGradient, &samples).contains("[…, 1]"));
    }
}
