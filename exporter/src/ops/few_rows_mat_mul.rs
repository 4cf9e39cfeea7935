//! A product of few rows with a frozen matrix of 4- or 8-bit integers: what counts is how fast the integers are read.

use super::mat_mul_n_bits::MatMulNBits;
use super::{Attribute, Domain, Op};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// As ONNX Runtime's `MatMulNBits` ([`super::mat_mul_n_bits`]), which is its body, whatever the number of rows. How finely x is rounded
/// is the executor's choice.
#[derive(Debug, Clone, Copy)]
struct FewRowsMatMul(MatMulNBits);

impl Op for FewRowsMatMul {
    fn name(&self) -> &'static str {
        // A function has all its inputs, so that one with a bias is another function.
        if self.0.bias { "FewRowsLinear" } else { "FewRowsMatMul" }
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.0.dimensions()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        self.0.infer(inputs)
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        graph.apply(self.0, inputs)
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        self.0.evaluate(inputs)
    }
}

impl Graph {
    /// x W + b with W as integers of `bits` bits in blocks of `block`, for few rows of x.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn few_rows_mat_mul(
        &mut self,
        x: Value,
        [integers, scales]: [Value; 2],
        bias: Option<Value>,
        bits: usize,
        block: usize,
    ) -> Result<Value, GraphError> {
        let fixed = |dim: Option<&Dim>| if let Some(Dim::Fixed(value)) = dim { *value } else { 0 };
        let shape = self.shape(integers);
        let (columns, inner) = (fixed(shape.first()), fixed(shape.get(1)) * block);
        let op = FewRowsMatMul(MatMulNBits { bits, block, inner, columns, bias: bias.is_some() });
        let inputs: Vec<Value> = [x, integers, scales].into_iter().chain(bias).collect();
        self.apply_one(op, &inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::FewRowsMatMul;
    use crate::ops::mat_mul_n_bits::MatMulNBits;
    use crate::testing::{float, indices_of, refused};

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let op = FewRowsMatMul(MatMulNBits { bits: 4, block: 16, inner: 32, columns: 3, bias: false });
        assert!(refused(op, &[float(&[2, 32]), float(&[3, 2, 8]), float(&[6])]).contains("integers"));
        assert!(refused(op, &[float(&[2, 32]), indices_of(&[1], &[0]), float(&[6])]).contains("integers"));
        assert!(refused(op, &[float(&[2, 32])]).contains("expected x"));
    }
}
