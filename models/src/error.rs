//! The one error of this crate: a file that is not what it should be.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::terminal::printable_line;

/// What is wrong with a file: which file, where in it, what was found, and what to do about it. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub struct FileError {
    /// The file or folder.
    pub path: PathBuf,
    /// The field, tensor or offset, where one can be named.
    pub place: Option<String>,
    /// What was found and what was expected.
    pub problem: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl FileError {
    /// An error about a file as a whole.
    pub fn new(path: &Path, problem: impl fmt::Display) -> Self {
        Self { path: path.to_owned(), place: None, problem: one_line(&problem.to_string()), remedy: None }
    }

    /// The same error, at a field, tensor or offset.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(one_line(&place.to_string()));
        self
    }

    /// The same error, with what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = Some(one_line(&remedy.to_string()));
        self
    }
}

/// A message as one line, with a space for each run of spaces and control characters: libraries' messages have several lines, and
/// names come from files that may be hostile, whose control characters must not reach the terminal.
pub fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", printable_line(&self.path.display().to_string()))?;
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}", self.problem)?;
        if let Some(remedy) = &self.remedy {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}

/// The result of reading or writing a file.
pub type Result<T, E = FileError> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn lines_and_control_characters_become_spaces() {
        assert_eq!(one_line("a\n   b\r\n\u{1b}[31mc\u{85}d\t"), "a b [31mc d");
        assert_eq!(one_line("\n"), "");
    }
}
