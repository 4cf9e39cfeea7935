//! What a run computes for one persona, wherever it is computed.

use marionette_dialogues::Example;
use marionette_models::InnerLoop;
use tch::{Device, Tensor};

use super::options::{Config, Gradient, RateRule};
use super::sampler::Split;
use crate::data::Persona;
use crate::error::{Result, TrainError};
use crate::inner::{self, Support};
use crate::meta::{self, MetaGradient, meta_gradient};
use crate::model::Model;
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
    /// Which choice of each dialogue is learned from, where choices are, counted round.
    pub turn: usize,
}

/// Sums over the query targets of one validation persona.
#[derive(Debug)]
pub struct Judged {
    /// The loss before the inner loop, in nats.
    pub before: f64,
    /// The loss after it, in nats, for each of the learning rates tried; infinite where it diverged.
    pub after: Vec<f64>,
    /// The targets.
    pub targets: usize,
}

/// How the dialogues of a persona are learned from.
#[derive(Debug, Clone, Copy)]
pub struct Tasks<'a> {
    /// The run.
    pub config: &'a Config,
}

impl Tasks<'_> {
    fn split<'p>(&self, draw: &Draw<'p>) -> Split<'p> {
        let data = &self.config.data;
        Split::new(draw.persona, &draw.order, data.shots, data.query_dialogues)
    }

    fn support(&self, examples: &[&Example], draw: &Draw, device: Device) -> Result<Support> {
        Support::new(&self.config.model.inner_loop, examples, draw.turn, device)
    }

    /// The outer gradient of a training persona at θ_0 and α, and the tokens that were read for it.
    ///
    /// # Errors
    /// A loss is not finite; what libtorch says.
    pub fn learn(&self, model: &Model, at: &[Tensor], rates: &[f32], draw: &Draw) -> Result<(MetaGradient, usize)> {
        let (split, device) = (self.split(draw), model.device());
        let outer = &self.config.outer;
        let found = match outer.gradient {
            Gradient::Normal => self.ordinary(model, at, &split, draw.turn),
            Gradient::Reptile => {
                // It needs no query, so it learns from those dialogues as well: one pass at least.
                let all: Vec<&Example> = split.support.into_iter().chain(split.query).collect();
                let recipe: InnerLoop = self.config.model.inner_loop.for_support(all.len());
                let support = Support::new(&recipe, &all, draw.turn, device)?;
                meta::reptile(model, at, &support, rates).map(|gradient| (gradient, support.tokens()))
            }
            Gradient::Maml | Gradient::Fomaml => {
                let support = self.support(&split.support, draw, device)?;
                let query = TokenBatch::of(&split.query, draw.turn, device)?;
                let tokens = support.tokens() + query.tokens();
                let (exact, learned) = (outer.gradient == Gradient::Maml, outer.inner_rate == RateRule::Learned);
                meta_gradient(model, at, &support, &query, rates, exact, learned).map(|gradient| (gradient, tokens))
            }
        };
        found.map_err(|error| error.during(&format!("persona {}", draw.number)))
    }

    /// The ordinary gradient over all dialogues of the split, each target counting the same. A batch is as large as those of
    /// the inner loop.
    fn ordinary(&self, model: &Model, at: &[Tensor], split: &Split, turn: usize) -> Result<(MetaGradient, usize)> {
        let all: Vec<&Example> = split.support.iter().chain(&split.query).copied().collect();
        let targets: usize = all.iter().map(|example| example.sequence.targets()).sum();
        let mut sum: Vec<Tensor> = at.iter().map(|tensor| Ok(tensor.f_zeros_like()?)).collect::<Result<_>>()?;
        let (mut loss, mut tokens) = (0.0, 0);
        for part in all.chunks(self.config.model.inner_loop.dialogues_per_step.max(1)) {
            let batch = TokenBatch::of(part, turn, model.device())?;
            let share = batch.targets() as f64 / targets as f64;
            let (part_loss, gradient) = inner::loss_and_gradient(model, at, &batch)?;
            if !part_loss.is_finite() {
                let (what, place) = ("the loss", "a batch".to_owned());
                return Err(TrainError::NotFinite { what, value: part_loss, place, remedy: "--outer-lr" });
            }
            for (sum, gradient) in sum.iter_mut().zip(&gradient) {
                let _ = sum.f_add_(&gradient.f_mul_scalar(share)?)?;
            }
            loss += share * part_loss;
            tokens += batch.tokens();
        }
        Ok((MetaGradient { gradient: sum, rates: None, loss }, tokens))
    }

    /// The loss on the query dialogues of a validation persona, for each of some learning rates.
    ///
    /// # Errors
    /// A loss is not finite and there is no other learning rate; what libtorch says.
    pub fn judge(&self, model: &Model, at: &[Tensor], tried: &[Vec<f32>], draw: &Draw) -> Result<Judged> {
        let split = self.split(draw);
        let support = self.support(&split.support, draw, model.device())?;
        let query = TokenBatch::of(&split.query, draw.turn, model.device())?;
        let targets = query.targets();
        let place = format!("validation persona {}", draw.number);
        let mut after = Vec::with_capacity(tried.len());
        for rates in tried {
            let adapted = inner::adapt(model, at, &support, rates).map_err(|error| error.during(&place));
            let loss = match adapted {
                Ok(adapted) => inner::loss(model, &adapted.parameters, &query)?,
                Err(TrainError::NotFinite { .. }) if tried.len() > 1 => f64::INFINITY,
                Err(error) => return Err(error),
            };
            if !loss.is_finite() && tried.len() == 1 {
                let what = "the loss after the inner loop";
                return Err(TrainError::NotFinite { what, value: loss, place, remedy: "--inner-lr or --outer-lr" });
            }
            after.push(if loss.is_finite() { loss * targets as f64 } else { f64::INFINITY });
        }
        let before = inner::loss(model, at, &query)?;
        if !before.is_finite() {
            let what = "the loss before the inner loop";
            return Err(TrainError::NotFinite { what, value: before, place, remedy: "--outer-lr" });
        }
        Ok(Judged { before: before * targets as f64, after, targets })
    }
}
