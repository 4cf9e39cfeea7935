//! Personas on disk: one file each, only Φ, with metadata that says what it was learned from and which base it belongs to.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use marionette_models::bundle::Manifest;
use marionette_models::{FileError, LearningRate, Tensors, checkpoint, files};

use crate::persona_name::PersonaName;

/// The version of a persona file that this code writes and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// The folder of persona files within the home folder.
const FOLDER: &str = "personas";
const EXTENSION: &str = "safetensors";

/// Why a persona cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PersonaError {
    /// Another process works on it.
    #[error("persona {name} is busy: another marionette adapts it; wait for it to end")]
    Busy {
        /// The persona.
        name: PersonaName,
    },
    /// There is none of this name.
    #[error("there is no persona {name} in {folder} ({there}); make it with `marionette adapt`")]
    Unknown {
        /// The name.
        name: PersonaName,
        /// Where it was looked for.
        folder: String,
        /// Which there are.
        there: String,
    },
    /// There is one whose name differs only in case.
    #[error("persona {name} differs only in case from {other}, which is there already; choose another name")]
    Case {
        /// The name.
        name: PersonaName,
        /// The one that is there.
        other: String,
    },
    /// It was learned on another base model.
    #[error(
        "{path}: was adapted on another base model (SHA-256 {found}…, the bundle's is {expected}…); adapt it again with this bundle"
    )]
    OtherBase {
        /// The persona's file.
        path: String,
        /// The digest that the file names, its beginning.
        found: String,
        /// The bundle's, its beginning.
        expected: String,
    },
    /// No home folder is known.
    #[error("no folder for personas is known: neither XDG_DATA_HOME nor HOME is an absolute path; give --home")]
    NoHome,
    /// A file is wrong or cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What a persona was learned from, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// How many dialogues it was adapted on.
    pub dialogues: usize,
    /// The SHA-256 of what was learned from in these dialogues.
    pub dialogues_sha256: String,
    /// The sentences that describe the persona in these dialogues.
    pub persona: Vec<String>,
    /// α.
    pub learning_rate: LearningRate,
    /// The loss before each step, on that step's batch; as many as steps.
    pub losses: Vec<f32>,
    /// The loss on the first step's batch after the last step.
    pub loss_after: f32,
}

/// Φ of one persona.
#[derive(Debug, Clone, PartialEq)]
pub struct Persona {
    /// The adapters.
    pub adapters: Tensors,
    /// Where they come from.
    pub record: Record,
}

/// Where personas live.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The personas in `home`; without one, in `$XDG_DATA_HOME/marionette` or `~/.local/share/marionette`. Nothing is made yet.
    ///
    /// # Errors
    /// [`PersonaError::NoHome`].
    pub fn new(home: Option<&Path>) -> Result<Self, PersonaError> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = match home {
            Some(home) => home.to_owned(),
            None => absolute("XDG_DATA_HOME")
                .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
                .ok_or(PersonaError::NoHome)?
                .join("marionette"),
        };
        Ok(Self { folder: home.join(FOLDER) })
    }

    /// The file of a persona.
    pub fn path(&self, name: &PersonaName) -> PathBuf {
        self.folder.join(format!("{name}.{EXTENSION}"))
    }

    /// The names of the personas there, in order. What is no persona's file is passed over.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let name_of = |path: &Path| -> Option<String> {
            let name = path.file_stem()?.to_str()?;
            let is_persona = path.extension()? == EXTENSION && name.parse::<PersonaName>().is_ok();
            is_persona.then(|| name.to_owned())
        };
        let mut names: Vec<String> = entries.flatten().filter_map(|entry| name_of(&entry.path())).collect();
        names.sort();
        names
    }

    /// Takes a persona for changing. Only one process has it at a time; the system takes it from one that dies.
    ///
    /// # Errors
    /// [`PersonaError::Busy`] at once where another has it; [`PersonaError::Case`]; the folder cannot be written.
    pub fn lock(&self, name: &PersonaName) -> Result<Lock<'_>, PersonaError> {
        files::create_folders(&self.folder)?;
        // The lock is a file of its own: the persona's is replaced by renaming. It stays, as removing it would let a third
        // process lock a new file of that name while a second one still waits on the old.
        // Names that differ only in case have one lock: of two that begin at once one is refused.
        let path = self.folder.join(format!(".{}.lock", name.as_str().to_ascii_lowercase()));
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|error| {
            FileError::new(&path, format!("cannot be made: {error}")).remedy("check the folder's permissions")
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PersonaError::Busy { name: name.clone() }),
            Err(TryLockError::Error(error)) => {
                return Err(FileError::new(&path, format!("cannot be locked: {error}")).into());
            }
        }
        let names = self.names();
        let clash = names.iter().find(|other| other.eq_ignore_ascii_case(name.as_str()));
        match clash {
            Some(other) if !names.iter().any(|there| there == name.as_str()) => {
                return Err(PersonaError::Case { name: name.clone(), other: other.clone() });
            }
            _ => {}
        }
        Ok(Lock { store: self, name: name.clone(), _file: file })
    }

    /// Reads a persona for a bundle. While another process saves it, the old or the new one, whole.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; [`PersonaError::OtherBase`]; the file is wrong.
    pub fn load(&self, name: &PersonaName, manifest: &Manifest) -> Result<Persona, PersonaError> {
        let path = self.path(name);
        // By listing, not by opening: some file systems would open `ann` for `Ann`.
        let names = self.names();
        if !names.iter().any(|there| there == name.as_str()) {
            let there =
                if names.is_empty() { "there are none".to_owned() } else { format!("there are: {}", names.join(", ")) };
            return Err(PersonaError::Unknown { name: name.clone(), folder: self.folder.display().to_string(), there });
        }
        check_belongs(&path, manifest)?;
        let (adapters, metadata) = checkpoint::read_adapters(&path, &manifest.model, &manifest.adapter)?;
        Ok(Persona { adapters, record: Record::read(&path, &metadata)? })
    }
}

/// Refuses a persona of another base or a newer format before its tensors are looked at, so that the error names the cause.
fn check_belongs(path: &Path, manifest: &Manifest) -> Result<(), PersonaError> {
    let reader = marionette_models::safetensors_file::Reader::open(path)?;
    let metadata = Metadata { path, entries: reader.metadata() };
    let version: u32 = metadata.json("format_version")?;
    if version != FORMAT_VERSION {
        let problem = format!("is {version}, this program reads {FORMAT_VERSION}");
        return Err(metadata
            .wrong("format_version", problem)
            .remedy("use the marionette that wrote it, or adapt again")
            .into());
    }
    let found = metadata.text("base_sha256")?;
    if found != manifest.base_sha256 {
        let beginning = |digest: &str| digest.chars().filter(char::is_ascii_hexdigit).take(12).collect();
        return Err(PersonaError::OtherBase {
            path: path.display().to_string(),
            found: beginning(found),
            expected: beginning(&manifest.base_sha256),
        });
    }
    Ok(())
}

/// A persona that this process alone may change.
pub struct Lock<'store> {
    store: &'store Store,
    name: PersonaName,
    _file: File,
}

impl Lock<'_> {
    /// Saves the persona: the old file or the new one is there whatever happens, and the new one once this returns.
    ///
    /// # Errors
    /// An adapter holds NaN or infinity, or the file cannot be written; the old file is as it was.
    pub fn save(&self, persona: &Persona, manifest: &Manifest) -> Result<PathBuf, PersonaError> {
        let path = self.store.path(&self.name);
        let metadata = persona.record.write(&self.name, &manifest.base_sha256);
        checkpoint::write_adapters(&path, &persona.adapters, &metadata)?;
        Ok(path)
    }
}

impl Record {
    fn write(&self, name: &PersonaName, base_sha256: &str) -> BTreeMap<String, String> {
        let json = |value: serde_json::Value| value.to_string();
        BTreeMap::from([
            ("format_version".into(), FORMAT_VERSION.to_string()),
            ("name".into(), name.to_string()),
            ("base_sha256".into(), base_sha256.to_owned()),
            ("dialogues".into(), self.dialogues.to_string()),
            ("dialogues_sha256".into(), self.dialogues_sha256.clone()),
            ("persona".into(), json(serde_json::json!(self.persona))),
            ("learning_rate".into(), json(serde_json::json!(self.learning_rate))),
            ("steps".into(), self.losses.len().to_string()),
            ("losses".into(), json(serde_json::json!(self.losses))),
            ("loss_after".into(), self.loss_after.to_string()),
        ])
    }

    fn read(path: &Path, entries: &BTreeMap<String, String>) -> Result<Self, FileError> {
        let metadata = Metadata { path, entries };
        Ok(Self {
            dialogues: metadata.json("dialogues")?,
            dialogues_sha256: metadata.text("dialogues_sha256")?.to_owned(),
            persona: metadata.json("persona")?,
            learning_rate: metadata.json("learning_rate")?,
            losses: metadata.json("losses")?,
            loss_after: metadata.json("loss_after")?,
        })
    }
}

struct Metadata<'a> {
    path: &'a Path,
    entries: &'a BTreeMap<String, String>,
}

impl Metadata<'_> {
    fn wrong(&self, key: &str, problem: String) -> FileError {
        FileError::new(self.path, problem).at(format!("metadata {key}"))
    }

    fn text(&self, key: &str) -> Result<&str, FileError> {
        let missing = || self.wrong(key, "is missing: expected a file that `marionette adapt` wrote".into());
        self.entries.get(key).map(String::as_str).ok_or_else(missing)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T, FileError> {
        let text = self.text(key)?;
        serde_json::from_str(text).map_err(|error| self.wrong(key, format!("is wrong: {error}")))
    }
}

#[cfg(test)]
#[path = "personas_tests.rs"]
mod tests;
