//! The checkpoints of a run: the newest few and the best are kept, and at every moment one of them is whole.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use marionette_models::FileError;
use marionette_models::files::{self, StagedFolder};
use marionette_models::run::{CHECKPOINTS, Which, seal, set_checkpoint, verify};

use super::config::Config;
use super::state::{Counters, State};
use crate::error::{Result, TrainError};
use crate::model::Model;

fn name(iteration: usize) -> String {
    format!("step-{iteration}")
}

/// Writes the checkpoint of a state as the last one, and as the best one where it is; then removes what is not kept.
///
/// # Errors
/// Writing fails.
pub fn save(run: &Path, state: &State, config: &Config, model: &Model) -> Result<()> {
    let checkpoints = run.join(CHECKPOINTS);
    // One that is there already was found to be no good, or is made again because the run ended on it.
    let staged = StagedFolder::create(&checkpoints.join(name(state.counters.iteration)))?;
    state.write(staged.path(), config, model)?;
    seal(staged.path())?;
    staged.replace()?;
    point(run, state)?;
    prune(run, state.counters.best_iteration, config.outer.plan.keep);
    Ok(())
}

/// Makes `best` and `last` say what the state says.
///
/// # Errors
/// Writing fails.
pub fn point(run: &Path, state: &State) -> Result<()> {
    let last = name(state.counters.iteration);
    let best = name(state.counters.best_iteration);
    // It was removed if a later one, which is no good now, was better.
    let there = run.join(CHECKPOINTS).join(&best).is_dir();
    set_checkpoint(run, Which::Best, if there { &best } else { &last })?;
    Ok(set_checkpoint(run, Which::Last, &last)?)
}

/// The meta-iterations of the checkpoints there are, the newest first.
fn iterations(run: &Path) -> Vec<usize> {
    let Ok(entries) = fs::read_dir(run.join(CHECKPOINTS)) else { return Vec::new() };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
    let mut found: Vec<usize> = entries.flatten().filter_map(number).collect();
    found.sort_unstable_by(|one, other| other.cmp(one));
    found
}

/// Removes what a killed process left: parts of checkpoints, and those that were to be pruned.
pub fn tidy(run: &Path, best: usize, keep: usize) {
    files::remove_stale_temporaries(&run.join(CHECKPOINTS));
    prune(run, best, keep);
}

/// Removes all checkpoints but the newest `keep` and the best. One that cannot be removed does no harm.
fn prune(run: &Path, best: usize, keep: usize) {
    let found = iterations(run);
    let kept: BTreeSet<usize> = found.iter().copied().take(keep).chain([best]).collect();
    for iteration in found.into_iter().filter(|iteration| !kept.contains(iteration)) {
        let folder = run.join(CHECKPOINTS).join(name(iteration));
        // Renamed first, so that what is left of an interrupted removal is no checkpoint.
        let doomed = run.join(CHECKPOINTS).join(format!("{}{}", files::TEMPORARY_PREFIX, name(iteration)));
        let renamed = fs::rename(&folder, &doomed).map(|()| doomed).unwrap_or(folder);
        let _ = fs::remove_dir_all(renamed);
    }
}

/// The newest whole checkpoint and its counters; nothing where there is none yet. Those that are not whole are passed over,
/// and `say` hears why.
///
/// # Errors
/// There are checkpoints, but the run can go on from none of them: to begin again would overwrite them.
pub fn newest(run: &Path, mut say: impl FnMut(String)) -> Result<Option<(PathBuf, Counters)>> {
    let mut wrong = None;
    for iteration in iterations(run) {
        if let Some(error) = wrong.take() {
            say(format!("{error}; taking the checkpoint before it"));
        }
        let folder: PathBuf = run.join(CHECKPOINTS).join(name(iteration));
        match verify(&folder).map_err(TrainError::from).and_then(|()| Counters::read(&folder)) {
            Ok(counters) => return Ok(Some((folder, counters))),
            Err(error) => wrong = Some(error),
        }
    }
    wrong.map_or(Ok(None), |error| Err(none_to_go_on_from(run, &error)))
}

/// What a checkpoint is refused with that no other can stand in for.
pub fn none_to_go_on_from(run: &Path, error: &TrainError) -> TrainError {
    let problem = format!("holds none that the run can go on from: {error}");
    FileError::new(&run.join(CHECKPOINTS), problem).remedy("begin a new run with another --out").into()
}
