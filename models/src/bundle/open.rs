//! Opening a bundle: everything is verified before any other library sees a byte of it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::manifest::{FileEntry, Manifest};
use super::{ADAPTERS, FORMAT_VERSION, MANIFEST, PROBE, SUMS, TOKENIZER, WEIGHTS};
use super::{audit, format_1, weights, writer};
use crate::checkpoint;
use crate::digest;
use crate::error::{FileError, Result};
use crate::params::{self, Tensors};
use crate::probe::Probe;
use crate::{files, json};

/// A manifest of more than this many bytes is refused: GPT-2 XL's has about 200 kB.
const MAX_MANIFEST: u64 = 4 << 20;
/// A prompt form of more tokens is refused: that of a chat template has some dozens.
const MAX_PROMPT: usize = 1 << 12;

/// What is read of a manifest before anything else is.
#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    format_version: Option<Number>,
}

/// A whole number, or whatever else is in its place.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Other(IgnoredAny),
}

/// A bundle whose files are those of its manifest, bit for bit.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
}

/// A bundle all of which is verified but its weights, whose digest takes longer than all else: meanwhile the tokenizer can be read.
#[derive(Debug)]
pub struct Opening {
    bundle: Bundle,
    /// Where in the weights there are numbers that may be infinite.
    floats: BTreeSet<audit::Floats>,
}

impl Opening {
    /// Verifies all but the weights.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn new(dir: &Path) -> Result<Self> {
        let manifest = read_manifest(dir)?;
        verify_listing(dir, &manifest)?;
        verify_digests(dir, &manifest)?;
        let length = manifest.files.get(WEIGHTS).map_or(0, |entry| entry.bytes);
        let mut floats = BTreeSet::new();
        for interface in manifest.graphs.values() {
            floats.extend(audit::graph(&dir.join(&interface.file), interface, &manifest, length)?);
        }
        Ok(Self { bundle: Bundle { dir: dir.to_owned(), manifest }, floats })
    }

    /// What the bundle says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.bundle.manifest
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.bundle.dir
    }

    /// Verifies the weights too.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn verify_weights(&self) -> Result<Bundle> {
        let Bundle { dir, manifest } = &self.bundle;
        let path = dir.join(WEIGHTS);
        let (digest, not_finite) = weights::digest(&path, &self.floats)?;
        manifest.files.get(WEIGHTS).map_or(Ok(()), |entry| same(&path, &digest, entry))?;
        not_finite.map_or(Ok(()), Err)?;
        verify_weights_beside(dir, manifest)?;
        Ok(self.bundle.clone())
    }
}

impl Bundle {
    /// Opens and verifies a bundle: the manifest by its digest (which one of format 1 need not have), the list of files (no extra file but
    /// what systems leave in folders), every length and SHA-256, that the graphs take and give what the manifest says, hold nothing but the operators of a bundle, no more of
    /// them than such a model needs, and no external data but `weights.bin`, and that the weights are finite. Links are followed, as in a backup or a hub's cache: what counts is what they lead to. (Only the weights must be beside
    /// the graphs, in the end: ONNX Runtime follows them no further.)
    ///
    /// What is verified is what lay there when it was read. ONNX Runtime opens graphs by their paths afterwards and maps the weights,
    /// so whoever may write to a file, or change a link or the folder, can still exchange it: no check by path prevents that, with
    /// links or without.
    ///
    /// # Errors
    /// What is wrong, with the file and the place.
    pub fn open(dir: &Path) -> Result<Self> {
        Opening::new(dir)?.verify_weights()
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
    let bytes = files::read_limited(&path, MAX_MANIFEST)
        .map_err(|error| error.remedy("expected a bundle that marionette-export wrote"))?;
    let sealed = match verify_manifest(dir, &bytes) {
        Err(Unsealed::Changed(error)) => return Err(unsealed(error)),
        sealed => sealed,
    };
    // One of another version may have no digest: that is what there is to say of it then.
    let manifest = Manifest::parse(&path, &bytes)?;
    match sealed {
        Err(Unsealed::Missing(_)) if manifest.format_version == format_1::VERSION => Ok(manifest),
        Err(Unsealed::Missing(error) | Unsealed::Changed(error)) => Err(unsealed(error)),
        Ok(()) => Ok(manifest),
    }
}

fn unsealed(error: FileError) -> FileError {
    error.remedy("copy or export the bundle again")
}

impl Manifest {
    /// A manifest from the contents of a `manifest.json`, of a format that is read and with possible values; `path` is what errors name.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        // Not a whole `Value`: that takes many times the bytes of the text.
        let version: Version = json::from_slice(bytes).map_err(|error| FileError::new(path, error))?;
        let found = match version.format_version {
            Some(Number::Whole(version)) => version,
            Some(Number::Other(_)) | None => {
                let problem = format!("expected {} or {FORMAT_VERSION}", format_1::VERSION);
                return Err(FileError::new(path, problem).at("format_version"));
            }
        };
        let read = match u32::try_from(found) {
            Ok(FORMAT_VERSION) => serde_json::from_slice(bytes),
            Ok(format_1::VERSION) => serde_json::from_slice::<format_1::Former>(bytes).map(Self::from),
            _ => {
                let problem = format!("is {found}, this program reads {} and {FORMAT_VERSION}", format_1::VERSION);
                let newer = found > u64::from(FORMAT_VERSION);
                let remedy = if newer { "use a newer marionette" } else { format_1::REMEDY };
                return Err(FileError::new(path, problem).at("format_version").remedy(remedy));
            }
        };
        let manifest = read.map_err(|error| FileError::new(path, error)).and_then(|manifest: Self| {
            manifest.check(path)?;
            Ok(manifest)
        });
        manifest.map_err(|error| match found == u64::from(format_1::VERSION) {
            true => error.remedy(format_1::REMEDY),
            false => error,
        })
    }

    /// Checks that its values are possible.
    fn check(&self, path: &Path) -> Result<()> {
        self.model.validate().map_err(|(field, problem)| {
            // Former manifests name fields as the family's own files do.
            let former = self.format_version == format_1::VERSION;
            let field = if former { self.model.family.plug().field(field) } else { field };
            FileError::new(path, problem).at(format!("model.{field}"))
        })?;
        self.prompt
            .validate(self.model.vocab_size)
            .map_err(|(field, problem)| FileError::new(path, problem).at(field))?;
        let wrong = |place: &str, problem: String| Err(FileError::new(path, problem).at(place));
        if let Err(problem) = self.adapter.check() {
            return wrong("adapter.bottleneck", problem);
        }
        if let Err(problem) = self.adapter.check_blocks(&self.model) {
            return wrong("adapter.first_block", problem);
        }
        let tokens = self.prompt.tokens().count();
        if tokens > MAX_PROMPT {
            return wrong("prompt", format!("has {tokens} tokens, expected at most {MAX_PROMPT}"));
        }
        if self.inner_loop.dialogues_per_step == 0 {
            return wrong("inner_loop.dialogues_per_step", "is 0, expected at least 1".into());
        }
        let tensors = params::adapter_table(&self.model, &self.adapter).len();
        if let Err(problem) = self.inner_loop.learning_rate.per_tensor(tensors) {
            return wrong("inner_loop.learning_rate", problem);
        }
        for name in self.files.keys() {
            if !files::is_plain_name(name) || [MANIFEST, SUMS].contains(&name.as_str()) {
                return wrong("files", format!("\"{name}\" is no plain file name"));
            }
        }
        let graphs = || super::graphs(&self.adapter);
        for name in graphs().map(|(_, file)| file).chain([WEIGHTS, ADAPTERS, TOKENIZER]) {
            if !self.files.contains_key(name) {
                return wrong("files", format!("{name} is not listed"));
            }
        }
        for (graph, file) in graphs() {
            match self.graphs.get(graph) {
                Some(interface) if interface.file == file => {}
                _ => return wrong("graphs", format!("\"{graph}\" is missing or does not name {file}")),
            }
        }
        let expected = graphs().count();
        if self.graphs.len() != expected {
            return wrong("graphs", format!("has {} entries, expected {expected}", self.graphs.len()));
        }
        Ok(())
    }
}

/// Whether a file is one that systems leave in folders that they show or copy: macOS's and Windows's.
fn is_litter(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"._")
        || [".DS_Store", "Thumbs.db", "desktop.ini"].iter().any(|litter| name.eq_ignore_ascii_case(litter))
}

fn verify_listing(dir: &Path, manifest: &Manifest) -> Result<()> {
    let unreadable = |error| FileError::new(dir, format!("cannot be read: {error}"));
    let mut there = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        match name.to_str() {
            Some(MANIFEST | SUMS) => {}
            Some(name) if manifest.files.contains_key(name) => {
                there.insert(name.to_owned());
            }
            _ if is_litter(&name) => {}
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
        let length = files::regular(&path)?.len();
        if length != entry.bytes {
            return Err(FileError::new(&path, format!("holds {length} bytes, the manifest says {}", entry.bytes))
                .remedy("copy or export the bundle again"));
        }
    }
    Ok(())
}

/// Checks that the weights are where ONNX Runtime follows them: in the bundle's folder, or in the one that a linked graph lies in.
fn verify_weights_beside(dir: &Path, manifest: &Manifest) -> Result<()> {
    let real = |path: &Path| {
        fs::canonicalize(path).map_err(|error| FileError::new(path, format!("cannot be followed: {error}")))
    };
    let path = dir.join(WEIGHTS);
    let (weights, folder) = (real(&path)?, real(dir)?);
    for (_, file) in super::graphs(&manifest.adapter) {
        let graph = real(&dir.join(file))?;
        if !weights.starts_with(&folder) && !weights.starts_with(files::parent(&graph)) {
            let problem = format!("leads to {}, another folder than {file} is in", weights.display());
            return Err(FileError::new(&path, problem).remedy("copy the bundle, following links (cp -rL)"));
        }
    }
    Ok(())
}

/// Checks the digests of all files but the weights, which are read once, when it is known what is in them.
fn verify_digests(dir: &Path, manifest: &Manifest) -> Result<()> {
    for (name, entry) in manifest.files.iter().filter(|(name, _)| *name != WEIGHTS) {
        let path = dir.join(name);
        same(&path, &digest::sha256_file(&path)?, entry)?;
    }
    Ok(())
}

fn same(path: &Path, digest: &str, entry: &FileEntry) -> Result<()> {
    match digest == entry.sha256 {
        true => Ok(()),
        false => Err(FileError::new(path, format!("has SHA-256 {digest}, the manifest says {}", entry.sha256))
            .remedy("the file was changed: copy or export the bundle again")),
    }
}

/// Why a manifest is not known to be what was written.
enum Unsealed {
    /// There is no digest.
    Missing(FileError),
    /// It has another.
    Changed(FileError),
}

/// Checks the manifest against its digest.
fn verify_manifest(dir: &Path, manifest: &[u8]) -> Result<(), Unsealed> {
    let path = dir.join(SUMS);
    if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Err(Unsealed::Missing(FileError::new(
            &path,
            "is missing: it says whether the manifest is what was written",
        )));
    }
    let found = files::read_limited(&path, 1 << 10).map_err(Unsealed::Changed)?;
    match found == writer::sums(manifest).as_bytes() {
        true => Ok(()),
        false => Err(Unsealed::Changed(FileError::new(
            &dir.join(MANIFEST),
            format!("has another digest than {SUMS} says: one of the two was changed"),
        ))),
    }
}
