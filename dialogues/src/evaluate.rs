//! The one evaluation of a persona learner, for trainer and device: leave one dialogue out, adapt on K others, test.

mod persona;

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use crate::in_context::{Context, InContext};
use crate::likeness;
use crate::rank::RankBy;
use crate::report::{Cell, Cost, Outcome};
use crate::tasks::Task;
use crate::{Dialogue, EncodeError, Encoder, Example, Ranking, Sequence};

use persona::{Plan, Tested};

/// How often a learner goes over a support set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    /// The inner loop as it was meta-learned.
    Recipe,
    /// So many passes over the support set.
    Epochs(usize),
}

/// A model that adapts to a persona.
pub trait Learner {
    /// Why the model can fail.
    type Error;

    /// Goes back to the state before any adaptation.
    ///
    /// # Errors
    /// Where the model fails.
    fn reset(&mut self) -> Result<(), Self::Error>;

    /// Adapts on the support set, one example a dialogue, from the state in which the learner is.
    ///
    /// # Errors
    /// Where the model fails.
    fn adapt(&mut self, support: &[Example], passes: Passes) -> Result<(), Self::Error>;

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

    /// A score for each candidate of a ranking, the highest for the one that the learner takes for the reply; `None`
    /// where it has no classifier. The ranking has the candidates' `ends` where the encoder has choices.
    ///
    /// # Errors
    /// Where the model fails.
    fn classify(&mut self, ranking: &Ranking) -> Result<Option<Vec<f32>>, Self::Error> {
        let _ = ranking;
        Ok(None)
    }

    /// Generates at most `max_new` tokens after each of a dialogue's prompts, up to and with or without the token `end`.
    ///
    /// # Errors
    /// Where the model fails.
    fn replies(&mut self, prompts: &[Vec<u32>], end: u32, max_new: usize) -> Result<Vec<Vec<u32>>, Self::Error>;
}

impl<L: Learner> Learner for &mut L {
    type Error = L::Error;

    fn reset(&mut self) -> Result<(), L::Error> {
        (**self).reset()
    }

    fn adapt(&mut self, support: &[Example], passes: Passes) -> Result<(), L::Error> {
        (**self).adapt(support, passes)
    }

    fn negative_log_likelihood(&mut self, sequence: &Sequence) -> Result<f64, L::Error> {
        (**self).negative_log_likelihood(sequence)
    }

    fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>, L::Error> {
        (**self).rank(ranking)
    }

    fn classify(&mut self, ranking: &Ranking) -> Result<Option<Vec<f32>>, L::Error> {
        (**self).classify(ranking)
    }

    fn replies(&mut self, prompts: &[Vec<u32>], end: u32, max_new: usize) -> Result<Vec<Vec<u32>>, L::Error> {
        (**self).replies(prompts, end, max_new)
    }
}

/// A model of natural language inference, which PAML's consistency asks.
pub trait Judge {
    /// Whether a sentence follows from a text (1), contradicts it (-1), or neither (0).
    ///
    /// # Errors
    /// Where the model fails: why.
    fn judge(&mut self, text: &str, sentence: &str) -> Result<i8, String>;
}

/// What is evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The numbers K of dialogues to adapt on; 0 tests without adapting.
    pub shots: Vec<usize>,
    /// The numbers of passes after which to test, ascending; 0 tests without adapting. None of them for the inner loop as
    /// it was meta-learned.
    pub epochs: Vec<usize>,
    /// Only so many personas, the first ones.
    pub personas: Option<usize>,
    /// Only so many folds of each persona, the first ones.
    pub folds: Option<usize>,
    /// The longest reply to generate, in tokens; 0 generates none and leaves F1 and samples out.
    pub max_new_tokens: usize,
    /// What ranks the candidates.
    pub rank_by: RankBy,
    /// Of how many personas, the first ones, to keep a sample: the reply to the third exchange (or the last, where there
    /// are fewer) of the first fold, for every K and number of epochs.
    pub samples: usize,
    /// Dialogues of people who are none of the personas: what a learner forgets of them by adapting is measured after every test of a
    /// persona's first fold.
    pub reference: Vec<Sequence>,
    /// Learn nothing: let what is to be adapted on stand in the prompt, without the persona's sentences wherever these stand.
    pub in_context: Option<Context>,
}

impl Options {
    /// Refuses what cannot be evaluated on these personas.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn check(&self, tasks: &[Task]) -> Result<(), PlanError> {
        self.checked(tasks).map(drop)
    }

    /// The personas that are evaluated.
    fn checked<'t>(&self, tasks: &'t [Task]) -> Result<&'t [Task], PlanError> {
        let tasks = tasks.get(..self.personas.unwrap_or(usize::MAX).min(tasks.len())).unwrap_or_default();
        if tasks.is_empty() {
            return Err(PlanError::Nothing("no persona was given"));
        }
        if self.folds == Some(0) {
            return Err(PlanError::Nothing("no fold was asked for"));
        }
        let Some(&least) = self.shots.iter().min() else {
            return Err(PlanError::Nothing("no number of shots was given"));
        };
        for (&before, &after) in self.epochs.iter().zip(self.epochs.iter().skip(1)) {
            if after <= before {
                return Err(PlanError::Descending { before, after });
            }
        }
        match tasks.iter().map(|task| task.dialogues.len()).max().unwrap_or(0) {
            most if most <= least => Err(PlanError::TooFew { least, most }),
            _ => Ok(tasks),
        }
    }
}

/// The most reference dialogues, since all of them are read in every test of a first fold.
const MOST_REFERENCE: usize = 16;

/// What [`Options::reference`] is made of: the first sixteen of some dialogues.
///
/// # Errors
/// Where the tokenizer fails.
pub fn reference(encoder: &Encoder, dialogues: &[Dialogue]) -> Result<Vec<Sequence>, EncodeError> {
    let mut sequences = Vec::new();
    for dialogue in dialogues.iter().take(MOST_REFERENCE) {
        sequences.extend(encoder.examples(dialogue)?.into_iter().map(|example| example.sequence));
    }
    Ok(sequences)
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shots: vec![0, 1, 5, 10],
            epochs: Vec::new(),
            personas: None,
            folds: None,
            max_new_tokens: 32,
            rank_by: RankBy::Mean,
            samples: 0,
            reference: Vec::new(),
            in_context: None,
        }
    }
}

/// Where an evaluation stands: about to test a fold after K shots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The persona, from 0. With several learners personas are under way side by side.
    pub persona: usize,
    /// How many personas there are.
    pub personas: usize,
    /// The fold of this persona, from 0.
    pub fold: usize,
    /// How many folds this persona has.
    pub folds: usize,
    /// K.
    pub shots: usize,
    /// The number of epochs, where numbers were asked for.
    pub epochs: Option<usize>,
    /// Tests that are done, of all personas, folds, K and epochs.
    pub done: usize,
    /// All tests.
    pub total: usize,
}

/// Why something cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing to evaluate.
    #[error("there is nothing to evaluate: {0}")]
    Nothing(&'static str),
    /// Numbers of epochs that do not ascend.
    #[error("{after} epochs follow {before}; name the numbers of epochs in ascending order, each once")]
    Descending {
        /// A number of epochs.
        before: usize,
        /// The one named after it.
        after: usize,
    },
    /// No persona has so many dialogues.
    #[error(
        "no persona has more than {most} dialogues, and one of them is tested on, so {least} cannot be adapted on; name a smaller number of shots"
    )]
    TooFew {
        /// The least K that was asked for.
        least: usize,
        /// The most dialogues that a persona has.
        most: usize,
    },
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
    /// What cannot be evaluated.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Ranking by a classifier that the learner lacks.
    #[error("the model has no classifier to rank candidates by; rank by mean, sum or pmi")]
    NoClassifier,
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
    /// The judge failed.
    #[error("{0}")]
    Judge(String),
    /// The progress callback asked to stop.
    #[error("the evaluation was interrupted")]
    Interrupted,
}

/// Evaluates a learner on personas.
///
/// For each persona, each leave-one-out fold and each K: reset, adapt on the fold's support (the first K of the other
/// dialogues; not at all for K = 0), then on the held-out dialogue: the negative log-likelihood of the replies, the rank of each
/// exchange's gold candidate, and a generated reply to each exchange, whose history is the gold one. A persona without K
/// other dialogues is not tested for that K, and counted. With numbers of epochs, the learner adapts on from one to the next and is
/// tested at each. What would be computed twice (no shots or no epochs) is computed once. Where the data has no candidates, 19
/// replies of other personas are drawn, the same in every evaluation of the same personas.
///
/// Several equal learners share the personas, a thread each; the outcome does not depend on how many there are. One
/// learner runs on the calling thread. `progress` hears, always on the calling thread, of each test before it is
/// computed, and can break the evaluation off: learners stop before their next test.
///
/// # Errors
/// [`EvaluateError`]; of several personas that fail, the first one's.
pub fn evaluate<L>(
    learners: &mut [L],
    encoder: &Encoder,
    tasks: &[Task],
    options: &Options,
    progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Outcome, EvaluateError<L::Error>>
where
    L: Learner + Send,
    L::Error: fmt::Display + Send,
{
    evaluate_judged(learners, encoder, tasks, options, progress, None)
}

/// [`evaluate`], and a judge says of each generated reply how consistent it is with each of the persona's sentences.
///
/// # Errors
/// As [`evaluate`]; [`EvaluateError::Judge`].
pub fn evaluate_judged<L>(
    learners: &mut [L],
    encoder: &Encoder,
    tasks: &[Task],
    options: &Options,
    progress: impl FnMut(Progress) -> ControlFlow<()>,
    judge: Option<&mut dyn Judge>,
) -> Result<Outcome, EvaluateError<L::Error>>
where
    L: Learner + Send,
    L::Error: fmt::Display + Send,
{
    match options.in_context {
        None => test(learners, encoder, tasks, options, progress, judge),
        Some(context) => {
            let reader = |learner| InContext::new(learner, encoder.n_positions());
            let mut readers: Vec<_> = learners.iter_mut().map(reader).collect();
            test(&mut readers, &context.encoder(encoder), tasks, options, progress, judge)
        }
    }
}

fn test<L>(
    learners: &mut [L],
    encoder: &Encoder,
    tasks: &[Task],
    options: &Options,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    mut judge: Option<&mut dyn Judge>,
) -> Result<Outcome, EvaluateError<L::Error>>
where
    L: Learner + Send,
    L::Error: fmt::Display + Send,
{
    let started = Instant::now();
    let plan = Plan::new(encoder, tasks, options)?;
    let tested = match learners {
        [] => return Err(PlanError::Nothing("no learner was given").into()),
        [learner] => {
            let one = |persona| plan.persona(learner, persona, &mut progress);
            (0..plan.personas()).map(one).collect::<Result<Vec<_>, _>>()?
        }
        several => side_by_side(several, &plan, progress)?,
    };
    let cell = |&(k, epochs): &(usize, Option<usize>)| Cell {
        k,
        epochs,
        personas: Vec::new(),
        too_few: 0,
        cost: Cost::default(),
    };
    let mut cells: Vec<Cell> = plan.cells().iter().map(cell).collect();
    let mut samples = Vec::new();
    // Of each cell who was tested, and what was generated.
    let mut generated: Vec<Vec<(usize, Vec<String>)>> = vec![Vec::new(); cells.len()];
    for (persona, Tested { tallies, replies, costs, samples: more }) in tested.into_iter().enumerate() {
        cells.iter_mut().zip(costs).for_each(|(cell, cost)| cell.cost.merge(&cost));
        let of_cells = cells.iter_mut().zip(&mut generated);
        for ((cell, generated), (tally, replies)) in of_cells.zip(tallies.into_iter().zip(replies)) {
            match tally {
                Some(tally) => {
                    cell.personas.push(tally);
                    generated.push((persona, replies));
                }
                None => cell.too_few += 1,
            }
        }
        samples.extend(more);
    }
    let people = plan.people();
    for (cell, generated) in cells.iter_mut().zip(generated) {
        let of_cell = generated.into_iter().zip(&mut cell.personas);
        let mut of_cell: Vec<_> = of_cell.map(|((persona, replies), tally)| (persona, replies, tally)).collect();
        likeness::measure(&people, &mut of_cell);
        if let Some(judge) = judge.as_deref_mut() {
            for (persona, replies, tally) in &mut of_cell {
                let sentences = tasks.get(*persona).map(|task| task.persona.as_slice()).unwrap_or_default();
                for reply in replies.iter().filter(|_| !sentences.is_empty()) {
                    for sentence in sentences {
                        let verdict = judge.judge(reply, sentence).map_err(EvaluateError::Judge)?;
                        tally.consistency += i64::from(verdict.signum());
                    }
                    tally.judged += 1;
                }
            }
        }
    }
    let used = cells.iter().filter(|cell| !cell.personas.is_empty());
    if used.map(Cell::total).any(|total| total.tokens == 0 || total.words == 0) {
        return Err(PlanError::Nothing("no reply has a word to predict").into());
    }
    Ok(Outcome {
        rank_by: options.rank_by,
        candidates: plan.candidates,
        cells,
        samples,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// A thread a learner, each taking the next persona; results in the order of the personas.
fn side_by_side<L>(
    learners: &mut [L],
    plan: &Plan<'_>,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<Tested>, EvaluateError<L::Error>>
where
    L: Learner + Send,
    L::Error: fmt::Display + Send,
{
    let next = AtomicUsize::new(0);
    // Personas after one that failed need no result; those before it do, so that the first failure is the one told.
    let failed = AtomicUsize::new(usize::MAX);
    let stop = AtomicBool::new(false);
    let (say, hear) = mpsc::channel();
    let mut results = std::thread::scope(|scope| {
        let mut workers = Vec::with_capacity(learners.len());
        for learner in learners {
            let say = say.clone();
            let (next, failed, stop) = (&next, &failed, &stop);
            workers.push(scope.spawn(move || {
                let mut results = Vec::new();
                loop {
                    let persona = next.fetch_add(1, Ordering::Relaxed);
                    if persona >= plan.personas() {
                        return results;
                    }
                    let result = plan.persona(learner, persona, &mut |at| {
                        let go = !stop.load(Ordering::Relaxed) && failed.load(Ordering::Relaxed) >= persona;
                        if go && say.send(at).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    });
                    if result.is_err() {
                        failed.fetch_min(persona, Ordering::Relaxed);
                    }
                    results.push((persona, result));
                }
            }));
        }
        drop(say);
        for at in hear {
            if !stop.load(Ordering::Relaxed) && progress(at).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        let mut results = Vec::with_capacity(plan.personas());
        for worker in workers {
            match worker.join() {
                Ok(some) => results.extend(some),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    if stop.load(Ordering::Relaxed) {
        return Err(EvaluateError::Interrupted);
    }
    results.sort_by_key(|(persona, _)| *persona);
    results.into_iter().map(|(_, result)| result).collect()
}
