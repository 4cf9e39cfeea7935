//! The frozen weights φ: how they are stored in `weights.bin` and how a graph multiplies with them. What a precision means is
//! said here and nowhere else.
//!
//! | precision | embedding and matrices | a product with few rows | with many |
//! |---|---|---|---|
//! | fp32 | f32 | `Gemm` | `Gemm` |
//! | fp16 | f16 | `Gemm` in f32 after a `Cast`, which is done when the graph is opened | the same |
//! | int8 | u8, a scale a column | `FewRowsMatMul` | `QuantizedMatMul`, both ways |
//! | int4 | 4 bits, a scale a block | `FewRowsMatMul` | `BlockQuantizedMatMul`, both ways, of bytes made of the stored integers |
//!
//! With standard operators alone all products of integers are those with many rows.
//!
//! Vectors (biases, normalisations), position embeddings and the angles of rotary ones stay f32. Matrices of integers are stored as \[N, K\], the N columns of
//! a layer one after the other, which is how a column is read, and how the gradient reads the matrix: dx = dy Wᵀ.

use std::collections::BTreeMap;
use std::io::{self, Write};

use half::f16;
use marionette_models::bundle::{DataType, Operators, Precision};
use marionette_models::params::names::{self, Pair};
use marionette_models::{HostTensor, ModelConfig, Positions, Tensors, params};

use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::ops::{self, Transposed};
use crate::quantise::{self, Order, Quantised};
use crate::shape::TensorType;

/// Every part begins at a multiple of this many bytes, so that the file can be mapped into memory (`onnx.proto`,
/// `TensorProto.external_data`).
const ALIGNMENT: u64 = 4096;
/// The zero points of 4-bit integers, as many as the largest matrix has.
pub(crate) const ZERO_POINTS: &str = "zero_points";
/// The cosines and sines of each position's angles, \[P, dh / 2\], where positions are rotary (Su et al. 2021).
pub(crate) const ANGLES: [&str; 2] = ["rotary.cos", "rotary.sin"];
/// The longest blocks. Of 8 bits a whole column has one scale, and the block is only how it is read; of 4 bits shorter blocks are
/// more exact, larger and slower to read: 0.25 bits a value with 128.
const BLOCK_INT8: usize = 256;
const BLOCK_INT4: usize = 128;
/// The shortest that ONNX Runtime takes.
const SHORTEST_BLOCK: usize = 16;

/// A part of `weights.bin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its first byte.
    pub offset: u64,
    /// Its number of bytes.
    pub length: u64,
}

/// With how many rows a graph multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One, or a few: what counts is how fast the weights are read.
    Few,
    /// Many: what counts is arithmetic.
    Many,
}

/// What a part holds.
#[derive(Debug, Clone, Copy)]
enum Content {
    F32,
    Angles(Angles),
    F16,
    /// A matrix's integers, and right after them their scales.
    Integers(Matrix),
    Scales,
    /// Twice 8 in each byte.
    ZeroPoints,
}

/// The values of one of [`ANGLES`], where the model has them.
pub(crate) fn angles(config: &ModelConfig, name: &str) -> Option<HostTensor> {
    Angles::of(config).into_iter().flatten().find(|(known, _)| *known == name).map(|(_, angles)| angles.values())
}

/// Values of rotary positions.
#[derive(Debug, Clone, Copy)]
struct Angles {
    positions: usize,
    head_dim: usize,
    base: f32,
    of: fn(f64) -> f64,
}

impl Angles {
    /// Both, with their names, where positions are rotary.
    fn of(config: &ModelConfig) -> Option<[(&'static str, Self); 2]> {
        let Positions::Rotary { base } = config.positions else { return None };
        let of = |of| Self { positions: config.n_positions, head_dim: config.head_dim, base, of };
        Some([(ANGLES[0], of(f64::cos)), (ANGLES[1], of(f64::sin))])
    }

    /// p · base^(−2 i / dh) of each position p and pair i, \[P, dh / 2\]: in f64, since f32 has too few bits for angles of far positions.
    fn values(self) -> HostTensor {
        let half = self.head_dim / 2;
        let exponent = |pair: usize| -2.0 * pair as f64 / self.head_dim as f64;
        let frequencies: Vec<f64> = (0..half).map(|pair| f64::from(self.base).powf(exponent(pair))).collect();
        let angle = |position: usize, frequency: &f64| (self.of)(position as f64 * frequency) as f32;
        let values = (0..self.positions).flat_map(|position| frequencies.iter().map(move |f| angle(position, f)));
        HostTensor { shape: vec![self.positions, half], values: values.collect() }
    }
}

/// A matrix that products are made with: N columns of K values.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    columns: usize,
    inner: usize,
    order: Order,
}

impl Matrix {
    fn of(name: &str, shape: &[usize]) -> Option<Self> {
        match *shape {
            [columns, inner] if name == names::WTE || name == names::HEAD => {
                Some(Self { columns, inner, order: Order::ColumnsTogether })
            }
            [inner, columns] if name != names::WPE => Some(Self { columns, inner, order: Order::ColumnsApart }),
            _ => None,
        }
    }

    /// The largest power of two that divides a column, up to a longest block.
    fn block(self, longest: usize) -> usize {
        (1 << self.inner.trailing_zeros()).min(longest)
    }
}

/// The plan of `weights.bin`, one copy for all graphs.
#[derive(Debug, Clone)]
pub struct Weights {
    bias: bool,
    /// The name of the head.
    head: &'static str,
    precision: Precision,
    operators: Operators,
    /// In the order of the file: the part, and the tensor that it is made of.
    order: Vec<(String, String, Content)>,
    entries: BTreeMap<String, Entry>,
    shapes: BTreeMap<String, Vec<usize>>,
}

fn integers(name: &str) -> String {
    format!("{name}.integers")
}

fn scales(name: &str) -> String {
    format!("{name}.scales")
}

impl Weights {
    /// Plans the file for a model.
    ///
    /// # Errors
    /// A matrix cannot be cut into blocks.
    pub fn new(config: &ModelConfig, precision: Precision, operators: Operators) -> Result<Self, GraphError> {
        let shapes = params::base_table(config).into_iter().map(|spec| (spec.name, spec.shape)).collect();
        let head = if config.tied { names::WTE } else { names::HEAD };
        let (order, entries) = (Vec::new(), BTreeMap::new());
        let mut plan = Self { bias: config.bias, head, precision, operators, order, entries, shapes };
        let mut zero_points = 0;
        for spec in params::base_table(config) {
            let len = spec.len();
            let Some(matrix) = Matrix::of(&spec.name, &spec.shape) else {
                plan.push(spec.name.clone(), &spec.name, Content::F32, 4 * len);
                continue;
            };
            match precision {
                Precision::Fp32 => plan.push(spec.name.clone(), &spec.name, Content::F32, 4 * len),
                Precision::Fp16 => plan.push(spec.name.clone(), &spec.name, Content::F16, 2 * len),
                Precision::Int8 | Precision::Int4 => {
                    let (bits, block) = plan.blocks(matrix);
                    if block < SHORTEST_BLOCK {
                        return Err(GraphError::Width { precision, tensor: spec.name, width: matrix.inner });
                    }
                    let scaled = if bits == 8 { matrix.columns } else { len / block };
                    zero_points = zero_points.max(if bits == 8 { 0 } else { scaled });
                    plan.push(integers(&spec.name), &spec.name, Content::Integers(matrix), len * bits / 8);
                    plan.push(scales(&spec.name), &spec.name, Content::Scales, 4 * scaled);
                }
            }
        }
        for (name, angles) in Angles::of(config).into_iter().flatten() {
            let shape = vec![config.n_positions, config.head_dim / 2];
            plan.push(name.to_owned(), "", Content::Angles(angles), 4 * shape.iter().product::<usize>());
            plan.shapes.insert(name.to_owned(), shape);
        }
        if zero_points > 0 {
            plan.push(ZERO_POINTS.to_owned(), "", Content::ZeroPoints, zero_points.div_ceil(2));
        }
        Ok(plan)
    }

    fn push(&mut self, part: String, tensor: &str, content: Content, length: usize) {
        let end = self.order.last().map_or(0, |(part, ..)| self.entries[part].offset + self.entries[part].length);
        let entry = Entry { offset: end.next_multiple_of(ALIGNMENT), length: length as u64 };
        self.entries.insert(part.clone(), entry);
        self.order.push((part, tensor.to_owned(), content));
    }

    /// Bits and block of a quantised matrix.
    fn blocks(&self, matrix: Matrix) -> (usize, usize) {
        match self.precision {
            Precision::Int4 => (4, matrix.block(BLOCK_INT4)),
            _ => (8, matrix.block(BLOCK_INT8)),
        }
    }

    /// Where a part lies.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn entry(&self, part: &str) -> Result<&Entry, GraphError> {
        self.entries.get(part).ok_or_else(|| GraphError::UnknownWeight(part.to_owned()))
    }

    fn shape(&self, name: &str) -> Result<&[usize], GraphError> {
        self.shapes.get(name).map(Vec::as_slice).ok_or_else(|| GraphError::UnknownWeight(name.to_owned()))
    }

    /// How the weights are stored.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Checks that the precision can hold the model's values.
    ///
    /// # Errors
    /// [`GraphError::Range`].
    pub fn check(&self, base: &Tensors) -> Result<(), GraphError> {
        for (_, name, content) in &self.order {
            let Some(tensor) = base.get(name).filter(|_| matches!(content, Content::F16)) else { continue };
            if let Some(&value) = tensor.values.iter().find(|value| f16::from_f32(**value).is_infinite()) {
                return Err(GraphError::Range { tensor: name.clone(), value: value.to_string() });
            }
        }
        Ok(())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// A tensor is missing from `base`, or writing fails.
    pub fn write(&self, base: &Tensors, writer: &mut dyn Write) -> io::Result<()> {
        let mut end = 0;
        let mut scales = HostTensor::default();
        for (part, name, content) in &self.order {
            let entry = &self.entries[part];
            let tensor = || base.get(name).ok_or_else(|| io::Error::other(format!("tensor {name} is missing")));
            io::copy(&mut io::Read::take(io::repeat(0), entry.offset - end), writer)?;
            match content {
                Content::F32 => tensor()?.write_le(writer)?,
                Content::Angles(angles) => angles.values().write_le(writer)?,
                Content::F16 => {
                    let halves = tensor()?.values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes());
                    writer.write_all(&halves.collect::<Vec<u8>>())?;
                }
                Content::Integers(matrix) => {
                    let quantised = self.quantise(*matrix, &tensor()?.values);
                    writer.write_all(&quantised.integers)?;
                    scales.values = quantised.scales;
                }
                Content::Scales => scales.write_le(writer)?,
                Content::ZeroPoints => {
                    io::copy(&mut io::Read::take(io::repeat(0x88), entry.length), writer)?;
                }
            }
            end = entry.offset + entry.length;
        }
        Ok(())
    }

    /// How many bits a value of a matrix takes, with its share of what its integers are multiplied with.
    pub fn bits(&self) -> f64 {
        let matrices = |(_, name, content): &&(String, String, Content)| {
            !matches!(content, Content::Angles(_) | Content::ZeroPoints)
                && self.shapes.get(name).is_some_and(|shape| Matrix::of(name, shape).is_some())
        };
        let bytes: u64 = self.order.iter().filter(matrices).map(|(part, ..)| self.entries[part].length).sum();
        let shapes = self.shapes.iter().filter(|(name, shape)| Matrix::of(name, shape).is_some());
        let values: usize = shapes.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        8.0 * bytes as f64 / values as f64
    }

    /// The weights as a bundle of this precision holds them, in f32.
    pub fn rounded(&self, mut base: Tensors) -> Tensors {
        for (_, name, content) in &self.order {
            let Some(tensor) = base.get_mut(name) else { continue };
            match content {
                Content::F16 => {
                    tensor.values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
                }
                Content::Integers(matrix) => {
                    tensor.values = self.quantise(*matrix, &tensor.values).values(
                        matrix.order,
                        matrix.columns,
                        self.blocks(*matrix).0,
                    );
                }
                Content::F32 | Content::Angles(_) | Content::Scales | Content::ZeroPoints => {}
            }
        }
        base
    }

    fn quantise(&self, matrix: Matrix, values: &[f32]) -> Quantised {
        match self.blocks(matrix) {
            (8, _) => quantise::to_int8(values, matrix.order, matrix.columns),
            (_, block) => quantise::to_int4(values, matrix.order, matrix.columns, block),
        }
    }

    /// A tensor that is not one of integers, in f32.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn tensor(&self, graph: &mut Graph, name: &str) -> Result<Value, GraphError> {
        let shape = self.shape(name)?.iter().map(|&dim| dim.into()).collect::<Vec<_>>();
        let is_angle = ANGLES.contains(&name);
        if self.precision == Precision::Fp16 && !is_angle && Matrix::of(name, self.shape(name)?).is_some() {
            let stored = graph.weight(name, TensorType { dtype: DataType::F16, shape });
            return graph.cast(stored, DataType::F32);
        }
        Ok(graph.weight(name, TensorType::f32(shape)))
    }

    /// Token embeddings: the rows of wte that `ids` names.
    ///
    /// # Errors
    /// `ids` are no i64.
    pub fn embedding(&self, graph: &mut Graph, ids: Value) -> Result<Value, GraphError> {
        let Some(matrix) = self.quantised(names::WTE)? else {
            let table = self.tensor(graph, names::WTE)?;
            return graph.gather(table, ids);
        };
        let (bits, block) = self.blocks(matrix);
        let packed = u8s(&[matrix.columns, matrix.inner * bits / 8]);
        let integers = graph.weight(&integers(names::WTE), packed);
        let blocks = matrix.inner / block;
        let scales = self.block_scales(graph, names::WTE, matrix)?;
        let scales = graph.reshape(scales, &[matrix.columns.into(), blocks.into()])?;
        graph.gather_block_quantized([integers, scales], ids, bits, block)
    }

    /// A linear layer, x W, and + b where the model has biases: x \[N, in\], W \[in, out\]. Its gradient reads the same W transposed.
    ///
    /// # Errors
    /// There is no such layer, or x does not fit.
    pub fn linear(&self, graph: &mut Graph, x: Value, layer: &Pair, rows: Rows) -> Result<Value, GraphError> {
        let bias = if self.bias { Some(self.tensor(graph, &layer.bias)?) } else { None };
        match self.quantised(&layer.weight)? {
            Some(matrix) => self.product(graph, x, (&layer.weight, matrix), bias, rows),
            None => {
                let weight = self.tensor(graph, &layer.weight)?;
                graph.gemm(x, weight, bias, Transposed::default())
            }
        }
    }

    /// The language-model head, x Eᵀ: x \[N, D\], E \[V, D\] the token embedding or the head's own.
    ///
    /// # Errors
    /// x does not fit.
    pub fn head(&self, graph: &mut Graph, x: Value, rows: Rows) -> Result<Value, GraphError> {
        match self.quantised(self.head)? {
            Some(matrix) => self.product(graph, x, (self.head, matrix), None, rows),
            None => {
                let embedding = self.tensor(graph, self.head)?;
                graph.gemm(x, embedding, None, Transposed { a: false, b: true })
            }
        }
    }

    fn quantised(&self, name: &str) -> Result<Option<Matrix>, GraphError> {
        let matrix = Matrix::of(name, self.shape(name)?);
        Ok(matrix.filter(|_| self.precision.is_integer()))
    }

    /// One scale for each block, \[N · K / block\].
    fn block_scales(&self, graph: &mut Graph, name: &str, matrix: Matrix) -> Result<Value, GraphError> {
        let (bits, block) = self.blocks(matrix);
        let blocks = matrix.inner / block;
        let all = matrix.columns * blocks;
        if bits == 4 {
            return Ok(graph.weight(&scales(name), TensorType::f32([all.into()])));
        }
        let column = graph.weight(&scales(name), TensorType::f32([matrix.columns.into(), 1.into()]));
        let repeated = graph.expand(column, &[matrix.columns.into(), blocks.into()])?;
        graph.reshape(repeated, &[all.into()])
    }

    fn product(
        &self,
        graph: &mut Graph,
        x: Value,
        (name, matrix): (&str, Matrix),
        bias: Option<Value>,
        rows: Rows,
    ) -> Result<Value, GraphError> {
        let Matrix { columns, inner, .. } = matrix;
        let (bits, block) = self.blocks(matrix);
        // No standard operator reads integers in small pieces.
        if rows == Rows::Many || self.operators == Operators::Standard {
            return if bits == 8 {
                let stored = graph.weight(&integers(name), u8s(&[columns, inner]));
                let scales = graph.weight(&scales(name), TensorType::f32([columns.into()]));
                graph.quantized_mat_mul(x, ops::Matrix::Bytes, &[stored, scales], bias)
            } else {
                let four_bits =
                    |width: usize| TensorType { dtype: DataType::U4, shape: vec![columns.into(), width.into()] };
                let stored = graph.weight(&integers(name), four_bits(inner));
                let zeros = graph.weight(ZERO_POINTS, four_bits(inner / block));
                let scales = graph.weight(&scales(name), TensorType::f32([columns.into(), (inner / block).into()]));
                graph.quantized_mat_mul(x, ops::Matrix::Blocks { block }, &[stored, scales, zeros], bias)
            };
        }
        let stored = graph.weight(&integers(name), u8s(&[columns, inner / block, block * bits / 8]));
        let scales = self.block_scales(graph, name, matrix)?;
        graph.few_rows_mat_mul(x, [stored, scales], bias, bits, block)
    }
}

fn u8s(shape: &[usize]) -> TensorType {
    TensorType { dtype: DataType::U8, shape: shape.iter().map(|&dim| dim.into()).collect() }
}
