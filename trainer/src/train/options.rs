//! What a run is: the options of the command line, and the `config.toml` that they resolve to.

use std::fs;
use std::path::{Path, PathBuf};

use marionette_models::checkpoint::{self, Base};
use marionette_models::config::{AdapterConfig, InnerLoop, LearningRate};
use marionette_models::run::{CONFIG_TOML, RunModel};
use marionette_models::{FileError, digest, files};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// What is meta-trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// Extra-place MAMLviaPP (algorithm 2): adapters are meta-learned, the pre-trained parameters are frozen
    ExtraPlace,
}

impl Method {
    /// Its name on the command line and in `config.toml`.
    fn name(self) -> &'static str {
        match self {
            Self::ExtraPlace => "extra-place",
        }
    }
}

/// The settings of a new run.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Settings {
    /// The pre-trained model: a Hugging Face folder of a GPT-2
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    pub base: Option<PathBuf>,
    /// What is meta-trained
    #[arg(long, value_enum, default_value_t = Method::ExtraPlace)]
    pub method: Method,
    /// Put the persona's sentences in front of each dialogue
    #[arg(long)]
    pub persona_text: bool,
    /// The width of the adapters' bottleneck
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub bottleneck: usize,
    /// Inner SGD steps, S
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub inner_steps: usize,
    /// Inner learning rate, α
    #[arg(long, default_value_t = 0.3, value_name = "A", allow_negative_numbers = true)]
    pub inner_lr: f32,
    /// Support dialogues in the batch of one inner step
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub dialogues_per_step: usize,
    /// Where the personas come from
    #[command(flatten)]
    pub data: Data,
    /// The outer loop
    #[command(flatten)]
    pub outer: Outer,
}

/// Where the personas come from, and how their dialogues are split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Dialogue files to meta-train on
    #[arg(long = "data", num_args = 1.., value_name = "FILE", required_unless_present = "config")]
    pub train: Vec<PathBuf>,
    /// Dialogue files to validate on
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub valid: Vec<PathBuf>,
    /// The part of the training personas to validate on instead, where there is no --valid
    #[arg(long, default_value_t = 0.1, value_name = "PART", allow_negative_numbers = true)]
    pub hold_out: f64,
    /// Support dialogues of a persona, K
    #[arg(long, default_value_t = 5, value_name = "K")]
    pub shots: usize,
    /// The most query dialogues of a persona
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub query_dialogues: usize,
    /// The most personas to validate on
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub validation_personas: usize,
}

/// The outer loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Outer {
    /// Meta-iterations
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub iterations: usize,
    /// Personas in one meta-iteration
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub meta_batch: usize,
    /// Outer learning rate, β
    #[arg(long = "outer-lr", default_value_t = 3e-3, value_name = "B", allow_negative_numbers = true)]
    pub learning_rate: f64,
    /// The global norm to which the meta-gradient is clipped
    #[arg(long, default_value_t = 2.0, value_name = "NORM", allow_negative_numbers = true)]
    pub clip: f64,
    /// First-order meta-gradient instead of the exact one
    #[arg(long)]
    pub first_order: bool,
    /// Meta-iterations between validations
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub validate_every: usize,
    /// Validations without improvement after which the run stops
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub patience: usize,
    /// The seed of all random numbers
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// A run, resolved: `RUN/config.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// What model comes out of it; what others read.
    #[serde(flatten)]
    pub model: RunModel,
    /// Where the personas come from.
    pub data: Data,
    /// The outer loop.
    pub outer: Outer,
}

impl Settings {
    /// Resolves the settings, and reads the base model that they name.
    ///
    /// # Errors
    /// Impossible options; the base model, or a file, cannot be read.
    pub fn resolve(self) -> Result<(Config, Base)> {
        let Some(base) = &self.base else {
            return Err(TrainError::option("--base", "is missing, expected the folder of a pre-trained model"));
        };
        let absolute = |path: &PathBuf| {
            fs::canonicalize(path).map_err(|error| FileError::new(path, format!("cannot be opened: {error}")))
        };
        let mut config = Config {
            model: RunModel {
                base: base.clone(),
                base_sha256: String::new(),
                method: self.method.name().to_owned(),
                persona_text: self.persona_text,
                adapter: AdapterConfig { bottleneck: self.bottleneck },
                inner_loop: InnerLoop {
                    steps: self.inner_steps,
                    dialogues_per_step: self.dialogues_per_step,
                    learning_rate: LearningRate::Shared(self.inner_lr),
                },
            },
            data: self.data,
            outer: self.outer,
        };
        config.check()?;
        config.model.base = absolute(base)?;
        for files in [&mut config.data.train, &mut config.data.valid] {
            *files = files.iter().map(absolute).collect::<Result<_, _>>()?;
        }
        let base = checkpoint::read_base(&config.model.base)?;
        config.model.base_sha256 = digest::base_sha256(&base.config, &base.tensors);
        Ok((config, base))
    }
}

impl Config {
    /// Reads the `config.toml` of a former run, and the base model that it names.
    ///
    /// # Errors
    /// The file is wrong or has impossible values; the base model cannot be read, or is another than it was.
    pub fn read(path: &Path) -> Result<(Self, Base)> {
        let bytes = files::read_limited(path, 1 << 20)?;
        let text = str::from_utf8(&bytes).map_err(|_| FileError::new(path, "is not UTF-8"))?;
        let config: Self = toml::from_str(text)
            .map_err(|error| FileError::new(path, error.message()).remedy("expected the config.toml of a run"))?;
        config.check().map_err(|error| FileError::new(path, error))?;
        let base = read_base(&config.model)?;
        Ok((config, base))
    }

    /// Writes `config.toml` into a folder.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(CONFIG_TOML);
        let text = toml::to_string(self).map_err(|error| FileError::new(&path, error))?;
        Ok(files::write_atomic(&path, |writer| writer.write_all(text.as_bytes()))?)
    }

    /// Refuses values that cannot be.
    fn check(&self) -> Result<()> {
        let Self { model, data, outer } = self;
        if model.method != Method::ExtraPlace.name() {
            return Err(TrainError::option("--method", format!("is {}, expected extra-place", model.method)));
        }
        for (option, value, most) in [
            ("--bottleneck", model.adapter.bottleneck, 1 << 16),
            ("--inner-steps", model.inner_loop.steps, 10_000),
            ("--dialogues-per-step", model.inner_loop.dialogues_per_step, 10_000),
            ("--shots", data.shots, 10_000),
            ("--query-dialogues", data.query_dialogues, 10_000),
            ("--validation-personas", data.validation_personas, 1_000_000),
            ("--iterations", outer.iterations, 100_000_000),
            ("--meta-batch", outer.meta_batch, 10_000),
            ("--validate-every", outer.validate_every, 100_000_000),
            ("--patience", outer.patience, 100_000_000),
        ] {
            if value == 0 || value > most {
                return Err(TrainError::option(option, format!("is {value}, expected 1 to {most}")));
            }
        }
        let rates = match &model.inner_loop.learning_rate {
            LearningRate::Shared(rate) => std::slice::from_ref(rate),
            LearningRate::PerTensor(rates) => rates,
        };
        let positive = |option, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(TrainError::option(option, format!("is {value}, expected a number above 0"))),
        };
        rates.iter().try_for_each(|&rate| positive("--inner-lr", f64::from(rate)))?;
        positive("--outer-lr", outer.learning_rate)?;
        positive("--clip", outer.clip)?;
        if data.valid.is_empty() && !(data.hold_out > 0.0 && data.hold_out < 1.0) {
            let problem = format!("is {}, expected a part between 0 and 1, or --valid with files", data.hold_out);
            return Err(TrainError::option("--hold-out", problem));
        }
        Ok(())
    }
}

/// The base model of a run.
///
/// # Errors
/// It cannot be read, or is another than it was.
pub fn read_base(model: &RunModel) -> Result<Base> {
    let base = checkpoint::read_base(&model.base)?;
    let found = digest::base_sha256(&base.config, &base.tensors);
    if found != model.base_sha256 {
        let problem = format!("has digest {found}, but the run was made with {}", model.base_sha256);
        let remedy = "give back the model that the run was made with, or start a new run";
        return Err(FileError::new(&model.base, problem).remedy(remedy).into());
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[arg(long)]
        config: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    }

    fn refused(options: &str) -> String {
        let words = "run --base base --data train.txt ".to_owned() + options;
        match Line::try_parse_from(words.split_whitespace()) {
            Ok(line) => line.settings.resolve().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn impossible_values_are_refused_by_the_name_of_their_option() {
        for options in [
            "--iterations 0",
            "--iterations -1",
            "--inner-steps 0",
            "--inner-steps 10001",
            "--inner-lr NaN",
            "--inner-lr 0",
            "--inner-lr -0.1",
            "--inner-lr inf",
            "--outer-lr NaN",
            "--outer-lr 0",
            "--clip 0",
            "--clip -2",
            "--meta-batch 0",
            "--bottleneck 0",
            "--bottleneck 65537",
            "--shots 0",
            "--query-dialogues 0",
            "--dialogues-per-step 0",
            "--validation-personas 0",
            "--validate-every 0",
            "--patience 0",
            "--hold-out 0",
            "--hold-out 1",
            "--hold-out NaN",
            "--method reinit",
            "--seed x",
        ] {
            let error = refused(options);
            let mut words = options.split(' ');
            let (option, value) = (words.next().unwrap(), words.next().unwrap());
            assert!(error.contains(option) || error.contains("unexpected argument '-1'"), "{options}: {error}");
            assert!(error.contains(value), "{options}: {error}");
        }
        assert!(refused("").starts_with("base: cannot be opened"), "{}", refused(""));
    }
}
