//! One error for everything that is read from or written to a file.

use std::path::{Path, PathBuf};

/// A file that cannot be used: which, where, why, and what to do about it, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {problem}; {remedy}", path.display(), place(*line))]
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
        Self {
            path: path.to_path_buf(),
            line: None,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// An error about one line of a file, counted from 1.
    pub fn line(
        path: &Path,
        line: usize,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            line: Some(line),
            ..Self::file(path, problem, remedy)
        }
    }
}

/// The beginning of `text` as it can be shown inside a one-line message.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut shown: String = text
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}
