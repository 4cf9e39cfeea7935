//! A product with a frozen matrix of 8-bit integers, the other side rounded to 8 bits on the way: the operator for many rows.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.DynamicQuantizeMatMul>

use marionette_models::bundle::DataType;

use super::{Domain, Op, no_gradient};
use crate::autodiff::Backward;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = x W + b, x \[M, K\], b \[N\] where there is one; w = (q − z) s with q u8\[K, N\], s \[N\] or \[\] and z u8\[\]. x is rounded to 8 bits with one
/// scale for all of it, so that the product is one of integers. ∂x = (∂y ⊙ s) (q − z)ᵀ, a product of the same kind; the rounding
/// counts as the identity (the straight-through estimator, Bengio et al. 2013).
#[derive(Debug, Clone, Copy)]
struct DynamicQuantizeMatMul;

impl Op for DynamicQuantizeMatMul {
    fn name(&self) -> &'static str {
        "DynamicQuantizeMatMul"
    }

    fn domain(&self) -> Domain {
        Domain::Microsoft
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (x, integers, scales, zero, bias) = match inputs {
            [x, integers, scales, zero] => (x, integers, scales, zero, None),
            [x, integers, scales, zero, bias] => (x, integers, scales, zero, Some(bias)),
            _ => return Err(format!("{} inputs, expected 4 or 5", inputs.len())),
        };
        if integers.dtype != DataType::U8 || zero.dtype != DataType::U8 || !zero.shape.is_empty() {
            return Err("expected integers and a zero point of u8".into());
        }
        match (&x.shape[..], &integers.shape[..]) {
            ([rows, inner], [same, columns])
                if inner == same
                    && (scales.shape.is_empty() || scales.shape == [*columns])
                    && bias.is_none_or(|bias| bias.shape == [*columns]) =>
            {
                Ok(vec![TensorType::f32([*rows, *columns])])
            }
            _ => Err("the shapes do not fit".into()),
        }
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        if node.wanted[1..].contains(&true) {
            return Err(no_gradient(self.name(), "its matrix is frozen"));
        }
        let dy = node.gradient(graph, 0)?;
        let scaled = graph.mul(dy, node.inputs[2])?;
        let turned = graph.matrix_transpose(node.inputs[1])?;
        let one = graph.scalar(1.0);
        let mut gradients = vec![None; node.inputs.len()];
        gradients[0] = Some(graph.dynamic_quantize_mat_mul(scaled, [turned, one], None)?);
        Ok(gradients)
    }

    #[cfg(test)]
    fn evaluate(&self, inputs: &[&crate::testing::Array]) -> Vec<crate::testing::Array> {
        let matrix = (inputs[1] - inputs[3]) * inputs[2];
        let two = |x: &crate::testing::Array| x.clone().into_dimensionality::<ndarray::Ix2>().unwrap();
        let mut y = two(inputs[0]).dot(&two(&matrix)).into_dyn();
        if let Some(bias) = inputs.get(4) {
            y += *bias;
        }
        vec![y]
    }
}

impl Graph {
    /// x W + b with W as bytes u8\[K, N\], one scale a column or one for all, and the zero point 128.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn dynamic_quantize_mat_mul(
        &mut self,
        x: Value,
        [integers, scales]: [Value; 2],
        bias: Option<Value>,
    ) -> Result<Value, GraphError> {
        let zero = self.byte(128);
        let inputs: Vec<Value> = [x, integers, scales, zero].into_iter().chain(bias).collect();
        self.apply_one(DynamicQuantizeMatMul, &inputs)
    }
}
