//! Models and adapters on disk: the Hugging Face layout of GPT-2, and adapters alone.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::{AdapterConfig, Gpt2Config};
use crate::error::{FileError, Result};
use crate::files;
use crate::params::{self, HostTensor, TensorSpec, Tensors, names};
use crate::safetensors_file::{self, FileMetadata, RawTensor, Reader};

/// The file names of a Hugging Face model folder.
pub const CONFIG_JSON: &str = "config.json";
/// The weights.
pub const MODEL_SAFETENSORS: &str = "model.safetensors";
/// What `save_pretrained` of older transformers puts before every name.
const PREFIX: &str = "transformer.";
/// The language-model head, stored by some writers although it is tied to the embedding.
const LM_HEAD: &str = "lm_head.weight";

/// φ: a pre-trained GPT-2.
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// Its hyper-parameters.
    pub config: Gpt2Config,
    /// Its tensors, exactly those of [`params::base_table`].
    pub tensors: Tensors,
}

/// The type in which a model's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point (half the size; values rounded to 11 significant bits).
    F16,
}

/// Reads a GPT-2 in the Hugging Face layout: `config.json` and `model.safetensors` (F32, F16 or BF16). Names may carry the
/// prefix `transformer.`; the causal-mask buffers of old files and a head equal to the embedding are passed over.
///
/// # Errors
/// A file is missing or wrong; a tensor is missing, left over, has another shape, or holds NaN or infinity.
pub fn read_base(dir: &Path) -> Result<Base> {
    if !dir.is_dir() {
        return Err(FileError::new(dir, "is not a folder")
            .remedy("give a Hugging Face model folder with config.json, model.safetensors and a tokenizer"));
    }
    let config = Gpt2Config::from_file(&dir.join(CONFIG_JSON))?;
    let path = dir.join(MODEL_SAFETENSORS);
    let mut found = Tensors::new();
    for entry in Reader::open(&path)? {
        let (name, tensor) = entry?;
        let name = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
        if is_mask_buffer(&name) {
            continue;
        }
        let tensor = tensor.to_f32().map_err(|problem| FileError::new(&path, problem).at(&name))?;
        if found.insert(name.clone(), tensor).is_some() {
            return Err(FileError::new(&path, format!("is there with and without the prefix \"{PREFIX}\"")).at(name));
        }
    }
    if let Some(head) = found.remove(LM_HEAD)
        && found.get(names::WTE) != Some(&head)
    {
        return Err(
            FileError::new(&path, format!("differs from {}: an untied head is not supported", names::WTE)).at(LM_HEAD)
        );
    }
    check_against(&path, &params::base_table(&config), &found)?;
    Ok(Base { config, tensors: found })
}

/// `h.3.attn.bias` and `h.3.attn.masked_bias`: constants of the causal mask, not parameters.
fn is_mask_buffer(name: &str) -> bool {
    let mut parts = name.split('.');
    parts.next() == Some("h")
        && parts.next().is_some_and(|layer| !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit()))
        && parts.next() == Some("attn")
        && matches!(parts.next(), Some("bias" | "masked_bias"))
        && parts.next().is_none()
}

/// Checks that exactly the tensors of `table` are there, each with its shape.
fn check_against(path: &Path, table: &[TensorSpec], found: &Tensors) -> Result<()> {
    for spec in table {
        match found.get(&spec.name) {
            None => {
                return Err(FileError::new(path, format!("is missing, expected shape {:?}", spec.shape)).at(&spec.name));
            }
            Some(tensor) if tensor.shape != spec.shape => {
                let problem = format!("has shape {:?}, expected {:?}", tensor.shape, spec.shape);
                return Err(FileError::new(path, problem).at(&spec.name));
            }
            Some(_) => {}
        }
    }
    if found.len() != table.len() {
        let known: std::collections::BTreeSet<&str> = table.iter().map(|spec| spec.name.as_str()).collect();
        if let Some(name) = found.keys().find(|name| !known.contains(name.as_str())) {
            return Err(FileError::new(path, "does not belong to this model").at(name));
        }
    }
    Ok(())
}

/// Writes `config.json` and `model.safetensors` into an existing folder, each atomically.
///
/// # Errors
/// A tensor is missing or misshapen, or writing fails.
pub fn write_base(dir: &Path, config: &Gpt2Config, tensors: &Tensors, storage: Storage) -> Result<()> {
    let path = dir.join(MODEL_SAFETENSORS);
    check_against(&path, &params::base_table(config), tensors)?;
    let store = |tensor: &HostTensor| match storage {
        Storage::F32 => RawTensor::f32(&tensor.shape, &tensor.values),
        Storage::F16 => RawTensor::f16(&tensor.shape, &tensor.values),
    };
    let raw = tensors.iter().map(|(name, tensor)| (name.clone(), store(tensor))).collect();
    safetensors_file::write(&path, &raw, FileMetadata::HuggingFace)?;
    let json = format!("{:#}\n", config.to_hugging_face());
    files::write_atomic(&dir.join(CONFIG_JSON), |writer| writer.write_all(json.as_bytes()))
}

/// Reads Φ and its metadata.
///
/// # Errors
/// The file is wrong; a tensor is missing, left over, misshapen, not F32, or holds NaN or infinity.
pub fn read_adapters(
    path: &Path,
    config: &Gpt2Config,
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
    let mut found = Tensors::new();
    for entry in reader {
        let (name, tensor) = entry?;
        let tensor = tensor.to_f32().map_err(|problem| FileError::new(path, problem).at(&name))?;
        found.insert(name, tensor);
    }
    check_against(path, table, &found)?;
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
