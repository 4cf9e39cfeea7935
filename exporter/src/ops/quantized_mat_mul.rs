//! A product with a frozen matrix of 8- or 4-bit integers, the other side rounded to 8 bits on the way, each few values of a row with a
//! scale of their own (Yao et al. 2022, "ZeroQuant", section 4.1, has groups of a weight's rows and whole rows of activations): the
//! operator for many rows.

use marionette_models::bundle::{BASE, DataType, ROWS, RowRounding};
use ndarray::Ix2;

use super::quantized_mat_mul_gradient::QuantizedMatMulGradient;
use super::{Attribute, Domain, Op, no_gradient};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType};

/// The middle of the range of a byte.
const MIDDLE: u8 = 128;

/// y = x Wᵀ + b, x \[M, K\], b \[N\] where there is one. Rows of x are rounded ([`ROWS`]), so that the products are those of integers.
/// ∂x = ∂y W, a product of the same kind; the rounding counts as the identity (the straight-through estimator, Bengio et al. 2013).
#[derive(Debug, Clone, Copy)]
pub(super) struct QuantizedMatMul {
    pub matrix: Matrix,
    pub bias: bool,
}

/// What W is given as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrix {
    /// w = (q − 128) s: q u8\[N, K\], s \[N\].
    Bytes,
    /// w = q s + m: q u4\[N, K\], s and m f16\[N, K / block\]. On the way back, and in the body forward too, what is multiplied are bytes
    /// of a scale a column, 1/127 of what the column's blocks can hold at most.
    Affine {
        /// How many values of a column have one scale and one minimum.
        block: usize,
    },
}

impl Matrix {
    /// How many values it is given as.
    pub(super) fn inputs(self) -> usize {
        match self {
            Self::Bytes => 2,
            Self::Affine { .. } => 3,
        }
    }

    pub(super) fn attributes(self) -> Vec<(&'static str, Attribute)> {
        match self {
            Self::Bytes => Vec::new(),
            Self::Affine { block } => vec![("block_size", Attribute::Int(block as i64))],
        }
    }

    /// N and K.
    pub(super) fn shape(self, inputs: &[&TensorType]) -> Result<[Dim; 2], String> {
        let is = |tensor: &TensorType, dtype, shape: &[Dim]| tensor.dtype == dtype && tensor.shape == shape;
        match (self, inputs) {
            (Self::Bytes, [integers, scales]) => match integers.shape[..] {
                [columns, inner] if integers.dtype == DataType::U8 && is(scales, DataType::F32, &[columns]) => {
                    Ok([columns, inner])
                }
                _ => Err("expected integers u8[N, K] and scales f32[N]".into()),
            },
            (Self::Affine { block }, [integers, scales, minima]) => match integers.shape[..] {
                [columns, Dim::Fixed(inner)]
                    if integers.dtype == DataType::U4
                        && inner % block == 0
                        && is(scales, DataType::F16, &[columns, Dim::Fixed(inner / block)])
                        && is(minima, DataType::F16, &scales.shape) =>
                {
                    Ok([columns, Dim::Fixed(inner)])
                }
                _ => Err("expected integers u4[N, K], scales and minima f16[N, K / block]".into()),
            },
            _ => Err(format!("a matrix of {} values, expected {}", inputs.len(), self.inputs())),
        }
    }

    /// Bytes u8\[N, K\], each 128 more than its integer, and a scale a column, \[N\]: they depend on weights alone, and are computed
    /// when the graph is opened.
    pub(super) fn bytes(self, graph: &mut Graph, inputs: &[Value]) -> Result<[Value; 2], GraphError> {
        let [integers, scales] = [inputs[0], inputs[1]];
        let Self::Affine { block } = self else {
            return Ok([integers, scales]);
        };
        let [scales, minima] = [graph.cast(scales, DataType::F32)?, graph.cast(inputs[2], DataType::F32)?];
        let most = graph.scalar(15.0);
        let last = graph.mul(scales, most)?;
        let last = graph.add(last, minima)?;
        let ends = graph.concat(&[minima, last], 1)?;
        let ends = graph.abs(ends)?;
        let largest = graph.reduce_max(ends, &[1], true)?;
        let (share, least) = (graph.scalar(1.0 / 127.0), graph.scalar(1e-30));
        let column = graph.mul(largest, share)?;
        let column = graph.add(column, least)?;
        // In units of the column's scale 16 bits are exact enough, and take half the memory.
        let [scales, minima] = [graph.div(scales, column)?, graph.div(minima, column)?];
        let [scales, minima] = [graph.cast(scales, DataType::F16)?, graph.cast(minima, DataType::F16)?];
        let values = graph.dequantize_linear(integers, scales, block)?;
        // A function's body fits matrices of all shapes.
        let (columns, blocks, inner) = (graph.shape(minima)[0], graph.shape(minima)[1], graph.shape(values)[1]);
        let [any, single, each] = [-1, 1, block as i64].map(|size| graph.integers(&[size]));
        let number = graph.length(minima, 1)?;
        let apart = graph.concat(&[any, number, each], 0)?;
        let values = graph.reshape_to(values, &[columns, blocks, block.into()], apart)?;
        let target = graph.concat(&[any, number, single], 0)?;
        let minima = graph.reshape_to(minima, &[columns, blocks, 1.into()], target)?;
        let values = graph.add(values, minima)?;
        let width = graph.mul(number, each)?;
        let together = graph.concat(&[any, width], 0)?;
        let values = graph.reshape_to(values, &[columns, inner], together)?;
        let one = graph.scalar(1.0);
        let one = graph.cast(one, DataType::F16)?;
        let middle = graph.byte(MIDDLE);
        Ok([graph.quantize_linear(values, one, middle)?, graph.reshape_to(column, &[columns], any)?])
    }

    /// W \[N, K\].
    pub(super) fn values(self, inputs: &[&Array]) -> ndarray::Array2<f64> {
        let [integers, scales] = [inputs[0], inputs[1]].map(|input| input.view());
        match self {
            Self::Bytes => ndarray::Array2::from_shape_fn((integers.shape()[0], integers.shape()[1]), |(n, k)| {
                (integers[[n, k]] - f64::from(MIDDLE)) * scales[[n]]
            }),
            Self::Affine { block } => {
                ndarray::Array2::from_shape_fn((integers.shape()[0], integers.shape()[1]), |(n, k)| {
                    integers[[n, k]] * scales[[n, k / block]] + inputs[2][[n, k / block]]
                })
            }
        }
    }
}

/// x \[M, K\] with its rows rounded, times a matrix u8\[K, N\], each byte 128 more than its integer: \[M, N\].
///
/// A kernel adds up integers over a group, and groups in f32. With standard operators each group's product would be a tensor of its
/// own. So a rounded row is written as integers once more: two digits in units of 1/127 of the row's largest value, which is 15 bits,
/// and all that there is of groups with outliers.
pub(super) fn rounded_product(
    graph: &mut Graph,
    x: Value,
    matrix: Value,
    RowRounding { group, outlier }: RowRounding,
) -> Result<Value, GraphError> {
    let (one, middle, share) = (graph.scalar(1.0), graph.byte(MIDDLE), graph.scalar(1.0 / 127.0));
    let integer = |graph: &mut Graph, bytes: Value| {
        let values = graph.cast(bytes, DataType::F32)?;
        let middle = graph.scalar(f32::from(MIDDLE));
        graph.sub(values, middle)
    };
    let (rows, width) = (graph.shape(x)[0], graph.shape(x)[1]);
    // Sizes are asked for when the graph runs: a function's body fits rows of all lengths.
    let length = graph.length(x, 1)?;
    let (any, single) = (graph.integers(&[-1]), graph.integers(&[1]));
    let target = graph.concat(&[any, single, length], 0)?;
    let x = graph.reshape_to(x, &[rows, 1.into(), width], target)?;
    let sizes = graph.abs(x)?;
    let largest = graph.max_pool(sizes, group)?;

    let groups = graph.shape(largest)[2];
    let number = graph.length(largest, 2)?;
    let target = graph.concat(&[any, number, single], 0)?;
    let column = graph.reshape_to(largest, &[rows, groups, 1.into()], target)?;
    let mut column = graph.mul(column, share)?;
    if outlier.is_finite() {
        let squares = graph.mul(x, x)?;
        let mean = graph.reduce_mean(squares, &[2], true)?;
        let (root, times, none) = (graph.sqrt(mean)?, graph.scalar(outlier / 127.0), graph.scalar(0.0));
        let most = graph.mul(root, times)?;
        let is_plain = graph.less_or_equal(column, most)?;
        column = graph.choose(is_plain, column, none)?;
    }
    // So small that it makes a difference to nothing but a group of zeros, which it divides.
    let least = graph.floats(&[group], &vec![1e-30; group]);
    let scales = graph.add(column, least)?;
    let each = graph.integers(&[group as i64]);
    let padded = graph.mul(number, each)?;
    let target = graph.concat(&[any, single, padded], 0)?;
    let all = Dim::Fixed(if let Dim::Fixed(groups) = groups { groups * group } else { 0 });
    let scales = graph.reshape_to(scales, &[rows, 1.into(), all], target)?;
    let scales = graph.first(scales, 2, length, width)?;
    let steps = graph.div(x, scales)?;
    let bytes = graph.quantize_linear(steps, one, middle)?;
    let integers = integer(graph, bytes)?;
    let mut rounded = graph.mul(integers, scales)?;
    if outlier.is_finite() {
        let least = graph.scalar(2e-30);
        let is_whole = graph.less_or_equal(scales, least)?;
        rounded = graph.choose(is_whole, x, rounded)?;
    }

    let row = graph.reduce_max(largest, &[2], false)?;
    let row = graph.mul(row, share)?;
    let least = graph.scalar(1e-30);
    let row = graph.add(row, least)?;
    let target = graph.integers(&[-1, 1, 1]);
    let unit = graph.reshape_to(row, &[rows, 1.into(), 1.into()], target)?;
    let steps = graph.div(rounded, unit)?;
    let high = graph.quantize_linear(steps, one, middle)?;
    let whole = integer(graph, high)?;
    let rest = graph.sub(steps, whole)?;
    let base = graph.scalar(BASE);
    let rest = graph.mul(rest, base)?;
    let low = graph.quantize_linear(rest, one, middle)?;
    let digits = graph.concat(&[high, low], 1)?;

    let products = graph.mat_mul_integer(digits, matrix, middle)?;
    let products = graph.cast(products, DataType::F32)?;
    let worth = graph.floats(&[2, 1], &[1.0, 1.0 / BASE]);
    let products = graph.mul(products, worth)?;
    let product = graph.reduce_sum(products, &[1], false)?;
    graph.mul(product, row)
}

impl Op for QuantizedMatMul {
    fn name(&self) -> &'static str {
        // A function has all its inputs, so that one with a bias is another function.
        match (self.matrix, self.bias) {
            (Matrix::Bytes, false) => "QuantizedMatMul",
            (Matrix::Bytes, true) => "QuantizedLinear",
            (Matrix::Affine { .. }, false) => "AffineMatMul",
            (Matrix::Affine { .. }, true) => "AffineLinear",
        }
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.matrix.attributes()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let number = self.matrix.inputs();
        if inputs.len() != 1 + number + usize::from(self.bias) {
            return Err(format!("{} inputs, expected x, {number} of a matrix, and a bias if any", inputs.len()));
        }
        let [columns, inner] = self.matrix.shape(&inputs[1..=number])?;
        let is_bias = |bias: &&TensorType| bias.dtype == DataType::F32 && bias.shape == [columns];
        match inputs[0].shape[..] {
            [rows, same] if inputs[0].dtype == DataType::F32 && same == inner => {
                let bias = inputs.get(1 + number);
                bias.is_none_or(is_bias)
                    .then(|| vec![TensorType::f32([rows, columns])])
                    .ok_or("the bias is not f32[N]".into())
            }
            _ => Err(format!("x is {}, expected f32[M, {inner}]", inputs[0])),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [bytes, scales] = self.matrix.bytes(graph, &inputs[1..])?;
        let turned = graph.matrix_transpose(bytes)?;
        let product = rounded_product(graph, inputs[0], turned, ROWS)?;
        let y = graph.mul(product, scales)?;
        Ok(vec![match inputs.get(1 + self.matrix.inputs()) {
            Some(&bias) => graph.add(y, bias)?,
            None => y,
        }])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        if node.wanted[1..].contains(&true) {
            return Err(no_gradient(self.name(), "its matrix is frozen"));
        }
        let dy = node.gradient(graph, 0)?;
        let mut inputs = vec![dy];
        inputs.extend(&node.inputs[1..=self.matrix.inputs()]);
        let mut gradients = vec![None; node.inputs.len()];
        gradients[0] = Some(graph.apply_one(QuantizedMatMulGradient { matrix: self.matrix }, &inputs)?);
        Ok(gradients)
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let x = inputs[0].view().into_dimensionality::<Ix2>().unwrap();
        let mut y = x.dot(&self.matrix.values(&inputs[1..]).t()).into_dyn();
        if let Some(bias) = inputs.get(1 + self.matrix.inputs()) {
            y += *bias;
        }
        vec![y]
    }
}

impl Graph {
    /// x Wᵀ + b with the values of a matrix \[N, K\] of integers.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn quantized_mat_mul(
        &mut self,
        x: Value,
        matrix: Matrix,
        values: &[Value],
        bias: Option<Value>,
    ) -> Result<Value, GraphError> {
        let inputs: Vec<Value> = [x].into_iter().chain(values.iter().copied()).chain(bias).collect();
        self.apply_one(QuantizedMatMul { matrix, bias: bias.is_some() }, &inputs)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use marionette_models::bundle::DataType;
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::{Matrix, QuantizedMatMul};
    use crate::autodiff::gradients;
    use crate::graph::{Graph, Op as _};
    use crate::shape::TensorType;
    use crate::testing::{
        Sample, TOLERANCE, check_body, evaluate, float, integers, random, refused, values, worst_error,
    };

    /// Both kinds of matrices, of 3 columns of 4, and of 2 columns of 32.
    pub fn matrices() -> [(Matrix, Vec<Sample>, [usize; 2]); 2] {
        let bytes =
            Sample::Given(DataType::U8, integers(&[3, 4], &[131, 126, 129, 128, 1, 255, 130, 127, 100, 150, 200, 10]));
        let scales = values(&[0.01, 0.02, 0.005]);
        let nibbles: Vec<i64> = (0..64).map(|i| i * 7 % 16).collect();
        let halves = |values: &[[f64; 2]; 2]| {
            Sample::Given(DataType::F16, ndarray::arr2(values).mapv(|v| half::f16::from_f64(v).to_f64()).into_dyn())
        };
        let four_bits = vec![
            Sample::Given(DataType::U4, integers(&[2, 32], &nibbles)),
            halves(&[[0.1, -0.2], [0.05, 0.03]]),
            halves(&[[-0.7, 1.1], [0.0, -0.2]]),
        ];
        [(Matrix::Bytes, vec![bytes, scales], [3, 4]), (Matrix::Affine { block: 16 }, four_bits, [2, 32])]
    }

    fn with(x: Sample, matrix: Vec<Sample>, bias: Option<Sample>) -> Vec<Sample> {
        [x].into_iter().chain(matrix).chain(bias).collect()
    }

    #[test]
    fn the_body_is_what_the_operator_is_but_for_rounding() {
        for (matrix, samples, [columns, inner]) in matrices() {
            // Of values between ±1.5, a step is 0.012: half of it, times the sum of a column.
            let x = float(&[3, inner]);
            check_body(QuantizedMatMul { matrix, bias: false }, &with(x.clone(), samples.clone(), None), 0.1);
            check_body(QuantizedMatMul { matrix, bias: true }, &with(x, samples, Some(float(&[columns]))), 0.1);
        }
    }

    #[test]
    fn each_group_of_a_row_is_rounded_to_steps_of_its_own() {
        // Rows with outliers: of four times 32 and 2 values, of which one is 1,000 times the others; all 0; the first 64 tiny.
        let x = ndarray::Array2::from_shape_fn((3, 130), |(m, k)| {
            let value = ((k * 37 + m * 11) % 101) as f64 / 50.0 - 1.0;
            value * [if k == 70 { 1000.0 } else { 1.0 }, 0.0, if k < 64 { 1e-3 } else { 1.0 }][m]
        });
        let bytes = ndarray::Array2::from_shape_fn((2, 130), |(n, k)| ((k * 53 + n * 17) % 256) as f64);
        let rounded = ndarray::Array2::from_shape_fn((3, 130), |(m, k)| {
            let group = x.slice(ndarray::s![m, k / 32 * 32..(k / 32 * 32 + 32).min(130)]);
            let largest = group.fold(0.0_f64, |most, x| most.max(x.abs()));
            let mean_square = x.row(m).mapv(|x| x * x).mean().unwrap();
            let step = largest / if largest * largest > 36.0 * mean_square { 127.0 * 254.0 } else { 127.0 };
            if step > 0.0 { (x[[m, k]] / step).round_ties_even() * step } else { 0.0 }
        });
        let expected = rounded.dot(&bytes.mapv(|byte| (byte - 128.0) * 0.01).t());
        let (x, samples) = (
            Sample::Given(DataType::F32, x.into_dyn()),
            vec![Sample::Given(DataType::U8, bytes.into_dyn()), values(&[0.01, 0.01])],
        );
        let mut graph = Graph::new();
        let mut feeds = BTreeMap::new();
        let inputs: Vec<_> = with(x, samples, None)
            .iter()
            .enumerate()
            .map(|(i, sample)| {
                let Sample::Given(_, array) = sample else { panic!() };
                feeds.insert(format!("input{i}"), array.clone());
                graph.input(&format!("input{i}"), sample.tensor_type())
            })
            .collect();
        let y = QuantizedMatMul { matrix: Matrix::Bytes, bias: false }.body(&mut graph, &inputs).unwrap();
        let found = &evaluate(&graph, &feeds, &y)[0];
        for ((row, found), expected) in found.indexed_iter().zip(&expected) {
            // Half a unit of a row's second digit, and of that of a group with an outlier, times the sum of a column.
            let largest = [1000.0, 0.0, 1.0][row[0]];
            assert!((found - expected).abs() <= largest / 127.0 / 254.0 * 40.0, "{row:?}: {found} {expected}");
        }
    }

    #[test]
    fn gradient_is_that_of_central_differences() {
        for (matrix, samples, [columns, inner]) in matrices() {
            let graph = &mut Graph::new();
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let (start, weight) = (random(&[2, inner], &mut rng), random(&[2, columns], &mut rng));
            let mut feeds = BTreeMap::from([("x".to_owned(), start.clone()), ("weight".to_owned(), weight)]);
            let x = graph.input("x", TensorType::f32([2.into(), inner.into()]));
            let weight = graph.input("weight", TensorType::f32([2.into(), columns.into()]));
            let mut values = Vec::new();
            for (i, sample) in samples.iter().enumerate() {
                let Sample::Given(_, array) = sample else { panic!() };
                values.push(graph.input(&format!("matrix{i}"), sample.tensor_type()));
                feeds.insert(format!("matrix{i}"), array.clone());
            }
            let y = graph.quantized_mat_mul(x, matrix, &values, None).unwrap();
            let product = graph.mul(y, weight).unwrap();
            let loss = graph.reduce_sum(product, &[0, 1], false).unwrap();
            let gradient = gradients(graph, loss, &[x]).unwrap();
            let found = &evaluate(graph, &feeds, &gradient)[0];
            let worst = worst_error(&start, found, |at| {
                let mut feeds = feeds.clone();
                feeds.insert("x".to_owned(), at.clone());
                evaluate(graph, &feeds, &[loss])[0].sum()
            });
            assert!(worst <= TOLERANCE, "{matrix:?}: {worst:e}");
            let refusal = gradients(graph, loss, &[values[1]]).unwrap_err().to_string();
            assert!(refusal.contains("frozen"), "{refusal}");
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        for (matrix, samples, [_, inner]) in matrices() {
            let op = QuantizedMatMul { matrix, bias: false };
            assert!(refused(op, &with(float(&[3, inner + 1]), samples.clone(), None)).contains("expected f32[M"));
            assert!(refused(op, &with(float(&[3, inner]), samples[..1].to_vec(), None)).contains("inputs"));
            let op = QuantizedMatMul { matrix, bias: true };
            assert!(refused(op, &with(float(&[3, inner]), samples, Some(float(&[inner + 1])))).contains("bias"));
        }
    }
}
