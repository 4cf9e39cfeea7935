//! Writing files so that a reader, a crash or a power loss finds the old content or the new, never a mixture.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Component, Path, PathBuf};

use crate::error::{FileError, Result};

/// Writes a file whole: into a temporary file of the same folder, fsync, rename over `path`, fsync of the folder. On any
/// error the old file stays as it was and the temporary one is removed.
///
/// # Errors
/// The step that failed.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let folder = parent(path);
    let failed = |step: &str, error: io::Error| FileError::new(path, format!("{step}: {error}"));
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    // As any program makes files: what the umask leaves, not what a secret temporary file has.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file =
        builder.tempfile_in(folder).map_err(|error| failed("a temporary file cannot be made beside it", error))?;
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

/// A new folder being filled, in a temporary folder beside its place: it appears whole, in one rename, or not at all.
#[derive(Debug)]
pub struct StagedFolder {
    target: PathBuf,
    staging: tempfile::TempDir,
}

impl StagedFolder {
    /// Begins a folder that will be `target`. Its parent folder is made where it is missing.
    ///
    /// # Errors
    /// The parent folder cannot be written.
    pub fn create(target: &Path) -> Result<Self> {
        let failed = |error| FileError::new(target, format!("cannot be made: {error}"));
        let parent = parent(target);
        fs::create_dir_all(parent).map_err(failed)?;
        remove_stale_temporaries(parent);
        Ok(Self { target: target.to_owned(), staging: temporary_folder(parent).map_err(failed)? })
    }

    /// Where it is filled.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Puts the folder into its place, where nothing or an empty folder is: fsync of everything in it, rename, fsync of
    /// the folder it lies in.
    ///
    /// # Errors
    /// The step that failed; what is at the place stays as it was.
    pub fn finish(self) -> Result<()> {
        sync_tree(self.staging.path())?;
        self.put()
    }

    /// As [`StagedFolder::finish`], but in the place of an older folder.
    ///
    /// # Errors
    /// The step that failed; the older folder stays.
    pub fn replace(self) -> Result<()> {
        sync_tree(self.staging.path())?;
        if !self.target.exists() {
            return self.put();
        }
        // A folder cannot be renamed over another that holds files: the old one steps aside first.
        let target = self.target.clone();
        let failed = |error| FileError::new(&target, format!("cannot be put into place: {error}"));
        let aside = temporary_folder(parent(&target)).map_err(failed)?;
        let old = aside.path().join("old");
        fs::rename(&target, &old).map_err(failed)?;
        self.put().inspect_err(|_| {
            let _ = fs::rename(&old, &target);
        })
    }

    fn put(self) -> Result<()> {
        let Self { target, staging } = self;
        fs::rename(staging.path(), &target)
            .map_err(|error| FileError::new(&target, format!("cannot be put into place: {error}")))?;
        // What was renamed away is no longer there to be removed.
        let _ = staging.keep();
        sync_folder(parent(&target))
    }
}

/// A temporary folder in `parent`, as readable as what the user makes: the umask applies.
fn temporary_folder(parent: &Path) -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    builder.tempdir_in(parent)
}

/// Makes all that is in a folder durable, and the names in it.
fn sync_tree(folder: &Path) -> Result<()> {
    let unreadable = |error| FileError::new(folder, format!("cannot be read again: {error}"));
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.file_type().map_err(unreadable)?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            let path = entry.path();
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|error| FileError::new(&path, format!("cannot be synced to disk: {error}")))?;
        }
    }
    sync_folder(folder)
}

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

    #[test]
    fn a_staged_folder_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new/run");
        let staged = |content: &str| {
            let staged = StagedFolder::create(&target).unwrap();
            fs::create_dir(staged.path().join("inner")).unwrap();
            fs::write(staged.path().join("inner/file"), content).unwrap();
            staged
        };
        let content = || fs::read_to_string(target.join("inner/file")).ok();
        let around = || fs::read_dir(folder.path().join("new")).unwrap().count();
        drop(staged("given up"));
        assert_eq!((content(), around()), (None, 0));
        // Into an empty folder, over nothing, but not over what holds something.
        fs::create_dir(&target).unwrap();
        staged("first").finish().unwrap();
        assert_eq!(content().as_deref(), Some("first"));
        let error = staged("second").finish().unwrap_err().to_string();
        assert!(error.contains("run: cannot be put into place"), "{error}");
        assert_eq!((content().as_deref(), around()), (Some("first"), 1));
        staged("third").replace().unwrap();
        assert_eq!((content().as_deref(), around()), (Some("third"), 1));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let made = folder.path().join("made");
            fs::create_dir(&made).unwrap();
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode(&target), mode(&made));
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_cannot_be_synced_is_not_put_into_place() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("run");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("old"), "old").unwrap();
        let staged = StagedFolder::create(&target).unwrap();
        std::os::unix::fs::symlink("nowhere", staged.path().join("file")).unwrap();
        assert!(staged.replace().unwrap_err().to_string().contains("synced"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(target.join("old")).unwrap(), "old");
    }
}
