//! What a run says about itself: a line a meta-iteration, and the report at the end.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use marionette_models::digest::HashingWriter;
use marionette_models::run::{Which, checkpoint};
use marionette_models::{FileError, files};
use serde::{Deserialize, Serialize};

use super::state::Counters;
use crate::error::Result;
use crate::tensorboard::TensorBoard;

/// The file of the metrics.
pub const METRICS: &str = "metrics.jsonl";
/// The folder of the event files.
const EVENTS: &str = "tensorboard";

/// One line of `RUN/metrics.jsonl`. There is no time in it, so that the same command gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The meta-iteration, from 1; 0 is the validation before the first.
    pub iteration: usize,
    /// The mean loss that the outer loop lowers, in nats a token: after the inner loop on the query dialogues (MAML), at
    /// its last step (Reptile), or of all dialogues without one (ordinary training).
    pub loss: Option<f64>,
    /// The L2 norm of the outer gradient before clipping.
    pub gradient_norm: Option<f64>,
    /// The mean of the inner learning rates after the meta-iteration.
    pub inner_lr: f64,
    /// Tokens read so far for training, padding included.
    pub tokens: u64,
    /// The validation, where there was one.
    pub validation: Option<Validation>,
}

/// The mean losses over the query targets of the validation personas, in nats a token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
    /// Tokens read for training, padding included.
    pub tokens: u64,
    /// Seconds of training, validations included, over all interruptions.
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

/// `RUN/metrics.jsonl`, and the event files of TensorBoard beside it.
pub struct MetricsFile {
    file: HashingWriter<File>,
    path: PathBuf,
    events: TensorBoard,
}

impl MetricsFile {
    /// Goes on with the first `bytes` of the metrics of a run, after meta-iteration `iteration`; what was written later is
    /// dropped. A new run has 0 bytes.
    ///
    /// # Errors
    /// A file cannot be written, is shorter than that, or has another SHA-256.
    pub fn open(run: &Path, bytes: u64, sha256: Option<&str>, iteration: usize) -> Result<Self> {
        let path = run.join(METRICS);
        let failed = |error: std::io::Error| FileError::new(&path, format!("cannot be written: {error}"));
        let file = OpenOptions::new().read(true).create(true).append(true).open(&path).map_err(failed)?;
        let file = HashingWriter::resume(file, bytes).map_err(failed)?;
        check(&path, &file, bytes, sha256)?;
        file.get_ref().set_len(bytes).map_err(failed)?;
        let resumed_at = (bytes > 0).then_some(iteration as i64);
        let events = TensorBoard::create(&run.join(EVENTS), resumed_at)?;
        Ok(Self { file, path, events })
    }

    /// How long the file is, and its SHA-256.
    pub fn written(&self) -> (u64, Option<String>) {
        (self.file.bytes(), Some(self.file.digest()))
    }

    /// Appends a line.
    pub fn append(&mut self, line: &Metrics) -> Result<()> {
        let failed = |error: String| FileError::new(&self.path, format!("cannot be written: {error}"));
        let mut text = serde_json::to_string(line).map_err(|error| failed(error.to_string()))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|error| failed(error.to_string()))?;
        let mut scalars = vec![("inner_lr", line.inner_lr as f32)];
        scalars.extend(line.loss.map(|loss| ("loss", loss as f32)));
        scalars.extend(line.gradient_norm.map(|norm| ("gradient_norm", norm as f32)));
        if let Some(validation) = line.validation {
            scalars.push(("validation/loss_before", validation.loss_before as f32));
            scalars.push(("validation/loss_after", validation.loss_after as f32));
        }
        self.events.scalars(line.iteration as i64, &scalars)
    }

    /// Makes sure that what was appended survives a loss of power: a checkpoint is about to count on it.
    pub fn sync(&self) -> Result<()> {
        let synced = self.file.get_ref().sync_data();
        Ok(synced.map_err(|error| FileError::new(&self.path, format!("cannot be written: {error}")))?)
    }
}

/// Refuses metrics of which less is there, or something else, than their checkpoint knows.
fn check<W: Write>(path: &Path, there: &HashingWriter<W>, bytes: u64, sha256: Option<&str>) -> Result<(), FileError> {
    let remedy = "give the file back, or begin a new run";
    if there.bytes() < bytes {
        let problem = format!("has {} bytes, but its checkpoint was made after {bytes}", there.bytes());
        return Err(FileError::new(path, problem).remedy(remedy));
    }
    match sha256 {
        Some(sha256) if sha256 != there.digest() => {
            Err(FileError::new(path, "was changed since it was written").remedy(remedy))
        }
        _ => Ok(()),
    }
}

/// The metrics of a run, up to its last checkpoint.
///
/// # Errors
/// The file cannot be read, is none of ours, or is not what the last checkpoint knows.
pub fn read(run: &Path) -> Result<Vec<Metrics>> {
    let path = run.join(METRICS);
    let Counters { metrics_bytes, metrics_sha256, .. } = Counters::read(&checkpoint(run, Which::Last)?)?;
    let mut text = Vec::new();
    files::open_regular(&path)?
        .take(metrics_bytes)
        .read_to_end(&mut text)
        .map_err(|error| FileError::new(&path, format!("cannot be read: {error}")))?;
    let mut there = HashingWriter::new(std::io::sink());
    // Writing to a sink cannot fail.
    let _ = there.write_all(&text);
    check(&path, &there, metrics_bytes, metrics_sha256.as_deref())?;
    let line = |(number, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|error| FileError::new(&path, format!("line {}: {error}", number + 1)))
    };
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.enumerate().map(line).collect::<Result<_, _>>()?)
}
