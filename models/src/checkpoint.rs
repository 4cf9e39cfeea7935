//! Models and adapters on disk: the Hugging Face layout of each family, and adapters alone.

mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::config::{AdapterConfig, ModelConfig};
use crate::error::{FileError, Result};
use crate::family::Stored;
use crate::params::{self, HostTensor, TensorSpec, Tensors, names};
use crate::safetensors_file::{self, FileMetadata, RawTensor, Reader};
use crate::{files, layout};

/// The file names of a Hugging Face model folder.
pub const CONFIG_JSON: &str = "config.json";
/// The weights.
pub const MODEL_SAFETENSORS: &str = "model.safetensors";
/// Heads for other tasks than the next token, which a model may bring beside its own: GPT-2's double heads, the classifiers and
/// readers of transformers, the value head of TRL.
const OTHER_HEADS: [&str; 5] = ["multiple_choice_head.", "score.", "classifier.", "qa_outputs.", "v_head."];

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

/// The type in which a model's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point (half the size; values rounded to 11 significant bits).
    F16,
}

/// Reads a model in the Hugging Face layout: `config.json` and `model.safetensors`, whole or in shards (F32, F16 or BF16). Names may
/// carry the family's prefix or lack it; constants of old files, a tied head equal to the embedding and heads for other tasks are
/// passed over.
///
/// # Errors
/// The folder holds something else than a model; a file is missing or wrong; a tensor is missing, left over, has another shape, or
/// holds NaN or infinity.
pub fn read_base(dir: &Path) -> Result<Base> {
    if !dir.is_dir() {
        return Err(FileError::new(dir, "is not a folder")
            .remedy("give a Hugging Face model folder with config.json, model.safetensors and a tokenizer"));
    }
    weights::refuse_others(dir)?;
    let mut config = ModelConfig::from_file(&dir.join(CONFIG_JSON))?;
    let plug = config.family.plug();
    let mut found = Tensors::new();
    let mut files = BTreeMap::new();
    let mut passed_over = BTreeSet::new();
    weights::each(dir, |path, name, tensor| {
        let name = bare(&config, &name);
        if plug.is_constant(&name) {
            return Ok(());
        }
        if let Some(head) = OTHER_HEADS.into_iter().find(|head| name.starts_with(head)) {
            passed_over.insert(head);
            return Ok(());
        }
        let tensor = tensor.to_f32().map_err(|problem| FileError::new(path, problem).at(&name))?;
        if found.insert(name.clone(), tensor).is_some() {
            let problem = format!("is there with and without the prefix \"{}\"", plug.prefix());
            return Err(FileError::new(path, problem).at(name));
        }
        files.insert(name, path.to_owned());
        Ok(())
    })?;
    let heads =
        passed_over.iter().map(|head| format!("{}: {head}* is passed over: a head for another task", dir.display()));
    let mut notes: Vec<String> = heads.collect();
    let stored = stored(&config);
    let wrong =
        |name: &str, problem: String| FileError::new(files.get(name).unwrap_or(&weights::file(dir)), problem).at(name);
    if config.tied || !plug.can_be_untied() {
        // The embedding is the first of the table.
        let embedding = stored.first().and_then(|stored| stored.parts.first()).map_or("", |(name, _)| name);
        let says = match config.tied {
            true => "config.json does not have tie_word_embeddings false".to_owned(),
            false => format!("a {} with a head of its own is not supported", config.family),
        };
        match found.remove(names::HEAD) {
            Some(head) if found.get(embedding) != Some(&head) => {
                return Err(wrong(names::HEAD, format!("differs from {embedding}, but {says}")));
            }
            None if !config.tied => {
                return Err(wrong(names::HEAD, "is missing, but config.json has tie_word_embeddings false".to_owned()));
            }
            Some(_) if !config.tied => {
                let dir = dir.display();
                notes.push(format!(
                    "{dir}: {} equals {embedding}, so they are one, although config.json has tie_word_embeddings false",
                    names::HEAD
                ));
            }
            _ => {}
        }
        config.tied = true;
    }
    let tensors = layout::gather(&params::base_table(&config), &stored, found)
        .map_err(|(name, problem)| wrong(&name, problem))?;
    Ok(Base { config, tensors, notes })
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
pub fn write_base(dir: &Path, config: &ModelConfig, tensors: &Tensors, storage: Storage) -> Result<()> {
    let path = dir.join(MODEL_SAFETENSORS);
    check_against(&path, &params::base_table(config), tensors)?;
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
/// The file is wrong; a tensor is missing, left over, misshapen, not F32, or holds NaN or infinity.
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
