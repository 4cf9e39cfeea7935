//! The one evaluation of a persona learner, for trainer and device: leave one dialogue out, adapt on K others, test.

use std::fmt;
use std::ops::ControlFlow;
use std::time::Instant;

use crate::metrics::{Evaluation, ShotResult, Tally, best_candidate, f1, hits_at_1};
use crate::tasks::{Fold, Task, leave_one_out};
use crate::{Dialogue, EncodeError, Encoder, Ranking, Sequence};

/// A model that adapts to a persona.
pub trait Learner {
    /// Why the model can fail.
    type Error;

    /// Goes back to the state before any adaptation.
    ///
    /// # Errors
    /// Where the model fails.
    fn reset(&mut self) -> Result<(), Self::Error>;

    /// Adapts on the support set, one sequence a dialogue, in as many steps and batches as its inner-loop recipe says.
    ///
    /// # Errors
    /// Where the model fails.
    fn adapt(&mut self, support: &[Sequence]) -> Result<(), Self::Error>;

    /// The negative log-likelihood of a sequence's targets, summed, in nats.
    ///
    /// # Errors
    /// Where the model fails.
    fn negative_log_likelihood(&mut self, sequence: &Sequence) -> Result<f64, Self::Error>;

    /// The log-probability of each of a ranking's N targets, in nats.
    ///
    /// # Errors
    /// Where the model fails.
    fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>, Self::Error>;

    /// Generates at most `max_new` tokens after a prompt, up to and with or without the end of text.
    ///
    /// # Errors
    /// Where the model fails.
    fn reply(&mut self, prompt: &[u32], max_new: usize) -> Result<Vec<u32>, Self::Error>;
}

/// What is evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The numbers K of dialogues to adapt on; 0 tests without adapting.
    pub shots: Vec<usize>,
    /// Only so many personas, the first ones.
    pub personas: Option<usize>,
    /// Only so many folds of each persona, the first ones.
    pub folds: Option<usize>,
    /// The longest reply to generate, in tokens; 0 generates none and leaves F1 out.
    pub max_new_tokens: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { shots: vec![0, 1, 5, 10], personas: None, folds: None, max_new_tokens: 32 }
    }
}

/// Where an evaluation stands: about to test a fold after K shots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The persona, from 0, and how many there are.
    pub persona: usize,
    /// How many personas there are.
    pub personas: usize,
    /// The fold of this persona, from 0.
    pub fold: usize,
    /// How many folds this persona has.
    pub folds: usize,
    /// K.
    pub shots: usize,
}

/// Why an evaluation ended without a result; `E` is the learner's error.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError<E: fmt::Display> {
    /// The learner failed.
    #[error("{0}")]
    Learner(E),
    /// A dialogue could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Nothing to evaluate.
    #[error("there is nothing to evaluate: {0}")]
    Nothing(&'static str),
    /// The learner gave something that cannot be counted.
    #[error(
        "persona {persona}, fold {fold}, {shots}-shot: {problem}; lower the inner learning rate or take fewer steps"
    )]
    Diverged {
        /// The persona, from 0.
        persona: usize,
        /// The fold, from 0.
        fold: usize,
        /// K.
        shots: usize,
        /// What was given.
        problem: String,
    },
    /// The progress callback asked to stop.
    #[error("the evaluation was interrupted")]
    Interrupted,
}

/// Evaluates a learner on personas.
///
/// For each persona, each leave-one-out fold and each K: reset, adapt on the fold's support (the first K of the other
/// dialogues, or all of them where there are fewer; not at all for K = 0), then on the held-out dialogue: the negative
/// log-likelihood of the replies, the rank of each exchange's gold candidate, and a generated reply to each exchange,
/// whose history is the gold one. Every K is tested on the same held-out dialogues. A K whose support is the same as
/// that of another K is not computed twice.
///
/// `progress` hears of each fold before it is computed and can break the evaluation off.
///
/// # Errors
/// [`EvaluateError`].
pub fn evaluate<L: Learner>(
    learner: &mut L,
    encoder: &Encoder,
    tasks: &[Task],
    options: &Options,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Evaluation, EvaluateError<L::Error>>
where
    L::Error: fmt::Display,
{
    let started = Instant::now();
    let personas = options.personas.unwrap_or(usize::MAX).min(tasks.len());
    if personas == 0 {
        return Err(EvaluateError::Nothing("no persona was given"));
    }
    if options.folds == Some(0) {
        return Err(EvaluateError::Nothing("no fold was asked for"));
    }
    if options.shots.is_empty() {
        return Err(EvaluateError::Nothing("no number of shots was given"));
    }
    let mut tallies = vec![Tally::default(); options.shots.len()];
    for (persona, task) in tasks.iter().take(personas).enumerate() {
        let encoded =
            task.dialogues.iter().map(|dialogue| encoder.sequence(dialogue)).collect::<Result<Vec<_>, _>>()?;
        let folds_of: Vec<Vec<Fold>> = options.shots.iter().map(|&shots| leave_one_out(task, shots)).collect();
        let folds = options.folds.unwrap_or(usize::MAX).min(task.dialogues.len());
        for fold in 0..folds {
            let mut known: Vec<(&[usize], Tally)> = Vec::new();
            for ((&shots, of_shots), tally) in options.shots.iter().zip(&folds_of).zip(&mut tallies) {
                let Some(Fold { held_out, support }) = of_shots.get(fold) else {
                    continue;
                };
                if let Some((_, same)) = known.iter().find(|(other, _)| *other == support.as_slice()) {
                    tally.merge(same);
                    continue;
                }
                if progress(Progress { persona, personas, fold, folds, shots }).is_break() {
                    return Err(EvaluateError::Interrupted);
                }
                let (Some(dialogue), Some(sequence)) = (task.dialogues.get(*held_out), encoded.get(*held_out)) else {
                    continue;
                };
                learner.reset().map_err(EvaluateError::Learner)?;
                if !support.is_empty() {
                    let support: Vec<Sequence> = support.iter().filter_map(|&one| encoded.get(one)).cloned().collect();
                    learner.adapt(&support).map_err(EvaluateError::Learner)?;
                }
                let tested =
                    test(learner, encoder, dialogue, sequence, options.max_new_tokens).map_err(
                        |error| match error {
                            Failure::Learner(error) => EvaluateError::Learner(error),
                            Failure::Encode(error) => EvaluateError::Encode(error),
                            Failure::Diverged(problem) => EvaluateError::Diverged { persona, fold, shots, problem },
                        },
                    )?;
                tally.merge(&tested);
                known.push((support, tested));
            }
        }
    }
    let results = options.shots.iter().zip(&tallies).map(|(&k, tally)| ShotResult::new(k, tally, personas));
    let shots = results.collect::<Option<Vec<_>>>().ok_or(EvaluateError::Nothing("no reply has a word to predict"))?;
    Ok(Evaluation { shots, seconds: started.elapsed().as_secs_f64() })
}

enum Failure<E> {
    Learner(E),
    Encode(EncodeError),
    Diverged(String),
}

/// Tests a learner as it is on one dialogue.
fn test<L: Learner>(
    learner: &mut L,
    encoder: &Encoder,
    dialogue: &Dialogue,
    sequence: &Sequence,
    max_new_tokens: usize,
) -> Result<Tally, Failure<L::Error>> {
    let nll = learner.negative_log_likelihood(sequence).map_err(Failure::Learner)?;
    if !nll.is_finite() {
        return Err(Failure::Diverged(format!("the negative log-likelihood is {nll}")));
    }
    let mut tally =
        Tally { nll, tokens: sequence.targets(), words: sequence.words, replies: sequence.replies, ..Tally::default() };
    let mut history: Vec<&str> = Vec::with_capacity(2 * dialogue.exchanges.len());
    for (index, exchange) in dialogue.exchanges.iter().enumerate() {
        history.push(&exchange.partner);
        if !exchange.candidates.is_empty() {
            let ranking = encoder.ranking(dialogue, index).map_err(Failure::Encode)?;
            let log_probs = learner.rank(&ranking).map_err(Failure::Learner)?;
            if log_probs.len() != ranking.targets.len() || log_probs.iter().any(|value| value.is_nan()) {
                return Err(Failure::Diverged(format!(
                    "ranking gave {} numbers for {} targets, or not-a-number among them",
                    log_probs.len(),
                    ranking.targets.len()
                )));
            }
            let top = best_candidate(&log_probs, &ranking.candidate, ranking.candidates);
            let top = top.and_then(|top| exchange.candidates.get(top));
            tally.hits += usize::from(top.is_some_and(|top| hits_at_1(top, &exchange.reply)));
            tally.ranked += 1;
        }
        if max_new_tokens > 0 {
            let prompt = encoder.prompt(&dialogue.persona, &history, max_new_tokens).map_err(Failure::Encode)?;
            let ids = learner.reply(&prompt.ids, max_new_tokens).map_err(Failure::Learner)?;
            let end = ids.iter().position(|&id| id == encoder.end_of_text_id()).unwrap_or(ids.len());
            tally.f1_sum += f1(&encoder.decode(ids.get(..end).unwrap_or_default()), &exchange.reply);
            tally.generated += 1;
        }
        history.push(&exchange.reply);
    }
    Ok(tally)
}
