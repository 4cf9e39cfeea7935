//! The one training loop. What a method learns, from where, and by which gradient is in its [`Config`]; the loop draws
//! personas, averages their gradients, takes a step of Adam, validates, and keeps checkpoints from which it can go on.

mod begin;
mod check;
mod checkpoints;
mod config;
mod forecast;
mod metrics;
pub(crate) mod options;
pub(crate) mod probe;
mod sampler;
mod state;
mod tasks;

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::time::Instant;

use indicatif::HumanDuration;
use marionette_console::interrupt;
use marionette_dialogues::Batch;
use marionette_models::checkpoint::BaseFiles;
use marionette_models::run::{CHECKPOINTS, CONFIG_TOML, PROBE, Which, checkpoint};
use marionette_models::{FileError, params};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::data::{self, Persona};
use crate::error::{Result, TrainError};
use crate::model::Model;
use crate::optimiser::{Adam, AdamState, clip};
use crate::workers::Compute;
use crate::{folder, tensors};
use marionette_console::Progress;
use marionette_console::say;

pub(crate) use begin::encoder;
use begin::{begin, read_personas};
pub use check::{DeviceCheck, check_device};
pub use config::{Config, Difference, Outer, Start, method_of};
pub use metrics::{Metrics, Report, Validation, read as read_metrics};
use metrics::{MetricsFile, describe};
pub use options::{Chosen, Data, Given, Gradient, InnerRate, OuterOptions, Plan, Precision, RateRule, Settings};
use sampler::Sampler;
use state::{Counters, State};
pub use state::{read_parameters, to_torch};
use tasks::{Draw, Judged, Tasks};

/// The constants of the outer optimiser (Kingma & Ba 2015).
const ADAM: Adam = Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8 };
/// β of log α, where α is learned. α is a scale, so what counts is by what part of itself it moves, which has nothing to do with how
/// far adapters move: with theirs it would change by a hundredth in twenty steps.
const LOG_RATE: f64 = 0.02;
/// The factor between the learning rates of which [`RateRule::Chosen`] takes one.
const RATE_FACTOR: f32 = 3.0;

/// What becomes of a run directory that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// It is refused.
    No,
    /// The run goes on from its newest whole checkpoint; another configuration or other data are refused.
    Same,
    /// The run goes on with the configuration that is given.
    Forced,
}

/// A run: what stays as it is from beginning to end.
struct Run<'a> {
    config: &'a Config,
    model: Model,
    personas: Vec<Persona>,
    held: Vec<Persona>,
    compute: Compute,
    out: &'a Path,
}

/// Trains and fills the run directory `out`, or goes on where it was left.
///
/// # Errors
/// Impossible options, files that cannot be read or written, a loss that is not finite: then the checkpoints written so
/// far stay.
pub fn run(config: &Config, base: BaseFiles, out: &Path, compute: Compute, resume: Resume) -> Result<Report> {
    // What is not shared out among workers is computed as they compute: the results depend on no other number.
    tch::set_num_threads(compute.threads_each() as i32);
    let begun = resume != Resume::No && out.join(CONFIG_TOML).is_file();
    if !begun {
        folder::must_be_new(out, "give --out another folder, --resume to go on with it, or remove it")?;
    }
    let mut held_folder = begun.then(|| hold(out)).transpose()?;
    let (mut found, mut other) = (None, false);
    if begun {
        found = checkpoints::newest(out, say)?;
        let recorded = Config::recorded(&out.join(CONFIG_TOML))?;
        other = recorded != *config;
        // What a checkpoint was made with counts, whatever was written into config.toml since.
        may_become(found.as_ref().map_or(&recorded, |(_, counters)| &counters.config), config, out, resume)?;
    }
    config.check()?;
    base.notes.iter().for_each(say);
    let encoder = encoder(config, &base.config)?;
    let (personas, mut held) = read_personas(config, &encoder)?;
    held.truncate(config.data.validation_personas);
    if let Some(note) = data::windowed(&personas, base.config.n_positions) {
        say(note);
    }
    let (model, start) = begin(config, &base, compute.device, config.outer.precision.kind())?;
    let run = Run { config, model, personas, held, compute, out };

    let found = found.map(|(folder, counters)| State::read(&folder, counters, config, &run.model)).transpose();
    let found = found.map_err(|error| checkpoints::none_to_go_on_from(out, &error))?;
    if other {
        config.write(out)?;
    }
    let (state, metrics) = match found {
        Some(mut state) => {
            state.counters.config = config.clone();
            let Counters { iteration, waited, finished, .. } = &mut state.counters;
            let plan = &config.outer.plan;
            let was_finished = *finished;
            // The end may lie further on than it did, or be passed already.
            *finished = *iteration >= plan.iterations || *waited >= plan.patience;
            let at_rest = was_finished && *finished;
            checkpoints::point(out, &state)?;
            checkpoints::tidy(out, state.counters.best_iteration, config.outer.plan.keep);
            // Better now than after the training, when the probe is to be made of it.
            checkpoint(out, Which::Best)?;
            if !at_rest {
                say(forecast::memory(&run));
                say(format_args!("going on after meta-iteration {}", state.counters.iteration));
                // It belongs to the best checkpoint of then.
                let _ = fs::remove_file(out.join(PROBE));
            }
            let Counters { metrics_bytes, ref metrics_sha256, iteration, .. } = state.counters;
            let open = || MetricsFile::open(out, metrics_bytes, metrics_sha256.as_deref(), iteration);
            let metrics = (!at_rest).then(open).transpose()?;
            (state, metrics)
        }
        None => {
            say(forecast::memory(&run));
            let start = begin::start_of(config, &run.model, start)?;
            let first = run.first_state(start, ChaCha8Rng::seed_from_u64(config.outer.plan.seed))?;
            if held_folder.is_none() {
                held_folder = Some(hold(out)?);
            }
            first
        }
    };
    let report = run.train(state, metrics)?;
    if config.method()?.learns_adapters() && !out.join(PROBE).exists() {
        run.record_probe()?;
    }
    drop(held_folder);
    Ok(report)
}

/// What a run came to, as its last checkpoint has it; `None` for a run that was published, which keeps nothing of its training.
///
/// # Errors
/// The checkpoint cannot be read.
pub fn recorded(run: &Path) -> Result<Option<Report>> {
    match run.join(Which::Last.file_name()).exists() {
        true => Ok(Some(Counters::read(&checkpoint(run, Which::Last)?)?.report())),
        false => Ok(None),
    }
}

/// Keeps other processes off a run directory until it is dropped or the process ends.
///
/// # Errors
/// Another process holds it.
fn hold(out: &Path) -> Result<File> {
    // The folder itself, because every file in it may be replaced.
    let folder = File::open(out).map_err(|error| FileError::new(out, format!("cannot be opened: {error}")))?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => {
            let busy = FileError::new(out, "another process is training in it");
            Err(busy.remedy("wait for that one, or give --out another folder").into())
        }
        Err(TryLockError::Error(error)) => Err(FileError::new(out, format!("cannot be locked: {error}")).into()),
    }
}

/// Lets a run go on with another configuration, and says each setting that changes.
///
/// # Errors
/// What comes out would be another, and it is not forced.
fn may_become(was: &Config, now: &Config, out: &Path, resume: Resume) -> Result<()> {
    let differences = was.differences(now);
    let (free, others): (Vec<_>, Vec<_>) = differences.iter().partition(|difference| difference.is_free());
    if resume == Resume::Same && !others.is_empty() {
        let list = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let problem = format!("the run cannot go on as another: {list}");
        let remedy = "leave the options out or the file as it was, or --force";
        return Err(FileError::new(&out.join(CONFIG_TOML), problem).remedy(remedy).into());
    }
    for difference in others.into_iter().chain(free) {
        say(format_args!("going on with {difference}"));
    }
    Ok(())
}

impl Run<'_> {
    fn tasks(&self) -> Tasks<'_> {
        Tasks { config: self.config }
    }

    /// Validates, makes the run directory, and writes the first checkpoint into it.
    fn first_state(&self, parameters: Vec<Tensor>, rng: ChaCha8Rng) -> Result<(State, Option<MetricsFile>)> {
        let rates = self.config.model.inner_loop.learning_rate.per_tensor(self.model.table().len());
        let rates = rates.map_err(|problem| TrainError::option("--inner-lr", problem))?;
        let started = Instant::now();
        let rates = match self.config.outer.find_inner_rate {
            true => self.find_rates(&parameters, &rates)?,
            false => rates,
        };
        let (first, rates) = self.validate(&parameters, &rates)?;
        let mut counters = Counters {
            config: self.config.clone(),
            iteration: 0,
            tokens: 0,
            seconds: 0.0,
            waited: 0,
            best_iteration: 0,
            best: first,
            first,
            newest: first,
            metrics_bytes: 0,
            metrics_sha256: None,
            finished: self.config.outer.plan.iterations == 0,
            optimiser_steps: 0,
            rates,
            rng,
            sampler: Sampler::new(self.personas.len()),
        };
        if !self.out.join(CONFIG_TOML).is_file() {
            folder::create(self.out, |dir| {
                self.config.write(dir)?;
                let made = fs::create_dir(dir.join(CHECKPOINTS));
                Ok(made.map_err(|error| {
                    FileError::new(dir, format!("its folder of checkpoints cannot be made: {error}"))
                })?)
            })?;
        }
        let mut metrics = MetricsFile::open(self.out, 0, None, 0)?;
        metrics.append(&line(&counters, None, None, Some(first)))?;
        metrics.sync()?;
        (counters.metrics_bytes, counters.metrics_sha256) = metrics.written();
        counters.seconds = started.elapsed().as_secs_f64();
        let expected = std::time::Duration::from_secs(forecast::seconds(self, counters.seconds).round() as u64);
        say(format_args!(
            "forecast: about {} for {} meta-iterations",
            HumanDuration(expected),
            self.config.outer.plan.iterations
        ));
        let mut state = State { parameters, adam: AdamState::new(ADAM, &[], |_| 0.0)?, counters };
        let mut outer: Vec<Tensor> = state.parameters.iter().map(Tensor::shallow_clone).collect();
        if self.config.outer.inner_rate == RateRule::Learned {
            outer.push(state.log_rates(&self.model)?);
        }
        state.adam = AdamState::new(ADAM, &outer, |_| 0.0)?;
        checkpoints::save(self.out, &state, self.config, &self.model)?;
        Ok((state, Some(metrics)))
    }

    /// The outer loop, from a state to the end; without metrics to go on with, the run is at its end.
    fn train(&self, mut state: State, metrics: Option<MetricsFile>) -> Result<Report> {
        let plan = &self.config.outer.plan;
        let (before, started) = (state.counters.seconds, Instant::now());
        if let Some(mut metrics) = metrics {
            let progress = Progress::new(plan.iterations as u64, "meta-iterations");
            progress.begin_at(state.counters.iteration as u64);
            progress.note(&format!(
                "{} training and {} validation personas; validation perplexity {}",
                self.personas.len(),
                self.held.len(),
                describe(state.counters.newest)
            ));
            while !state.counters.finished {
                let (loss, norm) = self.step(&mut state)?;
                let counters = &mut state.counters;
                let asked = interrupt::asked();
                let last = counters.iteration >= plan.iterations;
                let mut validation = None;
                if last || counters.iteration.is_multiple_of(plan.validate_every) {
                    let place = format!("meta-iteration {}", counters.iteration);
                    let (newest, rates) = self
                        .validate(&state.parameters, &state.counters.rates)
                        .map_err(|error| error.during(&place))?;
                    let counters = &mut state.counters;
                    (counters.newest, counters.rates, validation) = (newest, rates, Some(newest));
                    let best = newest.loss_after < counters.best.loss_after;
                    counters.waited = if best { 0 } else { counters.waited + 1 };
                    if best {
                        (counters.best, counters.best_iteration) = (newest, counters.iteration);
                    }
                    counters.finished = last || counters.waited >= plan.patience;
                }
                let counters = &mut state.counters;
                counters.seconds = before + started.elapsed().as_secs_f64();
                metrics.append(&line(counters, Some(loss), Some(norm), validation))?;
                let message = {
                    let speed = counters.tokens as f64 / counters.seconds.max(1e-9);
                    format!("loss {loss:.3}, validation {}, {speed:.0} tok/s", describe(counters.newest))
                };
                if asked || validation.is_some() || counters.iteration.is_multiple_of(plan.save_every) {
                    metrics.sync()?;
                    (state.counters.metrics_bytes, state.counters.metrics_sha256) = metrics.written();
                    checkpoints::save(self.out, &state, self.config, &self.model)?;
                }
                progress.step(|| message.clone());
                if validation.is_some() {
                    progress.note(&message);
                }
                if asked {
                    break;
                }
            }
        }
        Ok(state.counters.report())
    }

    /// One meta-iteration: the mean loss of the meta-batch, and the norm of its gradient.
    fn step(&self, state: &mut State) -> Result<(f64, f64)> {
        let iteration = state.counters.iteration + 1;
        let place = format!("meta-iteration {iteration}");
        let (mut gradient, loss) = self.meta_batch(state).map_err(|error| error.during(&place))?;
        let outer = &self.config.outer;
        let norm = clip(&mut gradient, outer.plan.clip)?;
        if !norm.is_finite() {
            let what = "the norm of the gradient";
            return Err(TrainError::NotFinite { what, value: norm, place, remedy: "--inner-lr or --outer-lr" });
        }
        let learned = outer.inner_rate == RateRule::Learned;
        let mut moved: Vec<Tensor> = state.parameters.iter().map(Tensor::shallow_clone).collect();
        if learned {
            moved.push(state.log_rates(&self.model)?);
        }
        let is_log = |index| index >= state.parameters.len();
        let rate = |index| if is_log(index) { LOG_RATE } else { outer.learning_rate };
        state.adam.step(&mut moved, &gradient, rate)?;
        if learned && let Some(logs) = moved.last() {
            state.counters.rates = tensors::to_host(logs)?.values.iter().map(|log| log.exp()).collect();
        }
        state.finite(&place)?;
        state.counters.optimiser_steps = state.adam.steps();
        state.counters.iteration = iteration;
        Ok((loss, norm))
    }

    /// The mean outer gradient of the next meta-batch, and its mean loss.
    fn meta_batch(&self, state: &mut State) -> Result<(Vec<Tensor>, f64)> {
        let count = self.config.outer.plan.meta_batch;
        let Counters { rng, sampler, rates, .. } = &mut state.counters;
        let draws: Vec<Draw> = (0..count)
            .filter_map(|_| {
                let index = sampler.persona(rng);
                let persona = self.personas.get(index)?;
                let order = Sampler::order(persona.dialogues.len(), rng);
                Some(Draw { number: index + 1, persona, order, turn: rng.random_range(0..1 << 16) })
            })
            .collect();
        let share = 1.0 / count as f64;
        let zeros = |tensor: &Tensor| Ok(tensor.f_detach()?.f_zeros_like()?);
        let mut sum: Vec<Tensor> = state.parameters.iter().map(zeros).collect::<Result<_>>()?;
        if self.config.outer.inner_rate == RateRule::Learned {
            sum.push(Tensor::f_zeros([rates.len() as i64], (Kind::Float, self.model.device()))?);
        }
        let (mut loss, mut tokens) = (0.0, 0);
        let (tasks, rates) = (self.tasks(), rates.as_slice());
        let learn = |model: &Model, parameters: &[Tensor], draw: &Draw| tasks.learn(model, parameters, rates, draw);
        self.compute.map(&self.model, &state.parameters, &draws, learn, |(found, read)| {
            for (sum, gradient) in sum.iter_mut().zip(found.gradient.iter().chain(&found.rates)) {
                let _ = sum.f_add_(&gradient.f_mul_scalar(share)?)?;
            }
            loss += share * found.loss;
            tokens += read;
            Ok(())
        })?;
        state.counters.tokens += tokens as u64;
        Ok((sum, loss))
    }

    /// The loss on the held-out personas' query dialogues before and after the inner loop, and α: as it is, or that of
    /// those tried with which the loss after it is lowest.
    fn validate(&self, parameters: &[Tensor], rates: &[f32]) -> Result<(Validation, Vec<f32>)> {
        let tried: Vec<Vec<f32>> = match self.config.outer.inner_rate {
            RateRule::Fixed | RateRule::Learned => vec![rates.to_vec()],
            RateRule::Chosen => {
                let by = |factor: f32| rates.iter().map(|rate| rate * factor).collect();
                vec![by(1.0), by(1.0 / RATE_FACTOR), by(RATE_FACTOR)]
            }
        };
        let sum = self.judge(parameters, &tried, self.held.len())?;
        let (after, rates) = best(&sum, tried, "the validation")?;
        let targets = sum.targets as f64;
        Ok((Validation { loss_before: sum.before / targets, loss_after: after / targets }, rates))
    }

    /// α to begin at: what a base bears is not known before it is tried. The best of the usual one and of smaller ones on some of the
    /// held-out personas.
    fn find_rates(&self, parameters: &[Tensor], usual: &[f32]) -> Result<Vec<f32>> {
        /// Personas that it is tried on.
        const TRIED_ON: usize = 4;
        let of = |factor: f32| usual.iter().map(|rate| rate * factor).collect::<Vec<_>>();
        let tried: Vec<Vec<f32>> = [1.0, 1.0 / 3.0, 0.1, 1.0 / 30.0].map(of).into();
        let sum = self.judge(parameters, &tried, TRIED_ON)?;
        let listed: Vec<String> =
            tried.iter().flat_map(|rates| rates.first()).map(|rate| format!("{rate:.2}")).collect();
        let (_, rates) = best(&sum, tried, "the search for --inner-lr")?;
        let found = rates.first().copied().unwrap_or_default();
        say(format_args!("inner learning rate {found:.2}, the best of {} before training", listed.join(", ")));
        Ok(rates)
    }

    /// The loss on the query dialogues of the first `count` held-out personas before and after the inner loop, summed, with each of
    /// some learning rates.
    fn judge(&self, parameters: &[Tensor], tried: &[Vec<f32>], count: usize) -> Result<Judged> {
        let tasks = self.tasks();
        // Their dialogues keep their order, so that every validation asks the same.
        let draws: Vec<Draw> = (1..)
            .zip(self.held.iter().take(count))
            .map(|(number, persona)| Draw { number, persona, order: (0..persona.dialogues.len()).collect(), turn: 0 })
            .collect();
        let mut sum = Judged { before: 0.0, after: vec![0.0; tried.len()], targets: 0 };
        let judge = |model: &Model, parameters: &[Tensor], draw: &Draw| tasks.judge(model, parameters, tried, draw);
        self.compute.map(&self.model, parameters, &draws, judge, |judged| {
            sum.before += judged.before;
            sum.after.iter_mut().zip(&judged.after).for_each(|(sum, after)| *sum += after);
            sum.targets += judged.targets;
            Ok(())
        })?;
        Ok(sum)
    }

    /// What libtorch computes with the best checkpoint, for the device to compare with.
    fn record_probe(&self) -> Result<()> {
        let best = checkpoint(self.out, Which::Best)?;
        let parameters = to_torch(&read_parameters(&best, self.config, &self.model)?, &self.model)?;
        let recipe = marionette_models::run::inner_loop(&best)?;
        let adapters = params::adapter_table(self.model.config(), &self.config.model.adapter);
        let probed: Vec<_> = self.held.iter().take(1).flat_map(|persona| persona.windows().take(2)).collect();
        // The device computes in 32 bits, whatever the training was in.
        let batch = Batch::new(probed.iter().map(|example| &example.sequence))?;
        let probe =
            probe::record(&self.model.unrounded(), &parameters, &adapters, batch, &recipe, self.config.model.frozen)?;
        Ok(probe.write(&self.out.join(PROBE))?)
    }
}

/// The summed loss after the inner loop with the learning rates with which it is lowest, and these.
fn best(sum: &Judged, tried: Vec<Vec<f32>>, place: &str) -> Result<(f64, Vec<f32>)> {
    let best = sum.after.iter().zip(tried).min_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(after, _)| after.is_finite()).map(|(&after, rates)| (after, rates)).ok_or_else(|| {
        let (what, place) = ("the loss after the inner loop", place.to_owned());
        TrainError::NotFinite { what, value: f64::INFINITY, place, remedy: "--inner-lr" }
    })
}

/// A line of the metrics.
fn line(counters: &Counters, loss: Option<f64>, norm: Option<f64>, validation: Option<Validation>) -> Metrics {
    let rates = counters.rates.iter().map(|&rate| f64::from(rate));
    Metrics {
        iteration: counters.iteration,
        loss,
        gradient_norm: norm,
        inner_lr: rates.sum::<f64>() / counters.rates.len().max(1) as f64,
        tokens: counters.tokens,
        validation,
    }
}
