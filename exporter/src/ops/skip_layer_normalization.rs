//! A residual addition and the layer normalisation after it, in one.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.SkipLayerNormalization>

use marionette_models::bundle::DataType;

use super::{Attribute, Domain, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// s = x + skip + bias and its layer normalisation y, which is the first output; s is the fourth. x and skip \[N, D\], scale, shift
/// and bias \[D\].
#[derive(Debug, Clone, Copy)]
struct SkipLayerNormalization {
    epsilon: f32,
}

impl Op for SkipLayerNormalization {
    fn name(&self) -> &'static str {
        "SkipLayerNormalization"
    }

    fn domain(&self) -> Domain {
        Domain::Microsoft
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("epsilon", Attribute::Float(self.epsilon))]
    }

    fn empty_outputs(&self) -> &'static [usize] {
        // Mean and deviation, which only training needs.
        &[1, 2]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, skip, scale, shift, bias] = arity(inputs)?;
        if inputs.iter().any(|input| input.dtype != DataType::F32) {
            return Err("expected f32".into());
        }
        match &x.shape[..] {
            [_, width] if x == skip && [scale, shift, bias].iter().all(|vector| vector.shape == [*width]) => {
                Ok(vec![x.clone(), x.clone()])
            }
            _ => Err("expected twice [N, D] and three times [D]".into()),
        }
    }

    #[cfg(test)]
    fn evaluate(&self, inputs: &[&crate::testing::Array]) -> Vec<crate::testing::Array> {
        let sum = inputs[0] + inputs[1] + inputs[4];
        let last = ndarray::Axis(1);
        let centred = &sum - &sum.mean_axis(last).unwrap().insert_axis(last);
        let variance = centred.mapv(|x| x * x).mean_axis(last).unwrap().insert_axis(last);
        let normal = centred / variance.mapv(|v| (v + f64::from(self.epsilon)).sqrt());
        vec![normal * inputs[2] + inputs[3], sum]
    }
}

impl Graph {
    /// x + skip + bias, normalised over its last dimension, scaled and shifted; and the sum itself.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn skip_layer_normalization(
        &mut self,
        [x, skip, bias]: [Value; 3],
        [scale, shift]: [Value; 2],
        epsilon: f32,
    ) -> Result<[Value; 2], GraphError> {
        let outputs = self.apply(SkipLayerNormalization { epsilon }, &[x, skip, scale, shift, bias])?;
        Ok([outputs[0], outputs[1]])
    }
}
