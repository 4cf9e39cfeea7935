//! A product with a frozen matrix of 8-bit integers, the other side rounded to 8 bits on the way: the operator for many rows.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.DynamicQuantizeMatMul>

use marionette_models::bundle::DataType;

use super::{Domain, Op, no_gradient};
use crate::autodiff::Backward;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = x W + b, x \[M, K\], b \[N\] where there is one; w = q s with q i8\[K, N\], s \[N\] or \[\]. x is rounded to 8 bits with one
/// scale for all of it, so that the product is one of integers. ∂x = (∂y ⊙ s) qᵀ, a product of the same kind; the rounding
/// counts as the identity (the straight-through estimator, Bengio et al. 2013).
#[derive(Debug, Clone, Copy)]
struct DynamicQuantizeMatMul {
    bias: bool,
}

impl Op for DynamicQuantizeMatMul {
    fn name(&self) -> &'static str {
        "DynamicQuantizeMatMul"
    }

    fn domain(&self) -> Domain {
        Domain::Microsoft
    }

    fn empty_inputs(&self) -> &'static [usize] {
        // The zero point.
        if self.bias { &[3] } else { &[] }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (x, integers, scales, bias) = match inputs {
            [x, integers, scales] if !self.bias => (x, integers, scales, None),
            [x, integers, scales, bias] if self.bias => (x, integers, scales, Some(bias)),
            _ => return Err(format!("{} inputs, expected 3 and a bias where there is one", inputs.len())),
        };
        if integers.dtype != DataType::I8 {
            return Err("expected integers of i8".into());
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

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [bytes, scale, zero] = graph.dynamic_quantize_linear(inputs[0])?;
        let product = graph.mat_mul_integer(bytes, inputs[1], zero)?;
        let product = graph.cast(product, DataType::F32)?;
        let scales = graph.mul(scale, inputs[2])?;
        let y = graph.mul(product, scales)?;
        Ok(vec![match inputs.get(3) {
            Some(&bias) => graph.add(y, bias)?,
            None => y,
        }])
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

    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array> {
        let matrix = inputs[1] * inputs[2];
        let two = |x: &crate::interpreter::Array| x.clone().into_dimensionality::<ndarray::Ix2>().unwrap();
        let mut y = two(inputs[0]).dot(&two(&matrix)).into_dyn();
        if let Some(bias) = inputs.get(3) {
            y += *bias;
        }
        vec![y]
    }
}

impl Graph {
    /// x W + b with W as bytes i8\[K, N\], with one scale a column or one for all.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn dynamic_quantize_mat_mul(
        &mut self,
        x: Value,
        [integers, scales]: [Value; 2],
        bias: Option<Value>,
    ) -> Result<Value, GraphError> {
        let inputs: Vec<Value> = [x, integers, scales].into_iter().chain(bias).collect();
        self.apply_one(DynamicQuantizeMatMul { bias: bias.is_some() }, &inputs)
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::bundle::DataType;

    use super::DynamicQuantizeMatMul;
    use crate::testing::{Sample, check_body, float, integers};

    #[test]
    fn the_body_is_what_the_operator_is_but_for_rounding() {
        let matrix = || Sample::Given(DataType::I8, integers(&[4, 2], &[3, -2, 1, 0, -5, 4, 2, -1]));
        // Of values between ±1.5, a byte's step is 0.012: half of it, times columns whose integers sum up to 11 times 1.5.
        check_body(DynamicQuantizeMatMul { bias: false }, &[float(&[3, 4]), matrix(), float(&[2])], 0.1);
        check_body(DynamicQuantizeMatMul { bias: true }, &[float(&[3, 4]), matrix(), float(&[]), float(&[2])], 0.1);
    }
}
