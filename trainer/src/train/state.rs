//! All that changes during a run: what a checkpoint holds.

use std::collections::BTreeMap;
use std::path::Path;

use marionette_models::run::{ADAPTERS, CLASSIFIER, INNER_LOOP, MAX_STATE, OPTIMISER, STATE};
use marionette_models::safetensors_file::{self, FileMetadata, RawTensor};
use marionette_models::{FileError, InnerLoop, LearningRate, Tensors, checkpoint, files, params};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::config::Config;
use super::metrics::{Report, Validation};
use super::options::RateRule;
use super::sampler::Sampler;
use crate::error::{Result, TrainError};
use crate::method::Method;
use crate::model::Model;
use crate::optimiser::AdamState;
use crate::tensors;

/// The name under which the optimiser's moments of log α are stored.
const RATES: &str = "log_inner_lr";

/// The numbers of a run between two meta-iterations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// What the run was done with up to here: `config.toml` may be edited after.
    pub config: Config,
    /// Meta-iterations done.
    pub iteration: usize,
    /// Tokens read for training, padding included.
    pub tokens: u64,
    /// Seconds so far.
    pub seconds: f64,
    /// Validations since the best.
    pub waited: usize,
    /// The meta-iteration of the best validation.
    pub best_iteration: usize,
    /// The best validation.
    pub best: Validation,
    /// The validation before the first meta-iteration.
    pub first: Validation,
    /// The newest validation.
    pub newest: Validation,
    /// The length of `metrics.jsonl`.
    pub metrics_bytes: u64,
    /// The SHA-256 of that much of it; none in a checkpoint of the time before there was one.
    #[serde(default)]
    pub metrics_sha256: Option<String>,
    /// Whether the run came to its end.
    pub finished: bool,
    /// Steps of the optimiser.
    pub optimiser_steps: i32,
    /// α, one a tensor.
    pub rates: Vec<f32>,
    /// The random numbers.
    pub rng: ChaCha8Rng,
    /// The personas that wait for their turn.
    pub sampler: Sampler,
}

impl Counters {
    /// Reads them from a checkpoint.
    ///
    /// # Errors
    /// The file is missing or wrong.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(STATE);
        let bytes = files::read_limited(&path, MAX_STATE)?;
        let state = serde_json::from_slice(&bytes);
        Ok(state.map_err(|error| FileError::new(&path, format!("is not a state: {error}")))?)
    }

    /// What came out so far.
    pub fn report(&self) -> Report {
        Report {
            iterations: self.iteration,
            best_iteration: self.best_iteration,
            best: self.best,
            first: self.first,
            tokens: self.tokens,
            seconds: self.seconds,
            interrupted: !self.finished,
        }
    }
}

/// A run between two meta-iterations.
#[derive(Debug)]
pub struct State {
    /// θ_0, in the order of the model's table.
    pub parameters: Vec<Tensor>,
    /// The outer optimiser, over θ_0 and, where α is learned, log α.
    pub adam: AdamState,
    /// The rest.
    pub counters: Counters,
}

impl State {
    /// log α as a tensor that the optimiser can move.
    pub fn log_rates(&self, model: &Model) -> Result<Tensor> {
        let logs: Vec<f32> = self.counters.rates.iter().map(|rate| rate.ln()).collect();
        Ok(Tensor::f_from_slice(&logs)?.f_to_device(model.device())?)
    }

    /// Refuses what is not finite, so that it is never saved; `place` says when it was found.
    ///
    /// # Errors
    /// A parameter or an α is not finite; what libtorch says.
    pub fn finite(&self, place: &str) -> Result<()> {
        let refuse = |what, value: f64| match value.is_finite() {
            true => Ok(()),
            false => Err(TrainError::NotFinite { what, value, place: place.to_owned(), remedy: "--outer-lr" }),
        };
        for tensor in &self.parameters {
            refuse("a parameter", tensor.f_abs()?.f_max()?.f_double_value(&[])?)?;
        }
        self.counters.rates.iter().try_for_each(|&rate| refuse("an inner learning rate", f64::from(rate)))
    }

    /// Writes all of it into a folder.
    ///
    /// # Errors
    /// A parameter is not finite; writing fails.
    pub fn write(&self, dir: &Path, config: &Config, model: &Model) -> Result<()> {
        let method = config.method()?;
        // By value: what is written is a copy of the model, and one is enough.
        let host = tensors::named_to_host(model.table(), &self.parameters)?;
        write_parameters(dir, host, config, method, model, self.counters.iteration)?;
        let mut moments = BTreeMap::new();
        let names = model.table().iter().map(|spec| spec.name.as_str()).chain([RATES]);
        for (name, (first, second)) in names.zip(self.adam.moments()) {
            for (moment, tensor) in [("first", first), ("second", second)] {
                let tensor = tensors::to_host(tensor)?;
                moments.insert(format!("{moment}.{name}"), RawTensor::f32(&tensor.shape, &tensor.values));
            }
        }
        safetensors_file::write(&dir.join(OPTIMISER), &moments, FileMetadata::Ours(&BTreeMap::new()))?;
        let recipe = InnerLoop { learning_rate: self.rates(config), ..config.model.inner_loop.clone() };
        json(dir, INNER_LOOP, &recipe)?;
        json(dir, STATE, &self.counters)
    }

    /// α as the recipe says it: one number as long as it is one.
    fn rates(&self, config: &Config) -> LearningRate {
        match (config.outer.inner_rate, self.counters.rates.first()) {
            (RateRule::Fixed | RateRule::Chosen, Some(&rate)) => LearningRate::Shared(rate),
            _ => LearningRate::PerTensor(self.counters.rates.clone()),
        }
    }

    /// Reads it back from a checkpoint, whose counters were read before.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub fn read(dir: &Path, counters: Counters, config: &Config, model: &Model) -> Result<Self> {
        let host = read_parameters(dir, config, model)?;
        let parameters = to_torch(&host, model)?;
        let path = dir.join(OPTIMISER);
        // Two moments of each tensor that learns, each of its shape; nothing else is read.
        let shapes: BTreeMap<&str, &[usize]> =
            model.table().iter().map(|spec| (spec.name.as_str(), spec.shape.as_slice())).collect();
        let rates_shape = [model.table().len()];
        let expected = |name: &str| {
            let name = name.strip_prefix("first.").or_else(|| name.strip_prefix("second."))?;
            if name == RATES { Some(rates_shape.as_slice()) } else { shapes.get(name).copied() }
        };
        let mut raw = safetensors_file::Reader::open(&path)?
            .tensors(|entry| match expected(&entry.name) {
                Some(shape) if shape == entry.shape => Ok(true),
                Some(shape) => {
                    let problem = format!("has shape {:?}, expected {shape:?}", entry.shape);
                    Err(FileError::new(&path, problem).at(&entry.name))
                }
                None => Err(FileError::new(&path, "does not belong to this run").at(&entry.name)),
            })?
            .collect::<std::result::Result<BTreeMap<String, RawTensor>, FileError>>()?;
        let mut take = |moment: &str, name: &str| -> Result<Tensor> {
            let name = format!("{moment}.{name}");
            let tensor = raw.remove(&name).ok_or_else(|| FileError::new(&path, "is missing").at(&name))?;
            let tensor = tensor.to_f32().map_err(|problem| FileError::new(&path, problem).at(&name))?;
            tensors::to_torch(&tensor, Kind::Float, model.device())
        };
        let rates = (config.outer.inner_rate == RateRule::Learned).then_some(RATES);
        let names: Vec<&str> = model.table().iter().map(|spec| spec.name.as_str()).chain(rates).collect();
        let first = names.iter().map(|name| take("first", name)).collect::<Result<_>>()?;
        let second = names.iter().map(|name| take("second", name)).collect::<Result<_>>()?;
        if counters.rates.len() != model.table().len() {
            let problem = format!("has {} values, expected {}", counters.rates.len(), model.table().len());
            return Err(FileError::new(&dir.join(STATE), problem).at("rates").into());
        }
        let adam = AdamState::resume(super::ADAM, first, second, counters.optimiser_steps);
        Ok(Self { parameters, adam, counters })
    }
}

fn json(dir: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let path = dir.join(name);
    let text = serde_json::to_string_pretty(value).map_err(|error| FileError::new(&path, error))?;
    Ok(files::write_atomic(&path, |writer| writeln!(writer, "{text}"))?)
}

/// The tensors of the model's table, in its order.
///
/// # Errors
/// One is missing; what libtorch says.
pub fn to_torch(host: &Tensors, model: &Model) -> Result<Vec<Tensor>> {
    let tensor = |name: &String| match host.get(name) {
        Some(tensor) => tensors::to_torch(tensor, Kind::Float, model.device()),
        None => Err(FileError::new("the model".as_ref(), "is missing").at(name).into()),
    };
    model.table().iter().map(|spec| tensor(&spec.name)).collect()
}

/// Writes what was learned, each part as its readers expect it: the base in the Hugging Face layout, adapters, classifier.
fn write_parameters(
    dir: &Path,
    mut host: Tensors,
    config: &Config,
    method: Method,
    model: &Model,
    iteration: usize,
) -> Result<()> {
    let mut part = |table: Vec<params::TensorSpec>| -> Tensors {
        table.into_iter().filter_map(|spec| host.remove_entry(&spec.name)).collect()
    };
    let metadata = BTreeMap::from([
        ("base_sha256".to_owned(), config.model.base_sha256.clone()),
        ("iteration".to_owned(), iteration.to_string()),
    ]);
    if method.learns_base() {
        let base = part(params::base_table(model.config()));
        checkpoint::write_base(dir, model.config(), &base, checkpoint::Storage::F32)?;
    }
    if method.learns_adapters() {
        let adapters = part(params::adapter_table(model.config(), &config.model.adapter));
        checkpoint::write_adapters(&dir.join(ADAPTERS), &adapters, &metadata)?;
    }
    if method.classifies() {
        let classifier = part(params::classifier_table(model.config()));
        checkpoint::write_adapters(&dir.join(CLASSIFIER), &classifier, &metadata)?;
    }
    Ok(())
}

/// What a checkpoint has learned, by name.
///
/// # Errors
/// A file is missing or wrong.
pub fn read_parameters(dir: &Path, config: &Config, model: &Model) -> Result<Tensors> {
    let method = config.method()?;
    let mut host = Tensors::new();
    if method.learns_base() {
        let base = checkpoint::read_base(dir)?;
        if &base.config != model.config() {
            let problem = "is not that of the base model that the run began with";
            return Err(FileError::new(&dir.join(checkpoint::CONFIG_JSON), problem).into());
        }
        host.extend(base.tensors);
    }
    if method.learns_adapters() {
        host.extend(checkpoint::read_adapters(&dir.join(ADAPTERS), model.config(), &config.model.adapter)?.0);
    }
    if method.classifies() {
        let table = params::classifier_table(model.config());
        host.extend(checkpoint::read_table(&dir.join(CLASSIFIER), &table)?.0);
    }
    Ok(host)
}
