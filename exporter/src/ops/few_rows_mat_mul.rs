//! Products of few rows with a frozen matrix of 8- or 4-bit integers: what counts is how fast the integers are read. How finely x is
//! rounded is the executor's choice.

use marionette_models::bundle::DataType;

use super::mat_mul_n_bits::MatMulNBits;
use super::{Attribute, Domain, Op, no_gradient};
use crate::array::{Array, quantised};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// Of 8 bits as ONNX Runtime's `MatMulNBits` ([`super::mat_mul_n_bits`]), which is its body, whatever the number of rows.
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

/// y = x Wᵀ + b, x \[M, K\], b \[N\] where there is one, w = q s + m: q 4 bits \[N, K / block, block / 2\], s and m f16\[N, K / block\].
#[derive(Debug, Clone, Copy)]
struct FewRowsAffineMatMul(MatMulNBits);

impl Op for FewRowsAffineMatMul {
    fn name(&self) -> &'static str {
        if self.0.bias { "FewRowsAffineLinear" } else { "FewRowsAffineMatMul" }
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.0.dimensions()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let MatMulNBits { columns, inner, block, .. } = self.0;
        let [x, integers, scales, minima, bias @ ..] = inputs else {
            return Err("expected x, integers, scales, minima and, where there is one, a bias".into());
        };
        let blocks = [columns.into(), (inner / block).into()];
        for (name, tensor) in [("scales", scales), ("minima", minima)] {
            if tensor.dtype != DataType::F16 || tensor.shape != blocks {
                return Err(format!("the {name} are {tensor}, expected f16{blocks:?}"));
            }
        }
        let scales = TensorType::f32([(columns * (inner / block)).into()]);
        let inputs: Vec<&TensorType> = [*x, *integers, &scales].into_iter().chain(bias.iter().copied()).collect();
        self.0.infer(&inputs)
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let &[x, integers, scales, minima, ref bias @ ..] = inputs else {
            return Err(no_gradient(self.name(), "its inputs are not four or five"));
        };
        let [scales, minima] = [graph.cast(scales, DataType::F32)?, graph.cast(minima, DataType::F32)?];
        let blocks = graph.shape(scales)[1];
        let any = graph.integers(&[-1]);
        let all = (self.0.columns * (self.0.inner / self.0.block)).into();
        let flat = graph.reshape_to(scales, &[all], any)?;
        let inputs: Vec<Value> = [x, integers, flat].into_iter().chain(bias.iter().copied()).collect();
        let product = graph.apply_one(self.0, &inputs)?;
        // It has a minimum of −8 s: the rest is of each block's sum.
        let middle = graph.scalar(8.0);
        let rest = graph.mul(scales, middle)?;
        let rest = graph.add(rest, minima)?;
        let rest = graph.matrix_transpose(rest)?;
        let rows = graph.shape(x)[0];
        let number = graph.length(scales, 1)?;
        let each = graph.integers(&[self.0.block as i64]);
        let target = graph.concat(&[any, number, each], 0)?;
        let x = graph.reshape_to(x, &[rows, blocks, self.0.block.into()], target)?;
        let sums = graph.reduce_sum(x, &[2], false)?;
        let rest = graph.mat_mul(sums, rest)?;
        Ok(vec![graph.add(product, rest)?])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let MatMulNBits { columns, inner, block, .. } = self.0;
        let matrix = ndarray::Array2::from_shape_fn((inner, columns), |(k, n)| {
            let (at, within) = (k / block, k % block);
            let q = quantised(4, inputs[1][[n, at, within / 2]], within) + 8.0;
            q * inputs[2][[n, at]] + inputs[3][[n, at]]
        });
        let mut y = inputs[0].view().into_dimensionality::<ndarray::Ix2>().unwrap().dot(&matrix).into_dyn();
        if let Some(bias) = inputs.get(4) {
            y += *bias;
        }
        vec![y]
    }
}

impl Graph {
    /// x Wᵀ + b for few rows of x, with W as integers of 8 bits \[N, K / block, block\] and as many scales \[N · K / block\].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn few_rows_mat_mul(
        &mut self,
        x: Value,
        [integers, scales]: [Value; 2],
        bias: Option<Value>,
    ) -> Result<Value, GraphError> {
        let product = self.n_bits(integers, 8, bias);
        let inputs: Vec<Value> = [x, integers, scales].into_iter().chain(bias).collect();
        self.apply_one(FewRowsMatMul(product), &inputs)
    }

    /// The same with W as integers of 4 bits \[N, K / block, block / 2\], scales and minima f16\[N, K / block\].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn few_rows_affine_mat_mul(
        &mut self,
        x: Value,
        [integers, scales, minima]: [Value; 3],
        bias: Option<Value>,
    ) -> Result<Value, GraphError> {
        let product = self.n_bits(integers, 4, bias);
        let inputs: Vec<Value> = [x, integers, scales, minima].into_iter().chain(bias).collect();
        self.apply_one(FewRowsAffineMatMul(product), &inputs)
    }

    fn n_bits(&self, integers: Value, bits: usize, bias: Option<Value>) -> MatMulNBits {
        let fixed = |dim: Option<&Dim>| if let Some(Dim::Fixed(value)) = dim { *value } else { 0 };
        let shape = self.shape(integers);
        let [columns, blocks, bytes] = [0, 1, 2].map(|axis| fixed(shape.get(axis)));
        let block = bytes * 8 / bits;
        MatMulNBits { bits, block, inner: blocks * block, columns, bias: bias.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::bundle::DataType;

    use super::{FewRowsAffineMatMul, FewRowsMatMul};
    use crate::ops::mat_mul_n_bits::MatMulNBits;
    use crate::testing::{Sample, check_body, float, indices_of, integers, refused};

    #[test]
    fn minima_are_added_to_what_the_body_multiplies_with() {
        let bytes: Vec<i64> = (0..3 * 2 * 8).map(|i| i * 97 % 256).collect();
        let stored = Sample::Given(DataType::U8, integers(&[3, 2, 8], &bytes));
        let halves = |first: i64| {
            let values = integers(&[3, 2], &[first, 5, -3, 2, 7, -1]).mapv(|value| value / 8.0);
            Sample::Given(DataType::F16, values)
        };
        for bias in [false, true] {
            let op = FewRowsAffineMatMul(MatMulNBits { bits: 4, block: 16, inner: 32, columns: 3, bias });
            let inputs = [float(&[2, 32]), stored.clone(), halves(1), halves(-4)].into_iter();
            check_body(op, &inputs.chain(bias.then(|| float(&[3]))).collect::<Vec<_>>(), 1e-9);
        }
        let op = FewRowsAffineMatMul(MatMulNBits { bits: 4, block: 16, inner: 32, columns: 3, bias: false });
        assert!(refused(op, &[float(&[2, 32]), stored.clone(), halves(1), float(&[3, 2])]).contains("minima"));
        assert!(refused(op, &[float(&[2, 31]), stored, halves(1), halves(1)]).contains("[M, 32]"));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let op = FewRowsMatMul(MatMulNBits { bits: 4, block: 16, inner: 32, columns: 3, bias: false });
        assert!(refused(op, &[float(&[2, 32]), float(&[3, 2, 8]), float(&[6])]).contains("integers"));
        assert!(refused(op, &[float(&[2, 32]), indices_of(&[1], &[0]), float(&[6])]).contains("integers"));
        assert!(refused(op, &[float(&[2, 32])]).contains("expected x"));
    }
}
