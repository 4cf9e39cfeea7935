//! New folders that appear whole or not at all.

use std::fs;
use std::path::Path;

use marionette_models::FileError;
use marionette_models::files::StagedFolder;

use crate::error::Result;

/// Refuses a folder that holds something already; one that is missing or empty passes.
///
/// # Errors
/// Names the folder, with `remedy`.
pub fn must_be_new(path: &Path, remedy: &str) -> Result<()> {
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(FileError::new(path, "exists already").remedy(remedy).into()),
        Err(_) if !path.exists() => Ok(()),
        Err(error) => Err(FileError::new(path, format!("is not a folder to write to: {error}")).remedy(remedy).into()),
    }
}

/// Makes the folder `path`, which is missing or empty, with what `fill` writes: into a temporary folder beside it, then
/// a rename. On any error nothing is left.
///
/// # Errors
/// The step that failed.
pub fn create(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let staged = StagedFolder::create(path)?;
    fill(staged.path())?;
    Ok(staged.finish()?)
}
