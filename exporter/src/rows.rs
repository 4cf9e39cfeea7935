//! The rows of tokens that a source is computed on, and what of it goes into the graphs.

use std::collections::BTreeMap;

use marionette_dialogues::{Encoder, Sequence, Task};
use marionette_models::{HostTensor, Tensors};
use ndarray::{ArrayD, IxDyn, arr0};

use crate::array::Array;
use crate::error::{ExportError, GraphError};
use crate::source::Source;
use crate::weights::angles;

/// Multiplications that a forward pass over the dialogues may take: a few seconds.
const MOST_MULTIPLICATIONS: usize = 30_000_000_000;
/// The most tokens of dialogues.
const MOST_TOKENS: usize = 4096;
/// The most tokens of a probe's row.
pub(crate) const MOST_PROBED: usize = 128;
/// How many times as many tokens weights are rounded for.
const CALIBRATION: usize = 4;
/// As many tokens as are read where there are no dialogues.
const TOKENS_WITHOUT_DIALOGUES: usize = 64;

/// Of the validation dialogues those that are read, one of each persona before the second of any.
#[derive(Debug)]
pub(crate) struct Rows {
    /// What a precision costs is measured on these.
    pub measured: Vec<Sequence>,
    /// The next ones, which weights are rounded for: the same again where there are no more.
    pub calibration: Vec<Sequence>,
}

/// As many of the validation dialogues as can be read in some seconds, or why there are none. Where they cannot be had, those that the
/// run's probe holds.
pub(crate) fn of_dialogues(source: &Source) -> Result<Rows, String> {
    let (tasks, probed): (&[Task], &[Sequence]) = match &source.validation {
        Ok(tasks) => (tasks, &[]),
        Err(reason) if source.probed.is_empty() => return Err(reason.clone()),
        Err(_) => (&[], &source.probed),
    };
    let config = &source.base.config;
    let encoder = Encoder::new(source.tokenizer.clone(), source.prompt.clone(), config.n_positions, config.vocab_size)
        .map_err(|error| error.to_string())?
        .with_persona_text(source.persona_text);
    let parameters: usize = source.base.tensors.values().map(|tensor| tensor.values.len()).sum();
    let room = (MOST_MULTIPLICATIONS / parameters.max(1)).min(MOST_TOKENS);
    let longest = tasks.iter().map(|task| task.dialogues.len()).max().unwrap_or(0);
    let dialogues = (0..longest).flat_map(|index| tasks.iter().filter_map(move |task| task.dialogues.get(index)));
    let windows = dialogues.map(|dialogue| encoder.windows(dialogue).map_err(|error| error.to_string()));
    let of_tasks = windows.filter_map(|windows| windows.map(|windows| windows.into_iter().next()).transpose());
    let mut sequences = of_tasks.chain(probed.iter().cloned().map(Ok)).peekable();
    // One at least.
    let mut take = |mut room: usize| -> Result<Vec<Sequence>, String> {
        let mut taken: Vec<Sequence> = Vec::new();
        let fits = |next: &Result<Sequence, String>, room, is_first| match next {
            Ok(sequence) => is_first || sequence.ids.len() <= room,
            Err(_) => true,
        };
        while let Some(next) = sequences.next_if(|next| fits(next, room, taken.is_empty())) {
            let next = next?;
            room = room.saturating_sub(next.ids.len());
            taken.push(next);
        }
        Ok(taken)
    };
    let measured = take(room)?;
    if measured.is_empty() {
        return Err("the validation dialogues hold no replies".into());
    }
    let calibration = take(CALIBRATION * room)?;
    Ok(Rows { calibration: if calibration.is_empty() { measured.clone() } else { calibration }, measured })
}

/// A row of different tokens.
pub(crate) fn fixed(source: &Source) -> Sequence {
    let config = &source.base.config;
    let length = TOKENS_WITHOUT_DIALOGUES.min(config.n_positions);
    Sequence {
        ids: (0..length).map(|index| (index.wrapping_mul(7919) % config.vocab_size) as u32).collect(),
        target: (0..length).map(|index| index > 0).collect(),
        ..Sequence::default()
    }
}

pub(crate) fn exact_values(source: &Source, part: &str) -> Result<Array, ExportError> {
    if let Some(angles) = angles(&source.base.config, part) {
        return Ok(array(&angles));
    }
    let tensors: &Tensors = &source.base.tensors;
    Ok(tensors.get(part).map(array).ok_or_else(|| GraphError::UnknownWeight(part.to_owned()))?)
}

/// Φ, by name.
pub(crate) fn adapters(source: &Source) -> BTreeMap<String, Array> {
    source.adapters.iter().map(|(name, tensor)| (name.clone(), array(tensor))).collect()
}

fn array(tensor: &HostTensor) -> Array {
    shaped(&tensor.shape, tensor.values.iter().map(|&value| f64::from(value)).collect())
}

pub(crate) fn row(ids: &[u32]) -> Array {
    shaped(&[1, ids.len()], ids.iter().map(|&id| f64::from(id)).collect())
}

pub(crate) fn list(values: impl Iterator<Item = f64>) -> Array {
    let values: Vec<f64> = values.collect();
    shaped(&[values.len()], values)
}

/// An array of as many values as the shape has, which is the caller's care.
pub(crate) fn shaped(shape: &[usize], values: Vec<f64>) -> Array {
    ArrayD::from_shape_vec(IxDyn(shape), values).unwrap_or_else(|_| arr0(f64::NAN).into_dyn())
}
