//! A product of integers. <https://onnx.ai/onnx/operators/onnx__MatMulInteger.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = (a − z) b: a u8\[M, K\], b i8\[K, N\], z u8\[\], y i32\[M, N\].
#[derive(Debug, Clone, Copy)]
struct MatMulInteger;

impl Op for MatMulInteger {
    fn name(&self) -> &'static str {
        "MatMulInteger"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [a, b, zero] = arity(inputs)?;
        if a.dtype != DataType::U8 || b.dtype != DataType::I8 || zero.dtype != DataType::U8 || zero.rank() != 0 {
            return Err("expected u8, i8 and a zero point u8[]".into());
        }
        match (&a.shape[..], &b.shape[..]) {
            ([rows, inner], [same, columns]) if inner == same => {
                Ok(vec![TensorType { dtype: DataType::I32, shape: vec![*rows, *columns] }])
            }
            _ => Err("the shapes do not fit".into()),
        }
    }

    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array> {
        let two = |x: crate::interpreter::Array| x.into_dimensionality::<ndarray::Ix2>().unwrap();
        vec![two(inputs[0] - inputs[2]).dot(&two(inputs[1].clone())).into_dyn()]
    }
}

impl Graph {
    /// (a − zero) b in integers of 32 bits.
    ///
    /// # Errors
    /// The types or shapes do not fit.
    pub fn mat_mul_integer(&mut self, a: Value, b: Value, zero: Value) -> Result<Value, GraphError> {
        self.apply_one(MatMulInteger, &[a, b, zero])
    }
}
