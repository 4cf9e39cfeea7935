//! The gradient of [`super::quantized_mat_mul`].

use marionette_models::bundle::{DataType, ROWS_OF_GRADIENTS};
use ndarray::Ix2;

use super::quantized_mat_mul::{Matrix, rounded_product};
use super::{Attribute, Domain, Op};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// ∂x = ∂y W, ∂y \[M, N\], the matrix as the product takes it. Each row of ∂y, times the columns' scales, is rounded
/// ([`ROWS_OF_GRADIENTS`]), so that the products are those of integers: those that the product reads, the other way.
#[derive(Debug, Clone, Copy)]
pub(super) struct QuantizedMatMulGradient {
    pub matrix: Matrix,
}

impl Op for QuantizedMatMulGradient {
    fn name(&self) -> &'static str {
        match self.matrix {
            Matrix::Bytes => "QuantizedMatMulGradient",
            Matrix::Affine { .. } => "AffineMatMulGradient",
        }
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.matrix.attributes()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [dy, matrix @ ..] = inputs else { return Err("no inputs".into()) };
        let [columns, inner] = self.matrix.shape(matrix)?;
        match dy.shape[..] {
            [rows, same] if dy.dtype == DataType::F32 && same == columns => Ok(vec![TensorType::f32([rows, inner])]),
            _ => Err(format!("dy is {dy}, expected f32[M, {columns}]")),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [bytes, scales] = self.matrix.bytes(graph, &inputs[1..])?;
        let scaled = graph.mul(inputs[0], scales)?;
        Ok(vec![rounded_product(graph, scaled, bytes, ROWS_OF_GRADIENTS)?])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let dy = inputs[0].view().into_dimensionality::<Ix2>().unwrap();
        vec![dy.dot(&self.matrix.values(&inputs[1..])).into_dyn()]
    }
}

#[cfg(test)]
mod tests {
    use super::QuantizedMatMulGradient;
    use crate::ops::quantized_mat_mul::tests::matrices;
    use crate::testing::{check_body, float, refused};

    #[test]
    fn the_body_is_what_the_operator_is_but_for_rounding() {
        for (matrix, samples, [columns, _]) in matrices() {
            let inputs: Vec<_> = [float(&[3, columns])].into_iter().chain(samples.clone()).collect();
            check_body(QuantizedMatMulGradient { matrix }, &inputs, 0.1);
            let inputs: Vec<_> = [float(&[3, columns + 1])].into_iter().chain(samples).collect();
            assert!(refused(QuantizedMatMulGradient { matrix }, &inputs).contains("expected f32[M"));
        }
    }
}
