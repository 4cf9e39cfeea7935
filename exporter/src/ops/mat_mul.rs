//! A matrix product over the last two dimensions. <https://onnx.ai/onnx/operators/onnx__MatMul.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{TensorType, broadcast};

/// Y\[…, M, N\] = A\[…, M, K\] B\[…, K, N\], broadcast over the dimensions before. ∂A = ∂Y Bᵀ, ∂B = Aᵀ ∂Y, each summed over
/// the axes that were broadcast. (ONNX Runtime fuses a transposition with the product that reads it.)
#[derive(Debug, Clone, Copy)]
struct MatMul;

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "MatMul"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [a, b] = arity(inputs)?;
        if a.dtype != DataType::F32 || b.dtype != DataType::F32 {
            return Err("expected f32".into());
        }
        match (&a.shape[..], &b.shape[..]) {
            ([left @ .., m, k], [right @ .., same, n]) if k == same => {
                let mut shape = broadcast(left, right)?;
                shape.extend([*m, *n]);
                Ok(vec![a.reshaped(shape)])
            }
            _ => Err("expected […, M, K] and […, K, N]".into()),
        }
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let [a, b] = [node.inputs[0], node.inputs[1]];
        let mut gradients = vec![None; 2];
        if node.wanted[0] {
            let transposed = graph.matrix_transpose(b)?;
            let da = graph.mat_mul(dy, transposed)?;
            let shape = graph.shape(a).to_vec();
            gradients[0] = Some(graph.sum_to(da, &shape)?);
        }
        if node.wanted[1] {
            let transposed = graph.matrix_transpose(a)?;
            let db = graph.mat_mul(transposed, dy)?;
            let shape = graph.shape(b).to_vec();
            gradients[1] = Some(graph.sum_to(db, &shape)?);
        }
        Ok(gradients)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        use ndarray::{Axis, Ix2, Ix3};
        let [a, b] = [inputs[0], inputs[1]];
        let leading = |x: &crate::array::Array| crate::array::Array::zeros(&x.shape()[..x.ndim() - 2]);
        let batch = crate::array::broadcast_shape(&[&leading(a), &leading(b)]);
        let expand = |x: &crate::array::Array| {
            let matrix = &x.shape()[x.ndim() - 2..];
            let full = x.broadcast([&batch[..], matrix].concat()).unwrap().to_owned();
            let count = batch.iter().product::<usize>();
            full.into_shape_with_order([count, matrix[0], matrix[1]]).unwrap().into_dimensionality::<Ix3>().unwrap()
        };
        let (left, right) = (expand(a), expand(b));
        let products: Vec<ndarray::Array<f64, Ix2>> =
            left.axis_iter(Axis(0)).zip(right.axis_iter(Axis(0))).map(|(x, y)| x.dot(&y)).collect();
        let views: Vec<_> = products.iter().map(|product| product.view()).collect();
        let (m, n) = (a.shape()[a.ndim() - 2], b.shape()[b.ndim() - 1]);
        let y = ndarray::stack(Axis(0), &views).unwrap();
        vec![y.into_shape_with_order([&batch[..], &[m, n]].concat()).unwrap()]
    }
}

impl Graph {
    /// A B over the last two dimensions.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn mat_mul(&mut self, a: Value, b: Value) -> Result<Value, GraphError> {
        self.apply_one(MatMul, &[a, b])
    }
}

#[cfg(test)]
mod tests {
    use super::MatMul;
    use crate::testing::{check_gradient, float, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(MatMul, &[float(&[2, 3]), float(&[3, 4])]);
        check_gradient(MatMul, &[float(&[2, 2, 3, 2]), float(&[2, 2, 2, 3])]);
        check_gradient(MatMul, &[float(&[2, 1, 3, 2]), float(&[4, 2, 1])]);
        check_gradient(MatMul, &[float(&[3, 2]), float(&[5, 2, 2])]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        assert!(refused(MatMul, &[float(&[2, 3]), float(&[2, 3])]).contains("[…, K, N]"));
        assert!(refused(MatMul, &[float(&[2, 2, 3]), float(&[3, 3, 2])]).contains("do not broadcast"));
    }
}
