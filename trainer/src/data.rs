//! Dialogue files as the personas of meta-learning, encoded.

use std::path::PathBuf;

use marionette_dialogues::{Encoder, Example, Task, TaskError, group_by_persona, read_dialogues};

use crate::error::{Result, TrainError};

/// The personas of dialogue files.
///
/// # Errors
/// A file cannot be read, or there is no persona with two dialogues in them.
pub fn read_tasks(files: &[PathBuf]) -> Result<Vec<Task>> {
    let mut dialogues = Vec::new();
    for file in files {
        let found = read_dialogues(file)?;
        if let Some(dialogue) = found.iter().find(|dialogue| dialogue.persona.is_empty()) {
            let error = TaskError::NoPersona { line: dialogue.line };
            return Err(TrainError::Tasks { file: file.display().to_string(), error });
        }
        dialogues.extend(found);
    }
    group_by_persona(dialogues).map(|grouping| grouping.tasks).map_err(|error| tasks_error(files, error))
}

/// What is wrong with the personas of `files`.
pub fn tasks_error(files: &[PathBuf], error: TaskError) -> TrainError {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    TrainError::Tasks { file: names.join(", "), error }
}

/// One persona's dialogues, encoded.
#[derive(Debug)]
pub struct Persona {
    /// One a dialogue, in file order; two or more.
    pub dialogues: Vec<Example>,
}

/// Encodes the dialogues of each persona.
///
/// # Errors
/// Where the tokenizer fails.
pub fn encode(encoder: &Encoder, tasks: &[Task]) -> Result<Vec<Persona>> {
    let persona = |task: &Task| {
        let dialogues = task.dialogues.iter().map(|dialogue| Ok(encoder.example(dialogue)?));
        Ok(Persona { dialogues: dialogues.collect::<Result<_>>()? })
    };
    tasks.iter().map(persona).collect()
}

/// How many utterances were cut because the context was too short.
pub fn cut(personas: &[Persona]) -> usize {
    personas.iter().flat_map(|persona| &persona.dialogues).map(|example| example.sequence.cut).sum()
}
