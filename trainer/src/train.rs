//! Meta-training, extra-place (MAMLviaPP, algorithm 2): the adapters' start Φ is learned so that a few inner steps on a
//! persona's dialogues suffice; the pre-trained parameters φ are frozen.

mod checkpoints;
mod options;
mod probe;
mod report;
mod sampler;
mod tasks;

use std::fs;
use std::path::Path;
use std::time::Instant;

use marionette_dialogues::{Encoder, Share, hold_out};
use marionette_models::checkpoint::Base;
use marionette_models::params::{self, TensorSpec};
use marionette_models::run::{ADAPTERS, CHECKPOINTS, PROBE, Which, checkpoint};
use marionette_models::{FileError, checkpoint as checkpoint_file, init};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::data::{self, Persona};
use crate::error::{Result, TrainError};
use crate::gpt2::Gpt2;
use crate::optimiser::{Adam, AdamState, clip};
use crate::progress::Progress;
use crate::workers::Compute;
use crate::{folder, interrupt, tensors};

pub use options::{Config, Data, Method, Outer, Settings, read_base};
use report::{Metrics, MetricsFile, describe};
pub use report::{Report, Validation};
use sampler::Sampler;
use tasks::{Draw, Judged, Tasks};

/// The model and everything about it that stays as it is during a run.
struct Frozen<'a> {
    tasks: Tasks<'a>,
    model: Gpt2,
    table: Vec<TensorSpec>,
    compute: Compute,
}

/// Meta-trains and fills the run directory `out`.
///
/// # Errors
/// Impossible options, files that cannot be read or written, a loss that is not finite: then the checkpoints written so
/// far stay.
pub fn run(config: &Config, base: &Base, out: &Path, compute: Compute) -> Result<Report> {
    let device = compute.device;
    // What is not shared out among workers is computed as they compute: the results depend on no other number.
    tch::set_num_threads(compute.threads_each() as i32);
    folder::must_be_new(out, "give --out another folder, or remove this one")?;
    let encoder = Encoder::from_folder(
        &config.model.base,
        base.config.eos_token_id,
        base.config.n_positions,
        base.config.vocab_size,
    )?
    .with_persona_text(config.model.persona_text);
    let (personas, mut held) = read_personas(config, &encoder)?;
    let Config { model: recipe, data, outer } = config;
    let cut = data::cut(&personas) + data::cut(&held);
    if cut > 0 {
        eprintln!("{cut} utterances were cut: the context holds {} tokens", base.config.n_positions);
    }

    let table = params::adapter_table(&base.config, &recipe.adapter);
    let rates = recipe.inner_loop.learning_rate.per_tensor(table.len());
    let rates = rates.map_err(|problem| TrainError::option("--inner-lr", problem))?;
    let model = Gpt2::new(&base.config, &tensors::all_to_torch(&base.tensors, Kind::Float, device)?)?;
    held.truncate(data.validation_personas);
    let frozen = Frozen { tasks: Tasks { config, rates, personas, held }, model, table, compute };

    let mut rng = ChaCha8Rng::seed_from_u64(outer.seed);
    let fresh = init::initialise(&frozen.table, &mut rng);
    let fresh = frozen.table.iter().filter_map(|spec| fresh.get(&spec.name));
    let mut adapters =
        fresh.map(|tensor| tensors::to_torch(tensor, Kind::Float, device)).collect::<Result<Vec<_>>>()?;

    // From here on there is something to keep.
    let report = frozen.train(&mut adapters, out, &mut rng)?;
    let path = checkpoint(out, Which::Best)?.join(ADAPTERS);
    let (best, _) = checkpoint_file::read_adapters(&path, &base.config, &recipe.adapter)?;
    let best = frozen.table.iter().filter_map(|spec| best.get(&spec.name));
    let best = best.map(|tensor| tensors::to_torch(tensor, Kind::Float, device)).collect::<Result<Vec<_>>>()?;
    let Tasks { held, rates, .. } = &frozen.tasks;
    let probed: Vec<_> = held.iter().take(1).flat_map(|persona| persona.dialogues.iter().take(2)).collect();
    probe::record(&frozen.model, &best, &frozen.table, &probed, &recipe.inner_loop, rates)?.write(&out.join(PROBE))?;
    Ok(report)
}

/// The personas to train and to validate on.
fn read_personas(config: &Config, encoder: &Encoder) -> Result<(Vec<Persona>, Vec<Persona>)> {
    let Config { data, outer, .. } = config;
    let mut train = data::read_tasks(&data.train)?;
    let held = if data.valid.is_empty() {
        let share = Share::Fraction(data.hold_out);
        let (rest, held) = hold_out(train, share, outer.seed).map_err(|error| data::tasks_error(&data.train, error))?;
        train = rest;
        held
    } else {
        data::read_tasks(&data.valid)?
    };
    let most = train.iter().map(|task| task.dialogues.len()).max().unwrap_or(0);
    if data.shots >= most {
        let problem = format!(
            "is {}, but no training persona has more than {most} dialogues and one must be left to judge by; at most {}",
            data.shots,
            most.saturating_sub(1)
        );
        return Err(TrainError::option("--shots", problem));
    }
    Ok((data::encode(encoder, &train)?, data::encode(encoder, &held)?))
}

impl Frozen<'_> {
    /// The outer loop. The best and the last adapters are in `out`.
    fn train(&self, adapters: &mut [Tensor], out: &Path, rng: &mut ChaCha8Rng) -> Result<Report> {
        let Tasks { config, personas, held, .. } = &self.tasks;
        let Config { model: recipe, outer, .. } = config;
        let started = Instant::now();
        let first = self.validate(adapters)?;
        folder::create(out, |dir| {
            config.write(dir)?;
            let made = fs::create_dir(dir.join(CHECKPOINTS));
            Ok(made
                .map_err(|error| FileError::new(dir, format!("its folder of checkpoints cannot be made: {error}")))?)
        })?;
        let metrics = MetricsFile::create(out)?;
        let save = |iteration, adapters: &[Tensor], best| {
            let host = tensors::named_to_host(&self.table, adapters)?;
            checkpoints::save(out, iteration, &host, &recipe.base_sha256, best)
        };
        save(0, adapters, true)?;
        metrics.append(&Metrics {
            iteration: 0,
            loss_before: None,
            loss_after: None,
            gradient_norm: None,
            tokens: 0,
            validation: Some(first),
        })?;

        let mut adam = AdamState::new(Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8 }, adapters, |_| 0.0)?;
        let mut sampler = Sampler::new(personas.len());
        let mut report = Report {
            iterations: 0,
            best_iteration: 0,
            best: first,
            first,
            tokens: 0,
            seconds: 0.0,
            interrupted: false,
        };
        let mut waited = 0;
        let mut newest = first;
        let progress = Progress::new(outer.iterations as u64, "meta-iterations");
        progress.note(&format!(
            "{} training and {} validation personas; validation perplexity {}",
            personas.len(),
            held.len(),
            describe(first)
        ));
        for iteration in 1..=outer.iterations {
            let (mut gradient, mut line) = self
                .meta_batch(adapters, &mut sampler, rng)
                .map_err(|error| error.during(&format!("meta-iteration {iteration}")))?;
            line.iteration = iteration;
            let norm = clip(&mut gradient, outer.clip)?;
            adam.step(adapters, &gradient, outer.learning_rate)?;
            line.gradient_norm = Some(norm);

            report.iterations = iteration;
            report.tokens += line.tokens;
            report.interrupted = interrupt::asked();
            let last = iteration == outer.iterations || report.interrupted;
            if last || iteration.is_multiple_of(outer.validate_every) {
                newest = self.validate(adapters)?;
                line.validation = Some(newest);
                let best = newest.loss_after < report.best.loss_after;
                waited = if best { 0 } else { waited + 1 };
                if best {
                    (report.best, report.best_iteration) = (newest, iteration);
                }
                save(iteration, adapters, best)?;
            }
            metrics.append(&line)?;
            report.seconds = started.elapsed().as_secs_f64();
            let message = || {
                let (before, after) = (line.loss_before.unwrap_or(0.0), line.loss_after.unwrap_or(0.0));
                let speed = report.tokens as f64 / report.seconds;
                format!("loss {before:.3} -> {after:.3}, validation {}, {speed:.0} tok/s", describe(newest))
            };
            progress.step(message);
            if line.validation.is_some() {
                progress.note(&message());
            }
            if last || waited >= outer.patience {
                break;
            }
        }
        Ok(report)
    }

    /// The mean meta-gradient of the next meta-batch.
    fn meta_batch(
        &self,
        adapters: &[Tensor],
        sampler: &mut Sampler,
        rng: &mut ChaCha8Rng,
    ) -> Result<(Vec<Tensor>, Metrics)> {
        let Tasks { config, personas, .. } = &self.tasks;
        let count = config.outer.meta_batch;
        let draws: Vec<Draw> = (0..count)
            .filter_map(|_| {
                let index = sampler.persona(rng);
                let persona = personas.get(index)?;
                Some(Draw { number: index + 1, persona, order: Sampler::order(persona.dialogues.len(), rng) })
            })
            .collect();
        let share = 1.0 / count as f64;
        let mut sum: Vec<Tensor> = adapters.iter().map(|tensor| Ok(tensor.f_zeros_like()?)).collect::<Result<_>>()?;
        let (mut before, mut after, mut tokens) = (0.0, 0.0, 0);
        let tasks = &self.tasks;
        let learn = |model: &Gpt2, adapters: &[Tensor], draw: &Draw| tasks.learn(model, adapters, draw);
        self.compute.map(&self.model, adapters, &draws, learn, |(task, read)| {
            for (sum, gradient) in sum.iter_mut().zip(&task.gradient) {
                let _ = sum.f_add_(&gradient.f_mul_scalar(share)?)?;
            }
            before += share * task.loss_before;
            after += share * task.loss_after;
            tokens += read;
            Ok(())
        })?;
        let line = Metrics {
            iteration: 0,
            loss_before: Some(before),
            loss_after: Some(after),
            gradient_norm: None,
            tokens,
            validation: None,
        };
        Ok((sum, line))
    }

    /// The loss on the held-out personas' query dialogues, before and after the inner loop.
    fn validate(&self, adapters: &[Tensor]) -> Result<Validation> {
        let mut sum = Judged::default();
        let tasks = &self.tasks;
        // Their dialogues keep their order, so that every validation asks the same.
        let draws: Vec<Draw> = (1..)
            .zip(&tasks.held)
            .map(|(number, persona)| Draw { number, persona, order: (0..persona.dialogues.len()).collect() })
            .collect();
        let judge = |model: &Gpt2, adapters: &[Tensor], draw: &Draw| tasks.judge(model, adapters, draw);
        self.compute.map(&self.model, adapters, &draws, judge, |judged| {
            sum.before += judged.before;
            sum.after += judged.after;
            sum.targets += judged.targets;
            Ok(())
        })?;
        let targets = sum.targets as f64;
        Ok(Validation { loss_before: sum.before / targets, loss_after: sum.after / targets })
    }
}
