//! Base models by their name on the Hugging Face hub: found in the ordinary cache of its tools, or fetched into it.
//!
//! Files are downloaded by their revision into a folder of our own beside the cached models. Only what has the length, and where
//! the hub says one the digest, that the hub announced is moved into the cache, and a revision is named there when all of its files
//! are. What a hub says becomes part of a path only where it is a plain name.

mod cache;
mod download;
mod progress;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{env, thread};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use marionette_dialogues::panics;
use marionette_models::checkpoint::{CONFIG_JSON, MODEL_SAFETENSORS};
use marionette_models::{FileError, files};

use crate::error::{Result, TrainError};
use cache::Model;
use download::{Announced, Stopped};
use marionette_console::interrupt;
use progress::Shown;

/// The one file of most tokenizers.
const TOKENIZER_JSON: &str = "tokenizer.json";
/// The two files of the others.
const VOCABULARY: [&str; 2] = ["vocab.json", "merges.txt"];
/// Where unfinished downloads lie, in the cache's folder, so that moving a whole one is a rename.
const UNFINISHED: &str = ".marionette-downloads";

/// The folder of a base model. What is there by that path is taken as it is; otherwise `gpt2` or `owner/name` is a model
/// of the Hugging Face hub, taken from the cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`), or fetched from the hub (or from
/// `HF_ENDPOINT`, with `HF_TOKEN` where that is set) unless `offline` or `HF_HUB_OFFLINE=1` says not to.
///
/// # Errors
/// The name is neither; the model is not in the cache and cannot be fetched, with what to download by hand; the model
/// has no `model.safetensors`; the program was interrupted.
pub fn resolve(base: &Path, offline: bool) -> Result<PathBuf> {
    if base.exists() {
        return Ok(base.to_owned());
    }
    let Some(name) = base.to_str().filter(|name| is_name(name)) else {
        return Err(FileError::new(base, "is not a folder, nor a name such as gpt2 or owner/name")
            .remedy("give a Hugging Face model folder, or a model's name on the Hugging Face hub")
            .into());
    };
    let Some(cache) = cache::from_environment() else {
        return Err(FileError::new(base, "is not a folder, and there is no home folder for models of the hub")
            .remedy("set HF_HUB_CACHE to a folder")
            .into());
    };
    let token = variable("HF_TOKEN").or_else(|| {
        let path = variable("HF_TOKEN_PATH").map(PathBuf::from);
        fs::read_to_string(path.or_else(|| Some(cache::home()?.join("token")))?).ok()
    });
    let hub = Hub {
        cache,
        endpoint: variable("HF_ENDPOINT"),
        token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
        offline: offline || variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
    };
    hub.model(name)
}

/// An environment variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Whether this can be a model's name on the hub: one or two parts of letters, digits, `-`, `_` and `.`.
fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    name.len() <= 96
        && !name.contains("..")
        && !name.contains("--")
        && name.split('/').count() <= 2
        && name.split('/').all(part)
}

/// A hub, and where its models are kept.
#[derive(Debug, Clone)]
struct Hub {
    cache: PathBuf,
    /// Where it is, if not at its usual place.
    endpoint: Option<String>,
    token: Option<String>,
    offline: bool,
}

impl Hub {
    /// The folder of a model in the cache, fetched where it is not there.
    fn model(&self, name: &str) -> Result<PathBuf> {
        let model = Model::new(&self.cache, name);
        if let Some(folder) = model.whole() {
            return Ok(folder);
        }
        if self.offline {
            let problem = format!("is neither a folder nor whole in the cache {}", self.cache.display());
            let remedy = format!("go online once without --offline and HF_HUB_OFFLINE, or {}", by_hand(name));
            return Err(FileError::new(Path::new(name), problem).remedy(remedy).into());
        }
        // On a thread of its own, so that Ctrl-C is heard while the network is waited for.
        let (send, receive) = mpsc::channel();
        let (hub, owned) = (self.clone(), name.to_owned());
        thread::spawn(move || {
            let result = panics::caught(|| hub.fetch(&owned));
            send.send(result.unwrap_or_else(|problem| Err(unusable(&owned, &problem)))).ok()
        });
        let fetched = loop {
            match receive.recv_timeout(Duration::from_millis(100)) {
                Ok(fetched) => break fetched,
                Err(RecvTimeoutError::Timeout) if !interrupt::asked() => {}
                Err(_) => return Err(TrainError::Interrupted),
            }
        };
        fetched?;
        model.whole().ok_or_else(|| unusable(name, "its files are not of one revision").into())
    }

    /// Fetches what the cache misses of a model.
    fn fetch(&self, name: &str) -> Result<(), FileError> {
        let fetching = Fetching::new(self, name)?;
        let missing = |file: &str, error: ApiError| match status(&error) {
            Some(404) => FileError::new(Path::new(name), format!("has no {file} on the Hugging Face hub"))
                .remedy("check the name, or give as --base a folder that holds the files of a GPT-2"),
            _ => failed(name, file, error),
        };
        // Small files first: what is wrong is known before the long download.
        let config = fetching.announced(CONFIG_JSON).map_err(|asked| asked.or(missing))?;
        let commit = config.commit.clone();
        let mut wanted = vec![config];
        match fetching.announced(TOKENIZER_JSON) {
            Ok(tokenizer) => wanted.push(tokenizer),
            Err(Asked::Hub(_, error)) if status(&error) == Some(404) => {
                for file in VOCABULARY {
                    wanted.push(fetching.announced(file).map_err(|asked| asked.or(missing))?);
                }
            }
            Err(asked) => return Err(asked.or(|file, error| failed(name, file, error))),
        }
        match fetching.announced(MODEL_SAFETENSORS) {
            Ok(weights) => wanted.push(weights),
            Err(Asked::Hub(_, error))
                if status(&error) == Some(404) && fetching.announced("pytorch_model.bin").is_ok() =>
            {
                return Err(FileError::new(Path::new(name), "has only pytorch_model.bin, expected model.safetensors")
                    .remedy(format!(
                        "convert it with Python's transformers: \
                         GPT2LMHeadModel.from_pretrained(\"{name}\").save_pretrained(FOLDER), \
                         put the tokenizer's files beside it and give --base FOLDER"
                    )));
            }
            Err(asked) => return Err(asked.or(missing)),
        }
        for announced in &wanted {
            if announced.commit != commit {
                return Err(unusable(name, "it changed while it was being fetched"));
            }
            fetching.put(announced)?;
        }
        fetching.model.name_revision(&commit)?;
        // An empty folder does no harm.
        let _ = fs::remove_dir_all(&fetching.unfinished);
        Ok(())
    }
}

/// Why nothing is known of a file.
enum Asked {
    /// What the hub answered when asked for it.
    Hub(&'static str, ApiError),
    /// It answered what cannot be.
    Impossible(FileError),
}

impl Asked {
    /// What is said of it; of the hub's answer by `hub`.
    fn or(self, hub: impl FnOnce(&str, ApiError) -> FileError) -> FileError {
        match self {
            Self::Hub(file, error) => hub(file, error),
            Self::Impossible(error) => error,
        }
    }
}

/// The fetching of one model.
struct Fetching<'a> {
    name: &'a str,
    token: Option<&'a str>,
    model: Model,
    api: Api,
    /// The model's folder of unfinished downloads.
    unfinished: PathBuf,
    /// Held as long as this process fetches the model.
    _lock: File,
}

impl<'a> Fetching<'a> {
    fn new(hub: &'a Hub, name: &'a str) -> Result<Self, FileError> {
        let folder = hub.cache.join(UNFINISHED);
        let mut builder = ApiBuilder::from_cache(Cache::new(folder.clone())).with_token(hub.token.clone());
        if let Some(endpoint) = &hub.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let api = builder.build().map_err(|error| failed(name, CONFIG_JSON, error))?;
        let unfinished = folder.join(cache::folder_name(name));
        let lock = lock(name, &folder, &unfinished.with_extension("lock"))?;
        let model = Model::new(&hub.cache, name);
        Ok(Self { name, token: hub.token.as_deref(), model, api, unfinished, _lock: lock })
    }

    /// The revision, ETag and length of a file, as the hub has it now.
    fn announced(&self, file: &'static str) -> Result<Announced, Asked> {
        let url = self.api.model(self.name.to_owned()).url(file);
        let metadata = self.api.metadata(&url).map_err(|error| Asked::Hub(file, error))?;
        let etag = metadata.etag().trim_start_matches("W/");
        if !cache::is_plain(etag) || !cache::is_plain(metadata.commit_hash()) {
            return Err(Asked::Impossible(unusable(self.name, &format!("{file} has an impossible revision or ETag"))));
        }
        let (commit, etag) = (metadata.commit_hash().to_owned(), etag.to_owned());
        Ok(Announced { file, commit, etag, bytes: metadata.size() as u64 })
    }

    /// Puts a file into the cache, fetched where it is not there.
    fn put(&self, announced: &Announced) -> Result<(), FileError> {
        if self.model.has(&announced.commit, announced.file) {
            return Ok(());
        }
        let blob = self.model.blob(&announced.etag);
        if fs::metadata(&blob).map_or(0, |found| found.len()) != announced.bytes {
            let fetched = self.download(announced)?;
            cache::move_durably(&fetched, &blob)?;
        }
        self.model.link(&announced.commit, announced.file, &announced.etag)
    }

    /// Downloads a file, from where an earlier download stopped, and checks it.
    fn download(&self, announced: &Announced) -> Result<PathBuf, FileError> {
        let file = announced.file;
        let part = self.unfinished.join(format!("{}.part", announced.etag));
        files::create_folders(&self.unfinished)?;
        let unreadable = |error| FileError::new(&part, format!("cannot be read again: {error}"));
        // Killed when all was there but not yet moved.
        if part.exists() && announced.problem(&part).map_err(unreadable)?.is_none() {
            return Ok(part);
        }
        let revision = Repo::with_revision(self.name.to_owned(), RepoType::Model, announced.commit.clone());
        let url = self.api.repo(revision).url(file);
        loop {
            let begun = part.exists();
            let problem = match download::download(&url, self.token, announced, &part, &mut Shown::new(self.name)) {
                Ok(()) => announced.problem(&part).map_err(unreadable)?,
                Err(Stopped::Network(ureq::Error::StatusCode(416))) if begun => Some("cannot be gone on with".into()),
                Err(Stopped::Network(error)) => return Err(failed(self.name, file, Box::new(error).into())),
                Err(Stopped::Io(error)) => return Err(failed(self.name, file, error.into())),
            };
            let Some(problem) = problem else { return Ok(part) };
            let _ = fs::remove_file(&part);
            // What an earlier download left may be what was wrong.
            if !begun {
                return Err(unusable(self.name, &format!("{file} {problem}")));
            }
        }
    }
}

/// Takes the lock of a model's unfinished downloads; it goes with the file or the process.
fn lock(name: &str, folder: &Path, path: &Path) -> Result<File, FileError> {
    let failed = |error| FileError::new(path, format!("cannot be made: {error}"));
    files::create_folders(folder)?;
    let file = File::create(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(busy(name)),
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn busy(name: &str) -> FileError {
    FileError::new(Path::new(name), "another process is fetching it").remedy("wait for that one, then run this again")
}

/// The status that the hub answered with, where it is none of success.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// What there is to do without a hub.
fn by_hand(name: &str) -> String {
    let folder = name.rsplit('/').next().unwrap_or(name);
    format!(
        "download {CONFIG_JSON}, {MODEL_SAFETENSORS} and {TOKENIZER_JSON} (or {} and {}) of {name} \
         where there is a network, put them into the folder ./{folder} and give --base ./{folder}",
        VOCABULARY[0], VOCABULARY[1]
    )
}

/// An answer that makes no model.
fn unusable(name: &str, problem: &str) -> FileError {
    FileError::new(Path::new(name), format!("cannot be fetched from the Hugging Face hub: {problem}"))
        .remedy(format!("try again, check HF_ENDPOINT where it is set, or {}", by_hand(name)))
}

/// What is wrong where fetching fails.
fn failed(name: &str, file: &str, error: ApiError) -> FileError {
    let named = |problem: String| FileError::new(Path::new(name), problem);
    match (status(&error), error) {
        (Some(status @ (401 | 403)), _) => {
            named(format!("the Hugging Face hub answers {status}: there is no such model, or it is not open to all"))
                .remedy("check the name; for a private or gated model accept its terms there and set HF_TOKEN")
        }
        (Some(status), _) => named(format!("{file} cannot be fetched: the Hugging Face hub answers {status}"))
            .remedy(format!("try again later, or {}", by_hand(name))),
        (None, ApiError::LockAcquisition(_)) => busy(name),
        (None, error @ (ApiError::MissingHeader(_) | ApiError::InvalidHeader(_) | ApiError::ParseIntError(_))) => {
            unusable(name, &format!("no hub answers {file} like this: {error}"))
        }
        (None, error) => named(format!("{file} cannot be fetched from the Hugging Face hub: {error}"))
            .remedy(format!("run it again to go on where it stopped, or {}", by_hand(name))),
    }
}
