//! What a run begins with: its encoder, its personas, its model and θ_0.

use marionette_dialogues::{Encoder, PersonaSplit};
use marionette_models::checkpoint::BaseFiles;
use marionette_models::params::TensorSpec;
use marionette_models::{ModelConfig, init};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::config::Config;
use super::state::to_torch;
use crate::data::{self, Persona};
use crate::error::{Result, TrainError};
use crate::frozen::Frozen;
use crate::method::CHOICES;
use crate::model::Model;
use crate::tensors;
use marionette_console::say;

/// What encodes dialogues for a run.
pub fn encoder(config: &Config, shape: &ModelConfig) -> Result<Encoder> {
    let encoder = Encoder::from_folder(&config.model.base, shape)?;
    let choices = if config.method()?.classifies() { CHOICES } else { 0 };
    Ok(encoder.with_persona_text(config.model.persona_text).with_choices(choices))
}

/// The model of a run, and θ_0 as it begins.
pub fn begin(config: &Config, base: &BaseFiles, device: Device, products: Kind) -> Result<(Model, Vec<Tensor>)> {
    let method = config.method()?;
    if method.learns_adapters() {
        let problem = config.model.adapter.check_blocks(&base.config);
        problem.map_err(|problem| TrainError::option("--adapt-blocks", problem))?;
    }
    let table = method.table(&base.config, &config.model.adapter);
    let mut rng = ChaCha8Rng::seed_from_u64(config.outer.plan.seed);
    // Another stream than the draws', so that these are the same for every method.
    rng.set_stream(1);
    let mut start = init::initialise(&table, &mut rng);
    let mut frozen = Frozen::default();
    if !method.learns_base() {
        frozen = Frozen::read(base, config.model.frozen, device)?;
    } else if !method.starts_random() {
        base.each(|name, tensor| {
            start.insert(name, tensor);
            Ok::<_, TrainError>(())
        })?;
    }
    let model = Model::new(&base.config, method.parts(), frozen, table, products, device)?;
    let start = to_torch(&start, &model)?;
    Ok((model, start))
}

/// θ_0 where another run's adapters are to begin with.
pub fn start_of(config: &Config, model: &Model, start: Vec<Tensor>) -> Result<Vec<Tensor>> {
    let Some(given) = &config.start else { return Ok(start) };
    let adapters = given.read(model.config(), &config.model)?;
    let tensor = |(spec, fresh): (&TensorSpec, Tensor)| match adapters.get(&spec.name) {
        Some(tensor) => tensors::to_torch(tensor, Kind::Float, model.device()),
        None => Ok(fresh),
    };
    model.table().iter().zip(start).map(tensor).collect()
}

/// The personas to train and to validate on.
pub fn read_personas(config: &Config, encoder: &Encoder) -> Result<(Vec<Persona>, Vec<Persona>)> {
    let data = &config.data;
    let (split, notes) = data::split(data)?;
    notes.iter().for_each(say);
    let PersonaSplit { train, valid: held, .. } = split;
    let most = train.iter().map(|task| task.dialogues.len()).max().unwrap_or(0);
    if data.support_dialogues >= most {
        let problem = format!(
            "is {}, but no training persona has more than {most} dialogues and one must be left to judge by; at most {}",
            data.support_dialogues,
            most.saturating_sub(1)
        );
        return Err(TrainError::option("--support-dialogues", problem));
    }
    let (personas, held) = (data::encode(encoder, &train)?, data::encode(encoder, &held)?);
    let has_choices = |persona: &Persona| persona.windows().any(|example| !example.choices.is_empty());
    if config.method()?.classifies() && !personas.iter().chain(&held).any(has_choices) {
        let problem = "is transfertransfo, which learns to choose among candidates, but the dialogues have none";
        return Err(TrainError::option("--method", problem));
    }
    Ok((personas, held))
}
