//! Floating point to the nearest integers. <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = round(x / s) + z, of two nearest integers the even one, cut to the range of z's type: x of f32 or f16, s of the same, z of i8 or
/// u8.
#[derive(Debug, Clone, Copy)]
struct QuantizeLinear {
    to: DataType,
}

impl Op for QuantizeLinear {
    fn name(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, scale, zero] = arity(inputs)?;
        let is_float = matches!(x.dtype, DataType::F16 | DataType::F32);
        let fits =
            is_float && scale.dtype == x.dtype && zero.dtype == self.to && [scale, zero].iter().all(|t| t.rank() == 0);
        if !fits || !matches!(self.to, DataType::I8 | DataType::U8) {
            return Err("expected values and a scale of one floating type and a zero point of i8 or u8".into());
        }
        Ok(vec![TensorType { dtype: self.to, shape: x.shape.clone() }])
    }

    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array> {
        let (least, most) = if self.to == DataType::I8 { (-128.0, 127.0) } else { (0.0, 255.0) };
        let (scale, zero) = (inputs[1].sum(), inputs[2].sum());
        vec![inputs[0].mapv(|x| ((x / scale).round_ties_even() + zero).clamp(least, most))]
    }
}

impl Graph {
    /// Values as integers of `zero`'s type, of which `zero` stands for 0.
    ///
    /// # Errors
    /// The types do not fit.
    pub fn quantize_linear(&mut self, values: Value, scale: Value, zero: Value) -> Result<Value, GraphError> {
        let to = self.tensor(zero).dtype;
        self.apply_one(QuantizeLinear { to }, &[values, scale, zero])
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::bundle::DataType;

    use super::QuantizeLinear;
    use crate::ops::Op as _;

    #[test]
    fn integers_are_those_of_the_specification() {
        // The operator's example "quantizelinear".
        let x = ndarray::arr1(&[0.0, 2.0, 3.0, 1000.0, -254.0, -1000.0]).into_dyn();
        let [scale, zero] = [2.0, 128.0].map(|value| ndarray::arr0(value).into_dyn());
        let found = QuantizeLinear { to: DataType::U8 }.evaluate(&[&x, &scale, &zero]);
        assert_eq!(found[0].as_slice().unwrap(), [128.0, 129.0, 130.0, 255.0, 1.0, 0.0]);
        let zero = ndarray::arr0(0.0).into_dyn();
        let found = QuantizeLinear { to: DataType::I8 }.evaluate(&[&x, &scale, &zero]);
        assert_eq!(found[0].as_slice().unwrap(), [0.0, 1.0, 2.0, 127.0, -127.0, -128.0]);
    }
}
