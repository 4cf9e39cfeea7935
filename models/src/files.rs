//! Writing files so that a reader, a crash or a power loss finds the old content or the new, never a mixture.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use crate::error::{FileError, Result};

/// Writes a file whole: into a temporary file of the same folder, fsync, rename over `path`, fsync of the folder. On any
/// error the old file stays as it was and the temporary one is removed.
///
/// # Errors
/// The step that failed.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let folder = parent(path);
    let failed = |step: &str, error: io::Error| FileError::new(path, format!("{step}: {error}"));
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(folder)
        .map_err(|error| failed("a temporary file cannot be made beside it", error))?;
    let mut writer = BufWriter::with_capacity(1 << 18, file.as_file_mut());
    write(&mut writer).and_then(|()| writer.flush()).map_err(|error| failed("cannot be written", error))?;
    drop(writer);
    // A failed fsync is not tried again: the kernel may have dropped the pages that it could not write.
    file.as_file().sync_all().map_err(|error| failed("cannot be synced to disk", error))?;
    file.persist(path).map_err(|error| failed("cannot be renamed into place", error.error))?;
    sync_folder(folder)
}

/// Makes the names in a folder durable.
///
/// # Errors
/// What the system says.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| FileError::new(folder, format!("the folder cannot be synced to disk: {error}")))
}

/// What the names of temporary files begin with; such files are left-overs of a crash when nothing holds them.
pub const TEMPORARY_PREFIX: &str = ".marionette-tmp-";

/// Removes temporary files and folders that a killed process left in `folder` more than an hour ago.
pub fn remove_stale_temporaries(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            continue;
        }
        let old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 3600));
        if old {
            let _ =
                if entry.path().is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        }
    }
}

/// The folder a path lies in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Opens a regular file for reading; a folder, FIFO or device is refused, so that nothing waits on one.
///
/// # Errors
/// The file is missing, not a regular file, or cannot be opened.
pub fn open_regular(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path).map_err(|error| FileError::new(path, format!("cannot be read: {error}")))?;
    if !metadata.is_file() {
        return Err(FileError::new(path, "is not a regular file"));
    }
    File::open(path).map_err(|error| FileError::new(path, format!("cannot be read: {error}")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomic(&path, |w| w.write_all(b"old")).unwrap();
        let result = write_atomic(&path, |w| {
            w.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert!(result.unwrap_err().to_string().contains("disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

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
