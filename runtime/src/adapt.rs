//! Adapting to a persona: the bundle's inner loop on the persona's dialogues.

use marionette_dialogues::{Batch, Dialogue, Encoder, Sequence, TaskError, group_by_persona, write_convai2};
use marionette_models::{InnerLoop, LearningRate, digest};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generate::Go;
use crate::personas::{Persona, Record};

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
    ///
    /// # Errors
    /// It has no steps.
    pub fn inner_loop(&self, bundle: &InnerLoop, support: usize) -> Result<InnerLoop> {
        let mut inner = bundle.clone();
        if let Some(epochs) = self.epochs {
            inner.steps = epochs.saturating_mul(inner.steps_per_epoch(support));
        }
        if let Some(rate) = self.learning_rate {
            inner.learning_rate = LearningRate::Shared(rate);
        }
        if inner.steps == 0 {
            return Err(Error::Impossible("the bundle's inner loop has no steps: give --epochs".into()));
        }
        Ok(inner)
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

/// The batches of an inner loop, in the order of its steps.
fn batches(support: &[Sequence], inner: &InnerLoop) -> Result<Vec<(Vec<usize>, Batch)>> {
    let mut made: Vec<(Vec<usize>, Batch)> = Vec::new();
    for indices in inner.batches(support.len()).into_iter().take(inner.steps_per_epoch(support.len())) {
        let batch = Batch::new(indices.iter().filter_map(|&index| support.get(index)))?;
        made.push((indices, batch));
    }
    Ok(made)
}

/// Follows the inner loop from the engine's adapters and gives the loss before each step. `heard` hears each step once it is
/// done. After an error the engine's adapters are those of the last good step.
///
/// # Errors
/// There is nothing to learn from; the loss or gradient is not finite; the listener stopped; the graph fails.
pub fn follow(
    engine: &mut Engine,
    support: &[Sequence],
    inner: &InnerLoop,
    mut heard: impl FnMut(Heard) -> Go,
) -> Result<Vec<f32>> {
    let batches = batches(support, inner)?;
    let rates = learning_rates(engine, inner)?;
    let mut losses = Vec::with_capacity(inner.steps);
    for (index, (_, batch)) in batches.iter().cycle().take(inner.steps).enumerate() {
        let step = engine.adapt_step(batch, &rates)?;
        check(index + 1, inner.steps, step)?;
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

fn check(step: usize, steps: usize, got: crate::engine::Step) -> Result<()> {
    let what = [("loss", got.loss), ("gradient", got.gradient_norm)];
    match what.into_iter().find(|(_, value)| !value.is_finite()) {
        Some((what, value)) => Err(Error::Diverged { step, steps, what, value }),
        None => Ok(()),
    }
}

/// Adapts the engine to a persona's dialogues: the inner loop, then the loss on the first step's batch once more, so that
/// before and after can be compared and adapters that diverged in the last step are never saved.
///
/// # Errors
/// As [`follow`].
pub fn adapt(
    engine: &mut Engine,
    encoder: &Encoder,
    dialogues: &[Dialogue],
    inner: &InnerLoop,
    heard: impl FnMut(Heard) -> Go,
) -> Result<Persona> {
    let support = encode(encoder, dialogues)?;
    let losses = follow(engine, &support, inner, heard)?;
    let still = vec![0.0; learning_rates(engine, inner)?.len()];
    let loss_after = match batches(&support, inner)?.first() {
        Some((_, batch)) => {
            let step = engine.adapt_step(batch, &still)?;
            check(inner.steps + 1, inner.steps, step)?;
            step.loss
        }
        None => f32::NAN,
    };
    let mut text = Vec::new();
    write_convai2(&mut text, dialogues)?;
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
