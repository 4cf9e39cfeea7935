//! What a run computes for one persona, wherever it is computed.

use marionette_dialogues::Example;
use marionette_models::InnerLoop;
use tch::{Device, Tensor};

use super::config::Config;
use super::options::{Gradient, RateRule};
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
        Split::new(draw.persona, &draw.order, data.support_dialogues, data.query_dialogues)
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

#[cfg(test)]
mod tests {
    use marionette_dialogues::Sequence;
    use marionette_models::params::{self, Init, TensorSpec};
    use marionette_models::run::RunModel;
    use marionette_models::{AdapterConfig, Gpt2Shape, LearningRate, ModelConfig, bundle, init};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use tch::Kind;

    use super::super::config::Outer;
    use super::super::options::{Data, Plan, Precision};
    use super::*;
    use crate::method::Method;
    use crate::tensors::{self, NamedTensors};

    /// Three of five dialogues to learn from, two a step, and one or two to judge by.
    fn config(gradient: Gradient, query_dialogues: usize) -> Config {
        let method = if gradient == Gradient::Normal { Method::Transfer } else { Method::InPlace };
        Config {
            model: RunModel {
                frozen: bundle::Precision::Fp32,
                base: "base".into(),
                base_sha256: String::new(),
                method: method.name().to_owned(),
                persona_text: false,
                adapter: AdapterConfig::in_all_blocks(4),
                inner_loop: InnerLoop { steps: 2, dialogues_per_step: 2, learning_rate: LearningRate::Shared(0.01) },
            },
            data: Data {
                train: Vec::new(),
                valid: Vec::new(),
                hold_out: 0.1,
                test_part: 0.0,
                support_dialogues: 3,
                query_dialogues,
                validation_personas: 1,
                sha256: Vec::new(),
            },
            outer: Outer {
                gradient,
                learning_rate: 0.1,
                inner_rate: RateRule::Fixed,
                find_inner_rate: false,
                precision: Precision::Fp32,
                plan: Plan {
                    iterations: 1,
                    meta_batch: 1,
                    clip: 2.0,
                    validate_every: 1,
                    patience: 1,
                    save_every: 1,
                    keep: 1,
                    seed: 1,
                },
            },
            start: None,
        }
    }

    /// A small model in f64, every tensor of which learns, and θ_0.
    fn model() -> (Model, Vec<Tensor>) {
        tch::set_num_threads(1);
        let config = ModelConfig {
            n_inner: 16,
            ..Gpt2Shape { vocab_size: 30, n_positions: 20, n_embd: 8, n_layer: 1, n_head: 2 }.into()
        };
        let table = params::base_table(&config);
        let spread: Vec<TensorSpec> =
            table.iter().map(|spec| TensorSpec { init: Init::Normal { std: 0.3 }, ..spec.clone() }).collect();
        let host = init::initialise(&spread, &mut ChaCha8Rng::seed_from_u64(4));
        let tensor = |spec: &TensorSpec| tensors::to_torch(&host[&spec.name], Kind::Double, Device::Cpu).unwrap();
        let start = table.iter().map(tensor).collect();
        let parts = Method::InPlace.parts();
        let model = Model::new(&config, parts, NamedTensors::new(), table, Kind::Double, Device::Cpu).unwrap();
        (model, start)
    }

    fn persona() -> Persona {
        let example = |seed: u32| {
            let length = 6 + 2 * seed;
            let ids = (0..length).map(|place| (seed * 5 + place * (3 + seed)) % 30).collect();
            // As many targets as it likes, so that a mean over dialogues is not one over targets.
            let target = (0..length).map(|place| place > 0 && (place % 3 == 0 || seed > 2)).collect();
            Example { sequence: Sequence { ids, target, ..Sequence::default() }, choices: Vec::new() }
        };
        Persona { dialogues: (0..5).map(|seed| vec![example(seed)]).collect() }
    }

    fn worst(found: &[Tensor], expected: &[Tensor]) -> f64 {
        let error = |(found, expected): (&Tensor, &Tensor)| {
            (found - expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
        };
        found.iter().zip(expected).map(error).fold(0.0, f64::max)
    }

    const ORDER: [usize; 5] = [3, 0, 4, 1, 2];

    fn draw(persona: &Persona) -> Draw<'_> {
        Draw { number: 1, persona, order: ORDER.to_vec(), turn: 0 }
    }

    fn examples<'p>(persona: &'p Persona, order: &[usize]) -> Vec<&'p Example> {
        order.iter().flat_map(|&index| &persona.dialogues[index]).collect()
    }

    #[test]
    fn the_ordinary_gradient_is_that_of_the_mean_over_all_targets() {
        let ((model, start), persona) = (model(), persona());
        for query_dialogues in [2, 1] {
            let config = config(Gradient::Normal, query_dialogues);
            let rates = vec![0.01; start.len()];
            let (found, tokens) = Tasks { config: &config }.learn(&model, &start, &rates, &draw(&persona)).unwrap();
            // Support and query in one padded batch; what is in neither has no part.
            let rows = examples(&persona, &ORDER[..3 + query_dialogues]);
            let batch = TokenBatch::of(&rows, 0, Device::Cpu).unwrap();
            let (loss, expected) = inner::loss_and_gradient(&model, &start, &batch).unwrap();
            let error = worst(&found.gradient, &expected);
            assert!(error < 1e-10, "{error}");
            assert!((found.loss - loss).abs() < 1e-12 && found.rates.is_none());
            // Read in batches of two, each padded to its longer row.
            let length = |row: &&Example| row.sequence.ids.len();
            let padded = rows.chunks(2).map(|pair| pair.len() * pair.iter().map(length).max().unwrap());
            assert_eq!(tokens, padded.sum::<usize>());
        }
    }

    #[test]
    fn meta_gradients_see_support_and_query_apart_and_reptile_all_of_them() {
        let ((model, start), persona) = (model(), persona());
        let rates = vec![0.01; start.len()];
        let support = |rows: &[&Example], steps| {
            let recipe = InnerLoop { steps, ..config(Gradient::Maml, 2).model.inner_loop };
            Support::new(&recipe, rows, 0, Device::Cpu).unwrap()
        };
        let query = TokenBatch::of(&examples(&persona, &ORDER[3..]), 0, Device::Cpu).unwrap();
        for (gradient, exact) in [(Gradient::Maml, true), (Gradient::Fomaml, false)] {
            let config = config(gradient, 2);
            let (found, tokens) = Tasks { config: &config }.learn(&model, &start, &rates, &draw(&persona)).unwrap();
            let support = support(&examples(&persona, &ORDER[..3]), 2);
            let expected = meta_gradient(&model, &start, &support, &query, &rates, exact, false).unwrap();
            assert_eq!((worst(&found.gradient, &expected.gradient), found.loss), (0.0, expected.loss));
            assert_eq!(tokens, support.tokens() + query.tokens());
        }
        // Five dialogues, two a step: three steps make one pass.
        let config = config(Gradient::Reptile, 2);
        let (found, tokens) = Tasks { config: &config }.learn(&model, &start, &rates, &draw(&persona)).unwrap();
        let all = support(&examples(&persona, &ORDER), 3);
        let expected = meta::reptile(&model, &start, &all, &rates).unwrap();
        assert_eq!((worst(&found.gradient, &expected.gradient), tokens), (0.0, all.tokens()));
    }

    #[test]
    fn validation_sums_over_query_targets_and_takes_no_divergence_but_of_one_of_several_rates() {
        let ((model, start), persona) = (model(), persona());
        let config = config(Gradient::Maml, 2);
        let tasks = Tasks { config: &config };
        let good = vec![0.01; start.len()];
        let found = tasks.judge(&model, &start, &[good.clone(), vec![f32::MAX; start.len()]], &draw(&persona)).unwrap();
        let query = TokenBatch::of(&examples(&persona, &ORDER[3..]), 0, Device::Cpu).unwrap();
        let support = Support::new(&config.model.inner_loop, &examples(&persona, &ORDER[..3]), 0, Device::Cpu).unwrap();
        let adapted = inner::adapt(&model, &start, &support, &good).unwrap();
        let loss = |at: &[Tensor]| inner::loss(&model, at, &query).unwrap() * query.targets() as f64;
        assert_eq!((found.targets, found.before), (query.targets(), loss(&start)));
        assert_eq!(found.after, [loss(&adapted.parameters), f64::INFINITY]);
        // The start itself is no good: nothing that is not a number is passed on.
        let wrong: Vec<Tensor> = start.iter().map(|tensor| tensor * f64::NAN).collect();
        let error = tasks.judge(&model, &wrong, &[good.clone(), good], &draw(&persona)).unwrap_err().to_string();
        assert!(error.contains("validation persona 1") && error.lines().count() == 1, "{error}");
    }
}
