//! Writing a bundle: all of it or nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::manifest::{FileEntry, Manifest};
use super::{MANIFEST, SUMS};
use crate::digest::{self, HashingWriter};
use crate::error::{FileError, Result};
use crate::files::{self, StagedFolder};

/// A bundle being written.
pub struct BundleWriter {
    target: PathBuf,
    staging: StagedFolder,
    files: BTreeMap<String, FileEntry>,
}

impl BundleWriter {
    /// Begins a bundle that will be `target`.
    ///
    /// # Errors
    /// `target` exists and is no bundle, or its parent folder cannot be written.
    pub fn create(target: &Path) -> Result<Self> {
        if target.exists() && !target.join(MANIFEST).is_file() {
            let empty = fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
            if !empty {
                return Err(FileError::new(target, "exists and is no bundle: it is not overwritten")
                    .remedy("give another --out, or remove it yourself"));
            }
        }
        Ok(Self { staging: StagedFolder::create(target)?, target: target.to_owned(), files: BTreeMap::new() })
    }

    /// Writes one file of the bundle.
    ///
    /// # Errors
    /// What `write` or the system says.
    pub fn file(&mut self, name: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let path = self.staging.path().join(name);
        let failed = |error| FileError::new(&self.target.join(name), format!("cannot be written: {error}"));
        let file = File::create(&path).map_err(failed)?;
        let mut writer = BufWriter::with_capacity(1 << 18, HashingWriter::new(file));
        write(&mut writer).and_then(|()| writer.flush()).map_err(failed)?;
        writer.get_ref().get_ref().sync_all().map_err(failed)?;
        let hashed = writer.get_ref();
        self.files.insert(name.to_owned(), FileEntry { bytes: hashed.bytes(), sha256: hashed.digest() });
        Ok(())
    }

    /// The files written so far.
    pub fn files(&self) -> &BTreeMap<String, FileEntry> {
        &self.files
    }

    /// Writes the manifest, whose `files` is filled in here, and puts the bundle into its place.
    ///
    /// # Errors
    /// Writing or renaming fails; an old bundle then stays as it was.
    pub fn finish(self, mut manifest: Manifest) -> Result<Manifest> {
        manifest.files = self.files;
        let failed = |error: io::Error| FileError::new(&self.target, format!("cannot be put into place: {error}"));
        let mut text = serde_json::to_vec_pretty(&manifest).map_err(|error| FileError::new(&self.target, error))?;
        text.push(b'\n');
        for (name, content) in [(MANIFEST, &text[..]), (SUMS, sums(&text).as_bytes())] {
            let mut file = File::create(self.staging.path().join(name)).map_err(failed)?;
            file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        self.staging.replace()?;
        Ok(manifest)
    }
}

/// What [`SUMS`] says of a manifest.
pub(super) fn sums(manifest: &[u8]) -> String {
    format!("{}  {MANIFEST}\n", digest::sha256(manifest))
}

/// Writes the digest of a bundle's manifest anew: for whoever changes it knowingly.
///
/// # Errors
/// The manifest cannot be read, or the digest not written.
pub fn seal(bundle: &Path) -> Result<()> {
    let path = bundle.join(MANIFEST);
    let manifest = fs::read(&path).map_err(|error| FileError::new(&path, format!("cannot be read: {error}")))?;
    files::write_atomic(&bundle.join(SUMS), |writer| writer.write_all(sums(&manifest).as_bytes()))
}
