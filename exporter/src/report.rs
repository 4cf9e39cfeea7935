//! What a precision costs: the graphs as they were exported beside those in f32, computed here ([`crate::interpreter`]). Products of
//! integers round both sides as the device does.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use marionette_dialogues::{Encoder, Sequence, Task};
use marionette_models::bundle::{Operators, Precision, WEIGHTS};
use marionette_models::{FileError, HostTensor, Tensors, files};
use ndarray::{ArrayD, IxDyn, arr0};

use crate::array::{Array, decode};
use crate::error::{ExportError, GraphError};
use crate::graphs;
use crate::interpreter::Interpreter;
use crate::onnx::bytes;
use crate::shape::TensorType;
use crate::source::Source;
use crate::standard::standard;
use crate::weights::{Weights, angles};

/// Steps of adaptation.
const STEPS: usize = 10;
/// Multiplications that a forward pass over the dialogues may take: a few seconds.
const MOST_MULTIPLICATIONS: usize = 30_000_000_000;
/// The most tokens of dialogues.
const MOST_TOKENS: usize = 4096;
/// As many tokens as are read where there are no dialogues.
const TOKENS_WITHOUT_DIALOGUES: usize = 64;

/// What a precision costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The precision.
    pub precision: Precision,
    /// Over all tokens before a target of the validation dialogues read, or over a fixed row of tokens.
    pub logits: Logits,
    /// What takes dialogues, or why it was not measured.
    pub dialogues: Result<OnDialogues, String>,
}

/// Logits beside those in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logits {
    /// The largest absolute difference.
    pub worst: f64,
    /// The largest absolute logit in f32.
    pub largest: f64,
    /// After how many tokens.
    pub rows: usize,
}

/// Dialogues beside those in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OnDialogues {
    /// How many of the validation dialogues were read.
    pub dialogues: usize,
    /// How many target tokens they have.
    pub targets: usize,
    /// exp of the mean negative log-likelihood over these: in f32, and in this precision, before any adaptation.
    pub perplexity: [f64; 2],
    /// The loss before the first step in f32, on one dialogue.
    pub loss_before: f64,
    /// The loss after ten steps on it: in f32, and in this precision.
    pub loss_after: [f64; 2],
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Logits { worst, largest, rows } = self.logits;
        writeln!(f, "what {} costs, beside fp32:", self.precision)?;
        writeln!(f, "  worst logit difference {worst:.3} of logits up to {largest:.1}, after {rows} tokens")?;
        match &self.dialogues {
            Err(reason) => writeln!(f, "  perplexity and adaptation are not measured: {reason}"),
            Ok(on) => {
                let ([before, after], [loss, own]) = (on.perplexity, on.loss_after);
                let (targets, dialogues) = (on.targets, on.dialogues);
                writeln!(
                    f,
                    "  perplexity {before:.3} -> {after:.3} on {targets} tokens of {dialogues} validation dialogues"
                )?;
                writeln!(f, "  {STEPS} steps of adaptation: loss {:.4} -> {own:.4} (fp32: {loss:.4})", on.loss_before)
            }
        }
    }
}

/// Measures an exported bundle. The dialogues are as many of the run's validation dialogues as can be read in some seconds, one of each
/// persona before the second of any; the steps are taken on the shortest of these.
///
/// # Errors
/// The bundle cannot be read; the graphs cannot be built; the user has interrupted.
pub fn measure(
    source: &Source,
    precision: Precision,
    operators: Operators,
    bundle: &Path,
    interrupted: &AtomicBool,
) -> Result<Report, ExportError> {
    let encoded = source.validation.clone().and_then(|tasks| sequences(source, &tasks));
    let rows: Vec<Sequence> = match &encoded {
        Ok(sequences) => sequences.clone(),
        Err(_) => vec![fixed(source)],
    };
    let shortest = rows.iter().min_by_key(|sequence| sequence.ids.len()).filter(|_| encoded.is_ok());
    let exact = Weights::new(&source.base.config, Precision::Fp32, operators)?;
    let expected = Measured::of(source, &exact, &rows, shortest, interrupted, |part, _| exact_values(source, part))?;
    let stored = Weights::new(&source.base.config, precision, operators)?;
    let path = bundle.join(WEIGHTS);
    let mut file = files::open_regular(&path)?;
    let found = Measured::of(source, &stored, &rows, shortest, interrupted, |part, tensor| {
        let entry = stored.entry(part)?;
        let mut read = vec![0; bytes(tensor).unwrap_or(0) as usize];
        let result = file.seek(SeekFrom::Start(entry.offset)).and_then(|_| file.read_exact(&mut read));
        result.map_err(|error| FileError::new(&path, format!("cannot be read: {error}")))?;
        Ok(decode(tensor, &read))
    })?;
    let difference = |(a, b): (&f64, &f64)| (a - b).abs();
    let logits = Logits {
        worst: expected.logits.iter().zip(&found.logits).map(difference).fold(0.0, f64::max),
        largest: expected.logits.iter().fold(0.0, |largest, logit| largest.max(logit.abs())),
        rows: rows.iter().map(Sequence::targets).sum(),
    };
    let targets = logits.rows;
    let dialogues = encoded.map(|sequences| OnDialogues {
        dialogues: sequences.len(),
        targets,
        perplexity: [&expected, &found].map(|measured| (measured.loss / targets as f64).exp()),
        loss_before: expected.steps.first().copied().unwrap_or(f64::NAN),
        loss_after: [&expected, &found].map(|measured| measured.steps.last().copied().unwrap_or(f64::NAN)),
    });
    Ok(Report { precision, logits, dialogues })
}

/// The validation dialogues that are read.
fn sequences(source: &Source, tasks: &[Task]) -> Result<Vec<Sequence>, String> {
    let config = &source.base.config;
    let encoder = Encoder::new(source.tokenizer.clone(), source.prompt.clone(), config.n_positions, config.vocab_size)
        .map_err(|error| error.to_string())?
        .with_persona_text(source.persona_text);
    let parameters: usize = source.base.tensors.values().map(|tensor| tensor.values.len()).sum();
    let mut room = (MOST_MULTIPLICATIONS / parameters.max(1)).min(MOST_TOKENS);
    let longest = tasks.iter().map(|task| task.dialogues.len()).max().unwrap_or(0);
    let mut chosen: Vec<Sequence> = Vec::new();
    for dialogue in (0..longest).flat_map(|index| tasks.iter().filter_map(move |task| task.dialogues.get(index))) {
        let windows = encoder.windows(dialogue).map_err(|error| error.to_string())?;
        let Some(sequence) = windows.into_iter().next() else { continue };
        if !chosen.is_empty() && sequence.ids.len() > room {
            break;
        }
        room = room.saturating_sub(sequence.ids.len());
        chosen.push(sequence);
    }
    if chosen.is_empty() { Err("the validation dialogues hold no replies".into()) } else { Ok(chosen) }
}

/// A row of different tokens.
fn fixed(source: &Source) -> Sequence {
    let config = &source.base.config;
    let length = TOKENS_WITHOUT_DIALOGUES.min(config.n_positions);
    Sequence {
        ids: (0..length).map(|index| (index.wrapping_mul(7919) % config.vocab_size) as u32).collect(),
        target: (0..length).map(|index| index > 0).collect(),
        ..Sequence::default()
    }
}

/// One side of the comparison.
struct Measured {
    /// Of all rows, one after the other.
    logits: Vec<f64>,
    /// The summed negative log-likelihood of all targets.
    loss: f64,
    /// The loss before each step, and after the last.
    steps: Vec<f64>,
}

impl Measured {
    fn of(
        source: &Source,
        weights: &Weights,
        rows: &[Sequence],
        adapted: Option<&Sequence>,
        interrupted: &AtomicBool,
        mut values: impl FnMut(&str, &TensorType) -> Result<Array, ExportError>,
    ) -> Result<Self, ExportError> {
        let (config, adapter) = (&source.base.config, &source.adapter);
        let go_on = || if interrupted.load(Ordering::SeqCst) { Err(ExportError::Unmeasured) } else { Ok(()) };
        let mut inputs: BTreeMap<String, Array> =
            source.adapters.iter().map(|(name, tensor)| (name.clone(), array(tensor))).collect();
        let mut measured = Self { logits: Vec::new(), loss: 0.0, steps: Vec::new() };
        // In standard operators the rounding of activations is a node of its own.
        let graph = standard(&graphs::logits(config, adapter, weights)?)?;
        let forward = Interpreter::new(&graph, &mut values)?;
        for sequence in rows {
            go_on()?;
            inputs.insert("input_ids".into(), row(&sequence.ids));
            inputs.insert("rows".into(), list(sequence.predictions().map(|(row, _)| row as f64)));
            let logits = forward.run(&inputs).remove("logits").unwrap_or_default();
            for (row, (_, target)) in logits.rows().into_iter().zip(sequence.predictions()) {
                let largest = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let total: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
                measured.loss += largest + total.ln() - row[target as usize];
                measured.logits.extend(row);
            }
        }
        drop(forward);
        let Some(sequence) = adapted else { return Ok(measured) };
        let graph = standard(&graphs::adapt(config, adapter, weights)?)?;
        let step = Interpreter::new(&graph, &mut values)?;
        let tensors = source.adapters.len();
        let rates = source.inner_loop.learning_rate.per_tensor(tensors).map_err(ExportError::Usage)?;
        inputs.insert("input_ids".into(), row(&sequence.ids));
        let mask = sequence.target.iter().map(|&target| f64::from(u8::from(target))).collect();
        inputs.insert("loss_mask".into(), shaped(&[1, sequence.ids.len()], mask));
        inputs.insert("learning_rate".into(), list(rates.iter().map(|&rate| f64::from(rate))));
        for _ in 0..=STEPS {
            go_on()?;
            for name in source.adapters.keys() {
                let start = inputs.get(name).cloned().unwrap_or_default();
                inputs.insert(format!("start.{name}"), start);
            }
            for (name, value) in step.run(&inputs) {
                match name.strip_prefix("updated.") {
                    Some(adapter) => drop(inputs.insert(adapter.to_owned(), value)),
                    None if name == "loss" => measured.steps.push(value.sum()),
                    None => {}
                }
            }
        }
        Ok(measured)
    }
}

fn exact_values(source: &Source, part: &str) -> Result<Array, ExportError> {
    if let Some(angles) = angles(&source.base.config, part) {
        return Ok(array(&angles));
    }
    let tensors: &Tensors = &source.base.tensors;
    Ok(tensors.get(part).map(array).ok_or_else(|| GraphError::UnknownWeight(part.to_owned()))?)
}

fn array(tensor: &HostTensor) -> Array {
    shaped(&tensor.shape, tensor.values.iter().map(|&value| f64::from(value)).collect())
}

fn row(ids: &[u32]) -> Array {
    shaped(&[1, ids.len()], ids.iter().map(|&id| f64::from(id)).collect())
}

fn list(values: impl Iterator<Item = f64>) -> Array {
    let values: Vec<f64> = values.collect();
    shaped(&[values.len()], values)
}

/// An array of as many values as the shape has, which is the caller's care.
fn shaped(shape: &[usize], values: Vec<f64>) -> Array {
    ArrayD::from_shape_vec(IxDyn(shape), values).unwrap_or_else(|_| arr0(f64::NAN).into_dyn())
}
