//! All tests of one persona.

use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::{EvaluateError, Learner, Options, Passes, PlanError, Progress};
use crate::distractors::with_distractors;
use crate::likeness::{self, Person};
use crate::metrics::{Tally, f1, hits_at_1};
use crate::rank::{RankBy, best_candidate, mean_scores, pmi_scores, sum_scores};
use crate::report::{Candidates, Cost, Sample};
use crate::tasks::{Fold, Task, leave_one_out};
use crate::{Dialogue, EncodeError, Encoder, Example, Exchange, Sequence};

/// The exchange whose reply is kept as a sample, where the dialogue has so many.
const SAMPLED: usize = 2;

/// What is to be tested.
pub(super) struct Plan<'a> {
    encoder: &'a Encoder,
    tasks: Cow<'a, [Task]>,
    /// Where the candidates are from.
    pub(super) candidates: Candidates,
    options: &'a Options,
    /// K and the number of epochs, K by K.
    cells: Vec<(usize, Option<usize>)>,
    /// Over all personas.
    total: usize,
    done: AtomicUsize,
}

/// The tests of one persona.
pub(super) struct Tested {
    /// One a cell; none where the persona has too few dialogues for its K.
    pub(super) tallies: Vec<Option<Tally>>,
    /// What was generated in the tests of each cell.
    pub(super) replies: Vec<Vec<String>>,
    /// What the tests of each cell took.
    pub(super) costs: Vec<Cost>,
    pub(super) samples: Vec<Sample>,
}

/// One test: its sums, and the text of the sampled reply.
#[derive(Clone)]
struct Test {
    tally: Tally,
    replies: Vec<String>,
    cost: Cost,
    sampled: Option<String>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(encoder: &'a Encoder, tasks: &'a [Task], options: &'a Options) -> Result<Self, PlanError> {
        let (all, tasks) = (tasks, options.checked(tasks)?);
        let learned = || tasks.iter().flat_map(|task| &task.dialogues).flat_map(|dialogue| &dialogue.exchanges);
        let (candidates, tasks) = match with_distractors(all, tasks.len()) {
            _ if options.rank_by == RankBy::None => (Candidates::None, Cow::Borrowed(tasks)),
            _ if learned().any(|exchange| !exchange.candidates.is_empty()) => {
                (Candidates::Stored, Cow::Borrowed(tasks))
            }
            Some(drawn) => (Candidates::Drawn, Cow::Owned(drawn)),
            None => (Candidates::None, Cow::Borrowed(tasks)),
        };
        let epochs: Vec<Option<usize>> =
            if options.epochs.is_empty() { vec![None] } else { options.epochs.iter().copied().map(Some).collect() };
        let cells = options.shots.iter().flat_map(|&k| epochs.iter().map(move |&epochs| (k, epochs)));
        let cells = cells.collect();
        let mut plan = Self { encoder, tasks, candidates, options, cells, total: 0, done: AtomicUsize::new(0) };
        let tests = |task: &Task| plan.folds(task) * plan.cells.iter().filter(|(k, _)| has_enough(task, *k)).count();
        plan.total = plan.tasks.iter().map(tests).sum();
        Ok(plan)
    }

    pub(super) fn personas(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn cells(&self) -> &[(usize, Option<usize>)] {
        &self.cells
    }

    /// What generated replies are measured by.
    pub(super) fn people(&self) -> Vec<Person> {
        if self.options.max_new_tokens == 0 {
            return Vec::new();
        }
        likeness::people(&self.tasks, self.options.folds.unwrap_or(usize::MAX))
    }

    fn folds(&self, task: &Task) -> usize {
        self.options.folds.unwrap_or(usize::MAX).min(task.dialogues.len())
    }

    /// All tests of a persona; `progress` hears of each before it is computed.
    pub(super) fn persona<L: Learner>(
        &self,
        learner: &mut L,
        persona: usize,
        progress: &mut impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Tested, EvaluateError<L::Error>>
    where
        L::Error: fmt::Display,
    {
        let mut tested = Tested {
            tallies: vec![None; self.cells.len()],
            replies: vec![Vec::new(); self.cells.len()],
            costs: vec![Cost::default(); self.cells.len()],
            samples: Vec::new(),
        };
        let Some(task) = self.tasks.get(persona) else {
            return Ok(tested);
        };
        let encoded = |encoder: &Encoder| -> Result<Vec<_>, EncodeError> {
            task.dialogues.iter().map(|dialogue| encoder.examples(dialogue)).collect()
        };
        let examples = encoded(self.encoder)?;
        let supports = match self.options.in_context.is_some() {
            true => Cow::Owned(encoded(&self.encoder.clone().with_persona_text(false))?),
            false => Cow::Borrowed(&examples),
        };
        let folds_of: Vec<(usize, Vec<Fold>)> =
            self.options.shots.iter().map(|&shots| (shots, leave_one_out(task, shots))).collect();
        let folds = self.folds(task);
        for fold in 0..folds {
            // What was computed for this fold: a support and a number of passes, and the test.
            let mut known: Vec<((&[usize], Passes), Test)> = Vec::new();
            let sums = tested.tallies.iter_mut().zip(tested.replies.iter_mut().zip(&mut tested.costs));
            let mut cells = self.cells.iter().zip(sums);
            for (shots, of_shots) in &folds_of {
                let Some(Fold { held_out, support }) = of_shots.get(fold) else {
                    continue;
                };
                let Some((dialogue, held)) = task.dialogues.get(*held_out).zip(examples.get(*held_out)) else {
                    continue;
                };
                let of_shots = cells.by_ref().take(self.options.epochs.len().max(1));
                if !has_enough(task, *shots) {
                    of_shots.for_each(drop);
                    continue;
                }
                // Each window of a long dialogue is learned from as a dialogue is.
                let chosen: Vec<Example> =
                    support.iter().filter_map(|&one| supports.get(one)).flatten().cloned().collect();
                // The passes that the learner has behind it; `None` before its reset.
                let mut behind: Option<usize> = None;
                let mut adapt_seconds = 0.0;
                for (&(_, epochs), (tally, (replies, cost))) in of_shots {
                    let passes = epochs.map_or(Passes::Recipe, Passes::Epochs);
                    let untouched = support.is_empty() || passes == Passes::Epochs(0);
                    let key: (&[usize], Passes) = if untouched { (&[], Passes::Epochs(0)) } else { (support, passes) };
                    let test = match known.iter().find(|(other, _)| *other == key) {
                        Some((_, same)) => same.clone(),
                        None => {
                            let done = self.done.load(Ordering::Relaxed);
                            let at = Progress {
                                persona,
                                personas: self.tasks.len(),
                                fold,
                                folds,
                                shots: *shots,
                                epochs,
                                done,
                                total: self.total,
                            };
                            if progress(at).is_break() {
                                return Err(EvaluateError::Interrupted);
                            }
                            if behind.is_none() {
                                learner.reset().map_err(EvaluateError::Learner)?;
                            }
                            let before = behind.unwrap_or(0);
                            if !untouched {
                                let passes = epochs.map_or(Passes::Recipe, |epochs| Passes::Epochs(epochs - before));
                                let started = Instant::now();
                                learner.adapt(&chosen, passes).map_err(EvaluateError::Learner)?;
                                adapt_seconds += started.elapsed().as_secs_f64();
                            }
                            behind = Some(epochs.filter(|_| !untouched).unwrap_or(0));
                            let is_first = fold == 0;
                            let sampled = is_first && persona < self.options.samples;
                            let reference: &[Sequence] = if is_first { &self.options.reference } else { &[] };
                            let mut test = self.test(learner, (dialogue, held), reference, sampled).map_err(
                                |error| match error {
                                    Failure::Learner(error) => EvaluateError::Learner(error),
                                    Failure::Encode(error) => EvaluateError::Encode(error),
                                    Failure::NoClassifier => EvaluateError::NoClassifier,
                                    Failure::Diverged(problem) => {
                                        EvaluateError::Diverged { persona, fold, shots: *shots, problem }
                                    }
                                },
                            )?;
                            if !untouched {
                                (test.cost.adapt_seconds, test.cost.adaptations) = (adapt_seconds, 1);
                            }
                            known.push((key, test.clone()));
                            test
                        }
                    };
                    self.done.fetch_add(1, Ordering::Relaxed);
                    tally.get_or_insert_default().merge(&test.tally);
                    replies.extend(test.replies);
                    cost.merge(&test.cost);
                    if let Some(reply) = test.sampled {
                        tested.samples.push(sample(task, dialogue, (*shots, epochs), reply));
                    }
                }
            }
        }
        Ok(tested)
    }

    /// Tests a learner as it is on one dialogue.
    fn test<L: Learner>(
        &self,
        learner: &mut L,
        (dialogue, windows): (&Dialogue, &[Example]),
        reference: &[Sequence],
        sampled: bool,
    ) -> Result<Test, Failure<L::Error>> {
        let (mut tally, mut replies, mut cost) = (Tally::default(), Vec::new(), Cost::default());
        let nll_of = |learner: &mut L, sequence: &Sequence| {
            let nll = learner.negative_log_likelihood(sequence).map_err(Failure::Learner)?;
            match nll.is_finite() {
                true => Ok(nll),
                false => Err(Failure::Diverged(format!("the negative log-likelihood is {nll}"))),
            }
        };
        for sequence in reference {
            tally.reference_nll += nll_of(learner, sequence)?;
            tally.reference_tokens += sequence.targets();
        }
        for Example { sequence, .. } in windows {
            tally.nll += nll_of(learner, sequence)?;
            tally.tokens += sequence.targets();
            tally.words += sequence.words;
            tally.replies += sequence.replies;
        }
        let (end, max_new) = (self.encoder.end_id(), self.options.max_new_tokens);
        let mut history: Vec<&str> = Vec::with_capacity(2 * dialogue.exchanges.len());
        // The exchanges to reply to, and what to reply after.
        let (mut asked, mut prompts) = (Vec::new(), Vec::new());
        for (index, exchange) in dialogue.exchanges.iter().enumerate() {
            history.push(&exchange.partner);
            if exchange.learned && !exchange.candidates.is_empty() && self.options.rank_by != RankBy::None {
                let scores = self.scores(learner, dialogue, index)?;
                let top = best_candidate(&scores).and_then(|top| exchange.candidates.get(top));
                tally.hits += usize::from(top.is_some_and(|top| hits_at_1(top, &exchange.reply)));
                tally.ranked += 1;
            }
            if exchange.learned && max_new > 0 {
                asked.push((index, exchange));
                prompts.push(self.encoder.prompt(&dialogue.persona, &history, max_new).map_err(Failure::Encode)?.ids);
            }
            history.push(&exchange.reply);
        }
        let started = Instant::now();
        let generated = learner.replies(&prompts, end, max_new).map_err(Failure::Learner)?;
        cost.reply_seconds += started.elapsed().as_secs_f64();
        let mut kept = None;
        for ((index, exchange), ids) in asked.into_iter().zip(generated) {
            let length = ids.iter().position(|&id| id == end).unwrap_or(ids.len());
            cost.reply_tokens += (length + 1).min(max_new);
            let reply = self.encoder.decode(ids.get(..length).unwrap_or_default());
            tally.f1_sum += f1(&reply, &exchange.reply);
            tally.generated += 1;
            if sampled && index == sampled_exchange(dialogue) {
                kept = Some(reply.clone());
            }
            replies.push(reply);
        }
        Ok(Test { tally, replies, cost, sampled: kept })
    }

    /// A score for each candidate of an exchange.
    fn scores<L: Learner>(
        &self,
        learner: &mut L,
        dialogue: &Dialogue,
        exchange: usize,
    ) -> Result<Vec<f64>, Failure<L::Error>> {
        let ranking = self.encoder.ranking(dialogue, exchange).map_err(Failure::Encode)?;
        if self.options.rank_by == RankBy::Classifier {
            let scores = learner.classify(&ranking).map_err(Failure::Learner)?.ok_or(Failure::NoClassifier)?;
            counted("the classifier", &scores, ranking.candidates, "candidates")?;
            return Ok(scores.into_iter().map(f64::from).collect());
        }
        let mut log_probs = |ranking| {
            let log_probs = learner.rank(ranking).map_err(Failure::Learner)?;
            counted("ranking", &log_probs, ranking.targets.len(), "targets")?;
            Ok(log_probs)
        };
        let conditional = log_probs(&ranking)?;
        let scores = match self.options.rank_by {
            RankBy::Pmi => {
                let alone = self.encoder.unconditional(dialogue, exchange).map_err(Failure::Encode)?;
                let sums = sum_scores(&conditional, &ranking).zip(sum_scores(&log_probs(&alone)?, &alone));
                sums.map(|(conditional, unconditional)| pmi_scores(&conditional, &unconditional))
            }
            RankBy::Sum => sum_scores(&conditional, &ranking),
            RankBy::Mean | RankBy::Classifier | RankBy::None => mean_scores(&conditional, &ranking),
        };
        scores.ok_or_else(|| Failure::Diverged("a candidate has no log-probability".into()))
    }
}

enum Failure<E> {
    Learner(E),
    Encode(EncodeError),
    NoClassifier,
    Diverged(String),
}

/// Refuses too few or too many numbers, and not-a-number among them.
fn counted<E>(who: &str, values: &[f32], expected: usize, of: &str) -> Result<(), Failure<E>> {
    if values.len() != expected || values.iter().any(|value| value.is_nan()) {
        let found = values.len();
        return Err(Failure::Diverged(format!(
            "{who} gave {found} numbers for {expected} {of}, or not-a-number among them"
        )));
    }
    Ok(())
}

/// Whether a persona has K dialogues beside the one that is tested on.
fn has_enough(task: &Task, shots: usize) -> bool {
    task.dialogues.len() > shots
}

/// The exchange whose reply is kept: the third that is tested, or the last where there are fewer.
fn sampled_exchange(dialogue: &Dialogue) -> usize {
    let tested = dialogue.exchanges.iter().enumerate().filter(|(_, exchange)| exchange.learned);
    tested.take(SAMPLED + 1).last().map_or(0, |(index, _)| index)
}

fn sample(task: &Task, dialogue: &Dialogue, (k, epochs): (usize, Option<usize>), reply: String) -> Sample {
    let last = sampled_exchange(dialogue);
    let mut context = Vec::with_capacity(2 * last + 1);
    for Exchange { partner, reply, .. } in dialogue.exchanges.iter().take(last) {
        context.extend([partner.clone(), reply.clone()]);
    }
    let asked = dialogue.exchanges.get(last);
    context.extend(asked.map(|exchange| exchange.partner.clone()));
    let gold = asked.map(|exchange| exchange.reply.clone()).unwrap_or_default();
    Sample { persona: task.persona.clone(), context, gold, k, epochs, reply }
}
