//! Dialogue files as the personas of meta-learning, split and encoded.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use marionette_dialogues::{
    Encoder, Example, Grouping, Overlap, PersonaSplit, Summary, Task, TaskError, group_by_persona, read_file,
    split_part,
};
use marionette_models::ModelConfig;
use marionette_models::checkpoint::CONFIG_JSON;

use crate::error::{Result, TrainError};
use crate::hub;
use crate::train::Data;

/// The personas of dialogue files, and what a reader should know of them, a line each.
///
/// # Errors
/// A file cannot be read, or there is no persona with two dialogues in them.
pub fn read(files: &[PathBuf]) -> Result<(Grouping, Vec<String>)> {
    let (mut dialogues, mut notes) = (Vec::new(), Vec::new());
    let mut known = HashSet::new();
    for file in files {
        let (path, part) = split_part(file);
        if !known.insert((fs::canonicalize(&path).unwrap_or(path), part)) {
            notes.push(format!("{} is given twice and is read once", file.display()));
            continue;
        }
        let (summary, read) = read_file(file)?.into_parts(file);
        notes.extend(summary.notes().map(|note| format!("{}: {note}", file.display())));
        if let Some(dialogue) = read.iter().find(|dialogue| dialogue.persona.is_empty()) {
            let error = TaskError::NoPersona { line: dialogue.line };
            return Err(TrainError::Tasks { file: file.display().to_string(), error });
        }
        dialogues.extend(read);
    }
    let grouping = group_by_persona(dialogues).map_err(|error| tasks_error(files, error))?;
    notes.extend(grouping.notes());
    Ok((grouping, notes))
}

/// The personas of a run by what they are for, and what a reader should know of them.
///
/// # Errors
/// As [`read`]; nothing tells the personas to train on apart; nothing would be left of them.
pub fn split(data: &Data) -> Result<(PersonaSplit, Vec<String>)> {
    let (grouping, mut notes) = read(&data.train)?;
    if grouping.is_one_for_want_of_others() {
        let sentence = grouping.common.unwrap_or_default();
        return Err(tasks_error(&data.train, TaskError::OnePersona { sentence }));
    }
    let given = match data.valid.is_empty() {
        true => None,
        false => {
            let (valid, more) = read(&data.valid)?;
            notes.extend(more);
            Some(valid.tasks)
        }
    };
    let split = PersonaSplit::new(grouping.tasks, given, data.test_part, data.hold_out);
    let split = split.map_err(|error| tasks_error(&data.train, error))?;
    let overlap = Overlap::of(&split.train, &split.valid);
    if !overlap.is_none() {
        notes.push(format!("{overlap} to validate on are trained on too, so the validation says little of others"));
    }
    Ok((split, notes))
}

/// Whether any of `tested` were known to a run that was split so, in words.
pub fn known(split: &PersonaSplit, tested: &[Task]) -> Option<String> {
    let overlap = Overlap::of(split.train.iter().chain(&split.valid), tested);
    (!overlap.is_none()).then(|| {
        format!("{overlap} to test on were trained on or validated on, so these figures are not of new personas alone")
    })
}

/// What dialogue files hold; with tokens where the model is given whose tokenizer counts them.
///
/// # Errors
/// A file cannot be read, or holds no dialogues.
pub fn summarise(files: &[PathBuf], base: Option<&Path>, offline: bool) -> Result<Summary> {
    let encoder = match base {
        None => None,
        Some(base) => {
            let folder = hub::resolve(base, offline)?;
            let config = ModelConfig::from_file(&folder.join(CONFIG_JSON))?;
            Some(Encoder::from_folder(&folder, &config)?)
        }
    };
    let readings = files.iter().map(|file| Ok((file, read_file(file)?))).collect::<Result<Vec<_>>>()?;
    Ok(Summary::of(readings, encoder.as_ref())?)
}

/// What is wrong with the personas of `files`.
pub fn tasks_error(files: &[PathBuf], error: TaskError) -> TrainError {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    TrainError::Tasks { file: names.join(", "), error }
}

/// One persona's dialogues, encoded.
#[derive(Debug)]
pub struct Persona {
    /// One a dialogue, in file order, two or more; of each its windows, of which one that fits the context has one.
    pub dialogues: Vec<Vec<Example>>,
}

impl Persona {
    /// The windows of all dialogues.
    pub fn windows(&self) -> impl Iterator<Item = &Example> {
        self.dialogues.iter().flatten()
    }

    /// The most windows of a dialogue.
    pub fn most_windows(&self) -> usize {
        self.dialogues.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// Encodes the dialogues of each persona.
///
/// # Errors
/// Where the tokenizer fails.
pub fn encode(encoder: &Encoder, tasks: &[Task]) -> Result<Vec<Persona>> {
    let persona = |task: &Task| {
        let dialogues = task.dialogues.iter().map(|dialogue| Ok(encoder.examples(dialogue)?));
        Ok(Persona { dialogues: dialogues.collect::<Result<_>>()? })
    };
    tasks.iter().map(persona).collect()
}

/// How many dialogues are longer than the context, and in how many windows they are read, in words; nothing where none is.
pub fn windowed(personas: &[Persona], n_positions: usize) -> Option<String> {
    let long = || personas.iter().flat_map(|persona| &persona.dialogues).filter(|windows| windows.len() > 1);
    let (dialogues, windows) = (long().count(), long().map(Vec::len).sum::<usize>());
    let are = if dialogues == 1 { "dialogue is" } else { "dialogues are" };
    (dialogues > 0).then(|| {
        format!("{dialogues} {are} longer than the context of {n_positions} tokens: learned in {windows} windows")
    })
}
