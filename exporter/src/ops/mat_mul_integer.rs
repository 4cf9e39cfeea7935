//! A product of integers. <https://onnx.ai/onnx/operators/onnx__MatMulInteger.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = (a − z) (b − z): a u8\[M, D, K\], b u8\[K, N\], z u8\[\], which is given for each, y i32\[M, D, N\].
///
/// Both without a sign: of bytes with a sign, ONNX Runtime's sums of pairs overflow 16 bits, and stop there, on processors with AVX2 or
/// AVX-512 alone (`vpmaddubsw`).
#[derive(Debug, Clone, Copy)]
struct MatMulInteger;

impl Op for MatMulInteger {
    fn name(&self) -> &'static str {
        "MatMulInteger"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [a, b, zero, same_zero] = arity(inputs)?;
        if inputs.iter().any(|input| input.dtype != DataType::U8) || zero.rank() != 0 || same_zero.rank() != 0 {
            return Err("expected u8 and zero points u8[]".into());
        }
        match (&a.shape[..], &b.shape[..]) {
            ([rows, digits, inner], [same, columns]) if inner == same => {
                Ok(vec![TensorType { dtype: DataType::I32, shape: vec![*rows, *digits, *columns] }])
            }
            _ => Err("the shapes do not fit".into()),
        }
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let [a, b] = [inputs[0] - inputs[2], inputs[1] - inputs[3]];
        let ([rows, digits, inner], columns) = ([0, 1, 2].map(|axis| a.shape()[axis]), b.shape()[1]);
        let a = a.to_shape([rows * digits, inner]).unwrap().to_owned();
        let y = a.dot(&b.into_dimensionality::<ndarray::Ix2>().unwrap());
        vec![y.into_shape_with_order(vec![rows, digits, columns]).unwrap()]
    }
}

impl Graph {
    /// (a − zero) (b − zero) in integers of 32 bits.
    ///
    /// # Errors
    /// The types or shapes do not fit.
    pub fn mat_mul_integer(&mut self, a: Value, b: Value, zero: Value) -> Result<Value, GraphError> {
        self.apply_one(MatMulInteger, &[a, b, zero, zero])
    }
}
