//! Which files of a Hugging Face folder hold a model's weights, and what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{CONFIG_JSON, MODEL_SAFETENSORS};
use crate::error::{FileError, Result};
use crate::safetensors_file::{RawTensor, Reader};
use crate::{files, json};

/// Says which shard holds which tensor, where there are several.
const INDEX: &str = "model.safetensors.index.json";
/// What PEFT writes beside adapters.
const PEFT_CONFIG: &str = "adapter_config.json";
/// What PyTorch pickled.
const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// An index of more bytes is refused; a model of 10,000 tensors has one of a megabyte.
const MOST_INDEX: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
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

/// Hands every tensor of a model to `take`, with the file that it lies in: of `model.safetensors`, or else of the shards that its
/// index names.
///
/// # Errors
/// A file is missing or wrong, an index names a file outside the folder or a tensor that is not there, two shards hold one tensor,
/// or what `take` says.
pub(super) fn each(dir: &Path, mut take: impl FnMut(&Path, String, RawTensor) -> Result<()>) -> Result<()> {
    let index = file(dir);
    if !index.ends_with(INDEX) {
        return Reader::open(&index)?.try_for_each(|entry| entry.and_then(|(name, tensor)| take(&index, name, tensor)));
    }
    let mut seen: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (shard, expected) in shards(&index)? {
        let path = dir.join(&shard);
        if !path.exists() {
            let problem = format!("is missing, but {INDEX} names it");
            return Err(FileError::new(&path, problem).remedy("copy the folder whole from where the model came from"));
        }
        let mut missing = expected;
        for entry in Reader::open(&path)? {
            let (name, tensor) = entry?;
            missing.remove(&name);
            if let Some(other) = seen.insert(name.clone(), path.clone()) {
                let problem = format!("is in {} too", other.display());
                return Err(FileError::new(&path, problem).at(name));
            }
            take(&path, name, tensor)?;
        }
        if let Some(name) = missing.into_iter().next() {
            return Err(FileError::new(&path, format!("is missing, but {INDEX} says it is here")).at(name));
        }
    }
    Ok(())
}

/// The shards that an index names, with the tensors that each holds.
fn shards(index: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let bytes = files::read_limited(index, MOST_INDEX)?;
    let Index { weight_map } = json::from_slice(&bytes)
        .map_err(|error| FileError::new(index, format!("is no index of tensors and files: {error}")))?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, shard) in weight_map {
        if !files::is_plain_name(&shard) {
            let problem = format!("names the file \"{shard}\", expected one of this folder");
            return Err(FileError::new(index, problem).at(tensor));
        }
        shards.entry(shard).or_default().insert(tensor);
    }
    Ok(shards)
}
