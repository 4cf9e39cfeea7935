//! Floating point to the nearest integers. <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = round(x / s) + z, of two nearest integers the even one, cut to 0 to 255: x of f32 or f16, s of the same, z of u8.
#[derive(Debug, Clone, Copy)]
struct QuantizeLinear;

impl Op for QuantizeLinear {
    fn name(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, scale, zero] = arity(inputs)?;
        let is_float = matches!(x.dtype, DataType::F16 | DataType::F32);
        let fits = scale.dtype == x.dtype && zero.dtype == DataType::U8 && [scale, zero].iter().all(|t| t.rank() == 0);
        if !is_float || !fits {
            return Err("expected values and a scale of one floating type and a zero point of u8".into());
        }
        Ok(vec![TensorType { dtype: DataType::U8, shape: x.shape.clone() }])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let (scale, zero) = (inputs[1].sum(), inputs[2].sum());
        vec![inputs[0].mapv(|x| ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0))]
    }
}

impl Graph {
    /// Values as bytes, of which `zero` stands for 0.
    ///
    /// # Errors
    /// The types do not fit.
    pub fn quantize_linear(&mut self, values: Value, scale: Value, zero: Value) -> Result<Value, GraphError> {
        self.apply_one(QuantizeLinear, &[values, scale, zero])
    }
}

#[cfg(test)]
mod tests {
    use super::QuantizeLinear;
    use crate::graph::Op as _;

    #[test]
    fn integers_are_those_of_the_specification() {
        // The operator's example "quantizelinear".
        let x = ndarray::arr1(&[0.0, 2.0, 3.0, 1000.0, -254.0, -1000.0]).into_dyn();
        let [scale, zero] = [2.0, 128.0].map(|value| ndarray::arr0(value).into_dyn());
        let found = QuantizeLinear.evaluate(&[&x, &scale, &zero]);
        assert_eq!(found[0].as_slice().unwrap(), [128.0, 129.0, 130.0, 255.0, 1.0, 0.0]);
    }
}
