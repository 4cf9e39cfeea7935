//! Models and adapters on disk: the Hugging Face layout of each family, and adapters alone.

mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::config::{AdapterConfig, ModelConfig};
use crate::error::{FileError, Result};
use crate::families::Stored;
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
    let readers = weights::open(dir)?;
    let mut passed_over = BTreeSet::new();
    // What the headers say: the file and the shape of each tensor that is to be read, by its name without the prefix.
    let mut there: BTreeMap<String, (&Path, &[usize])> = BTreeMap::new();
    let passes = |name: &str| plug.is_constant(name) || OTHER_HEADS.into_iter().any(|head| name.starts_with(head));
    for (path, reader) in &readers {
        for entry in reader.entries() {
            let name = bare(&config, &entry.name);
            if passes(&name) {
                passed_over.extend(OTHER_HEADS.into_iter().find(|head| name.starts_with(head)));
            } else if there.insert(name.clone(), (path, &entry.shape)).is_some() {
                let problem = format!("is there with and without the prefix \"{}\"", plug.prefix());
                return Err(FileError::new(path, problem).at(name));
            }
        }
    }
    let stored = stored(&config);
    check_headers(&weights::file(dir), &config, &stored, &there)?;
    let files: BTreeMap<String, PathBuf> = there.into_iter().map(|(name, (path, _))| (name, path.to_owned())).collect();
    let mut found = Tensors::new();
    for (path, reader) in readers {
        for tensor in reader.tensors(|entry| Ok(!passes(&bare(&config, &entry.name))))? {
            let (name, tensor) = tensor?;
            let name = bare(&config, &name);
            let tensor = tensor.to_f32().map_err(|problem| FileError::new(&path, problem).at(&name))?;
            found.insert(name, tensor);
        }
    }
    let heads =
        passed_over.iter().map(|head| format!("{}: {head}* is passed over: a head for another task", dir.display()));
    let mut notes: Vec<String> = heads.collect();
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

/// Checks, before a tensor is read, that exactly those of a model are there, each with its shape. A head may be there that turns out
/// to be the embedding.
fn check_headers(
    weights: &Path,
    config: &ModelConfig,
    stored: &[Stored],
    there: &BTreeMap<String, (&Path, &[usize])>,
) -> Result<()> {
    let mut expected = BTreeMap::new();
    for (spec, stored) in params::base_table(config).iter().zip(stored) {
        for (name, columns) in &stored.parts {
            let shape = layout::shape(spec, *columns, stored.transposed);
            match there.get(name) {
                // Why a head has to be there is said where it is compared with the embedding.
                None if name == names::HEAD && !config.family.plug().can_be_untied() => {}
                None => return Err(FileError::new(weights, format!("is missing, expected shape {shape:?}")).at(name)),
                Some((path, found)) if **found != *shape => {
                    return Err(FileError::new(path, format!("has shape {found:?}, expected {shape:?}")).at(name));
                }
                Some(_) => {}
            }
            expected.insert(name.as_str(), shape);
        }
    }
    for (name, (path, found)) in there {
        match expected.get(name.as_str()) {
            Some(_) => {}
            None if name == names::HEAD => {
                let shape = [config.vocab_size, config.n_embd];
                if **found != shape {
                    return Err(FileError::new(path, format!("has shape {found:?}, expected {shape:?}")).at(name));
                }
            }
            None => return Err(FileError::new(path, "does not belong to this model").at(name)),
        }
    }
    Ok(())
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
