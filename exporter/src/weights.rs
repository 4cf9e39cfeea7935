//! The frozen weights φ: how they are stored in `weights.bin` and how a graph multiplies with them. What a precision means is
//! said here and nowhere else.
//!
//! | precision | embedding and matrices | a product with few rows | with many |
//! |---|---|---|---|
//! | fp32 | f32 | `Gemm` | `Gemm` |
//! | fp16 | f16 | `Gemm` in f32 after a `Cast`, which is done when the graph is opened | the same |
//! | int8 | u8, a scale a column | `FewRowsMatMul` | `QuantizedMatMul`, both ways |
//! | int4 | 4 bits, in blocks of 32 a scale and a minimum of f16: 5 bits a value | `FewRowsAffineMatMul` | `AffineMatMul`, back with bytes made of the stored integers |
//!
//! With standard operators alone all products of integers are those with many rows.
//!
//! Vectors (biases, normalisations), position embeddings and the angles of rotary ones stay f32. Matrices of integers are stored as \[N, K\], the N columns of
//! a layer one after the other, which is how a column is read, and how the gradient reads the matrix: dx = dy Wᵀ.

use std::collections::BTreeMap;
use std::io::{self, Write};

use half::f16;
use marionette_kernels::quantise::{self, Quantised, QuantisedBlocks};
use marionette_models::bundle::{DataType, Operators, Precision};
use marionette_models::params::Order;
use marionette_models::params::names::{self, Pair};
use marionette_models::{HostTensor, ModelConfig, Positions, Tensors, params};

use crate::calibration::Calibration;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::ops::{self, Transposed};
use crate::shape::TensorType;

/// Every part begins at a multiple of this many bytes, so that the file can be mapped into memory (`onnx.proto`,
/// `TensorProto.external_data`).
const ALIGNMENT: u64 = 4096;
/// The cosines and sines of each position's angles, \[P, dh / 2\], where positions are rotary (Su et al. 2021).
pub(crate) const ANGLES: [&str; 2] = ["rotary.cos", "rotary.sin"];
/// The longest blocks of 8 bits: a whole column has one scale, and the block is only how it is read.
const BLOCK_INT8: usize = 256;

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
    /// A matrix's integers, and right after them what they are multiplied with, and of 4 bits what is added.
    Integers(Matrix),
    Scales,
    Minima,
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
        Order::of(name, shape).map(|(order, [columns, inner])| Self { columns, inner, order })
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
    /// How many 4-bit integers have one scale: the same for all matrices, since a function of a graph has one body.
    block: usize,
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

fn minima(name: &str) -> String {
    format!("{name}.minima")
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
        let matrices = params::base_table(config);
        let matrices = matrices.iter().filter_map(|spec| Matrix::of(&spec.name, &spec.shape));
        let block = quantise::block_of_int4(matrices.map(|matrix| matrix.inner));
        let mut plan = Self { bias: config.bias, head, precision, operators, block, order, entries, shapes };
        for spec in params::base_table(config) {
            let (name, len) = (&spec.name, spec.len());
            let Some(matrix) = Matrix::of(name, &spec.shape) else {
                plan.push(name.clone(), name, Content::F32, 4 * len);
                continue;
            };
            if precision.is_integer() && !quantise::has_blocks(matrix.inner) {
                return Err(GraphError::Width { precision, tensor: spec.name, width: matrix.inner });
            }
            match precision {
                Precision::Fp32 => plan.push(name.clone(), name, Content::F32, 4 * len),
                Precision::Fp16 => plan.push(name.clone(), name, Content::F16, 2 * len),
                Precision::Int8 => {
                    plan.push(integers(name), name, Content::Integers(matrix), len);
                    plan.push(scales(name), name, Content::Scales, 4 * matrix.columns);
                }
                Precision::Int4 => {
                    plan.push(integers(name), name, Content::Integers(matrix), len / 2);
                    plan.push(scales(name), name, Content::Scales, 2 * len / block);
                    plan.push(minima(name), name, Content::Minima, 2 * len / block);
                }
            }
        }
        for (name, angles) in Angles::of(config).into_iter().flatten() {
            let shape = vec![config.n_positions, config.head_dim / 2];
            plan.push(name.to_owned(), "", Content::Angles(angles), 4 * shape.iter().product::<usize>());
            plan.shapes.insert(name.to_owned(), shape);
        }
        Ok(plan)
    }

    fn push(&mut self, part: String, tensor: &str, content: Content, length: usize) {
        let end = self.order.last().map_or(0, |(part, ..)| self.entries[part].offset + self.entries[part].length);
        let entry = Entry { offset: end.next_multiple_of(ALIGNMENT), length: length as u64 };
        self.entries.insert(part.clone(), entry);
        self.order.push((part, tensor.to_owned(), content));
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
            let halves = match content {
                Content::F16 => true,
                Content::Integers(_) => self.precision == Precision::Int4,
                Content::F32 | Content::Angles(_) | Content::Scales | Content::Minima => false,
            };
            let Some(tensor) = base.get(name).filter(|_| halves) else { continue };
            if let Some(value) = quantise::beyond_half(&tensor.values) {
                let (precision, tensor) = (self.precision, name.clone());
                return Err(GraphError::Range { precision, tensor, value: value.to_string() });
            }
        }
        Ok(())
    }

    /// The matrices whose rounding is worth making up for, of a model that has no tensor missing: of 4-bit integers those that rounding
    /// changes, of 8-bit ones the head, whose errors are the logits' own.
    pub(crate) fn rounded_names<'a>(&'a self, base: &'a Tensors) -> impl Iterator<Item = &'a str> {
        let matrices = self.order.iter().filter_map(|(_, name, content)| match content {
            Content::Integers(matrix) => Some((name, matrix, base.get(name)?)),
            _ => None,
        });
        let is_rounded =
            |(name, Matrix { columns, order, .. }, tensor): &(&String, &Matrix, &HostTensor)| match self.precision {
                Precision::Int4 => !quantise::is_on_grids(&tensor.values, *order, *columns, self.block),
                _ => *name == self.head,
            };
        matrices.filter(is_rounded).map(|(name, ..)| name.as_str())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// A tensor is missing from `base`, or writing fails.
    pub fn write(&self, base: &Tensors, calibration: &Calibration, writer: &mut dyn Write) -> io::Result<()> {
        let mut end = 0;
        let (mut scales, mut minima) = (Vec::new(), Vec::new());
        let halves = |values: &[f16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        for (part, name, content) in &self.order {
            let entry = &self.entries[part];
            let tensor = || base.get(name).ok_or_else(|| io::Error::other(format!("tensor {name} is missing")));
            io::copy(&mut io::Read::take(io::repeat(0), entry.offset - end), writer)?;
            match content {
                Content::F32 => tensor()?.write_le(writer)?,
                Content::Angles(angles) => angles.values().write_le(writer)?,
                Content::F16 => {
                    let values: Vec<f16> = tensor()?.values.iter().map(|&value| f16::from_f32(value)).collect();
                    writer.write_all(&halves(&values))?;
                }
                Content::Integers(matrix) if self.precision == Precision::Int8 => {
                    let quantised = to_int8(name, *matrix, tensor()?, calibration);
                    writer.write_all(&quantised.integers)?;
                    scales = quantised.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
                }
                Content::Integers(matrix) => {
                    let quantised = self.to_int4(name, *matrix, tensor()?, calibration);
                    writer.write_all(&quantised.integers)?;
                    (scales, minima) = (halves(&quantised.scales), halves(&quantised.minima));
                }
                Content::Scales => writer.write_all(&scales)?,
                Content::Minima => writer.write_all(&minima)?,
            }
            end = entry.offset + entry.length;
        }
        Ok(())
    }

    /// How many bits a value of a matrix takes, with its share of what its integers are multiplied with.
    pub fn bits(&self) -> f64 {
        let matrices = |(_, name, content): &&(String, String, Content)| {
            !matches!(content, Content::Angles(_))
                && self.shapes.get(name).is_some_and(|shape| Matrix::of(name, shape).is_some())
        };
        let bytes: u64 = self.order.iter().filter(matrices).map(|(part, ..)| self.entries[part].length).sum();
        let shapes = self.shapes.iter().filter(|(name, shape)| Matrix::of(name, shape).is_some());
        let values: usize = shapes.map(|(_, shape)| shape.iter().product::<usize>()).sum();
        8.0 * bytes as f64 / values as f64
    }

    /// The weights as a bundle of this precision holds them, in f32.
    pub fn rounded(&self, mut base: Tensors, calibration: &Calibration) -> Tensors {
        for (_, name, content) in &self.order {
            let Some(tensor) = base.get_mut(name) else { continue };
            match content {
                Content::F16 => {
                    tensor.values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
                }
                Content::Integers(matrix) => {
                    tensor.values = match self.precision {
                        Precision::Int4 => {
                            self.to_int4(name, *matrix, tensor, calibration).values(matrix.order, matrix.columns)
                        }
                        _ => to_int8(name, *matrix, tensor, calibration).values(matrix.order),
                    };
                }
                Content::F32 | Content::Angles(_) | Content::Scales | Content::Minima => {}
            }
        }
        base
    }

    fn to_int4(&self, name: &str, matrix: Matrix, tensor: &HostTensor, calibration: &Calibration) -> QuantisedBlocks {
        let compensation = calibration.compensation(name);
        quantise::to_int4(&tensor.values, matrix.order, matrix.columns, self.block, compensation.as_ref())
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

    /// Whether the blocks of a graph of few rows are one operator each: those of integers, which are read so fast that the nodes around
    /// their products take as long as these.
    pub(crate) fn has_whole_blocks(&self) -> bool {
        self.precision.is_integer() && self.operators == Operators::Ort
    }

    /// The parts of a layer that its products are made with, in the order in which they are stored, and its bias.
    ///
    /// # Errors
    /// There is no such layer.
    pub(crate) fn parts(&self, layer: &Pair) -> Result<Vec<String>, GraphError> {
        let weight = &layer.weight;
        let mut parts = match self.quantised(weight)? {
            Some(_) if self.precision == Precision::Int4 => vec![integers(weight), scales(weight), minima(weight)],
            Some(_) => vec![integers(weight), scales(weight)],
            None => vec![weight.clone()],
        };
        parts.extend(self.bias.then(|| layer.bias.clone()));
        Ok(parts)
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
        let Matrix { columns, inner, .. } = matrix;
        if self.precision == Precision::Int4 {
            let integers = graph.weight(&integers(names::WTE), typed(DataType::U8, &[columns, inner / 2]));
            let [scales, minima] = self.halves(graph, names::WTE, matrix);
            return graph.gather_affine([integers, scales, minima], ids);
        }
        let block = quantise::block(matrix.inner, BLOCK_INT8);
        let integers = graph.weight(&integers(names::WTE), typed(DataType::U8, &[columns, inner]));
        let scales = repeated(graph, names::WTE, matrix)?;
        let scales = graph.reshape(scales, &[columns.into(), (inner / block).into()])?;
        graph.gather_block_quantized([integers, scales], ids, block)
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

    /// Scales and minima of 4-bit integers, \[N, K / block\].
    fn halves(&self, graph: &mut Graph, name: &str, matrix: Matrix) -> [Value; 2] {
        let shape = [matrix.columns, matrix.inner / self.block];
        [scales(name), minima(name)].map(|part| graph.weight(&part, typed(DataType::F16, &shape)))
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
        // No standard operator reads integers in small pieces.
        let many = rows == Rows::Many || self.operators == Operators::Standard;
        let part = integers(name);
        if self.precision == Precision::Int4 {
            let [scales, minima] = self.halves(graph, name, matrix);
            let block = self.block;
            return if many {
                let stored = graph.weight(&part, typed(DataType::U4, &[columns, inner]));
                graph.quantized_mat_mul(x, ops::Matrix::Affine { block }, &[stored, scales, minima], bias)
            } else {
                let stored = graph.weight(&part, typed(DataType::U8, &[columns, inner / block, block / 2]));
                graph.few_rows_affine_mat_mul(x, [stored, scales, minima], bias)
            };
        }
        if many {
            let stored = graph.weight(&part, typed(DataType::U8, &[columns, inner]));
            let scales = graph.weight(&scales(name), TensorType::f32([columns.into()]));
            return graph.quantized_mat_mul(x, ops::Matrix::Bytes, &[stored, scales], bias);
        }
        let block = quantise::block(matrix.inner, BLOCK_INT8);
        let stored = graph.weight(&part, typed(DataType::U8, &[columns, inner / block, block]));
        let scales = repeated(graph, name, matrix)?;
        graph.few_rows_mat_mul(x, [stored, scales], bias)
    }
}

fn to_int8(name: &str, matrix: Matrix, tensor: &HostTensor, calibration: &Calibration) -> Quantised {
    let compensation = calibration.compensation(name);
    quantise::to_int8(&tensor.values, matrix.order, matrix.columns, compensation.as_ref())
}

/// The scales of 8-bit integers' columns, one for each block in which they are read, \[N · K / block\].
fn repeated(graph: &mut Graph, name: &str, matrix: Matrix) -> Result<Value, GraphError> {
    let blocks = matrix.inner / quantise::block(matrix.inner, BLOCK_INT8);
    let column = graph.weight(&scales(name), TensorType::f32([matrix.columns.into(), 1.into()]));
    let repeated = graph.expand(column, &[matrix.columns.into(), blocks.into()])?;
    graph.reshape(repeated, &[(matrix.columns * blocks).into()])
}

fn typed(dtype: DataType, shape: &[usize]) -> TensorType {
    TensorType { dtype, shape: shape.iter().map(|&dim| dim.into()).collect() }
}
