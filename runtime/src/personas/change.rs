//! Changing a persona: saving a version, naming the one in use, renaming and removing.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use marionette_dialogues::{Dialogue, write_chat};
use marionette_models::bundle::Manifest;
use marionette_models::files::{self, StagedFolder};
use marionette_models::safetensors_file::Reader;
use marionette_models::{FileError, checkpoint};

use super::record::Facts;
use super::{ADAPTERS, CURRENT, DIALOGUES, Persona, PersonaError, Place, Store, TAUGHT, export, numbers};
use crate::persona_name::PersonaName;

/// A persona that this process alone may change.
pub struct Lock<'store> {
    store: &'store Store,
    name: PersonaName,
    _file: File,
}

/// A version that was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its number.
    pub version: usize,
    /// Whether it is the one in use now.
    pub is_current: bool,
    /// The folder of the persona.
    pub folder: PathBuf,
}

impl<'store> Lock<'store> {
    pub(super) fn new(store: &'store Store, name: PersonaName, file: File) -> Self {
        Self { store, name, _file: file }
    }

    /// Saves a new version, with its dialogues where they are to be kept. It is the one in use from then on where `current` says so, or
    /// where it is the first. Once this returns it is on disk; after an error, or a kill, what was in use still is.
    ///
    /// # Errors
    /// An adapter holds NaN or infinity, or files cannot be written.
    pub fn save(
        &self,
        persona: &Persona,
        dialogues: Option<&[Dialogue]>,
        manifest: &Manifest,
        current: bool,
    ) -> Result<Saved, PersonaError> {
        let created = Timestamp::try_from(SystemTime::now()).ok();
        let facts = Facts {
            base_sha256: manifest.base_sha256.clone(),
            created: created.map(|now| format!("{now:.0}")),
            record: persona.record.clone(),
        };
        let saved = self.add(current, |version| {
            checkpoint::write_adapters(&version.join(ADAPTERS), &persona.adapters, &facts.write())?;
            let Some(dialogues) = dialogues else { return Ok(()) };
            write_dialogues(&version.join(DIALOGUES), dialogues)
        })?;
        if let (true, Some(dialogues)) = (saved.is_current, dialogues) {
            // The version is saved, whatever comes of this.
            let _ = self.learned(dialogues);
        }
        Ok(saved)
    }

    /// What was taught and is among these dialogues waits no longer. (Were it to stay, it would not be learned twice.)
    fn learned(&self, dialogues: &[Dialogue]) -> Result<(), PersonaError> {
        let path = self.folder().join(TAUGHT);
        let mut taught = self.store.taught(&self.name)?;
        let all = taught.len();
        taught.retain(|taught| !taught.is_among(dialogues));
        match taught.len() {
            left if left == all => Ok(()),
            0 => Ok(fs::remove_file(&path).map_err(|error| cannot_be_removed(&path, &error))?),
            _ => Ok(write_dialogues(&path, &taught)?),
        }
    }

    /// Adds the version that is in a file: one that was exported.
    ///
    /// # Errors
    /// The file is not a persona's, or was changed since it was written; files cannot be written.
    pub fn import(&self, file: &Path) -> Result<Saved, PersonaError> {
        Facts::read(file, Reader::open(file)?.metadata())?;
        export::tensors(file)?;
        self.add(true, |version| copy(file, &version.join(ADAPTERS)))
    }

    /// Adds a version that `fill` writes into an empty folder.
    fn add(&self, current: bool, fill: impl FnOnce(&Path) -> Result<(), FileError>) -> Result<Saved, PersonaError> {
        self.adopt()?;
        let folder = self.folder();
        let version = numbers(&folder).last().map_or(1, |last| last + 1);
        let is_current = current || version == 1;
        let saved = Saved { version, is_current, folder: folder.clone() };
        if version == 1 {
            // All of a new persona at once.
            let staged = StagedFolder::create(&folder)?;
            let inner = staged.path().join("1");
            make(&inner)?;
            fill(&inner)?;
            write_current(staged.path(), 1)?;
            staged.finish()?;
            return Ok(saved);
        }
        let place = folder.join(version.to_string());
        let staged = StagedFolder::create(&place)?;
        fill(staged.path())?;
        staged.finish()?;
        if is_current {
            write_current(&folder, version).inspect_err(|_| {
                // It was said not to be saved.
                let _ = fs::remove_dir_all(&place);
            })?;
        }
        Ok(saved)
    }

    /// Keeps a dialogue to be learned later, after those that are kept already, and gives how many there are.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; the file cannot be read or written.
    pub fn teach(&self, dialogue: &Dialogue) -> Result<usize, PersonaError> {
        let mut taught = self.store.taught(&self.name)?;
        taught.push(dialogue.clone());
        self.adopt()?;
        write_dialogues(&self.folder().join(TAUGHT), &taught)?;
        Ok(taught.len())
    }

    /// Makes a version the one in use: the one named, or the newest of those before it.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; [`PersonaError::UnknownVersion`], where there is none before it too; the file cannot be written.
    pub fn revert(&self, version: Option<usize>) -> Result<usize, PersonaError> {
        let there = self.store.versions(&self.name)?;
        let version = match version {
            Some(version) => version,
            None => {
                let current = self.store.current(&self.name)?;
                there.iter().copied().rfind(|&number| number < current).unwrap_or(0)
            }
        };
        self.store.adapters(&self.name, Some(version))?;
        self.adopt()?;
        write_current(&self.folder(), version)?;
        Ok(version)
    }

    /// Gives the persona another name, which `to` holds.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; [`PersonaError::Taken`]; the folder cannot be renamed.
    pub fn rename(self, to: &Lock<'_>) -> Result<(), PersonaError> {
        self.store.place(&self.name)?;
        if to.store.place(&to.name).is_ok() {
            return Err(PersonaError::Taken { name: to.name.clone() });
        }
        self.adopt()?;
        let (from, target) = (self.folder(), to.folder());
        fs::rename(&from, &target).map_err(|error| FileError::new(&from, format!("cannot be renamed: {error}")))?;
        files::sync_folder(&self.store.folder)?;
        Ok(())
    }

    /// Removes the persona with all its versions.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; the system refuses.
    pub fn remove(self) -> Result<(), PersonaError> {
        let place = self.store.place(&self.name)?;
        let former = self.store.former_of(&self.name);
        if former.exists() {
            fs::remove_file(&former).map_err(|error| cannot_be_removed(&former, &error))?;
        }
        if let Place::Folder(folder) = place {
            remove_folder(&folder)?;
        }
        Ok(files::sync_folder(&self.store.folder)?)
    }

    /// Removes a version that is not in use.
    ///
    /// # Errors
    /// [`PersonaError::Unknown`]; [`PersonaError::UnknownVersion`]; [`PersonaError::Current`]; the system refuses.
    pub fn remove_version(&self, version: usize) -> Result<(), PersonaError> {
        self.store.adapters(&self.name, Some(version))?;
        if self.store.current(&self.name)? == version {
            return Err(PersonaError::Current { name: self.name.clone(), version });
        }
        Ok(remove_folder(&self.folder().join(version.to_string()))?)
    }

    fn folder(&self) -> PathBuf {
        self.store.folder_of(&self.name)
    }

    /// Makes a folder of what was one file.
    fn adopt(&self) -> Result<(), PersonaError> {
        let (folder, former) = (self.folder(), self.store.former_of(&self.name));
        if !former.exists() {
            return Ok(());
        }
        if !folder.is_dir() {
            let staged = StagedFolder::create(&folder)?;
            let version = staged.path().join("1");
            make(&version)?;
            copy(&former, &version.join(ADAPTERS))?;
            write_current(staged.path(), 1)?;
            staged.finish()?;
        }
        // The folder counts from now on; a file that stays is removed the next time.
        let _ = fs::remove_file(&former);
        Ok(())
    }
}

fn write_dialogues(path: &Path, dialogues: &[Dialogue]) -> Result<(), FileError> {
    files::write_atomic(path, |writer| dialogues.iter().try_for_each(|dialogue| write_chat(writer, dialogue)))
}

fn write_current(folder: &Path, version: usize) -> Result<(), FileError> {
    files::write_atomic(&folder.join(CURRENT), |writer| writeln!(writer, "{version}"))
}

fn make(folder: &Path) -> Result<(), FileError> {
    fs::create_dir(folder).map_err(|error| FileError::new(folder, format!("the folder cannot be made: {error}")))
}

fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    let mut from = files::open_regular(from)?;
    files::write_atomic(to, |writer| io::copy(&mut from, writer).map(drop))
}

fn cannot_be_removed(path: &Path, error: &io::Error) -> FileError {
    FileError::new(path, format!("cannot be removed: {error}"))
}

/// Removes a folder so that it is there whole or not at all: what a kill leaves has the name of a temporary one.
fn remove_folder(folder: &Path) -> Result<(), FileError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let away = folder.with_file_name(format!("{}removed-{name}", files::TEMPORARY_PREFIX));
    let _ = fs::remove_dir_all(&away);
    fs::rename(folder, &away).map_err(|error| cannot_be_removed(folder, &error))?;
    fs::remove_dir_all(&away).map_err(|error| cannot_be_removed(&away, &error))
}
