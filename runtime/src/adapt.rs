//! Adapting to a persona: the bundle's inner loop on the persona's dialogues.

use marionette_dialogues::{Dialogue, Encoder, Sequence, TaskError, group_by_persona, write_convai2};
use marionette_models::{InnerLoop, LearningRate, digest};

use crate::engine::{Engine, Scored};
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

/// The loss as a step sees it: the mean negative log-likelihood over all targets of the sequences, in nats.
fn loss(engine: &mut Engine, sequences: &[Sequence]) -> Result<f32> {
    let (mut sum, mut targets) = (0.0, 0);
    for sequence in sequences {
        let log_probs = engine.score(&Scored::targets_of(sequence))?;
        sum -= log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum::<f64>();
        targets += log_probs.len();
    }
    Ok((sum / targets as f64) as f32)
}

/// Adapts the engine to a persona's dialogues, given as sequences too: the inner loop as planned, then the loss on the first step's batch once more, so that
/// before and after can be compared and adapters that diverged in the last step are never saved.
///
/// # Errors
/// As [`follow`].
pub fn adapt(
    engine: &mut Engine,
    dialogues: &[Dialogue],
    support: &[Sequence],
    plan: &Plan,
    heard: impl FnMut(Heard) -> Go,
) -> Result<Persona> {
    let inner = plan.inner();
    let losses = follow(engine, plan, heard)?;
    // The score graph needs no gradient, so it is faster; and the memory of the one is free for the other.
    engine.close_graphs();
    let first = support.get(..inner.dialogues_per_step.min(support.len())).unwrap_or_default();
    let loss_after = loss(engine, first)?;
    check(inner.steps + 1, inner.steps, [("loss", loss_after)])?;
    // The candidates are not learned from, and ConvAI2's text cannot hold every candidate that other formats can.
    let mut learned = dialogues.to_vec();
    learned.iter_mut().flat_map(|dialogue| &mut dialogue.exchanges).for_each(|exchange| exchange.candidates.clear());
    let mut text = Vec::new();
    write_convai2(&mut text, &learned)?;
    let mut sentences: Vec<String> = Vec::new();
    for sentence in dialogues.iter().flat_map(|dialogue| &dialogue.persona) {
        if !sentences.contains(sentence) {
            sentences.push(sentence.clone());
        }
    }
    let record = Record {
        dialogues: dialogues.len(),
        dialogues_sha256: digest::sha256(&text),
        persona: sentences,
        learning_rate: inner.learning_rate.clone(),
        losses,
        loss_after,
    };
    Ok(Persona { adapters: engine.adapters(), record })
}

/// The dialogues as sequences.
///
/// # Errors
/// The tokenizer fails.
pub fn encode(encoder: &Encoder, dialogues: &[Dialogue]) -> Result<Vec<Sequence>> {
    Ok(dialogues.iter().map(|dialogue| encoder.sequence(dialogue)).collect::<Result<_, _>>()?)
}
