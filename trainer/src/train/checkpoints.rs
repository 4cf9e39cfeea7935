//! The checkpoints of a run: the best and the last are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use marionette_models::Tensors;
use marionette_models::checkpoint::write_adapters;
use marionette_models::run::{ADAPTERS, CHECKPOINTS, Which, set_checkpoint};

use crate::error::Result;
use crate::folder;

/// Writes the checkpoint of a meta-iteration as the last one, and as the best one where it is; then removes the others.
/// At every moment both names lead to a whole checkpoint.
///
/// # Errors
/// Writing fails.
pub fn save(run: &Path, iteration: usize, adapters: &Tensors, base_sha256: &str, best: bool) -> Result<()> {
    let name = format!("step-{iteration}");
    let metadata = BTreeMap::from([
        ("base_sha256".to_owned(), base_sha256.to_owned()),
        ("iteration".to_owned(), iteration.to_string()),
    ]);
    let folder = run.join(CHECKPOINTS).join(&name);
    if !folder.exists() {
        folder::create(&folder, |dir| Ok(write_adapters(&dir.join(ADAPTERS), adapters, &metadata)?))?;
    }
    // `best` first: a run that stops between the two has a best checkpoint that is newer than its last.
    if best {
        set_checkpoint(run, Which::Best, &name)?;
    }
    set_checkpoint(run, Which::Last, &name)?;
    prune(run);
    Ok(())
}

/// Removes the checkpoints that are neither the best nor the last. One that cannot be removed does no harm.
fn prune(run: &Path) {
    let named = [Which::Best, Which::Last].map(|which| fs::read_to_string(run.join(which.file_name())));
    let kept: BTreeSet<String> = named.iter().flatten().map(|name| name.trim().to_owned()).collect();
    let Ok(entries) = fs::read_dir(run.join(CHECKPOINTS)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("step-") && !kept.contains(&name) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
