//! What a bundle says about itself.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::{AdapterConfig, ModelConfig};
use crate::inner_loop::InnerLoop;
use crate::onnx::data_type;
use crate::prompt_form::PromptForm;

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the bundle's format.
    pub format_version: u32,
    /// The program that wrote it, with its version.
    pub producer: String,
    /// The sizes and parts of the model.
    pub model: ModelConfig,
    /// How a dialogue becomes tokens.
    pub prompt: PromptForm,
    /// The adapters' shape.
    pub adapter: AdapterConfig,
    /// The digest of φ ([`crate::digest::base_sha256`]), to which persona files belong.
    pub base_sha256: String,
    /// How the frozen weights are stored.
    pub precision: Precision,
    /// Which operators the graphs use.
    pub operators: Operators,
    /// The inner loop that a device follows unless told otherwise.
    pub inner_loop: InnerLoop,
    /// Whether persona sentences are put in front of each dialogue.
    pub persona_text: bool,
    /// Every file of the bundle except the manifest.
    pub files: BTreeMap<String, FileEntry>,
    /// What each graph takes and gives.
    pub graphs: BTreeMap<String, GraphInterface>,
}

/// How the frozen weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    Fp32,
    /// 16-bit floating point.
    Fp16,
    /// Matrices as 8-bit integers, with one scale a column.
    Int8,
    /// Matrices as 4-bit integers, with one scale for a block of a column.
    Int4,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Fp32, Self::Fp16, Self::Int8, Self::Int4];

    /// As the command line and the manifest spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Whether matrices are integers.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }
}

/// The precision of that name.
impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|precision| precision.name() == name);
        found.ok_or_else(|| format!("is {name:?}, expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// As the command line and the manifest spell it.
impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which operators the graphs use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operators {
    /// ONNX's own, ONNX Runtime's (`com.microsoft`), and functions of ours (`marionette`).
    Ort,
    /// ONNX's own alone.
    Standard,
}

impl Operators {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ort, Self::Standard];
}

/// As the command line and the manifest spell it.
impl fmt::Display for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ort => "ort",
            Self::Standard => "standard",
        })
    }
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

/// What a graph takes and gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphInterface {
    /// The file of the graph.
    pub file: String,
    /// What it takes.
    pub inputs: Vec<ValueInfo>,
    /// What it gives.
    pub outputs: Vec<ValueInfo>,
    /// The memory that a run takes, of the graphs that adapt and of what lies below them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<RunMemory>,
}

/// The most memory that the values of a run take at one time, in bytes: a bound that is linear in what is computed. Weights, and what a
/// runtime makes of them, are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunMemory {
    /// However little is computed.
    pub constant: u64,
    /// For each token, padding counted.
    pub token: u64,
    /// For each pair of tokens of a row: for each row, as often as its length squared.
    pub pair: u64,
    /// For each token that has to be predicted.
    pub target: u64,
}

impl RunMemory {
    /// Of a batch of rows of one length, with so many targets in all.
    pub fn of(&self, rows: usize, length: usize, targets: usize) -> u64 {
        let [rows, length, targets] = [rows, length, targets].map(|number| number as u64);
        let tokens = rows.saturating_mul(length);
        [(self.token, tokens), (self.pair, tokens.saturating_mul(length)), (self.target, targets)]
            .into_iter()
            .fold(self.constant, |sum, (bytes, number)| sum.saturating_add(bytes.saturating_mul(number)))
    }
}

/// An input or output of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: DataType,
    /// Its shape.
    pub shape: Vec<Dim>,
}

/// The type of a value's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataType {
    /// 32-bit floating point.
    F32,
    /// 64-bit floating point.
    F64,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// Truth values.
    Bool,
    /// 16-bit floating point.
    F16,
    /// Bytes.
    U8,
    /// Halves of bytes, the lower one first.
    U4,
}

impl DataType {
    /// ONNX's number for it.
    pub fn onnx(self) -> i32 {
        match self {
            Self::F32 => data_type::FLOAT,
            Self::F64 => data_type::DOUBLE,
            Self::I32 => data_type::INT32,
            Self::I64 => data_type::INT64,
            Self::Bool => data_type::BOOL,
            Self::F16 => data_type::FLOAT16,
            Self::U8 => data_type::UINT8,
            Self::U4 => data_type::UINT4,
        }
    }
}

/// One dimension of a shape: a number, or the name of one that is known when the graph runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// Known.
    Fixed(u64),
    /// Known by name.
    Symbol(String),
}
