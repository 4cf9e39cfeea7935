//! Writing files and folders so that a reader, a crash or a power loss finds the old content or the new, never a mixture.
//!
//! Everything is written under a temporary name beside its place, synced, exchanged with what is there in one system call, and the
//! folder synced; where that fails, exchanged back. Temporaries are locked as long as their process lives, whatever the clock says.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::parent;
use crate::error::{FileError, Result};

/// What the names of temporary files begin with; one that no process holds is a left-over.
pub const TEMPORARY_PREFIX: &str = ".marionette-tmp-";
/// How often a temporary name is made anew when another process, tidying up, took it in the moment before it was locked.
const ATTEMPTS: usize = 16;

/// Writes a file whole: into a temporary file of the same folder, fsync, exchange with what is at `path`, fsync of the folder. On any
/// error the old file is as it was and the temporary one is removed. What killed processes left beside it is removed too.
///
/// # Errors
/// The step that failed.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let folder = parent(path);
    let failed = |step: &str, error: io::Error| FileError::new(path, format!("{step}: {error}"));
    remove_stale_temporaries(folder);
    let mut file =
        temporary_file(folder).map_err(|error| failed("a temporary file cannot be made beside it", error))?;
    let mut writer = BufWriter::with_capacity(1 << 18, file.as_file_mut());
    write(&mut writer).and_then(|()| writer.flush()).map_err(|error| failed("cannot be written", error))?;
    drop(writer);
    // A failed fsync is not tried again: the kernel may have dropped the pages that it could not write.
    file.as_file().sync_all().map_err(|error| failed("cannot be synced to disk", error))?;
    if fs::symlink_metadata(path).is_ok_and(|there| there.is_dir()) {
        return Err(FileError::new(path, "is a folder, expected a file or nothing"));
    }
    Placed::put(file.path(), path, |from, to| fs::rename(from, to).map(|()| Placed::Over))
        .map_err(|error| failed("cannot be renamed into place", error))?
        .durable(file.path(), path)
}

/// Makes a folder and those above it that are missing, durably.
///
/// # Errors
/// What the system says.
pub fn create_folders(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = parent(folder);
    create_folders(above)?;
    match fs::create_dir(folder) {
        Ok(()) => {}
        // Another process was as quick.
        Err(_) if folder.is_dir() => {}
        Err(error) => return Err(FileError::new(folder, format!("the folder cannot be made: {error}"))),
    }
    sync_folder(above)
}

/// Makes the names in a folder durable, where the file system knows how.
///
/// # Errors
/// What the system says.
pub fn sync_folder(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // What file systems say that have no such thing.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        Err(error) => Err(FileError::new(folder, format!("the folder cannot be synced to disk: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// How something came to its place.
#[derive(Debug, Clone, Copy)]
enum Placed {
    /// Nothing was there.
    New,
    /// What was there lies at the temporary name now.
    Exchanged,
    /// What was there is gone, on file systems that cannot exchange.
    Over,
}

impl Placed {
    /// Puts what is at `from` to `to`; `otherwise` does it where the system cannot exchange names.
    fn put(from: &Path, to: &Path, otherwise: impl FnOnce(&Path, &Path) -> io::Result<Self>) -> io::Result<Self> {
        match exchange(from, to) {
            Ok(()) => Ok(Self::Exchanged),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to).map(|()| Self::New),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            Err(_) => otherwise(from, to),
        }
    }

    /// Makes the names durable; where that fails, what was there before is there again.
    fn durable(self, from: &Path, to: &Path) -> Result<()> {
        sync_folder(parent(to)).inspect_err(|_| {
            let _ = match self {
                Self::New => fs::rename(to, from),
                Self::Exchanged => exchange(from, to),
                Self::Over => Ok(()),
            };
        })
    }
}

/// Exchanges two names in one step (`renameat2` with `RENAME_EXCHANGE`).
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: &Path, other: &Path) -> io::Result<()> {
    fs::symlink_metadata(other).and(Err(io::ErrorKind::Unsupported.into()))
}

/// A temporary file in `folder`, locked, with what the umask leaves of permissions, as any program makes files.
fn temporary_file(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    for _ in 0..ATTEMPTS {
        let file = builder.tempfile_in(folder)?;
        if holds(file.as_file(), file.path()) {
            return Ok(file);
        }
    }
    Err(io::Error::other("other processes remove it"))
}

/// A temporary folder in `folder`, and the lock on it where the system locks folders.
fn temporary_folder(folder: &Path) -> io::Result<(tempfile::TempDir, Option<File>)> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    for _ in 0..ATTEMPTS {
        let made = builder.tempdir_in(folder)?;
        match File::open(made.path()) {
            Ok(lock) if holds(&lock, made.path()) => return Ok((made, Some(lock))),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Not a system that opens folders; then none are taken for left-overs either.
            Err(_) => return Ok((made, None)),
        }
    }
    Err(io::Error::other("other processes remove it"))
}

/// Locks what was just made. False where a process that tidies up had it first: it is gone then, or soon will be.
fn holds(file: &File, path: &Path) -> bool {
    !matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)) && path.exists()
}

/// Removes temporary files and folders in `folder` whose process is gone: those that nobody has locked.
pub fn remove_stale_temporaries(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        // Nothing else is ours, and opening a FIFO would wait.
        if !kind.is_file() && !kind.is_dir() {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok() {
            let _ = if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

/// A new folder being filled, in a temporary folder beside its place: it appears whole, in one step, or not at all.
#[derive(Debug)]
pub struct StagedFolder {
    target: PathBuf,
    staging: tempfile::TempDir,
    /// Held while it is filled.
    _lock: Option<File>,
}

impl StagedFolder {
    /// Begins a folder that will be `target`. Its parent folder is made where it is missing; what a killed process left there is
    /// removed, and an older folder that it had moved aside is put back.
    ///
    /// # Errors
    /// The parent folder cannot be written.
    pub fn create(target: &Path) -> Result<Self> {
        let parent = parent(target);
        create_folders(parent)?;
        remove_stale_temporaries(parent);
        let aside = aside(target);
        if fs::symlink_metadata(&aside).is_ok() {
            let _ = if target.exists() { fs::remove_dir_all(&aside) } else { fs::rename(&aside, target) };
        }
        let (staging, lock) = temporary_folder(parent)
            .map_err(|error| FileError::new(target, format!("a temporary folder cannot be made beside it: {error}")))?;
        Ok(Self { target: target.to_owned(), staging, _lock: lock })
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
        sync_tree(self.path())?;
        fs::rename(self.path(), &self.target).map_err(|error| self.failed(&error))?;
        Placed::New.durable(self.path(), &self.target)
    }

    /// As [`StagedFolder::finish`], but in the place of an older folder. Where the file system cannot exchange names, that one steps
    /// aside for a moment; if the process is killed then, the next [`StagedFolder::create`] puts it back.
    ///
    /// # Errors
    /// The step that failed; the older folder stays.
    pub fn replace(self) -> Result<()> {
        sync_tree(self.path())?;
        if fs::metadata(&self.target).is_ok_and(|there| !there.is_dir()) {
            return Err(FileError::new(&self.target, "is a file, expected a folder or nothing"));
        }
        Placed::put(self.path(), &self.target, by_two_renames)
            .map_err(|error| self.failed(&error))?
            .durable(self.path(), &self.target)
    }

    fn failed(&self, error: &io::Error) -> FileError {
        FileError::new(&self.target, format!("cannot be put into place: {error}"))
    }
}

/// Where a folder goes while another comes to its place.
fn aside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".marionette-old");
    target.with_file_name(name)
}

/// A folder cannot be renamed over another that holds files: the old one steps aside first.
fn by_two_renames(from: &Path, to: &Path) -> io::Result<Placed> {
    let aside = aside(to);
    fs::rename(to, &aside)?;
    fs::rename(from, to).inspect_err(|_| {
        let _ = fs::rename(&aside, to);
    })?;
    let _ = fs::remove_dir_all(&aside);
    Ok(Placed::Over)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

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
        write_atomic(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn a_reader_finds_the_old_or_the_new_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        // Long enough to be written in parts.
        let content = |letter: u8| vec![letter; 1 << 19];
        write_atomic(&path, |w| w.write_all(&content(b'a'))).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..40 {
                    write_atomic(&path, |w| w.write_all(&content(b'a' + round % 2))).unwrap();
                }
            });
            while !writer.is_finished() {
                let found = fs::read(&path).unwrap();
                assert!(found == content(b'a') || found == content(b'b'), "{} bytes", found.len());
            }
        });
    }

    #[test]
    fn a_folder_is_not_exchanged_with_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let [file, inner] = ["file", "folder"].map(|name| folder.path().join(name));
        fs::create_dir(&inner).unwrap();
        fs::write(&file, "text").unwrap();
        assert!(write_atomic(&inner, |w| w.write_all(b"new")).unwrap_err().to_string().contains("is a folder"));
        let error = StagedFolder::create(&file).unwrap().replace().unwrap_err().to_string();
        assert!(error.contains("is a file"), "{error}");
        assert!(inner.is_dir() && fs::read(&file).unwrap() == b"text");
        assert_eq!(names(folder.path()), ["file", "folder"]);
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

    #[test]
    fn without_exchanging_names_the_old_folder_steps_aside_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let [target, new] = ["run", "new"].map(|name| folder.path().join(name));
        let content = || fs::read_to_string(target.join("file")).unwrap();
        for (path, text) in [(&target, "old"), (&new, "new")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), text).unwrap();
        }
        by_two_renames(&folder.path().join("nothing"), &target).unwrap_err();
        assert_eq!(content(), "old");
        by_two_renames(&new, &target).unwrap();
        assert_eq!(content(), "new");
        assert_eq!(names(folder.path()), ["run"]);
        // Killed between the two renames, and after them.
        fs::rename(&target, aside(&target)).unwrap();
        drop(StagedFolder::create(&target).unwrap());
        assert_eq!(content(), "new");
        fs::create_dir(aside(&target)).unwrap();
        fs::write(aside(&target).join("file"), "older").unwrap();
        drop(StagedFolder::create(&target).unwrap());
        assert_eq!(content(), "new");
        assert_eq!(names(folder.path()), ["run"]);
    }

    #[test]
    fn temporaries_are_left_overs_when_nobody_holds_them_whatever_their_age() {
        let folder = tempfile::tempdir().unwrap();
        let ours = |name: &str| folder.path().join(format!("{TEMPORARY_PREFIX}{name}"));
        fs::write(ours("dead"), "half").unwrap();
        fs::create_dir(ours("dead-folder")).unwrap();
        fs::write(ours("dead-folder").join("file"), "half").unwrap();
        fs::write(folder.path().join("file"), "of others").unwrap();
        let (file, (held, _lock)) = (temporary_file(folder.path()).unwrap(), temporary_folder(folder.path()).unwrap());
        // A clock that jumped makes them look old.
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        for path in [file.path(), held.path()] {
            File::open(path).unwrap().set_modified(long_ago).unwrap();
        }
        remove_stale_temporaries(folder.path());
        assert!(file.path().exists() && held.path().exists());
        assert_eq!(names(folder.path()).len(), 3);
        drop((file, held));
        assert_eq!(names(folder.path()), ["file"]);
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

    #[test]
    fn where_the_names_cannot_be_made_durable_the_old_ones_are_back() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        let nowhere = folder.path().join("missing/to");
        // The folder of `nowhere` cannot be opened, so syncing it fails as on a broken disk.
        for placed in [Placed::New, Placed::Exchanged] {
            assert!(placed.durable(&from, &nowhere).unwrap_err().to_string().contains("cannot be synced"));
        }
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        let placed = Placed::put(&from, &to, |_, _| panic!("this system exchanges names")).unwrap();
        assert!(matches!(placed, Placed::Exchanged));
        assert_eq!((fs::read(&from).unwrap(), fs::read(&to).unwrap()), (b"old".to_vec(), b"new".to_vec()));
        placed.durable(&from, &to).unwrap();
    }

    #[test]
    fn missing_folders_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        create_folders(&deep).unwrap();
        create_folders(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(folder.path().join("file"), "").unwrap();
        let error = create_folders(&folder.path().join("file/x")).unwrap_err().to_string();
        assert!(error.contains("cannot be made"), "{error}");
    }
}
