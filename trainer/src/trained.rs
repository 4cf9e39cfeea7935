//! The result of a run, ready to be used: a model, its θ_0, and how it adapts.

use std::path::Path;

use marionette_dialogues::Encoder;
use marionette_models::InnerLoop;
use marionette_models::run::{self, CONFIG_TOML, Which, checkpoint};
use tch::{Device, Tensor};

use crate::error::{Result, TrainError};
use crate::frozen::Frozen;
use crate::method::Method;
use crate::model::Model;
use crate::train::{Config, encoder, read_parameters, to_torch};

/// A trained model.
#[derive(Debug)]
pub struct Trained {
    /// The run's configuration.
    pub config: Config,
    /// How it was trained.
    pub method: Method,
    /// The model.
    pub model: Model,
    /// θ_0 of the best checkpoint.
    pub start: Vec<Tensor>,
    /// The inner loop, with α as it was by then.
    pub recipe: InnerLoop,
    /// α, one a tensor.
    pub rates: Vec<f32>,
    /// What encodes dialogues for it.
    pub encoder: Encoder,
}

impl Trained {
    /// The model of a run directory's best checkpoint, computed as the run computed it. Its base model lies at `base` where
    /// that is given, else where the run found it.
    ///
    /// # Errors
    /// A file is missing or wrong; the base model is another than the run's.
    pub fn open(dir: &Path, base: Option<&Path>, device: Device) -> Result<Self> {
        let path = dir.join(CONFIG_TOML);
        let written = Config::recorded(&path)?;
        let best = checkpoint(dir, Which::Best)?;
        // The checkpoint's own record counts: no digest protects what anyone may edit.
        let mut config = match run::made_with::<Config>(&best)? {
            Some(made) => made.placed_as(written),
            None => written,
        };
        config.check()?;
        let base = config.model.open_base(&path, base)?;
        let method = config.method()?;
        let recipe = run::inner_loop(&best)?;
        let shape = &base.config;
        let encoder = encoder(&config, shape)?;
        let table = method.table(shape, &config.model.adapter);
        let rates = recipe.learning_rate.per_tensor(table.len());
        let rates = rates.map_err(|problem| TrainError::option("inner_loop.learning_rate", problem))?;
        let frozen = match method.learns_base() {
            true => Frozen::default(),
            false => Frozen::read(&base, config.model.frozen, device)?,
        };
        let kind = config.outer.precision.kind();
        let model = Model::new(shape, method.parts(), frozen, table, kind, device)?;
        let start = to_torch(&read_parameters(&best, &config, &model)?, &model)?;
        Ok(Self { config, method, model, start, recipe, rates, encoder })
    }
}
