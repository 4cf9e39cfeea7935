//! What a run computes for one persona, wherever it is computed.

use marionette_dialogues::Batch;
use tch::Tensor;

use super::options::Config;
use super::sampler::Split;
use crate::data::Persona;
use crate::error::{Result, TrainError};
use crate::gpt2::Gpt2;
use crate::inner::{self, Support};
use crate::meta::{MetaGradient, Order, meta_gradient};
use crate::tensors::TokenBatch;

/// One persona to compute.
#[derive(Debug)]
pub struct Draw<'a> {
    /// The persona's number, counted from 1.
    pub number: usize,
    /// The persona.
    pub persona: &'a Persona,
    /// The order of its dialogues.
    pub order: Vec<usize>,
}

/// Sums over the query targets of one validation persona.
#[derive(Debug, Default)]
pub struct Judged {
    /// The loss before the inner loop, in nats.
    pub before: f64,
    /// The loss after it, in nats.
    pub after: f64,
    /// The targets.
    pub targets: usize,
}

/// The personas of a run, and how they are learned from.
pub struct Tasks<'a> {
    /// The run.
    pub config: &'a Config,
    /// α, one a tensor.
    pub rates: Vec<f32>,
    /// The personas to train on.
    pub personas: Vec<Persona>,
    /// The personas to validate on.
    pub held: Vec<Persona>,
}

impl Tasks<'_> {
    /// Splits a persona's dialogues, and makes batches of them.
    fn batches(&self, draw: &Draw, model: &Gpt2) -> Result<(Support, TokenBatch)> {
        let Config { model: recipe, data, .. } = self.config;
        let split = Split::new(draw.persona, &draw.order, data.shots, data.query_dialogues);
        let query = TokenBatch::new(&Batch::new(split.query)?, model.device())?;
        Ok((Support::new(&recipe.inner_loop, &split.support, model.device())?, query))
    }

    /// The meta-gradient of a training persona, and the tokens that were read for it.
    pub fn learn(&self, model: &Gpt2, adapters: &[Tensor], draw: &Draw) -> Result<(MetaGradient, usize)> {
        let order = if self.config.outer.first_order { Order::First } else { Order::Second };
        let (support, query) = self.batches(draw, model)?;
        let tokens = support.tokens() + query.tokens();
        let gradient = meta_gradient(model, adapters, &support, &query, &self.rates, order)
            .map_err(|error| error.during(&format!("persona {}", draw.number)))?;
        Ok((gradient, tokens))
    }

    /// The loss on the query dialogues of a validation persona.
    pub fn judge(&self, model: &Gpt2, adapters: &[Tensor], draw: &Draw) -> Result<Judged> {
        let (support, query) = self.batches(draw, model)?;
        let place = format!("validation persona {}", draw.number);
        let trajectory = inner::adapt(model, adapters, &support, &self.rates).map_err(|error| error.during(&place))?;
        let after = inner::loss(model, trajectory.last(), &query)?;
        if !after.is_finite() {
            let what = "the loss after the inner loop";
            return Err(TrainError::NotFinite { what, value: after, place, remedy: "--inner-lr or --outer-lr" });
        }
        let (targets, before) = (query.targets(), inner::loss(model, adapters, &query)?);
        Ok(Judged { before: before * targets as f64, after: after * targets as f64, targets })
    }
}
