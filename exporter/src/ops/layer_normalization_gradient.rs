//! The gradient of [`super::layer_normalization`] with respect to its input.

use marionette_models::bundle::DataType;

use super::{Domain, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// ∂x = s (g − mean(g) − x̂ mean(g x̂)), g = ∂y w, x̂ = (x − μ) s, over the last dimension (Ba, Kiros & Hinton 2016, equation 4,
/// differentiated). Takes ∂y, x \[…, D\], w \[D\], and μ and s = 1 / √(variance + ε) \[…, 1\].
#[derive(Debug, Clone, Copy)]
struct LayerNormalizationGradient;

impl Op for LayerNormalizationGradient {
    fn name(&self) -> &'static str {
        "LayerNormalizationGradient"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [dy, x, scale, mean, inverse_deviation] = arity(inputs)?;
        if inputs.iter().any(|input| input.dtype != DataType::F32) {
            return Err("expected f32".into());
        }
        match &x.shape[..] {
            [rest @ .., last]
                if dy == x
                    && scale.shape == [*last]
                    && mean.shape == [rest, &[Dim::Fixed(1)]].concat()
                    && inverse_deviation == mean =>
            {
                Ok(vec![x.clone()])
            }
            _ => Err("expected twice […, D], [D] and twice […, 1]".into()),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [dy, x, scale] = [inputs[0], inputs[1], inputs[2]];
        let [mean, inverse_deviation] = [inputs[3], inputs[4]];
        let centred = graph.sub(x, mean)?;
        let normalised = graph.mul(centred, inverse_deviation)?;
        let g = graph.mul(dy, scale)?;
        let g_mean = graph.reduce_mean(g, &[-1], true)?;
        let product = graph.mul(g, normalised)?;
        let product_mean = graph.reduce_mean(product, &[-1], true)?;
        let along = graph.mul(normalised, product_mean)?;
        let rest = graph.sub(g, g_mean)?;
        let rest = graph.sub(rest, along)?;
        Ok(vec![graph.mul(rest, inverse_deviation)?])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let last = ndarray::Axis(inputs[1].ndim() - 1);
        let mean = |x: &crate::array::Array| x.mean_axis(last).unwrap().insert_axis(last);
        let normal = (inputs[1] - inputs[3]) * inputs[4];
        let g = inputs[0] * inputs[2];
        vec![(&g - &mean(&g) - &normal * &mean(&(&g * &normal))) * inputs[4]]
    }
}

impl Graph {
    /// The gradient of layer normalisation with respect to its input x, given that of its output, \[…, D\]; `statistics` are the
    /// mean and the inverse deviation \[…, 1\].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn layer_normalization_gradient(
        &mut self,
        dy: Value,
        x: Value,
        scale: Value,
        [mean, inverse_deviation]: [Value; 2],
    ) -> Result<Value, GraphError> {
        self.apply_one(LayerNormalizationGradient, &[dy, x, scale, mean, inverse_deviation])
    }
}

#[cfg(test)]
mod tests {
    use super::LayerNormalizationGradient;
    use crate::testing::{check_body, float, refused};

    #[test]
    fn the_body_is_what_the_operator_is() {
        let samples = [float(&[3, 5]), float(&[3, 5]), float(&[5]), float(&[3, 1]), float(&[3, 1])];
        check_body(LayerNormalizationGradient, &samples, 1e-12);
    }

    #[test]
    fn other_shapes_are_refused() {
        let samples = [float(&[3, 5]), float(&[3, 5]), float(&[5]), float(&[3, 1]), float(&[3])];
        assert!(refused(LayerNormalizationGradient, &samples).contains("[…, 1]"));
    }
}
