//! Opening a bundle: everything is verified before any other library sees a byte of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::audit;
use super::manifest::Manifest;
use super::{ADAPTERS, FORMAT_VERSION, GRAPHS, MANIFEST, PROBE, TOKENIZER, WEIGHTS};
use crate::checkpoint;
use crate::digest;
use crate::error::{FileError, Result};
use crate::params::{self, Tensors};
use crate::probe::Probe;
use crate::{files, json};

/// A manifest of more than this many bytes is refused: GPT-2 XL's has about 200 kB.
const MAX_MANIFEST: u64 = 16 << 20;

/// A bundle whose files are those of its manifest, bit for bit.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens and verifies a bundle: the manifest, the list of files (no link, no extra file), every length and SHA-256, and
    /// that the graphs take and give what the manifest says, use known operator sets and name no external data but
    /// `weights.bin`.
    ///
    /// # Errors
    /// What is wrong, with the file and the place.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = read_manifest(dir)?;
        verify_listing(dir, &manifest)?;
        verify_digests(dir, &manifest)?;
        let weights = manifest.files.get(WEIGHTS).map_or(0, |entry| entry.bytes);
        for interface in manifest.graphs.values() {
            audit::graph(&dir.join(&interface.file), interface, manifest.operators, weights)?;
        }
        Ok(Self { dir: dir.to_owned(), manifest })
    }

    /// What it says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of one of its files.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Φ as it was meta-learned.
    ///
    /// # Errors
    /// A tensor is missing, left over, misshapen or not finite.
    pub fn adapters(&self) -> Result<Tensors> {
        let (adapters, _) =
            checkpoint::read_adapters(&self.path(ADAPTERS), &self.manifest.model, &self.manifest.adapter)?;
        Ok(adapters)
    }

    /// What the trainer recorded for the parity check, where there is something.
    ///
    /// # Errors
    /// The probe does not fit the model.
    pub fn probe(&self) -> Result<Option<Probe>> {
        if !self.manifest.files.contains_key(PROBE) {
            return Ok(None);
        }
        Probe::read(&self.path(PROBE), &self.manifest.model, &self.manifest.adapter).map(Some)
    }
}

fn read_manifest(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    if !dir.is_dir() {
        return Err(FileError::new(dir, "is not a folder").remedy("give a bundle that marionette-export wrote"));
    }
    refuse_unless_regular(&path).map_err(|error| error.remedy("expected a bundle that marionette-export wrote"))?;
    let bytes = files::read_limited(&path, MAX_MANIFEST)?;
    let value: serde_json::Value = json::from_slice(&bytes).map_err(|error| FileError::new(&path, error))?;
    match value.get("format_version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(FORMAT_VERSION) => {}
        Some(version) if version > u64::from(FORMAT_VERSION) => {
            let problem = format!("is {version}, this program reads up to {FORMAT_VERSION}");
            return Err(FileError::new(&path, problem).at("format_version").remedy("use a newer marionette"));
        }
        Some(version) => {
            let problem = format!("is {version}, this program reads {FORMAT_VERSION}");
            return Err(FileError::new(&path, problem).at("format_version").remedy("export the model again"));
        }
        None => return Err(FileError::new(&path, format!("expected {FORMAT_VERSION}")).at("format_version")),
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| FileError::new(&path, error))?;
    manifest
        .model
        .validate()
        .map_err(|(field, problem)| FileError::new(&path, problem).at(format!("model.{field}")))?;
    manifest
        .prompt
        .validate(manifest.model.vocab_size)
        .map_err(|(field, problem)| FileError::new(&path, problem).at(field))?;
    let wrong = |place: &str, problem: String| Err(FileError::new(&path, problem).at(place));
    if let Err(problem) = manifest.adapter.check() {
        return wrong("adapter.bottleneck", problem);
    }
    if manifest.inner_loop.dialogues_per_step == 0 {
        return wrong("inner_loop.dialogues_per_step", "is 0, expected at least 1".into());
    }
    let tensors = params::adapter_table(&manifest.model, &manifest.adapter).len();
    if let Err(problem) = manifest.inner_loop.learning_rate.per_tensor(tensors) {
        return wrong("inner_loop.learning_rate", problem);
    }
    for name in manifest.files.keys() {
        if !is_plain_name(name) || name == MANIFEST {
            return wrong("files", format!("\"{name}\" is no plain file name"));
        }
    }
    for name in GRAPHS.iter().map(|(_, file)| *file).chain([WEIGHTS, ADAPTERS, TOKENIZER]) {
        if !manifest.files.contains_key(name) {
            return wrong("files", format!("{name} is not listed"));
        }
    }
    for (graph, file) in GRAPHS {
        match manifest.graphs.get(graph) {
            Some(interface) if interface.file == file => {}
            _ => return wrong("graphs", format!("\"{graph}\" is missing or does not name {file}")),
        }
    }
    if manifest.graphs.len() != GRAPHS.len() {
        return wrong("graphs", format!("has {} entries, expected {}", manifest.graphs.len(), GRAPHS.len()));
    }
    Ok(manifest)
}

/// One component that is neither `.` nor `..`, without separators of any system.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['/', '\\', ':', '\0'])
}

/// Refuses a symbolic link, a file with several names, a FIFO, a device, a folder.
fn refuse_unless_regular(path: &Path) -> Result<fs::Metadata> {
    let metadata =
        fs::symlink_metadata(path).map_err(|error| FileError::new(path, format!("cannot be read: {error}")))?;
    if !metadata.file_type().is_file() {
        return Err(FileError::new(path, "is not a regular file (links are refused)"));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        if metadata.nlink() > 1 {
            return Err(FileError::new(path, "has other names (hard links are refused)").remedy("copy the bundle"));
        }
    }
    Ok(metadata)
}

fn verify_listing(dir: &Path, manifest: &Manifest) -> Result<()> {
    let unreadable = |error| FileError::new(dir, format!("cannot be read: {error}"));
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        match name.to_str() {
            Some(name) if name == MANIFEST => {}
            Some(name) if manifest.files.contains_key(name) => {
                there.insert(name.to_owned());
            }
            _ => {
                return Err(FileError::new(&dir.join(&name), "is not in the manifest: a bundle holds nothing else")
                    .remedy("move it out of the bundle"));
            }
        }
    }
    for (name, entry) in &manifest.files {
        let path = dir.join(name);
        if !there.contains(name) {
            return Err(FileError::new(&path, "is missing").remedy("copy or export the bundle again"));
        }
        let length = refuse_unless_regular(&path)?.len();
        if length != entry.bytes {
            return Err(FileError::new(&path, format!("holds {length} bytes, the manifest says {}", entry.bytes))
                .remedy("copy or export the bundle again"));
        }
    }
    Ok(())
}

fn verify_digests(dir: &Path, manifest: &Manifest) -> Result<()> {
    for (name, entry) in &manifest.files {
        let path = dir.join(name);
        let mut file = files::open_regular(&path)?;
        let (digest, _) = digest::sha256_reader(&mut file)
            .map_err(|error| FileError::new(&path, format!("cannot be read: {error}")))?;
        if digest != entry.sha256 {
            return Err(FileError::new(&path, format!("has SHA-256 {digest}, the manifest says {}", entry.sha256))
                .remedy("the file was changed: copy or export the bundle again"));
        }
    }
    Ok(())
}
