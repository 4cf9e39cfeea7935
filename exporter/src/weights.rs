//! The frozen weights φ: how they are stored in `weights.bin` and how a graph multiplies with them. Another precision is
//! another arm of the matches below, and nothing else.

use std::collections::BTreeMap;
use std::io::{self, Write};

use marionette_models::bundle::Precision;
use marionette_models::params::names::{self, Pair};
use marionette_models::{Gpt2Config, Tensors, params};

use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::ops::Transposed;

/// Every tensor begins at a multiple of this many bytes, so that the file can be mapped into memory (`onnx.proto`,
/// `TensorProto.external_data`).
const ALIGNMENT: u64 = 4096;

/// Where a tensor lies in `weights.bin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its first byte.
    pub offset: u64,
    /// Its number of bytes.
    pub length: u64,
}

/// The plan of `weights.bin`, one copy for all graphs.
#[derive(Debug, Clone)]
pub struct Weights {
    precision: Precision,
    /// In the order of the file.
    order: Vec<String>,
    entries: BTreeMap<String, Entry>,
}

impl Weights {
    /// Plans the file for a model.
    pub fn new(config: &Gpt2Config, precision: Precision) -> Self {
        let mut end = 0;
        let mut order = Vec::new();
        let mut entries = BTreeMap::new();
        for spec in params::base_table(config) {
            let length = match precision {
                Precision::Fp32 => spec.len() as u64 * 4,
            };
            let offset = u64::next_multiple_of(end, ALIGNMENT);
            end = offset + length;
            order.push(spec.name.clone());
            entries.insert(spec.name, Entry { shape: spec.shape, offset, length });
        }
        Self { precision, order, entries }
    }

    /// Where a tensor lies.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn entry(&self, name: &str) -> Result<&Entry, GraphError> {
        self.entries.get(name).ok_or_else(|| GraphError::UnknownWeight(name.to_owned()))
    }

    /// How the weights are stored.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Writes the file.
    ///
    /// # Errors
    /// A tensor is missing from `base`, or writing fails.
    pub fn write(&self, base: &Tensors, writer: &mut dyn Write) -> io::Result<()> {
        let mut end = 0;
        for name in &self.order {
            let missing = || io::Error::other(format!("tensor {name} is missing"));
            let (entry, tensor) = (&self.entries[name], base.get(name).ok_or_else(missing)?);
            io::copy(&mut io::Read::take(io::repeat(0), entry.offset - end), writer)?;
            match self.precision {
                Precision::Fp32 => tensor.write_le(writer)?,
            }
            end = entry.offset + entry.length;
        }
        Ok(())
    }

    /// A tensor as it is: an embedding, a scale, a bias.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn tensor(&self, graph: &mut Graph, name: &str) -> Result<Value, GraphError> {
        Ok(graph.weight(name, &self.entry(name)?.shape))
    }

    /// A linear layer, x W + b: x \[N, in\], W \[in, out\]. Its gradient reads the same W transposed.
    ///
    /// # Errors
    /// There is no such layer, or x does not fit.
    pub fn linear(&self, graph: &mut Graph, x: Value, layer: &Pair) -> Result<Value, GraphError> {
        let bias = self.tensor(graph, &layer.bias)?;
        match self.precision {
            Precision::Fp32 => {
                let weight = self.tensor(graph, &layer.weight)?;
                graph.gemm(x, weight, Some(bias), Transposed::default())
            }
        }
    }

    /// The language-model head, x Eᵀ: x \[N, D\], E \[V, D\] the token embedding.
    ///
    /// # Errors
    /// x does not fit.
    pub fn head(&self, graph: &mut Graph, x: Value) -> Result<Value, GraphError> {
        match self.precision {
            Precision::Fp32 => {
                let embedding = self.tensor(graph, names::WTE)?;
                graph.gemm(x, embedding, None, Transposed { a: false, b: true })
            }
        }
    }
}
