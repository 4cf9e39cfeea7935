//! New folders that appear whole or not at all.

use std::fs;
use std::path::Path;

use marionette_models::{FileError, files};

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
    let parent = files::parent(path);
    let failed = |step: &str, error: std::io::Error| FileError::new(path, format!("{step}: {error}"));
    fs::create_dir_all(parent).map_err(|error| failed("its parent folder cannot be made", error))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staged = parent.join(format!("{}{}-{name}", files::TEMPORARY_PREFIX, std::process::id()));
    let _ = fs::remove_dir_all(&staged);
    let filled = fs::create_dir(&staged).map_err(|error| failed("a folder cannot be made beside it", error));
    let whole = filled.map_err(Into::into).and_then(|()| {
        fill(&staged)?;
        files::sync_folder(&staged)?;
        fs::rename(&staged, path).map_err(|error| failed("cannot be renamed into place", error))?;
        Ok(files::sync_folder(parent)?)
    });
    if whole.is_err() {
        let _ = fs::remove_dir_all(&staged);
    }
    whole
}
