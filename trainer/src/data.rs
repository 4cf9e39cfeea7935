//! Dialogue files as the personas of meta-learning, split and encoded.

use std::path::{Path, PathBuf};

use marionette_dialogues::{
    Encoder, Example, Grouping, SPLIT_SEED, Share, Summary, Task, TaskError, group_by_persona, hold_out, read_file,
};
use marionette_models::ModelConfig;
use marionette_models::checkpoint::CONFIG_JSON;

use crate::error::{Result, TrainError};
use crate::hub;

/// The personas of dialogue files.
///
/// # Errors
/// A file cannot be read, or there is no persona with two dialogues in them.
pub fn read_tasks(files: &[PathBuf]) -> Result<Vec<Task>> {
    group(files).map(|grouping| grouping.tasks)
}

/// The personas of dialogue files, and what was left out.
///
/// # Errors
/// As [`read_tasks`].
pub fn group(files: &[PathBuf]) -> Result<Grouping> {
    let mut dialogues = Vec::new();
    for file in files {
        let reading = read_file(file)?;
        reading.notes().for_each(|note| eprintln!("{}: {note}", file.display()));
        let found = reading.dialogues;
        if let Some(dialogue) = found.iter().find(|dialogue| dialogue.persona.is_empty()) {
            let error = TaskError::NoPersona { line: dialogue.line };
            return Err(TrainError::Tasks { file: file.display().to_string(), error });
        }
        dialogues.extend(found);
    }
    group_by_persona(dialogues).map_err(|error| tasks_error(files, error))
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
    Ok(Summary::of_files(files, encoder.as_ref())?)
}

/// What is wrong with the personas of `files`.
pub fn tasks_error(files: &[PathBuf], error: TaskError) -> TrainError {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    TrainError::Tasks { file: names.join(", "), error }
}

/// A part of the personas of some files, chosen by chance, and the others; both in their former order.
///
/// # Errors
/// Nothing would be left of the others.
pub fn part(files: &[PathBuf], tasks: Vec<Task>, part: f64) -> Result<(Vec<Task>, Vec<Task>)> {
    let (rest, held) = hold_out(tasks, Share::Fraction(part), SPLIT_SEED).map_err(|error| tasks_error(files, error))?;
    Ok((held, rest))
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
