//! Models and adapters on disk: the Hugging Face layout of each family, and adapters alone.

mod base;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub use base::BaseFiles;

use crate::config::{AdapterConfig, ModelConfig};
use crate::error::{FileError, Result};
use crate::families::Stored;
use crate::params::{self, HostTensor, TensorSpec, Tensors};
use crate::safetensors_file::{self, FileMetadata, RawTensor, Reader};
use crate::{files, layout};

/// The file names of a Hugging Face model folder.
pub const CONFIG_JSON: &str = "config.json";
/// The weights.
pub const MODEL_SAFETENSORS: &str = "model.safetensors";
/// φ: a pre-trained model.
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// Its hyper-parameters.
    pub config: ModelConfig,
    /// Its tensors, exactly those of [`params::base_table`].
    pub tensors: Tensors,
    /// What whoever gave the folder should know of how it was understood, a line each.
    pub notes: Vec<String>,
}

impl Base {
    /// The same model with a shorter context: it computes the same for sequences that fit. Learned positions beyond it are gone.
    ///
    /// # Errors
    /// The model's context is shorter than that.
    pub fn with_context(mut self, context: usize) -> Result<Self, String> {
        self.config.shorten(context)?;
        for spec in params::base_table(&self.config) {
            if let Some(tensor) = self.tensors.get_mut(&spec.name).filter(|tensor| tensor.shape != spec.shape) {
                // The embedding of positions, a row each.
                tensor.values.truncate(spec.len());
                tensor.shape = spec.shape;
            }
        }
        Ok(self)
    }
}

/// The type in which a model's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point (half the size; values rounded to 11 significant bits).
    F16,
}

/// Reads a model in the Hugging Face layout, all of it ([`BaseFiles::open`], [`BaseFiles::read`]).
///
/// # Errors
/// Theirs.
pub fn read_base(dir: &Path) -> Result<Base> {
    BaseFiles::open(dir)?.read()
}

/// A name without the family's prefix.
fn bare(config: &ModelConfig, name: &str) -> String {
    name.strip_prefix(config.family.plug().prefix()).unwrap_or(name).to_owned()
}

/// How the tensors of the table are stored, named without the prefix.
fn stored(config: &ModelConfig) -> Vec<Stored> {
    config.family.plug().stored(config).into_iter().map(|stored| stored.renamed(|name| bare(config, name))).collect()
}

/// The tensors of [`params::base_table`] from those that a Hugging Face folder has, named with or without the family's prefix.
///
/// # Errors
/// The tensor that is missing, misshapen or left over, and the problem.
pub fn assemble(config: &ModelConfig, found: Tensors) -> Result<Tensors, (String, String)> {
    let found = found.into_iter().map(|(name, tensor)| (bare(config, &name), tensor)).collect();
    layout::gather(&params::base_table(config), &stored(config), found)
}

/// Checks that exactly the tensors of `table` are there, each with its shape.
fn check_against(path: &Path, table: &[TensorSpec], found: &BTreeMap<&str, &[usize]>) -> Result<()> {
    for spec in table {
        match found.get(spec.name.as_str()) {
            None => {
                return Err(FileError::new(path, format!("is missing, expected shape {:?}", spec.shape)).at(&spec.name));
            }
            Some(shape) if *shape != spec.shape => {
                let problem = format!("has shape {shape:?}, expected {:?}", spec.shape);
                return Err(FileError::new(path, problem).at(&spec.name));
            }
            Some(_) => {}
        }
    }
    if found.len() != table.len() {
        let known: BTreeSet<&str> = table.iter().map(|spec| spec.name.as_str()).collect();
        if let Some(name) = found.keys().find(|name| !known.contains(*name)) {
            return Err(FileError::new(path, "does not belong to this model").at(name));
        }
    }
    Ok(())
}

/// Writes `config.json` and `model.safetensors` into an existing folder, each atomically.
///
/// # Errors
/// A tensor is missing or misshapen, or writing fails.
pub fn write_base(dir: &Path, config: &ModelConfig, tensors: &Tensors, storage: Storage) -> Result<()> {
    let path = dir.join(MODEL_SAFETENSORS);
    let shapes = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice())).collect();
    check_against(&path, &params::base_table(config), &shapes)?;
    let store = |tensor: &HostTensor| match storage {
        Storage::F32 => RawTensor::f32(&tensor.shape, &tensor.values),
        Storage::F16 => RawTensor::f16(&tensor.shape, &tensor.values),
    };
    let stored = config.family.plug().stored(config);
    let raw = layout::scatter(&params::base_table(config), &stored, tensors, store);
    safetensors_file::write(&path, &raw, FileMetadata::HuggingFace)?;
    let json = format!("{:#}\n", config.to_hugging_face());
    files::write_atomic(&dir.join(CONFIG_JSON), |writer| writer.write_all(json.as_bytes()))
}

/// Reads Φ and its metadata.
///
/// # Errors
/// The file is wrong or was changed since it was written; a tensor is missing, left over, misshapen, no floating point, or holds NaN
/// or infinity.
pub fn read_adapters(
    path: &Path,
    config: &ModelConfig,
    adapter: &AdapterConfig,
) -> Result<(Tensors, BTreeMap<String, String>)> {
    read_table(path, &params::adapter_table(config, adapter))
}

/// Reads the tensors of a table and their metadata.
///
/// # Errors
/// As [`read_adapters`].
pub fn read_table(path: &Path, table: &[TensorSpec]) -> Result<(Tensors, BTreeMap<String, String>)> {
    let reader = Reader::open(path)?;
    let metadata = reader.metadata().clone();
    let shapes = reader.entries().iter().map(|entry| (entry.name.as_str(), entry.shape.as_slice())).collect();
    check_against(path, table, &shapes)?;
    let mut found = Tensors::new();
    for tensor in reader.tensors(|_| Ok(true))? {
        let (name, tensor) = tensor?;
        let tensor = tensor.to_f32().map_err(|problem| FileError::new(path, problem).at(&name))?;
        found.insert(name, tensor);
    }
    Ok((found, metadata))
}

/// Writes Φ and its metadata atomically.
///
/// # Errors
/// A value is NaN or infinite (such adapters are never saved), or writing fails.
pub fn write_adapters(path: &Path, adapters: &Tensors, metadata: &BTreeMap<String, String>) -> Result<()> {
    let raw = adapters_to_raw(adapters).map_err(|(name, problem)| FileError::new(path, problem).at(name))?;
    safetensors_file::write(path, &raw, FileMetadata::Ours(metadata))
}

/// Φ as it is stored.
///
/// # Errors
/// The tensor that holds NaN or infinity.
pub fn adapters_to_raw(adapters: &Tensors) -> Result<BTreeMap<String, RawTensor>, (String, String)> {
    adapters
        .iter()
        .map(|(name, tensor)| match tensor.values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err((name.clone(), format!("holds {value}: it is not saved"))),
            None => Ok((name.clone(), RawTensor::f32(&tensor.shape, &tensor.values))),
        })
        .collect()
}
