//! Adapting to a persona: the bundle's inner loop on the persona's dialogues.

use marionette_dialogues::{Dialogue, Encoder, Exchange, Sequence, TaskError, group_by_persona};
use marionette_models::{InnerLoop, LearningRate, digest};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generate::Go;
use crate::personas::{Persona, Record};
use crate::plan::Plan;

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

/// The first `shots` dialogues, or all.
///
/// # Errors
/// There are fewer.
pub fn support(dialogues: &[Dialogue], shots: Option<usize>) -> Result<&[Dialogue]> {
    let shots = shots.unwrap_or(dialogues.len());
    dialogues
        .get(..shots)
        .filter(|support| !support.is_empty())
        .ok_or_else(|| Error::Impossible(format!("--shots asks for {shots} of {} dialogues", dialogues.len())))
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

/// One step, as it is heard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heard {
    /// The step, from 1.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// The loss before it.
    pub loss: f32,
}

/// Follows the inner loop as planned, from the engine's adapters, and gives the loss before each step. `heard` hears each step once it
/// is done. After an error the engine's adapters are those of the last good step.
///
/// # Errors
/// The loss or gradient is not finite; the listener stopped; the graph fails.
pub fn follow(engine: &mut Engine, plan: &Plan, mut heard: impl FnMut(Heard) -> Go) -> Result<Vec<f32>> {
    engine.prepare_adaptation(plan.activations())?;
    let inner = plan.inner();
    let rates = learning_rates(engine, inner)?;
    let mut losses = Vec::new();
    for (index, parts) in plan.steps().enumerate() {
        let step = engine.adapt_step(parts, &rates)?;
        check(index + 1, inner.steps, [("loss", step.loss), ("gradient", step.gradient_norm)])?;
        losses.push(step.loss);
        if heard(Heard { step: index + 1, steps: inner.steps, loss: step.loss }) == Go::Stop {
            return Err(Error::Interrupted);
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

/// A persona's dialogues, and what is learned of them.
#[derive(Debug)]
pub struct Support<'d> {
    dialogues: &'d [Dialogue],
    /// The windows of all dialogues, in their order.
    windows: Vec<Sequence>,
    /// How many dialogues have more than one.
    long: usize,
    /// Where they come from: all of the record that is known before the first step.
    sha256: String,
    sentences: Vec<String>,
}

impl<'d> Support<'d> {
    /// Encodes dialogues.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn new(encoder: &Encoder, dialogues: &'d [Dialogue]) -> Result<Self> {
        let (mut windows, mut long) = (Vec::new(), 0);
        let mut sentences: Vec<String> = Vec::new();
        for dialogue in dialogues {
            let of_dialogue = encoder.windows(dialogue)?;
            long += usize::from(of_dialogue.len() > 1);
            windows.extend(of_dialogue);
            for sentence in &dialogue.persona {
                if !sentences.contains(sentence) {
                    sentences.push(sentence.clone());
                }
            }
        }
        Ok(Self { dialogues, windows, long, sha256: sha256(dialogues), sentences })
    }

    /// The windows of all dialogues, each of which a step learns from as from a dialogue.
    pub fn windows(&self) -> &[Sequence] {
        &self.windows
    }

    /// How many dialogues are longer than the context, and in how many windows they are learned.
    pub fn long(&self) -> Option<(usize, usize)> {
        (self.long > 0).then(|| (self.long, self.windows.len() - (self.dialogues.len() - self.long)))
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

/// Adapts the engine to a persona: the inner loop as planned, then the loss on the first step's batch once more, so that before and
/// after can be compared and adapters that diverged in the last step are never saved. Where it went up, the loss over all
/// dialogues decides: unless `even_if_worse`, what made that no better is an error.
///
/// # Errors
/// As [`follow`]; [`Error::Worse`].
pub fn adapt(
    engine: &mut Engine,
    support: &Support<'_>,
    plan: &Plan,
    even_if_worse: bool,
    heard: impl FnMut(Heard) -> Go,
) -> Result<Persona> {
    let inner = plan.inner();
    let start = engine.adapters();
    let losses = follow(engine, plan, heard)?;
    // The score graph needs no gradient, so it is faster; and the memory of the one is free for the other.
    engine.close_graphs();
    let windows = support.windows();
    let first = windows.get(..inner.dialogues_per_step.min(windows.len())).unwrap_or_default();
    let loss_after = engine.loss(first)? as f32;
    check(inner.steps + 1, inner.steps, [("loss", loss_after)])?;
    let adapters = engine.adapters();
    let went_up = losses.first().is_some_and(|&before| loss_after > before);
    if went_up && !even_if_worse {
        let after = engine.loss(windows)? as f32;
        engine.set_adapters(&start)?;
        let before = engine.loss(windows)? as f32;
        engine.set_adapters(&adapters)?;
        if after.is_nan() || after >= before {
            return Err(Error::Worse { before, after });
        }
    }
    let record = Record {
        dialogues: support.dialogues.len(),
        dialogues_sha256: support.sha256.clone(),
        persona: support.sentences.clone(),
        learning_rate: inner.learning_rate.clone(),
        losses,
        loss_after,
    };
    Ok(Persona { adapters, record })
}
