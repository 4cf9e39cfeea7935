//! Adapting to a persona: the bundle's inner loop on the persona's dialogues.

use marionette_dialogues::{Dialogue, Encoder, Exchange, Sequence, TaskError, group_by_persona};
use marionette_models::{InnerLoop, LearningRate, Tensors, digest};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generate::Go;
use crate::personas::{HeldOut, Persona, Record};
use crate::plan::{self, Plan};

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

/// How many personas the dialogues are of, as far as their persona sentences say: a file is learned as one persona whatever
/// it holds, and more than one is worth a warning.
pub fn personas_in(dialogues: &[Dialogue]) -> usize {
    match group_by_persona(dialogues.to_vec()) {
        Ok(grouping) => grouping.tasks.len() + grouping.dropped_single,
        Err(TaskError::NoTasks { dropped }) => dropped,
        Err(_) => 1,
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

/// A persona's dialogues: those to learn from, and those after them by which it is judged what was learned.
#[derive(Debug)]
pub struct Support<'d> {
    dialogues: &'d [Dialogue],
    /// How many of the dialogues are learned from.
    learned: usize,
    /// The windows of the dialogues to learn from, in their order.
    windows: Vec<Sequence>,
    /// Those of the held-out ones.
    held_out: Vec<Sequence>,
    /// How many dialogues have more than one.
    long: usize,
    /// Where they come from: all of the record that is known before the first step.
    sha256: String,
    sentences: Vec<String>,
}

/// How many of `there` dialogues are used, and how many of these, the last ones, are held out. With `shots` so many are learned from, and those
/// after them held out; without `holdout` one is, where there are three or more.
///
/// # Errors
/// There are not as many, or none would be left to learn from.
pub fn divide(there: usize, shots: Option<usize>, holdout: Option<usize>) -> Result<(usize, usize)> {
    let impossible = |problem: String| Err(Error::Impossible(problem));
    let learned = match (shots, holdout) {
        (Some(shots), _) if shots > there => {
            return impossible(format!("--shots asks for {shots} of {there} dialogues"));
        }
        (Some(shots), _) => shots,
        (None, Some(holdout)) if holdout >= there => {
            return impossible(format!("--holdout asks for {holdout} of {there} dialogues, and one is to be learned"));
        }
        (None, Some(holdout)) => there - holdout,
        (None, None) => there - usize::from(there >= LEAST_TO_HOLD_OUT),
    };
    let rest = there - learned;
    let holdout = match holdout {
        Some(holdout) if holdout > rest => {
            return impossible(format!(
                "--holdout asks for {holdout} of the {rest} dialogues after the first {learned}"
            ));
        }
        Some(holdout) => holdout,
        None => usize::from(rest > 0 && learned + 1 >= LEAST_TO_HOLD_OUT),
    };
    Ok((learned + holdout, holdout))
}

/// Of fewer dialogues none is held out unless asked for: each is worth more for learning.
const LEAST_TO_HOLD_OUT: usize = 3;

impl<'d> Support<'d> {
    /// Encodes dialogues, of which the last `holdout` are not learned from.
    ///
    /// # Errors
    /// There are no others to learn from; the tokenizer fails.
    pub fn new(encoder: &Encoder, dialogues: &'d [Dialogue], holdout: usize) -> Result<Self> {
        let Some(learned) = dialogues.len().checked_sub(holdout).filter(|&learned| learned > 0) else {
            let problem = format!("{} dialogues, of which {holdout} are held out: nothing is left", dialogues.len());
            return Err(Error::Impossible(problem));
        };
        let (support, rest) = dialogues.split_at(learned);
        let (mut windows, mut long) = (Vec::new(), 0);
        let mut sentences: Vec<String> = Vec::new();
        for dialogue in support {
            let of_dialogue = encoder.windows(dialogue)?;
            long += usize::from(of_dialogue.len() > 1);
            windows.extend(of_dialogue);
            for sentence in &dialogue.persona {
                if !sentences.contains(sentence) {
                    sentences.push(sentence.clone());
                }
            }
        }
        let held_out: Vec<Vec<Sequence>> =
            rest.iter().map(|dialogue| encoder.windows(dialogue)).collect::<Result<_, _>>()?;
        let held_out = held_out.concat();
        Ok(Self { dialogues, learned, windows, held_out, long, sha256: sha256(support), sentences })
    }

    /// All dialogues, the held-out ones last.
    pub fn dialogues(&self) -> &'d [Dialogue] {
        self.dialogues
    }

    /// The dialogues that are learned from.
    pub fn learned(&self) -> &'d [Dialogue] {
        self.dialogues.get(..self.learned).unwrap_or_default()
    }

    /// Those by which it is judged.
    pub fn held_out(&self) -> &'d [Dialogue] {
        self.dialogues.get(self.learned..).unwrap_or_default()
    }

    /// The windows of the dialogues to learn from, each of which a step learns from as from a dialogue.
    pub fn windows(&self) -> &[Sequence] {
        &self.windows
    }

    /// How many dialogues are longer than the context, and in how many windows they are learned.
    pub fn long(&self) -> Option<(usize, usize)> {
        (self.long > 0).then(|| (self.long, self.windows.len() - (self.learned - self.long)))
    }

    /// An inner loop over them.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self, engine: &mut Engine, recipe: &Recipe, memory_limit: Option<u64>) -> Result<Plan> {
        let inner = recipe.inner_loop(&engine.manifest().inner_loop, self.windows.len());
        Plan::new(engine, &self.windows, &self.held_out, inner, memory_limit)
    }
}

/// The digest of what is learned from: of each dialogue the persona's sentences, and who says what, as JSON.
fn sha256(dialogues: &[Dialogue]) -> String {
    let of = |Dialogue { persona, exchanges, .. }: &Dialogue| {
        let said = exchanges.iter().map(|Exchange { partner, reply, learned, .. }| (partner, reply, learned));
        serde_json::json!({ "persona": persona, "exchanges": said.collect::<Vec<_>>() })
    };
    digest::sha256(serde_json::Value::from(dialogues.iter().map(of).collect::<Vec<_>>()).to_string().as_bytes())
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
    let start = engine.adapters();
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
        dialogues: support.learned,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_three_dialogues_is_held_out() {
        for (there, shots, holdout, expected) in [
            (1, None, None, (1, 0)),
            (2, None, None, (2, 0)),
            (3, None, None, (3, 1)),
            (9, None, None, (9, 1)),
            (9, None, Some(0), (9, 0)),
            (2, None, Some(1), (2, 1)),
            (9, None, Some(3), (9, 3)),
            (9, Some(5), None, (6, 1)),
            (9, Some(5), Some(4), (9, 4)),
            (9, Some(5), Some(0), (5, 0)),
            (5, Some(5), None, (5, 0)),
            (5, Some(1), None, (1, 0)),
        ] {
            let found = divide(there, shots, holdout).unwrap();
            assert_eq!(found, expected, "{there} dialogues, {shots:?} shots, {holdout:?} held out");
        }
        for (there, shots, holdout) in
            [(3, Some(4), None), (3, None, Some(3)), (0, None, Some(0)), (5, Some(4), Some(2))]
        {
            assert!(divide(there, shots, holdout).is_err(), "{there} dialogues, {shots:?}, {holdout:?}");
        }
    }
}
