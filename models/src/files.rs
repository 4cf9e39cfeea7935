//! Files: written whole, read with limits.

mod atomic;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path};

pub use atomic::{StagedFolder, TEMPORARY_PREFIX, create_folders, remove_stale_temporaries, sync_folder, write_atomic};

use crate::error::{FileError, Result};

/// The folder a path lies in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// What the system says of a regular file, or of the one that a link leads to; a folder, FIFO, socket or device is refused, so that
/// nothing waits on one.
///
/// # Errors
/// The file is missing, a link leads nowhere, or it is not a regular file.
pub fn regular(path: &Path) -> Result<fs::Metadata> {
    let metadata = fs::metadata(path).map_err(|error| FileError::new(path, format!("cannot be read: {error}")))?;
    if !metadata.is_file() {
        return Err(FileError::new(path, "is not a regular file"));
    }
    Ok(metadata)
}

/// Opens a regular file for reading.
///
/// # Errors
/// As [`regular`], or it cannot be opened.
pub fn open_regular(path: &Path) -> Result<File> {
    regular(path)?;
    let failed = |error| FileError::new(path, format!("cannot be read: {error}"));
    let file = File::open(path).map_err(failed)?;
    // What was opened may be another than what was looked at.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(FileError::new(path, "is not a regular file"));
    }
    Ok(file)
}

/// Reads a small regular file whole, and refuses one of more than `limit` bytes without reading it.
///
/// # Errors
/// As [`open_regular`], or the file is larger than `limit`.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| FileError::new(path, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > limit {
        return Err(FileError::new(path, format!("is larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// Whether a file that begins so is git-lfs's note of where the file itself is kept.
pub fn is_lfs_pointer(beginning: &[u8]) -> bool {
    beginning.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// What there is to say of such a file.
pub fn lfs_pointer(path: &Path) -> FileError {
    FileError::new(path, "is git-lfs's pointer to a file, not the file").remedy("run git lfs pull where it was cloned")
}

/// One component that is neither `.` nor `..`, without separators of any system.
pub fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_large_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_limited(folder.path(), 10).unwrap_err().to_string().contains("regular file"));
        let path = folder.path().join("file");
        fs::write(&path, b"0123456789").unwrap();
        assert_eq!(read_limited(&path, 10).unwrap().len(), 10);
        assert!(read_limited(&path, 9).is_err());
    }
}
