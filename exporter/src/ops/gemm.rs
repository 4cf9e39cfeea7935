//! A matrix product with bias. <https://onnx.ai/onnx/operators/onnx__Gemm.html>

use marionette_models::bundle::DataType;

use super::{Attribute, Op};
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType, broadcast};

/// Which of the two matrices are read transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transposed {
    /// The first.
    pub a: bool,
    /// The second.
    pub b: bool,
}

impl Transposed {
    /// The same, as the operator's attributes say it.
    pub(crate) fn attributes(self) -> Vec<(&'static str, Attribute)> {
        let set = [("transA", self.a), ("transB", self.b)].into_iter().filter(|(_, set)| *set);
        set.map(|(name, _)| (name, Attribute::Int(1))).collect()
    }
}

/// Y = A' B' + C with A' = A or Aᵀ \[M, K\], B' = B or Bᵀ \[K, N\], and C, which may be left out, broadcast to \[M, N\].
/// ∂A' = ∂Y B'ᵀ, ∂B' = A'ᵀ ∂Y, ∂C = ∂Y summed where C was broadcast: products of the same matrices, read the other way.
#[derive(Debug, Clone, Copy)]
struct Gemm(Transposed);

impl Op for Gemm {
    fn name(&self) -> &'static str {
        "Gemm"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (a, b, c) = match inputs {
            [a, b] => (a, b, None),
            [a, b, c] => (a, b, Some(c)),
            _ => return Err(format!("{} inputs, expected 2 or 3", inputs.len())),
        };
        if inputs.iter().any(|input| input.dtype != DataType::F32) {
            return Err("expected f32".into());
        }
        let matrix = |tensor: &TensorType, transposed: bool| match tensor.shape[..] {
            [rows, columns] => Ok(if transposed { [columns, rows] } else { [rows, columns] }),
            _ => Err("expected matrices".to_owned()),
        };
        let ([m, k], [same, n]) = (matrix(a, self.0.a)?, matrix(b, self.0.b)?);
        if k != same {
            return Err(format!("the inner dimensions are {k} and {same}"));
        }
        let shape: Vec<Dim> = vec![m, n];
        if c.is_some_and(|c| broadcast(&c.shape, &shape).as_ref() != Ok(&shape)) {
            return Err(format!("the bias does not broadcast to [{m}, {n}]"));
        }
        Ok(vec![TensorType::f32(shape)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        let [a, b] = [node.inputs[0], node.inputs[1]];
        let trans = self.0;
        let mut gradients = vec![None; node.inputs.len()];
        if node.wanted[0] {
            // A' = A: ∂Y B'ᵀ. A' = Aᵀ: its transpose, B' ∂Yᵀ.
            gradients[0] = Some(match trans.a {
                false => graph.gemm(dy, b, None, Transposed { a: false, b: !trans.b })?,
                true => graph.gemm(b, dy, None, Transposed { a: trans.b, b: true })?,
            });
        }
        if node.wanted[1] {
            gradients[1] = Some(match trans.b {
                false => graph.gemm(a, dy, None, Transposed { a: !trans.a, b: false })?,
                true => graph.gemm(dy, a, None, Transposed { a: true, b: trans.a })?,
            });
        }
        if let [_, _, c] = *node.inputs
            && node.wanted[2]
        {
            let shape = graph.shape(c).to_vec();
            gradients[2] = Some(graph.sum_to(dy, &shape)?);
        }
        Ok(gradients)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let matrix = |i: usize, transposed: bool| {
            let x = inputs[i].view().into_dimensionality::<ndarray::Ix2>().unwrap();
            if transposed { x.reversed_axes() } else { x }
        };
        let mut y = matrix(0, self.0.a).dot(&matrix(1, self.0.b)).into_dyn();
        if let Some(c) = inputs.get(2) {
            y += *c;
        }
        vec![y]
    }
}

impl Graph {
    /// A' B' + C.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn gemm(
        &mut self,
        a: Value,
        b: Value,
        bias: Option<Value>,
        transposed: Transposed,
    ) -> Result<Value, GraphError> {
        let inputs: Vec<Value> = [a, b].into_iter().chain(bias).collect();
        self.apply_one(Gemm(transposed), &inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::{Gemm, Transposed};
    use crate::testing::{check_gradient, float, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        for a in [false, true] {
            for b in [false, true] {
                let [left, right] = [if a { [3, 2] } else { [2, 3] }, if b { [4, 3] } else { [3, 4] }];
                let op = Gemm(Transposed { a, b });
                check_gradient(op, &[float(&left), float(&right)]);
                for bias in [&[4][..], &[2, 1], &[1, 4], &[2, 4], &[]] {
                    check_gradient(op, &[float(&left), float(&right), float(bias)]);
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let op = Gemm(Transposed::default());
        assert!(refused(op, &[float(&[2, 3]), float(&[4, 3])]).contains("inner dimensions are 3 and 4"));
        assert!(refused(op, &[float(&[2, 3, 1]), float(&[4, 3])]).contains("matrices"));
        assert!(refused(op, &[float(&[2, 3]), float(&[3, 4]), float(&[3])]).contains("bias"));
    }
}
