//! A run, resolved: its `config.toml`.

use std::fmt;
use std::path::{Path, PathBuf};

use marionette_models::LearningRate;
use marionette_models::bundle;
use marionette_models::checkpoint::{BaseFiles, read_adapters};
use marionette_models::run::{ADAPTERS, CONFIG_TOML, RunModel, Which, checkpoint};
use marionette_models::{FileError, ModelConfig, Tensors, digest, files};
use serde::{Deserialize, Serialize};

use super::options::{Data, Gradient, MOST_AT_ONCE, MOST_COUNTED, MOST_ITERATIONS, Plan, Precision, RateRule};
use crate::error::{Result, TrainError};
use crate::method::{METHODS, Method};

/// The outer loop, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outer {
    /// The gradient that it follows.
    pub gradient: Gradient,
    /// β.
    pub learning_rate: f64,
    /// Where the inner learning rates come from.
    pub inner_rate: RateRule,
    /// Whether what they begin at is looked for before the first meta-iteration: nobody gave it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub find_inner_rate: bool,
    /// What products are computed in.
    pub precision: Precision,
    /// The other numbers.
    #[serde(flatten)]
    pub plan: Plan,
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
    /// The adapters that it begins with, where these are not zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
}

/// Adapters that another run learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Their file.
    pub adapters: PathBuf,
    /// Its digest.
    pub sha256: String,
}

impl Start {
    /// The adapters of a run's best checkpoint.
    ///
    /// # Errors
    /// There are none.
    pub fn of_run(run: &Path) -> Result<Self> {
        let adapters = checkpoint(run, Which::Best)?.join(ADAPTERS);
        let adapters = std::fs::canonicalize(&adapters)
            .map_err(|error| FileError::new(&adapters, format!("cannot be opened: {error}")))?;
        let sha256 = digest::sha256_file(&adapters)?;
        Ok(Self { adapters, sha256 })
    }

    /// Reads them, for a model.
    ///
    /// # Errors
    /// The file has changed, or is of another base model or bottleneck.
    pub fn read(&self, shape: &ModelConfig, model: &RunModel) -> Result<Tensors> {
        let wrong = |problem: String| FileError::new(&self.adapters, problem).remedy("give --start another run");
        if digest::sha256_file(&self.adapters)? != self.sha256 {
            return Err(wrong("has changed since the run began with it".to_owned()).into());
        }
        let (adapters, metadata) = read_adapters(&self.adapters, shape, &model.adapter)?;
        match metadata.get("base_sha256") {
            Some(base) if *base != model.base_sha256 => Err(wrong("is of another base model".to_owned()).into()),
            _ => Ok(adapters),
        }
    }
}

/// The digest of each dialogue file, those to train on first.
pub(super) fn digests(data: &Data) -> Result<Vec<String>, FileError> {
    let digest = |path: &PathBuf| digest::sha256_file(&marionette_dialogues::split_part(path).0);
    data.train.iter().chain(&data.valid).map(digest).collect()
}

impl Config {
    /// Reads the `config.toml` of a former run with the base model that it names, for the dialogue files as they are now.
    ///
    /// # Errors
    /// The file is wrong or has impossible values; the base model cannot be read, or is another than it was.
    pub fn read(path: &Path) -> Result<(Self, BaseFiles)> {
        let mut config = Self::recorded(path)?;
        let remedy = format!("{} names it; correct it there, or begin a run with --base and --data", path.display());
        config.data.sha256 = digests(&config.data).map_err(|error| error.remedy(&remedy))?;
        let base = config.model.open_base(path, None).map_err(|error| error.remedy(&remedy))?;
        Ok((config, base))
    }

    /// Reads a `config.toml` as it stands.
    ///
    /// # Errors
    /// The file is wrong or has impossible values.
    pub fn recorded(path: &Path) -> Result<Self> {
        let bytes = files::read_limited(path, 1 << 20)?;
        let text = str::from_utf8(&bytes).map_err(|_| FileError::new(path, "is not UTF-8"))?;
        let config: Self = toml::from_str(text)
            .map_err(|error| FileError::new(path, error.message()).remedy("expected the config.toml of a run"))?;
        config.check().map_err(|error| FileError::new(path, error))?;
        Ok(config)
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

    /// The data, where the files are what they were.
    ///
    /// # Errors
    /// A file is missing or has changed.
    pub fn data_as_recorded(&self) -> Result<&Data> {
        let files = self.data.train.iter().chain(&self.data.valid);
        for ((file, now), then) in files.zip(digests(&self.data)?).zip(&self.data.sha256) {
            if now != *then {
                return Err(FileError::new(file, "has changed since the run").into());
            }
        }
        Ok(&self.data)
    }

    /// The settings in which another configuration differs from this one. A model or a file that only lies elsewhere is no
    /// difference: its digest says what is in it.
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let mut now = now.clone();
        if now.model.base_sha256 == self.model.base_sha256 {
            now.model.base.clone_from(&self.model.base);
        }
        if now.data.sha256 == self.data.sha256 {
            for (was, now) in [(&self.data.train, &mut now.data.train), (&self.data.valid, &mut now.data.valid)] {
                if was.iter().map(|file| part(file)).eq(now.iter().map(|file| part(file))) {
                    now.clone_from(was);
                }
            }
        }
        if let (Some(was), Some(now)) = (&self.start, &mut now.start)
            && was.sha256 == now.sha256
        {
            now.adapters.clone_from(&was.adapters);
        }
        let tree = |config: &Self| toml::Value::from(toml::Table::try_from(config).unwrap_or_default());
        let mut found = Vec::new();
        collect_differences("", Some(&tree(self)), Some(&tree(&now)), &mut found);
        found
    }

    /// The same, with its model and files where another says that they lie by now.
    pub(crate) fn placed_as(mut self, other: Self) -> Self {
        self.model.base = other.model.base;
        if self.data.sha256 == other.data.sha256 {
            (self.data.train, self.data.valid) = (other.data.train, other.data.valid);
        }
        self
    }

    /// The method.
    ///
    /// # Errors
    /// Its name is unknown.
    pub fn method(&self) -> Result<Method> {
        method_of(&self.model)
    }

    /// Refuses values that cannot be.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { model, data, outer, start } = self;
        let method = self.method()?;
        if start.is_some() && !method.bears_start() {
            let problem = format!("gives adapters, but {} begins with none", model.method);
            return Err(TrainError::option("--start", problem));
        }
        if method.in_context().is_some() {
            let problem =
                format!("is {}, which trains nothing: evaluate a run of none with --in-context", model.method);
            return Err(TrainError::option("--method", problem));
        }
        let frozen = |problem: String| TrainError::option("--frozen", format!("is {}{problem}", model.frozen));
        match model.frozen {
            bundle::Precision::Fp32 => {}
            bundle::Precision::Fp16 => return Err(frozen(", expected fp32, int8 or int4".to_owned())),
            bundle::Precision::Int8 | bundle::Precision::Int4 => {
                if method.learns_base() {
                    return Err(frozen(format!(", but {} moves the matrices themselves", model.method)));
                }
                if outer.precision == Precision::Bf16 {
                    let problem = ", beside which all is computed in fp32: leave out --precision bf16";
                    return Err(frozen(problem.to_owned()));
                }
            }
        }
        if method.is_meta() == (outer.gradient == Gradient::Normal) {
            return Err(TrainError::option("--meta", format!("does not fit --method {}", model.method)));
        }
        if outer.inner_rate == RateRule::Learned && !matches!(outer.gradient, Gradient::Maml | Gradient::Fomaml) {
            return Err(TrainError::option("--inner-lr", "is learned, which needs --meta maml or fomaml"));
        }
        model.adapter.check().map_err(|problem| TrainError::option("--bottleneck", problem))?;
        for (option, value, most) in [
            ("--inner-steps", model.inner_loop.steps, MOST_AT_ONCE),
            ("--dialogues-per-step", model.inner_loop.dialogues_per_step, MOST_AT_ONCE),
            ("--support-dialogues", data.support_dialogues, MOST_AT_ONCE),
            ("--query-dialogues", data.query_dialogues, MOST_AT_ONCE),
            ("--validation-personas", data.validation_personas, MOST_COUNTED),
            ("--meta-batch", outer.plan.meta_batch, MOST_AT_ONCE),
            ("--validate-every", outer.plan.validate_every, MOST_ITERATIONS),
            ("--patience", outer.plan.patience, MOST_ITERATIONS),
            ("--save-every", outer.plan.save_every, MOST_ITERATIONS),
            ("--keep", outer.plan.keep, MOST_AT_ONCE),
        ] {
            if value == 0 || value > most {
                return Err(TrainError::option(option, format!("is {value}, expected 1 to {most}")));
            }
        }
        let iterations = outer.plan.iterations;
        if iterations > MOST_ITERATIONS || (iterations == 0) != (method == Method::None) {
            let least = usize::from(method != Method::None);
            let most = if least == 0 { 0 } else { MOST_ITERATIONS };
            return Err(TrainError::option("--iterations", format!("is {iterations}, expected {least} to {most}")));
        }
        let rates = match &model.inner_loop.learning_rate {
            LearningRate::Shared(rate) => std::slice::from_ref(rate),
            LearningRate::PerTensor(rates) => rates,
        };
        // Far above every sensible value; below, no product with them leaves what libtorch takes for a number.
        let positive = |option, value: f64| match value > 0.0 && value <= 1e36 {
            true => Ok(()),
            false => Err(TrainError::option(option, format!("is {value:?}, expected a number above 0, at most 1e36"))),
        };
        rates.iter().try_for_each(|&rate| positive("--inner-lr", f64::from(rate)))?;
        positive("--outer-lr", outer.learning_rate)?;
        positive("--clip", outer.plan.clip)?;
        if !(0.0..1.0).contains(&data.test_part) {
            let problem = format!("is {}, expected a part from 0 to less than 1", data.test_part);
            return Err(TrainError::option("--test-part", problem));
        }
        if !(data.hold_out < 1.0 && (data.hold_out > 0.0 || (data.hold_out == 0.0 && !data.valid.is_empty()))) {
            let problem = format!("is {}, expected a part between 0 and 1, or --valid with files", data.hold_out);
            return Err(TrainError::option("--hold-out", problem));
        }
        Ok(())
    }
}

/// The method of a run.
///
/// # Errors
/// Its name is unknown.
pub fn method_of(model: &RunModel) -> Result<Method> {
    Method::from_name(&model.method).ok_or_else(|| {
        let names = METHODS.map(Method::name).join(", ");
        TrainError::option("--method", format!("is {}, expected one of {names}", model.method))
    })
}

/// A setting in which two configurations differ, as `table.key: old -> new`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    setting: String,
    change: String,
}

/// What says how far a run goes and what is kept of it, but changes no meta-iteration.
const FREE: [&str; 4] = ["outer.iterations", "outer.patience", "outer.save_every", "outer.keep"];

impl Difference {
    /// Whether a run can go on with it without becoming another.
    pub fn is_free(&self) -> bool {
        FREE.contains(&self.setting.as_str())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.change)
    }
}

fn collect_differences(
    setting: &str,
    was: Option<&toml::Value>,
    now: Option<&toml::Value>,
    found: &mut Vec<Difference>,
) {
    if let (Some(toml::Value::Table(was)), Some(toml::Value::Table(now))) = (was, now) {
        let names: std::collections::BTreeSet<&String> = was.keys().chain(now.keys()).collect();
        for name in names {
            let setting = if setting.is_empty() { name.clone() } else { format!("{setting}.{name}") };
            collect_differences(&setting, was.get(name), now.get(name), found);
        }
    } else if was != now {
        let text = |value: Option<&toml::Value>| value.map_or("not set".to_owned(), ToString::to_string);
        found.push(Difference { setting: setting.to_owned(), change: format!("{} -> {}", text(was), text(now)) });
    }
}

/// What is named after a `#`. By the name alone, because the file may be gone.
fn part(path: &Path) -> Option<&str> {
    Some(path.file_name()?.to_str()?.rsplit_once('#')?.1)
}
