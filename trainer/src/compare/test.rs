//! The tests of one method with one seed, as far as they were not done before: at its best, where that is looked for.

use std::fs;
use std::path::Path;

use marionette_dialogues::{Outcome, RankBy, Task};
use marionette_models::run::{SUMS, Which, checkpoint};
use marionette_models::{FileError, digest, files};
use serde::{Deserialize, Serialize};

use super::SAMPLES;
use crate::error::{Result, TrainError};
use crate::evaluate::{How, evaluate_trained};
use crate::train::options::MOST_COUNTED;
use crate::trained::Trained;
use crate::workers::Compute;
use marionette_console::options::whole;

/// Where the inner learning rate and the number of passes are looked for, for each K by the validation personas alone.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, clap::Args)]
pub struct Grid {
    /// Factors of the inner learning rate to try on the validation personas, for each K: the best is tested
    #[arg(id = "tune_rates", long = "tune-rates", value_delimiter = ',', value_name = "F,…")]
    pub factors: Vec<f32>,
    /// Numbers of passes over the dialogues to try with each of them, instead of the steps that were trained for
    #[arg(id = "tune_epochs", long = "tune-epochs", value_delimiter = ',', value_name = "E,…", requires = "tune_rates", value_parser = whole::<1, MOST_COUNTED>, allow_negative_numbers = true)]
    pub epochs: Vec<usize>,
}

impl Grid {
    /// Refuses what cannot be tried.
    ///
    /// # Errors
    /// The option.
    pub fn check(&self) -> Result<()> {
        match self.factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
            Some(factor) => Err(TrainError::option("--tune-rates", format!("is {factor}, expected numbers above 0"))),
            None if self.epochs.is_sorted_by(|before, after| before < after) => Ok(()),
            None => {
                Err(TrainError::option("--tune-epochs", "is not in ascending order, expected numbers such as 1,3,5"))
            }
        }
    }
}

/// A point of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// K.
    pub k: usize,
    /// The factor of the inner learning rate.
    pub factor: f32,
    /// The passes; `None` for the steps that were trained for.
    pub epochs: Option<usize>,
    /// The perplexity of the validation personas; `None` where it diverged.
    pub perplexity: Option<f64>,
}

/// The best of what was tried with K dialogues, or with fewer where no validation persona has so many.
pub fn best(tried: &[Tried], k: usize) -> Option<&Tried> {
    let known = tried.iter().map(|tried| tried.k).filter(|&known| known <= k).max()?;
    let of_k = tried.iter().filter(|tried| tried.k == known);
    let found = of_k.filter_map(|tried| Some((tried.perplexity?, tried)));
    found.min_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, best)| best)
}

/// What was tried and tested so far, and by what settings it came.
#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    how: How,
    #[serde(default)]
    grid: Grid,
    test: Vec<String>,
    /// The digest of what was tested: the checkpoint's digests'.
    #[serde(default)]
    checkpoint: String,
    #[serde(default)]
    tried: Vec<Tried>,
    /// One a part of the tests.
    outcomes: Vec<Outcome>,
}

/// The personas of the tests.
pub struct Personas<'a> {
    /// Which the grid is looked through by.
    pub valid: &'a [Task],
    /// Which are tested on.
    pub test: &'a [Task],
    /// The files of these.
    pub names: Vec<String>,
}

/// Tests the trained model of a run, and before that looks through the grid. What is done is kept in a file, as long as the run's
/// best checkpoint stays the same.
///
/// # Errors
/// As [`evaluate_trained`]; the file cannot be written.
pub fn test(
    trained: &Trained,
    personas: &Personas<'_>,
    (how, grid): (&How, &Grid),
    (run, path): (&Path, &Path),
    compute: Compute,
) -> Result<(Outcome, Vec<Tried>)> {
    let checkpoint = digest::sha256_file(&checkpoint(run, Which::Best)?.join(SUMS))?;
    let known = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Recorded>(&bytes).ok());
    let same = |known: &Recorded| {
        (&known.how, &known.grid, &known.test, &known.checkpoint) == (how, grid, &personas.names, &checkpoint)
    };
    let mut recorded = known.filter(same).unwrap_or_else(|| Recorded {
        how: how.clone(),
        grid: grid.clone(),
        test: personas.names.clone(),
        checkpoint: checkpoint.clone(),
        tried: Vec::new(),
        outcomes: Vec::new(),
    });
    let save = |recorded: &Recorded| -> Result<()> {
        let text = serde_json::to_string(recorded).map_err(|error| FileError::new(path, error))?;
        Ok(files::write_atomic(path, |writer| writer.write_all(text.as_bytes()))?)
    };
    for &k in how.shots.iter().filter(|&&k| k > 0) {
        let has_enough = personas.valid.iter().any(|task| task.dialogues.len() > k);
        for &factor in grid.factors.iter().filter(|_| has_enough) {
            if !recorded.tried.iter().any(|tried| (tried.k, tried.factor) == (k, factor)) {
                recorded.tried.extend(validated(trained, personas.valid, how, (k, factor), &grid.epochs, compute)?);
                save(&recorded)?;
            }
        }
    }
    let tested = &personas.test[..how.personas.unwrap_or(usize::MAX).min(personas.test.len())];
    let most = tested.iter().map(|task| task.dialogues.len()).max().unwrap_or(0);
    let parts = parts(how, most);
    for shots in parts.into_iter().skip(recorded.outcomes.len()) {
        // (Of several the others are not adapted to.)
        let chosen = shots.iter().find(|&&k| k < most).and_then(|&k| best(&recorded.tried, k));
        let part = How {
            epochs: chosen.map_or(how.epochs.clone(), |chosen| chosen.epochs.into_iter().collect()),
            rate_factor: chosen.map(|chosen| chosen.factor).or(how.rate_factor),
            shots,
            ..how.clone()
        };
        let mut outcome = evaluate_trained(trained, personas.test, &part, SAMPLES, compute)?;
        if chosen.is_some() {
            // What was chosen stands for K, whatever number of passes that is.
            outcome.cells.iter_mut().for_each(|cell| cell.epochs = None);
            outcome.samples.iter_mut().for_each(|sample| sample.epochs = None);
        }
        recorded.outcomes.push(outcome);
        save(&recorded)?;
    }
    let mut outcomes = recorded.outcomes.into_iter();
    let Some(mut outcome) = outcomes.next() else {
        return Err(TrainError::option("--shots", "is empty, expected numbers such as 0,1,5"));
    };
    for more in outcomes {
        outcome.cells.extend(more.cells);
        outcome.samples.extend(more.samples);
        outcome.seconds += more.seconds;
    }
    Ok((outcome, recorded.tried))
}

/// The K that are tested together, where the largest persona has so many dialogues. With numbers of epochs all are: what is not adapted is
/// the same for each. Else each by itself, what is done being kept, and those that nobody has enough dialogues for with the one before.
fn parts(how: &How, most: usize) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for &k in &how.shots {
        match parts.last_mut() {
            Some(part) if !how.epochs.is_empty() || k >= most || part.iter().all(|&k| k >= most) => part.push(k),
            _ => parts.push(vec![k]),
        }
    }
    parts
}

/// The validation personas' perplexity after K dialogues with one factor of the inner learning rate, for each number of passes.
fn validated(
    trained: &Trained,
    valid: &[Task],
    how: &How,
    (k, factor): (usize, f32),
    epochs: &[usize],
    compute: Compute,
) -> Result<Vec<Tried>> {
    let tried = |epochs, perplexity| Tried { k, factor, epochs, perplexity };
    let least = usize::from(!epochs.is_empty());
    // Passes that diverge are left out, the most first.
    for (asked, diverged) in (least..=epochs.len()).rev().map(|number| epochs.split_at(number)) {
        let part = How {
            shots: vec![k],
            epochs: asked.to_vec(),
            rank_by: RankBy::None,
            reference: None,
            personas: None,
            max_tokens: 0,
            rate_factor: Some(factor),
            ..how.clone()
        };
        match evaluate_trained(trained, valid, &part, 0, compute) {
            Ok(outcome) => {
                let found = outcome.cells.iter().map(|cell| tried(cell.epochs, cell.total().perplexity()));
                return Ok(found.chain(diverged.iter().map(|&epochs| tried(Some(epochs), None))).collect());
            }
            Err(TrainError::NotFinite { .. } | TrainError::Evaluation(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(match epochs {
        [] => vec![tried(None, None)],
        epochs => epochs.iter().map(|&epochs| tried(Some(epochs), None)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_k_is_a_part_that_somebody_can_be_tested_on() {
        let how = |shots: &[usize], epochs: &[usize]| How {
            shots: shots.to_vec(),
            epochs: epochs.to_vec(),
            rank_by: RankBy::Mean,
            personas: None,
            folds: None,
            max_tokens: 0,
            reference: None,
            rate_factor: None,
            in_context: None,
        };
        assert_eq!(parts(&how(&[0, 1, 5, 10], &[]), 6), [vec![0], vec![1], vec![5, 10]]);
        assert_eq!(parts(&how(&[9, 8, 1, 0], &[]), 4), [vec![9, 8, 1], vec![0]]);
        assert_eq!(parts(&how(&[0, 1, 5], &[0, 3]), 6), [vec![0, 1, 5]]);
    }

    #[test]
    fn the_best_is_of_its_k_or_of_the_next_smaller_one_and_never_what_diverged() {
        let tried = |k, factor, perplexity| Tried { k, factor, epochs: Some(3), perplexity };
        let all = [
            tried(1, 1.0, Some(20.0)),
            tried(1, 3.0, Some(19.0)),
            tried(5, 1.0, Some(18.0)),
            tried(5, 3.0, None),
            tried(7, 1.0, None),
        ];
        let factor = |k| best(&all, k).map(|best| (best.k, best.factor));
        assert_eq!([1, 4, 5, 6].map(factor), [Some((1, 3.0)), Some((1, 3.0)), Some((5, 1.0)), Some((5, 1.0))]);
        assert_eq!([0, 7].map(factor), [None, None]);
    }
}
