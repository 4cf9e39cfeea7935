//! The one error of this crate.

use std::fmt;

use marionette_dialogues::{DataError, EncodeError, TaskError};
use marionette_models::FileError;
use tch::TchError;

/// Why training or evaluating ended without a result. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// An option, or several together, that cannot be.
    #[error("{option}: {problem}")]
    Option {
        /// The option as on the command line.
        option: &'static str,
        /// What was given, and what was expected.
        problem: String,
    },
    /// A model, run or configuration file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A dialogue or tokenizer file.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Dialogues that cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Dialogues of a file that make no tasks.
    #[error("{file}: {error}")]
    Tasks {
        /// The files, as given.
        file: String,
        /// What is wrong with them.
        error: TaskError,
    },
    /// A loss or gradient that is not a finite number.
    #[error("{what} is {value} at {place}; lower {remedy}")]
    NotFinite {
        /// What was computed.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The step.
        place: String,
        /// The option to lower.
        remedy: &'static str,
    },
    /// The device that was asked for.
    #[error("--device {device}: {problem}; {remedy}")]
    Device {
        /// Its name.
        device: &'static str,
        /// Why it cannot be had.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// What libtorch says, its first line.
    #[error("libtorch: {0}")]
    Torch(String),
    /// An evaluation without a result.
    #[error("{0}")]
    Evaluation(String),
    /// The result cannot be printed; what was made is there.
    #[error("the output cannot be written: {0}")]
    Output(#[from] std::io::Error),
    /// Ctrl-C before there was anything to save.
    #[error("interrupted")]
    Interrupted,
}

impl TrainError {
    /// An impossible option.
    pub fn option(option: &'static str, problem: impl fmt::Display) -> Self {
        Self::Option { option, problem: problem.to_string() }
    }

    /// The same error, with what the outer loop was at where the inner loop diverged; then either rate may be too high.
    #[must_use]
    pub fn during(self, outer: &str) -> Self {
        match self {
            Self::NotFinite { what, value, place, .. } => {
                Self::NotFinite { what, value, place: format!("{outer}, {place}"), remedy: "--inner-lr or --outer-lr" }
            }
            other => other,
        }
    }
}

impl From<TchError> for TrainError {
    fn from(error: TchError) -> Self {
        let text = match error {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        // The rest is a C++ stack trace.
        let line = text.lines().next().unwrap_or_default().trim().to_owned();
        if line.contains("allocate memory") || line.contains("out of memory") {
            return Self::Torch(format!("{line} (out of memory: make the batch smaller)"));
        }
        Self::Torch(line)
    }
}

/// The result of training or evaluating.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;
