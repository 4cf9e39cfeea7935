//! Which files of a Hugging Face folder hold a model's weights, and what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{CONFIG_JSON, MODEL_SAFETENSORS};
use crate::error::{FileError, Result};
use crate::safetensors_file::{MAX_ENTRIES, Reader, Unique};
use crate::{files, json};

/// Says which shard holds which tensor, where there are several.
const INDEX: &str = "model.safetensors.index.json";
/// What PEFT writes beside adapters.
const PEFT_CONFIG: &str = "adapter_config.json";
/// What PyTorch pickled.
const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// An index of more bytes is refused; a model of 10,000 tensors has one of a megabyte.
const MAX_INDEX: u64 = 16 << 20;
/// An index of more shards is refused: they are open at once, and the largest models have some 200.
const MAX_SHARDS: usize = 512;

#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

/// Refuses a folder that holds something else than a model, and says what it is.
///
/// # Errors
/// Adapters of PEFT, or weights that are only there pickled.
pub(super) fn refuse_others(dir: &Path) -> Result<()> {
    let is_there = |name: &str| dir.join(name).exists();
    let has_weights = is_there(MODEL_SAFETENSORS) || is_there(INDEX);
    if is_there(PEFT_CONFIG) && !(has_weights && is_there(CONFIG_JSON)) {
        return Err(FileError::new(dir, "holds adapters of PEFT (adapter_config.json), not a model").remedy(
            "merge them into their model with merge_and_unload(), save_pretrained() that, and give its folder",
        ));
    }
    if let Some(pickled) = PICKLED.into_iter().find(|name| is_there(name) && !has_weights) {
        let problem = format!("is not there, and {pickled} beside it is not read: a pickled file can run anything");
        return Err(FileError::new(&dir.join(MODEL_SAFETENSORS), problem)
            .remedy("load the model with transformers and save_pretrained() it: that writes model.safetensors"));
    }
    Ok(())
}

/// The file with all weights, or the index of those with some. As transformers has it, an index counts only where there is no whole
/// file; a link that leads nowhere is there.
pub(super) fn file(dir: &Path) -> PathBuf {
    let (whole, index) = (dir.join(MODEL_SAFETENSORS), dir.join(INDEX));
    if fs::symlink_metadata(&whole).is_err() && index.exists() { index } else { whole }
}

/// The files with a model's weights, opened, of which only the headers were read: `model.safetensors`, or else the shards that its
/// index names.
///
/// # Errors
/// A file is missing or wrong, an index names a file outside the folder or a tensor that is not there, two shards hold one tensor, or
/// there are too many shards or tensors.
pub(super) fn open(dir: &Path) -> Result<Vec<(PathBuf, Reader)>> {
    let index = file(dir);
    if !index.ends_with(INDEX) {
        let reader = Reader::open(&index)?;
        return Ok(vec![(index, reader)]);
    }
    let mut readers: Vec<(PathBuf, Reader)> = Vec::new();
    // The shard of each tensor.
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (shard, mut missing) in shards(&index)? {
        let path = dir.join(&shard);
        if !path.exists() {
            let problem = format!("is missing, but {INDEX} names it");
            return Err(FileError::new(&path, problem).remedy("copy the folder whole from where the model came from"));
        }
        let reader = Reader::open(&path)?;
        for entry in reader.entries() {
            missing.remove(&entry.name);
            if let Some((other, _)) = seen.insert(entry.name.clone(), readers.len()).and_then(|at| readers.get(at)) {
                let problem = format!("is in {} too", other.display());
                return Err(FileError::new(&path, problem).at(&entry.name));
            }
        }
        if let Some(name) = missing.into_iter().next() {
            return Err(FileError::new(&path, format!("is missing, but {INDEX} says it is here")).at(name));
        }
        if seen.len() > MAX_ENTRIES {
            let problem = format!("names shards of {} tensors and more, expected at most {MAX_ENTRIES}", seen.len());
            return Err(FileError::new(&index, problem));
        }
        readers.push((path, reader));
    }
    Ok(readers)
}

/// The shards that an index names, with the tensors that each holds.
fn shards(index: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let bytes = files::read_limited(index, MAX_INDEX)?;
    let Index { weight_map: Unique(weight_map) } = json::from_slice(&bytes)
        .map_err(|error| FileError::new(index, format!("is no index of tensors and files: {error}")))?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, shard) in weight_map {
        if !files::is_plain_name(&shard) {
            let problem = format!("names the file \"{shard}\", expected one of this folder");
            return Err(FileError::new(index, problem).at(tensor));
        }
        shards.entry(shard).or_default().insert(tensor);
    }
    if shards.len() > MAX_SHARDS {
        return Err(FileError::new(index, format!("names {} shards, expected at most {MAX_SHARDS}", shards.len())));
    }
    Ok(shards)
}
