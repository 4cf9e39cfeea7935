//! Adapting to a persona: the bundle's inner loop on the persona's dialogues.

mod support;

use marionette_models::{InnerLoop, LearningRate, Tensors};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generate::Go;
use crate::personas::{HeldOut, Persona, Record};
use crate::plan::{self, Plan};

pub use support::{Support, divide, personas_in};

/// What the user asks otherwise than the bundle's inner loop says.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Recipe {
    /// So many passes over the dialogues, instead of the inner loop's number of steps.
    pub epochs: Option<usize>,
    /// α, one for all tensors.
    pub learning_rate: Option<f32>,
}

impl Recipe {
    /// The inner loop for `support` dialogues.
    pub fn inner_loop(&self, bundle: &InnerLoop, support: usize) -> InnerLoop {
        let mut inner = bundle.for_support(support);
        if let Some(epochs) = self.epochs {
            inner.steps = epochs.saturating_mul(inner.steps_per_epoch(support));
        }
        if let Some(rate) = self.learning_rate {
            inner.learning_rate = LearningRate::Shared(rate);
        }
        inner
    }
}

/// What an adaptation says while it goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Heard {
    /// The graph is open, and nothing was computed yet.
    Begins,
    /// A step is done.
    Step {
        /// The step, from 1.
        step: usize,
        /// The loss before it, on its batch.
        loss: f32,
        /// The tokens that were computed, padding counted.
        tokens: usize,
    },
    /// The held-out dialogues were judged.
    Judged {
        /// The step after which; 0 before the first.
        step: usize,
        /// Their loss.
        loss: f32,
        /// The tokens that were computed, padding counted.
        tokens: usize,
    },
}

/// Follows the inner loop as planned, from the engine's adapters, and gives the loss before each step. `heard` hears each step once it is
/// done, its number (from 1), and says whether to go on. After an error the engine's adapters are those of the last good step.
///
/// # Errors
/// The loss or gradient is not finite; the graph fails.
pub fn follow(
    engine: &mut Engine,
    plan: &Plan,
    mut heard: impl FnMut(&mut Engine, Heard) -> Result<Go>,
) -> Result<Vec<f32>> {
    engine.prepare_adaptation(plan.activations())?;
    let inner = plan.inner();
    let rates = learning_rates(engine, inner)?;
    let mut losses = Vec::new();
    for (index, parts) in plan.steps().enumerate() {
        let step = engine.adapt_step(parts, &rates)?;
        check(index + 1, inner.steps, [("loss", step.loss), ("gradient", step.gradient_norm)])?;
        losses.push(step.loss);
        let done = Heard::Step { step: index + 1, loss: step.loss, tokens: plan::tokens(parts) };
        if heard(engine, done)? == Go::Stop {
            break;
        }
    }
    Ok(losses)
}

fn learning_rates(engine: &Engine, inner: &InnerLoop) -> Result<Vec<f32>> {
    let manifest = engine.manifest();
    let tensors = marionette_models::params::adapter_table(&manifest.model, &manifest.adapter).len();
    inner.learning_rate.per_tensor(tensors).map_err(|problem| Error::Impossible(format!("the learning rate {problem}")))
}

fn check<const N: usize>(step: usize, steps: usize, values: [(&'static str, f32); N]) -> Result<()> {
    match values.into_iter().find(|(_, value)| !value.is_finite()) {
        Some((what, value)) => Err(Error::Diverged { step, steps, what, value }),
        None => Ok(()),
    }
}

/// What an adaptation came to. The engine has the adapters that were kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapted {
    /// The persona as it was kept.
    pub persona: Persona,
    /// Whether it was stopped before its last step.
    pub stopped: bool,
}

/// Adapts the engine to a persona: the inner loop as planned, from the engine's adapters. What is kept is the best on the held-out
/// dialogues, which are judged before the first step, after each pass, and at the end. Without such dialogues it is the last; then the loss on the
/// first step's batch is looked at once more, so that adapters that diverged in the last step are never kept, and where it went up,
/// the loss over all dialogues decides. Unless `even_if_worse`, an adaptation that made nothing better is an error.
///
/// # Errors
/// As [`follow`]; [`Error::Worse`]; [`Error::Interrupted`] where it was stopped before its first step.
pub fn adapt(
    engine: &mut Engine,
    support: &Support<'_>,
    plan: &Plan,
    even_if_worse: bool,
    mut heard: impl FnMut(Heard) -> Go,
) -> Result<Adapted> {
    let inner = plan.inner();
    // Where there are held-out dialogues, these judge.
    let start = if plan.held_out().is_empty() { engine.adapters() } else { Tensors::new() };
    engine.prepare_adaptation(plan.activations())?;
    let mut stopped = heard(Heard::Begins) == Go::Stop;
    let mut judged = None;
    if let (Some(loss), false) = (held_out_loss(engine, plan)?, stopped) {
        check(0, inner.steps, [("loss on held-out dialogues", loss)])?;
        judged = Some(Judged { before: loss, best: loss, at: 0, adapters: None, last: loss });
        stopped = heard(Heard::Judged { step: 0, loss, tokens: plan::tokens(plan.held_out()) }) == Go::Stop;
    }
    if stopped {
        return Err(Error::Interrupted);
    }
    let mut step = 0;
    let mut losses = follow(engine, plan, |engine, done| {
        let mut go = heard(done);
        step += 1;
        let is_end = go == Go::Stop || step == inner.steps;
        stopped |= go == Go::Stop && step < inner.steps;
        if let (Some(judged), true) = (&mut judged, is_end || step.is_multiple_of(plan.pass())) {
            judged.judge(engine, plan, step)?;
            let tokens = plan::tokens(plan.held_out());
            if heard(Heard::Judged { step, loss: judged.last, tokens }) == Go::Stop && !is_end {
                (go, stopped) = (Go::Stop, true);
            }
        }
        Ok(go)
    })?;
    let (loss_after, held_out) = match judged {
        Some(judged) => {
            let after = judged.keep(engine, &mut losses, even_if_worse)?;
            (engine.batch_loss(plan.first())?, Some(after))
        }
        None => (judge_by_support(engine, plan, &start, &losses, even_if_worse)?, None),
    };
    check(losses.len() + 1, inner.steps, [("loss", loss_after)])?;
    let held_out = held_out.map(|(before, after)| HeldOut { dialogues: support.held_out().len(), before, after });
    let record = Record {
        dialogues: support.learned().len(),
        dialogues_sha256: support.sha256.clone(),
        persona: support.sentences.clone(),
        learning_rate: inner.learning_rate.clone(),
        losses,
        loss_after,
        held_out,
        from: None,
        seconds: None,
    };
    Ok(Adapted { persona: Persona { adapters: engine.adapters(), record }, stopped })
}

/// The loss of the engine's adapters on the held-out dialogues of a plan, in nats a token; `None` where there are none.
///
/// # Errors
/// The graph fails.
pub fn held_out_loss(engine: &mut Engine, plan: &Plan) -> Result<Option<f32>> {
    match plan.held_out() {
        [] => Ok(None),
        parts => {
            engine.prepare_adaptation(plan.activations())?;
            engine.batch_loss(parts).map(Some)
        }
    }
}

/// How the held-out dialogues were judged.
struct Judged {
    before: f32,
    /// The lowest loss, after how many steps, and with which adapters; `None` are those before the first step.
    best: f32,
    at: usize,
    adapters: Option<Tensors>,
    last: f32,
}

impl Judged {
    fn judge(&mut self, engine: &mut Engine, plan: &Plan, step: usize) -> Result<()> {
        self.last = engine.batch_loss(plan.held_out())?;
        if self.last < self.best {
            // Not both at a time.
            self.adapters = None;
            (self.best, self.at, self.adapters) = (self.last, step, Some(engine.adapters()));
        }
        Ok(())
    }

    /// Gives the engine the adapters to keep, and the losses before and after.
    fn keep(self, engine: &mut Engine, losses: &mut Vec<f32>, even_if_worse: bool) -> Result<(f32, f32)> {
        match self.adapters {
            Some(adapters) => {
                engine.set_adapters(&adapters)?;
                losses.truncate(self.at);
                Ok((self.before, self.best))
            }
            None if even_if_worse => Ok((self.before, self.last)),
            None => Err(Error::Worse { on: "held-out dialogues", before: self.before, after: self.last }),
        }
    }
}

/// Without held-out dialogues: the loss on the first step's batch, and where it went up, on all dialogues.
fn judge_by_support(
    engine: &mut Engine,
    plan: &Plan,
    start: &Tensors,
    losses: &[f32],
    even_if_worse: bool,
) -> Result<f32> {
    let loss_after = engine.batch_loss(plan.first())?;
    let went_up = losses.first().is_some_and(|&before| loss_after > before);
    if went_up && !even_if_worse {
        let adapters = engine.adapters();
        let all = plan.all();
        let after = engine.batch_loss(&all)?;
        engine.set_adapters(start)?;
        let before = engine.batch_loss(&all)?;
        engine.set_adapters(&adapters)?;
        if after.is_nan() || after >= before {
            return Err(Error::Worse { on: "dialogues", before, after });
        }
    }
    Ok(loss_after)
}
