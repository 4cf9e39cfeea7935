//! The errors of files and of encoding, each one line that ends with a remedy.

use std::path::{Path, PathBuf};

use marionette_models::terminal::printable_line;

/// A file that cannot be used: which, where, why, and what to do about it, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {problem}; {remedy}", printable_line(&path.display().to_string()), place(*line))]
pub struct DataError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1, where the problem has one.
    pub line: Option<usize>,
    /// What was found and what was expected.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

fn place(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}

impl DataError {
    /// An error about a whole file.
    pub fn file(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { path: path.to_path_buf(), line: None, problem: problem.into(), remedy: remedy.into() }
    }

    /// An error about one line of a file, counted from 1.
    pub fn line(path: &Path, line: usize, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line: Some(line), ..Self::file(path, problem, remedy) }
    }
}

/// Why something cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A tokenizer that could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The tokenizer failed on a text.
    #[error("the tokenizer failed: {0}; use the tokenizer that the model came with")]
    Tokenizer(String),
    /// A vocabulary that the embedding cannot hold.
    #[error(
        "the tokenizer has ids up to {largest}, the model's embedding has {vocab_size} rows; use the tokenizer that the model came with"
    )]
    VocabularyTooLarge {
        /// The tokenizer's largest id.
        largest: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A vocabulary too small to train.
    #[error(
        "a vocabulary of {vocab_size} tokens is too small; ask for {smallest} or more: the bytes and <|endoftext|>"
    )]
    VocabularyTooSmall {
        /// What was asked for.
        vocab_size: usize,
        /// What is needed.
        smallest: usize,
    },
    /// A token that ends or surrounds utterances, and that the tokenizer does not have.
    #[error(
        "the tokenizer has no token {id}, with which the model ends or surrounds utterances; use the tokenizer that the model came with"
    )]
    NoEndOfText {
        /// The id that is missing.
        id: u32,
    },
    /// A tokenizer that makes a control token of text.
    #[error(
        "the tokenizer encodes the text {text:?} as a control token; use a tokenizer that keeps control tokens apart"
    )]
    TextAsControl {
        /// The text.
        text: String,
    },
    /// A context that holds nothing.
    #[error("a context of {n_positions} positions leaves no room for {wanted}; ask for less")]
    NoRoom {
        /// The model's context.
        n_positions: usize,
        /// What was to fit.
        wanted: String,
    },
    /// An exchange that does not exist, or has no candidates to rank.
    #[error("exchange {exchange} of the dialogue on line {line} has no candidates to rank; use data with candidates")]
    NoCandidates {
        /// The exchange, from 0.
        exchange: usize,
        /// The line on which the dialogue begins.
        line: usize,
    },
    /// A batch in which nothing is a target.
    #[error("the batch has no target token, so there is nothing to learn from; give dialogues with replies")]
    NoTargets,
}

/// The beginning of `text` as it can be shown inside a one-line message.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// A parser's message without the place, which the caller names in its own words.
pub(crate) fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message,
    }
}
