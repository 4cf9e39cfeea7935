//! Personas on disk. Each is a folder of versions, of which one is current:
//!
//! ```text
//! HOME/personas/ann/current                    a line, the number of the version in use
//! HOME/personas/ann/3/adapters.safetensors     Φ, and in its metadata what it was learned from and which base it belongs to
//! HOME/personas/ann/3/dialogues.jsonl          the dialogues, those that were held out last; absent where they were not to be kept
//! HOME/personas/ann/taught.jsonl               what it was taught since, in talking with it, and has not learned yet
//! ```
//!
//! A version appears whole, by one rename, and is never changed; what is current changes by one rename too. So readers need no lock,
//! and whatever ends a process, each version is there or not. Before there were versions, a persona was a file `ann.safetensors`, which
//! is read as version 1 and becomes it with the first change.

mod change;
mod error;
mod export;
mod record;

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use marionette_dialogues::{Dialogue, Rules, read_chat};
use marionette_models::bundle::Manifest;
use marionette_models::safetensors_file::Reader;
use marionette_models::{FileError, Tensors, checkpoint, files};

use crate::persona_name::PersonaName;

pub use change::{Lock, Saved};
pub use error::PersonaError;
pub use export::Format;
use record::Facts;
pub use record::{FORMAT_VERSION, HeldOut, Record};

/// The folder of personas within the home folder.
const FOLDER: &str = "personas";
/// A persona of former times: one file.
const FORMER: &str = "safetensors";
const ADAPTERS: &str = "adapters.safetensors";
const DIALOGUES: &str = "dialogues.jsonl";
const CURRENT: &str = "current";
/// Dialogues that were taught since the last version.
const TAUGHT: &str = "taught.jsonl";
/// The most bytes of the file that names the current version.
const MAX_CURRENT: u64 = 64;

/// Φ of one persona.
#[derive(Debug, Clone, PartialEq)]
pub struct Persona {
    /// The adapters.
    pub adapters: Tensors,
    /// Where they come from.
    pub record: Record,
}

/// What is known of a version without reading its adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// Its number, from 1.
    pub number: usize,
    /// Whether it is the one in use.
    pub is_current: bool,
    /// When it was saved, as RFC 3339 in UTC; those of former times do not say.
    pub created: Option<String>,
    /// The digest of the base model that it belongs to.
    pub base_sha256: String,
    /// What it was learned from.
    pub record: Record,
    /// Whether its dialogues were kept.
    pub keeps_dialogues: bool,
    /// The bytes that it takes on disk.
    pub bytes: u64,
}

/// The folder that is given, or `$XDG_DATA_HOME/marionette`, or `~/.local/share/marionette`.
///
/// # Errors
/// [`PersonaError::NoHome`].
pub fn home(given: Option<&Path>) -> Result<PathBuf, PersonaError> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let data = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    Ok(data.ok_or(PersonaError::NoHome)?.join("marionette"))
}

/// Where personas live.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// How a persona lies there.
enum Place {
    Folder(PathBuf),
    /// One file, as before there were versions.
    Former(PathBuf),
}

impl Store {
    /// The personas in `home`; without one, in `$XDG_DATA_HOME/marionette` or `~/.local/share/marionette`. Nothing is made yet.
    ///
    /// # Errors
    /// [`PersonaError::NoHome`].
    pub fn new(home: Option<&Path>) -> Result<Self, PersonaError> {
        Ok(Self { folder: self::home(home)?.join(FOLDER) })
    }

    /// The folder that they lie in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of the personas there, in order. What is no persona is passed over.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let name_of = |path: &Path| -> Option<String> {
            let is_folder = path.is_dir();
            let name = if is_folder { path.file_name() } else { path.file_stem() }?.to_str()?;
            let is_persona = is_folder || path.extension()? == FORMER;
            (is_persona && name.parse::<PersonaName>().is_ok_and(|parsed| parsed.as_str() == name))
                .then(|| name.to_owned())
        };
        let mut names: Vec<String> = entries.flatten().filter_map(|entry| name_of(&entry.path())).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Takes a persona for changing, be it there or not. Only one process has it at a time; the system takes it from one that dies.
    ///
    /// # Errors
    /// [`PersonaError::Busy`] at once where another has it; [`PersonaError::Case`]; the folder cannot be written.
    pub fn lock(&self, name: &PersonaName) -> Result<Lock<'_>, PersonaError> {
        files::create_folders(&self.folder)?;
        // The lock is a file of its own, outside the persona's folder, which may be removed and made again. It stays: removing it would
        // let a third process lock a new file of that name while a second one still waits on the old.
        // Names that differ only in case have one lock: of two that begin at once one is refused.
        let path = self.folder.join(format!(".{}.lock", name.folded()));
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
        let clashes = |other: &&String| other.parse().is_ok_and(|other: PersonaName| other.folded() == name.folded());
        match names.iter().find(clashes) {
            Some(other) if !names.iter().any(|there| there == name.as_str()) => {
                Err(PersonaError::Case { name: name.clone(), other: other.clone() })
            }
            _ => Ok(Lock::new(self, name.clone(), file)),
        }
    }

    /// Reads a version of a persona for a bundle, the current one where none is named.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; [`PersonaError::UnknownVersion`]; [`PersonaError::OtherBase`]; the file is wrong.
    pub fn load(
        &self,
        name: &PersonaName,
        version: Option<usize>,
        manifest: &Manifest,
    ) -> Result<Persona, PersonaError> {
        load(&self.adapters(name, version)?.1, manifest)
    }

    /// The numbers of a persona's versions, oldest first.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`].
    pub fn versions(&self, name: &PersonaName) -> Result<Vec<usize>, PersonaError> {
        Ok(self.place(name)?.versions())
    }

    /// What is known of a version, the current one where none is named.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; [`PersonaError::UnknownVersion`]; its file is wrong.
    pub fn version(&self, name: &PersonaName, version: Option<usize>) -> Result<Version, PersonaError> {
        let place = self.place(name)?;
        let (number, path) = place.adapters(name, version)?;
        let Facts { base_sha256, created, record } = Facts::read(&path, Reader::open(&path)?.metadata())?;
        let size = |path: &Path| fs::metadata(path).ok().map(|found| found.len());
        let dialogues = size(&path.with_file_name(DIALOGUES)).filter(|_| path.ends_with(ADAPTERS));
        Ok(Version {
            number,
            is_current: version.is_none() || place.current(name).is_ok_and(|current| current == number),
            created,
            base_sha256,
            record,
            keeps_dialogues: dialogues.is_some(),
            bytes: size(&path).unwrap_or(0) + dialogues.unwrap_or(0),
        })
    }

    /// The dialogues of a version, those that were held out last.
    ///
    /// # Errors
    /// [`PersonaError::NoDialogues`]; as [`Store::version`]; they cannot be read.
    pub fn dialogues(&self, name: &PersonaName, version: Option<usize>) -> Result<Vec<Dialogue>, PersonaError> {
        let (version, path) = self.adapters(name, version)?;
        let path = path.with_file_name(DIALOGUES);
        if !path.exists() {
            return Err(PersonaError::NoDialogues { name: name.clone(), version });
        }
        Ok(read_chat(&path, &Rules::default())?.into_parts(&path).1)
    }

    /// The dialogues that a persona was taught and has not learned yet.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; they cannot be read.
    pub fn taught(&self, name: &PersonaName) -> Result<Vec<Dialogue>, PersonaError> {
        let Place::Folder(folder) = self.place(name)? else { return Ok(Vec::new()) };
        let path = folder.join(TAUGHT);
        match path.exists() {
            true => Ok(read_chat(&path, &Rules::default())?.into_parts(&path).1),
            false => Ok(Vec::new()),
        }
    }

    /// The number of the version in use.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; the file that names it is wrong.
    pub fn current(&self, name: &PersonaName) -> Result<usize, PersonaError> {
        self.place(name)?.current(name)
    }

    /// The file of a version's adapters, and its number.
    pub(crate) fn adapters(
        &self,
        name: &PersonaName,
        version: Option<usize>,
    ) -> Result<(usize, PathBuf), PersonaError> {
        self.place(name)?.adapters(name, version)
    }

    /// By listing, not by opening: some file systems would open `ann` for `Ann`.
    fn place(&self, name: &PersonaName) -> Result<Place, PersonaError> {
        let names = self.names();
        if !names.iter().any(|there| there == name.as_str()) {
            let there =
                if names.is_empty() { "there are none".to_owned() } else { format!("there are: {}", names.join(", ")) };
            return Err(PersonaError::Unknown { name: name.clone(), folder: self.folder.display().to_string(), there });
        }
        let folder = self.folder_of(name);
        Ok(if folder.is_dir() { Place::Folder(folder) } else { Place::Former(self.former_of(name)) })
    }

    fn folder_of(&self, name: &PersonaName) -> PathBuf {
        self.folder.join(name.as_str())
    }

    fn former_of(&self, name: &PersonaName) -> PathBuf {
        self.folder.join(format!("{name}.{FORMER}"))
    }
}

impl Place {
    fn versions(&self) -> Vec<usize> {
        match self {
            Self::Former(_) => vec![1],
            Self::Folder(folder) => numbers(folder),
        }
    }

    fn current(&self, name: &PersonaName) -> Result<usize, PersonaError> {
        let Self::Folder(folder) = self else { return Ok(1) };
        let path = folder.join(CURRENT);
        let text = files::read_limited(&path, MAX_CURRENT)?;
        let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        number.ok_or_else(|| {
            let remedy = format!("`marionette personas revert {name} VERSION` names another");
            FileError::new(&path, "expected the number of a version").remedy(remedy).into()
        })
    }

    fn adapters(&self, name: &PersonaName, version: Option<usize>) -> Result<(usize, PathBuf), PersonaError> {
        let number = version.map_or_else(|| self.current(name), Ok)?;
        let there = self.versions();
        if !there.contains(&number) {
            let there: Vec<String> = there.iter().map(usize::to_string).collect();
            let there = there.join(", ");
            return Err(PersonaError::UnknownVersion { name: name.clone(), version: number, there });
        }
        let path = match self {
            Self::Folder(folder) => folder.join(number.to_string()).join(ADAPTERS),
            Self::Former(file) => file.clone(),
        };
        Ok((number, path))
    }
}

/// Reads the adapters of a file for a bundle.
fn load(path: &Path, manifest: &Manifest) -> Result<Persona, PersonaError> {
    // Whose they are is looked at before the tensors, so that the error names the cause.
    let facts = Facts::read(path, Reader::open(path)?.metadata())?;
    if facts.base_sha256 != manifest.base_sha256 {
        let beginning = |digest: &str| digest.chars().filter(char::is_ascii_hexdigit).take(12).collect();
        return Err(PersonaError::OtherBase {
            path: path.display().to_string(),
            found: beginning(&facts.base_sha256),
            expected: beginning(&manifest.base_sha256),
        });
    }
    let (adapters, _) = checkpoint::read_adapters(path, &manifest.model, &manifest.adapter)?;
    Ok(Persona { adapters, record: facts.record })
}

/// The versions in a persona's folder, oldest first.
fn numbers(folder: &Path) -> Vec<usize> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let number = |entry: fs::DirEntry| -> Option<usize> {
        let name = entry.file_name();
        let number: usize = name.to_str()?.parse().ok()?;
        (number.to_string() == name.to_str()? && entry.path().is_dir()).then_some(number)
    };
    let mut numbers: Vec<usize> = entries.flatten().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests;
