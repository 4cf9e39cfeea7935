//! Floating point to the nearest integers. <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = the integer of i8 that is nearest to x, of two the even one, x and the scale 1 of f16.
#[derive(Debug, Clone, Copy)]
struct QuantizeLinear;

impl Op for QuantizeLinear {
    fn name(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, scale, zero] = arity(inputs)?;
        let is_scalar = |tensor: &TensorType, dtype| tensor.dtype == dtype && tensor.shape.is_empty();
        if x.dtype != DataType::F16 || !is_scalar(scale, DataType::F16) || !is_scalar(zero, DataType::I8) {
            return Err("expected values and a scale of f16 and a zero point of i8".into());
        }
        Ok(vec![TensorType { dtype: DataType::I8, shape: x.shape.clone() }])
    }

    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array> {
        vec![inputs[0].mapv(|x| x.round_ties_even().clamp(-128.0, 127.0))]
    }
}

impl Graph {
    /// The nearest integers of i8 of values of f16.
    ///
    /// # Errors
    /// The values are of another type.
    pub fn round_to_i8(&mut self, values: Value) -> Result<Value, GraphError> {
        let one = self.scalar(1.0);
        let one = self.cast(one, DataType::F16)?;
        let zero = self.integer(0);
        let zero = self.cast(zero, DataType::I8)?;
        self.apply_one(QuantizeLinear, &[values, one, zero])
    }
}
