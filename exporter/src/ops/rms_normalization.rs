//! Root mean square normalisation (Zhang & Sennrich 2019, equation 4).

use marionette_models::bundle::DataType;

use super::rms_normalization_gradient::RmsNormalizationGradient;
use super::{Attribute, Domain, Op, arity, no_gradient};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType};

/// y = x s ⊙ w over the last dimension, x \[…, D\], w \[D\], with s = 1 / √(mean x² + ε), which is the second output, \[…, 1\].
///
/// ∂x is [`super::rms_normalization_gradient`]. ONNX has the operator from its set 23 on, later than ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct RmsNormalization {
    pub epsilon: f32,
}

impl Op for RmsNormalization {
    fn name(&self) -> &'static str {
        "RmsNormalization"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("epsilon", Attribute::Float(self.epsilon))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, scale] = arity(inputs)?;
        match &x.shape[..] {
            [rest @ .., last] if x.dtype == DataType::F32 && *scale == TensorType::f32([*last]) => {
                Ok(vec![x.clone(), x.reshaped([rest, &[Dim::Fixed(1)]].concat())])
            }
            _ => Err("expected f32[…, D] and f32[D]".into()),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [x, scale] = [inputs[0], inputs[1]];
        let square = graph.mul(x, x)?;
        let mean = graph.reduce_mean(square, &[-1], true)?;
        let epsilon = graph.scalar(self.epsilon);
        let above = graph.add(mean, epsilon)?;
        let root = graph.sqrt(above)?;
        let one = graph.scalar(1.0);
        let inverse = graph.div(one, root)?;
        let normal = graph.mul(x, inverse)?;
        Ok(vec![graph.mul(normal, scale)?, inverse])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        if node.output_gradients[1].is_some() || node.wanted[1] {
            return Err(no_gradient(self.name(), "its scale is frozen, and the loss does not depend on its deviation"));
        }
        let dy = node.gradient(graph, 0)?;
        let inputs = [dy, node.inputs[0], node.inputs[1], node.outputs[1]];
        Ok(vec![Some(graph.apply_one(RmsNormalizationGradient, &inputs)?), None])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let last = ndarray::Axis(inputs[0].ndim() - 1);
        let mean = inputs[0].mapv(|x| x * x).mean_axis(last).unwrap().insert_axis(last);
        let inverse = mean.mapv(|mean| 1.0 / (mean + f64::from(self.epsilon)).sqrt());
        vec![inputs[0] * &inverse * inputs[1], inverse]
    }
}

impl Graph {
    /// x over the root mean square of its last dimension, times a scale.
    ///
    /// # Errors
    /// `scale` is not as long as the last dimension.
    pub fn rms_normalization(&mut self, x: Value, scale: Value, epsilon: f32) -> Result<Value, GraphError> {
        Ok(self.apply(RmsNormalization { epsilon }, &[x, scale])?[0])
    }
}

#[cfg(test)]
mod tests {
    use super::RmsNormalization;
    use crate::testing::{check_body, check_gradient_by, float, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        for shape in [&[6][..], &[3, 6]] {
            check_gradient_by(RmsNormalization { epsilon: 1e-5 }, &[float(shape), float(&[6])], &[0], 1);
        }
    }

    #[test]
    fn the_body_is_what_the_operator_is() {
        for shape in [&[5][..], &[3, 4]] {
            check_body(RmsNormalization { epsilon: 1e-5 }, &[float(shape), float(&shape[shape.len() - 1..])], 1e-6);
        }
    }

    #[test]
    fn other_lengths_are_refused() {
        assert!(refused(RmsNormalization { epsilon: 1e-5 }, &[float(&[2, 3]), float(&[2])]).contains("[…, D]"));
    }
}
