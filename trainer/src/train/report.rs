//! What a run says about itself: a line a meta-iteration, and the report at the end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use marionette_models::FileError;
use serde::Serialize;

use crate::error::Result;

/// One line of `RUN/metrics.jsonl`. There is no time in it, so that the same command gives the same bytes.
#[derive(Debug, Serialize)]
pub struct Metrics {
    /// The meta-iteration, from 1; 0 is the validation before the first.
    pub iteration: usize,
    /// The mean query loss of the meta-batch before the inner loop, in nats a token.
    pub loss_before: Option<f64>,
    /// And after it.
    pub loss_after: Option<f64>,
    /// The L2 norm of the meta-gradient before clipping.
    pub gradient_norm: Option<f64>,
    /// Tokens read by the inner loops and queries, padding included.
    pub tokens: usize,
    /// The validation, where there was one.
    pub validation: Option<Validation>,
}

/// The mean losses over the query targets of the validation personas, in nats a token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Validation {
    /// Before the inner loop.
    pub loss_before: f64,
    /// After it.
    pub loss_after: f64,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Meta-iterations done.
    pub iterations: usize,
    /// The meta-iteration of the best validation.
    pub best_iteration: usize,
    /// The best validation.
    pub best: Validation,
    /// The validation before the first meta-iteration.
    pub first: Validation,
    /// Tokens read by the inner loops and queries, padding included.
    pub tokens: usize,
    /// Seconds of training, validations included.
    pub seconds: f64,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { iterations, best_iteration, best, first, tokens, seconds, .. } = self;
        let speed = *tokens as f64 / seconds.max(1e-9);
        write!(f, "{iterations} meta-iterations in {seconds:.0} s ({speed:.0} tok/s); ")?;
        write!(f, "validation perplexity before -> after adaptation: {} at first, ", describe(*first))?;
        write!(f, "{} at the best meta-iteration ({best_iteration})", describe(*best))
    }
}

/// Perplexity a token before and after the inner loop.
pub fn describe(validation: Validation) -> String {
    format!("{:.2} -> {:.2}", validation.loss_before.exp(), validation.loss_after.exp())
}

/// `RUN/metrics.jsonl`.
pub struct MetricsFile {
    file: File,
    path: PathBuf,
}

impl MetricsFile {
    pub fn create(run: &Path) -> Result<Self> {
        let path = run.join("metrics.jsonl");
        let file = File::create(&path).map_err(|error| FileError::new(&path, format!("cannot be made: {error}")))?;
        Ok(Self { file, path })
    }

    pub fn append(&self, line: &Metrics) -> Result<()> {
        let failed = |error: String| FileError::new(&self.path, format!("cannot be written: {error}"));
        let mut text = serde_json::to_string(line).map_err(|error| failed(error.to_string()))?;
        text.push('\n');
        Ok((&self.file).write_all(text.as_bytes()).map_err(|error| failed(error.to_string()))?)
    }
}
