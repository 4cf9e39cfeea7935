//! The cache that the Hugging Face tools share: `models--OWNER--NAME` with the files by their ETag in `blobs`, links to them
//! by their names in `snapshots/REVISION`, and the newest revision's name in `refs/main`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};
use marionette_models::checkpoint::{CONFIG_JSON, MODEL_SAFETENSORS};
use marionette_models::{FileError, files};

use super::{TOKENIZER_JSON, VOCABULARY, variable};

/// The tools' own folder.
pub fn home() -> Option<PathBuf> {
    variable("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("XDG_CACHE_HOME")?).join("huggingface")))
        .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")))
}

/// The cache's folder.
pub fn from_environment() -> Option<PathBuf> {
    variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home()?.join("hub")))
}

/// The folder of a model within the cache.
pub fn folder_name(name: &str) -> String {
    Repo::new(name.to_owned(), RepoType::Model).folder_name()
}

/// Whether a revision or an ETag that the hub gave can be the name of one file: letters, digits, `-`, `_` and `.`, which it does not
/// begin with.
pub fn is_plain(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Moves a file of the same file system, its content durable before its name.
///
/// # Errors
/// The step that failed.
pub fn move_durably(from: &Path, to: &Path) -> Result<(), FileError> {
    let failed = |error| FileError::new(to, format!("cannot be put into the cache: {error}"));
    let folder = files::parent(to);
    files::create_folders(folder)?;
    File::open(from).and_then(|file| file.sync_all()).map_err(failed)?;
    fs::rename(from, to).map_err(failed)?;
    files::sync_folder(folder)
}

/// A model of the cache.
pub struct Model {
    cache: Cache,
    name: String,
    root: PathBuf,
}

impl Model {
    /// The model of this name.
    pub fn new(cache: &Path, name: &str) -> Self {
        Self { cache: Cache::new(cache.to_owned()), name: name.to_owned(), root: cache.join(folder_name(name)) }
    }

    /// The folder of the newest revision, where all that is needed of it is there.
    pub fn whole(&self) -> Option<PathBuf> {
        let folder = self.cache.model(self.name.clone()).get(CONFIG_JSON)?.parent()?.to_owned();
        let has = |file: &str| folder.join(file).is_file();
        (has(MODEL_SAFETENSORS) && (has(TOKENIZER_JSON) || VOCABULARY.into_iter().all(has))).then_some(folder)
    }

    /// Whether a revision has a file.
    pub fn has(&self, commit: &str, file: &str) -> bool {
        self.root.join("snapshots").join(commit).join(file).is_file()
    }

    /// Where the content with this ETag lies.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Gives the content with this ETag the name of a file in a revision.
    ///
    /// # Errors
    /// What the system says.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), FileError> {
        let folder = self.root.join("snapshots").join(commit);
        let link = folder.join(file);
        let failed = |error| FileError::new(&link, format!("cannot be linked: {error}"));
        files::create_folders(&folder)?;
        // A link that leads nowhere.
        let _ = fs::remove_file(&link);
        #[cfg(unix)]
        std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), &link).map_err(failed)?;
        #[cfg(not(unix))]
        fs::rename(self.blob(etag), &link).map_err(failed)?;
        files::sync_folder(&folder)
    }

    /// Makes a revision the newest.
    ///
    /// # Errors
    /// What the system says.
    pub fn name_revision(&self, commit: &str) -> Result<(), FileError> {
        let folder = self.root.join("refs");
        files::create_folders(&folder)?;
        files::write_atomic(&folder.join("main"), |writer| writer.write_all(commit.as_bytes()))
    }
}
