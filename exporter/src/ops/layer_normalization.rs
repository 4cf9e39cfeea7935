//! Layer normalisation (Ba, Kiros & Hinton 2016, equation 4).
//! <https://onnx.ai/onnx/operators/onnx__LayerNormalization.html>

use marionette_models::bundle::DataType;

use super::{Attribute, Op, arity, no_gradient};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType};

/// y = x̂ w + b, x̂ = (x − μ) s over the last dimension, with the mean μ and s = 1 / √(variance + ε), which are the second
/// and third output, \[…, 1\].
///
/// ∂x is [`super::layer_normalization_gradient`]; ∂w = Σ ∂y x̂, ∂b = Σ ∂y (sums over all but the last dimension).
#[derive(Debug, Clone, Copy)]
struct LayerNormalization {
    epsilon: f32,
}

impl Op for LayerNormalization {
    fn name(&self) -> &'static str {
        "LayerNormalization"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(self.epsilon))]
    }

    fn required_outputs(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, scale, shift] = arity(inputs)?;
        if inputs.iter().any(|input| input.dtype != DataType::F32) {
            return Err("expected f32".into());
        }
        match &x.shape[..] {
            [rest @ .., last] if scale.shape == [*last] && shift.shape == [*last] => {
                let statistic = x.reshaped([rest, &[Dim::Fixed(1)]].concat());
                Ok(vec![x.clone(), statistic.clone(), statistic])
            }
            _ => Err("expected […, D], [D] and [D]".into()),
        }
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        if node.output_gradients[1..].iter().any(Option::is_some) {
            return Err(no_gradient(self.name(), "the loss depends on its mean or deviation"));
        }
        let dy = node.gradient(graph, 0)?;
        let [x, scale, shift] = [node.inputs[0], node.inputs[1], node.inputs[2]];
        let [mean, inverse_deviation] = [node.outputs[1], node.outputs[2]];
        let mut gradients = vec![None; 3];
        if node.wanted[0] {
            gradients[0] = Some(graph.layer_normalization_gradient(dy, x, scale, [mean, inverse_deviation])?);
        }
        if node.wanted[1] {
            let centred = graph.sub(x, mean)?;
            let normalised = graph.mul(centred, inverse_deviation)?;
            let product = graph.mul(dy, normalised)?;
            let shape = graph.shape(scale).to_vec();
            gradients[1] = Some(graph.sum_to(product, &shape)?);
        }
        if node.wanted[2] {
            let shape = graph.shape(shift).to_vec();
            gradients[2] = Some(graph.sum_to(dy, &shape)?);
        }
        Ok(gradients)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let last = ndarray::Axis(inputs[0].ndim() - 1);
        let mean = inputs[0].mean_axis(last).unwrap().insert_axis(last);
        let centred = inputs[0] - &mean;
        let variance = centred.mapv(|x| x * x).mean_axis(last).unwrap().insert_axis(last);
        let inverse = variance.mapv(|v| 1.0 / (v + f64::from(self.epsilon)).sqrt());
        vec![centred * &inverse * inputs[1] + inputs[2], mean, inverse]
    }
}

impl Graph {
    /// x normalised over its last dimension, then scaled and shifted.
    ///
    /// # Errors
    /// `scale` or `shift` is not as long as the last dimension.
    pub fn layer_normalization(
        &mut self,
        x: Value,
        scale: Value,
        shift: Value,
        epsilon: f32,
    ) -> Result<Value, GraphError> {
        Ok(self.apply(LayerNormalization { epsilon }, &[x, scale, shift])?[0])
    }
}

#[cfg(test)]
mod tests {
    use super::LayerNormalization;
    use crate::testing::{check_gradient_of, float, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        for shape in [&[5][..], &[3, 4], &[2, 3, 6]] {
            let d = shape[shape.len() - 1];
            let op = LayerNormalization { epsilon: 1e-5 };
            check_gradient_of(op, &[float(shape), float(&[d]), float(&[d])], 1);
        }
    }

    #[test]
    fn other_lengths_are_refused() {
        let op = LayerNormalization { epsilon: 1e-5 };
        assert!(refused(op, &[float(&[2, 3]), float(&[3]), float(&[2])]).contains("[…, D]"));
    }
}
