//! The run directory, as far as others than the trainer read it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bundle::Precision;
use crate::checkpoint::{Base, BaseFiles, CONFIG_JSON, MODEL_SAFETENSORS};
use crate::config::AdapterConfig;
use crate::error::{FileError, Result};
use crate::inner_loop::InnerLoop;
use crate::{digest, files, json};

/// The resolved configuration of a run.
pub const CONFIG_TOML: &str = "config.toml";
/// Holds the checkpoints, `step-N` each.
pub const CHECKPOINTS: &str = "checkpoints";
/// The inner loop within a checkpoint, with α as it is by then.
pub const INNER_LOOP: &str = "inner_loop.json";
/// The next-utterance classifier within a checkpoint, where one was learned.
pub const CLASSIFIER: &str = "classifier.safetensors";
/// The outer optimiser within a checkpoint.
pub const OPTIMISER: &str = "optimiser.safetensors";
/// The counters and random numbers within a checkpoint.
pub const STATE: &str = "state.json";
/// A `state.json` of more than this many bytes is refused.
pub const MAX_STATE: u64 = 1 << 28;
/// Φ within a checkpoint, where adapters were learned.
pub const ADAPTERS: &str = "adapters.safetensors";
/// The digests of a checkpoint's files, as `sha256sum` prints and checks them.
pub const SUMS: &str = "SHA256SUMS";
/// What libtorch computed, for the parity check on the device.
pub const PROBE: &str = "probe.safetensors";

/// The part of a run's `config.toml` that says what model came out of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunModel {
    /// The folder of the pre-trained model, absolute.
    pub base: PathBuf,
    /// The digest of its configuration and tensors ([`crate::digest::base_sha256`]).
    pub base_sha256: String,
    /// The method, as on the command line.
    pub method: String,
    /// Whether persona sentences were put in front of each dialogue.
    pub persona_text: bool,
    /// The adapters' shape.
    pub adapter: AdapterConfig,
    /// How the matrices that do not learn were held in training: fp32, or as a bundle of that precision holds them.
    #[serde(default, skip_serializing_if = "is_fp32")]
    pub frozen: Precision,
    /// The inner loop, as it was at the beginning of the run.
    pub inner_loop: InnerLoop,
}

fn is_fp32(precision: &Precision) -> bool {
    *precision == Precision::Fp32
}

impl RunModel {
    /// What a verified checkpoint of a run was made with, but for the place of the base model: `RUN/config.toml`, which anyone may
    /// edit and no digest protects, says where that lies by now. What else is in the files is the trainer's.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub fn read(run: &Path, checkpoint: &Path) -> Result<Self> {
        let path = run.join(CONFIG_TOML);
        let written: Self = read_config(&path)?;
        let model = match made_with(checkpoint)? {
            Some(made) => Self { base: written.base, ..made },
            None => written,
        };
        model.adapter.check().map_err(|problem| FileError::new(&path, problem).at("adapter.bottleneck"))?;
        Ok(model)
    }

    /// Says where the base model lies: at `moved` where that is given, else where `config`, the `config.toml`, says.
    ///
    /// # Errors
    /// It is not there.
    pub fn place_base(&mut self, config: &Path, moved: Option<&Path>) -> Result<()> {
        match moved {
            Some(moved) => self.base = moved.to_owned(),
            None if self.base.is_dir() => {}
            None => {
                let remedy = format!("{} names it as the base model; --base gives its new place", config.display());
                return Err(FileError::new(&self.base, "is not a folder").remedy(remedy));
            }
        }
        Ok(())
    }

    /// The base model that the run began with, from the place of [`Self::place_base`].
    ///
    /// # Errors
    /// It is not there, cannot be read, or is another than it was.
    pub fn open_base(&mut self, config: &Path, moved: Option<&Path>) -> Result<BaseFiles> {
        self.place_base(config, moved)?;
        let base = BaseFiles::open(&self.base)?;
        let found = base.sha256()?;
        if found != self.base_sha256 {
            let problem =
                format!("is not the model that the run of {} was made with: it has digest {found}", config.display());
            let remedy = format!("give the model with digest {} with --base, or train again", self.base_sha256);
            return Err(FileError::new(&self.base, problem).at("base_sha256").remedy(remedy));
        }
        Ok(base)
    }

    /// The same, read.
    ///
    /// # Errors
    /// As [`Self::open_base`].
    pub fn read_base(&mut self, config: &Path, moved: Option<&Path>) -> Result<Base> {
        self.open_base(config, moved)?.read()
    }
}

/// The part of a run's `config.toml` that says which dialogues it was judged by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunData {
    /// Dialogue files to meta-train on.
    pub train: Vec<PathBuf>,
    /// Dialogue files to validate on.
    pub valid: Vec<PathBuf>,
    /// The part of the training personas to validate on instead, where there are none.
    pub hold_out: f64,
    /// The part of the training personas that was kept for testing.
    pub test_part: f64,
    /// The digests of the files, those to train on first.
    pub sha256: Vec<String>,
}

impl RunData {
    /// As [`RunModel::read`]: what the checkpoint was made with, from where `RUN/config.toml` says that the files lie by now.
    ///
    /// # Errors
    /// A file is missing or wrong, or says nothing of data.
    pub fn read(run: &Path, checkpoint: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            data: RunData,
        }
        let written: File = read_config(&run.join(CONFIG_TOML))?;
        Ok(match made_with::<File>(checkpoint)? {
            Some(made) if made.data.sha256 == written.data.sha256 => {
                Self { train: written.data.train, valid: written.data.valid, ..made.data }
            }
            Some(made) => made.data,
            None => written.data,
        })
    }
}

fn read_config<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = files::read_limited(path, 1 << 20)?;
    let text = str::from_utf8(&bytes).map_err(|_| FileError::new(path, "is not UTF-8"))?;
    toml::from_str(text).map_err(|error| {
        FileError::new(path, error.message()).remedy("expected the config.toml that `marionette-train run` wrote")
    })
}

/// The configuration that a checkpoint was made with, from its `state.json`, which its digests protect; none where it
/// is not recorded there, as in those of former versions.
///
/// # Errors
/// The file is missing or wrong.
pub fn made_with<T: DeserializeOwned>(checkpoint: &Path) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Recorded<T> {
        config: Option<T>,
    }
    let path = checkpoint.join(STATE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = files::read_limited(&path, MAX_STATE)?;
    let recorded: Recorded<T> =
        json::from_slice(&bytes).map_err(|error| FileError::new(&path, format!("is not a state: {error}")))?;
    Ok(recorded.config)
}

/// Which checkpoint of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one with the lowest validation loss.
    Best,
    /// The newest.
    Last,
}

impl Which {
    /// The file in the run directory whose one line names the checkpoint.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Last => "last",
        }
    }
}

/// The folder of a checkpoint of `run`, whose files are as they were written: whoever reads a run comes through here.
///
/// # Errors
/// The run has no such checkpoint, the file that names it is wrong, or [`verify`] refuses it.
pub fn checkpoint(run: &Path, which: Which) -> Result<PathBuf> {
    let path = run.join(which.file_name());
    let bytes = files::read_limited(&path, 100)
        .map_err(|error| error.remedy("the run has no checkpoint yet, or is no run directory"))?;
    let name = String::from_utf8_lossy(&bytes).trim().to_owned();
    let steps = name.strip_prefix("step-").unwrap_or("");
    if steps.is_empty() || !steps.bytes().all(|b| b.is_ascii_digit()) {
        return Err(FileError::new(&path, format!("says \"{name}\", expected a line such as step-120")));
    }
    let folder = run.join(CHECKPOINTS).join(name);
    if !folder.is_dir() {
        return Err(FileError::new(&folder, "is missing").remedy(format!("{} names it", path.display())));
    }
    verify(&folder)?;
    Ok(folder)
}

/// Checks that the files of a checkpoint have the digests that were written with them, and that there are no others.
///
/// # Errors
/// The file that is missing, was changed or came later; the digests are missing or wrong.
pub fn verify(checkpoint: &Path) -> Result<()> {
    let restore = "restore the checkpoint from a copy, or train again";
    let path = checkpoint.join(SUMS);
    let bytes = files::read_limited(&path, 1 << 16).map_err(|error| {
        error.remedy(format!("without it nobody knows whether the checkpoint is what was learned; {restore}"))
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let mut listed = BTreeSet::new();
    for line in text.lines() {
        let Some((sum, name)) = line.split_once("  ").filter(|(_, name)| !name.contains(['/', '\\'])) else {
            let problem = format!("says \"{line}\", expected a digest and a file name");
            return Err(FileError::new(&path, problem).remedy(restore));
        };
        let file = checkpoint.join(name);
        if digest::sha256_file(&file).map_err(|error| error.remedy(restore))? != sum {
            return Err(FileError::new(&file, "has another digest than it was written with").remedy(restore));
        }
        listed.insert(name);
    }
    if listed.is_empty() || !text.ends_with('\n') {
        return Err(FileError::new(&path, "is cut").remedy(restore));
    }
    // Digests that were cut between two lines say nothing of the files after them.
    match names(checkpoint)?.iter().find(|name| name.as_str() != SUMS && !listed.contains(name.as_str())) {
        Some(name) => Err(FileError::new(&checkpoint.join(name), format!("is not in {SUMS}")).remedy(restore)),
        None => Ok(()),
    }
}

/// Writes the digests of all files of a checkpoint, which nothing may be added to any more.
///
/// # Errors
/// A file cannot be read, or the digests cannot be written.
pub fn seal(checkpoint: &Path) -> Result<()> {
    let mut text = String::new();
    for name in names(checkpoint)?.into_iter().filter(|name| name != SUMS) {
        text.push_str(&format!("{}  {name}\n", digest::sha256_file(&checkpoint.join(&name))?));
    }
    files::write_atomic(&checkpoint.join(SUMS), |writer| writer.write_all(text.as_bytes()))
}

/// The files of a folder, in order, but for hidden ones, which file managers leave.
fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |error: std::io::Error| FileError::new(folder, format!("cannot be read: {error}"));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !name.starts_with('.'));
    names.sort_unstable();
    Ok(names)
}

/// The inner loop of a checkpoint: that of the run, with α as it was then.
///
/// # Errors
/// The file is missing or wrong.
pub fn inner_loop(checkpoint: &Path) -> Result<InnerLoop> {
    let path = checkpoint.join(INNER_LOOP);
    let bytes = files::read_limited(&path, 1 << 20)?;
    json::from_slice(&bytes).map_err(|error| FileError::new(&path, format!("is not an inner loop: {error}")))
}

/// What a checkpoint holds: what the run's method learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    /// φ, as `config.json` and `model.safetensors`.
    pub base: bool,
    /// Φ, as `adapters.safetensors`.
    pub adapters: bool,
}

impl Learned {
    /// What is in the folder of a checkpoint.
    ///
    /// # Errors
    /// There is neither.
    pub fn of(checkpoint: &Path) -> Result<Self> {
        let has = |file: &str| checkpoint.join(file).exists();
        match (has(CONFIG_JSON) || has(MODEL_SAFETENSORS), has(ADAPTERS)) {
            (false, false) => {
                Err(FileError::new(checkpoint, format!("holds neither {ADAPTERS} nor {MODEL_SAFETENSORS}"))
                    .remedy("expected a checkpoint that `marionette-train run` wrote"))
            }
            (base, adapters) => Ok(Self { base, adapters }),
        }
    }
}

/// Makes `name` (a `step-N`) the run's best or last checkpoint, atomically.
///
/// # Errors
/// Writing fails.
pub fn set_checkpoint(run: &Path, which: Which, name: &str) -> Result<()> {
    files::write_atomic(&run.join(which.file_name()), |writer| writeln!(writer, "{name}"))
}

/// Whether a folder is a run directory.
pub fn is_run(dir: &Path) -> bool {
    fs::metadata(dir.join(CONFIG_TOML)).is_ok_and(|metadata| metadata.is_file())
}
