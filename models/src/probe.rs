//! What the trainer computed on a small batch, recorded so that a device can check that it computes the same.

use std::collections::BTreeMap;
use std::path::Path;

use crate::bundle::Precision;
use crate::config::{AdapterConfig, ModelConfig};
use crate::error::{FileError, Result};
use crate::params;
use crate::safetensors_file::{self, FileMetadata, RawTensor, Reader};

/// A batch and what the trainer made of it, beginning with the run's best adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// How the frozen matrices were held: fp32, or as a bundle of that precision holds them.
    pub frozen: Precision,
    /// Token ids, [B, T], padded on the right.
    pub input_ids: Vec<i64>,
    /// Which tokens are targets of the loss, [B, T].
    pub loss_mask: Vec<bool>,
    /// B.
    pub batch: usize,
    /// T.
    pub length: usize,
    /// The loss before each of S inner steps, all on this batch, with the run's α.
    pub losses: Vec<f32>,
    /// A [`sample`] of each adapter tensor after these steps.
    pub adapters_after: BTreeMap<String, Vec<f32>>,
    /// log p(ids[0, t + 1] | ids[0, ..= t]) for t in 0 .. T − 1, before any step, [T − 1].
    pub log_probs: Vec<f32>,
    /// The logits at the last position of row 0, before any step, `[V]`.
    pub logits: Vec<f32>,
}

/// The key of the metadata that says how frozen matrices were held; fp32 where it is missing.
const FROZEN: &str = "frozen";
/// What the names of the adapters after the steps begin with.
const AFTER: &str = "after.";

/// The most values of one tensor that a probe holds: enough to see an error in any of its rows' and columns' places, in a small
/// part of the bundle.
const MOST_SAMPLES: usize = 1024;

/// The most tokens of a probe's batch, and the most steps: far more than one persona's dialogues have.
const MAX_TOKENS: usize = 1 << 22;
const MAX_STEPS: usize = 1 << 16;

/// Every n-th value of a tensor, n odd, so that a matrix of even width gives values of all columns.
pub fn sample(values: &[f32]) -> Vec<f32> {
    values.iter().copied().step_by(stride(values.len())).collect()
}

fn stride(values: usize) -> usize {
    values.div_ceil(MOST_SAMPLES) | 1
}

impl Probe {
    /// Reads a probe that was recorded for this model.
    ///
    /// # Errors
    /// The file is wrong, was changed since it was written, or does not fit the model.
    pub fn read(path: &Path, config: &ModelConfig, adapter: &AdapterConfig) -> Result<Self> {
        let reader = Reader::open(path)?;
        let wrong = |name: &str, problem: String| FileError::new(path, problem).at(name);
        let frozen = match reader.metadata().get(FROZEN) {
            Some(name) => name.parse().map_err(|problem| wrong(FROZEN, problem))?,
            None => Precision::Fp32,
        };
        let shape_of = |name: &str| {
            let entry = reader.entries().iter().find(|entry| entry.name == name);
            entry.map(|entry| entry.shape.as_slice()).ok_or_else(|| wrong(name, "is missing".to_owned()))
        };
        let (batch, length) = match *shape_of("input_ids")? {
            [batch, length]
                if batch > 0
                    && length > 1
                    && length <= config.n_positions
                    && batch.saturating_mul(length) <= MAX_TOKENS =>
            {
                (batch, length)
            }
            ref shape => {
                let problem = format!("has shape {shape:?}, expected [batch, tokens] of at most {MAX_TOKENS} tokens");
                return Err(wrong("input_ids", problem));
            }
        };
        let steps = match *shape_of("losses")? {
            [steps] if steps <= MAX_STEPS => steps,
            ref shape => {
                return Err(wrong("losses", format!("has shape {shape:?}, expected [steps], at most {MAX_STEPS}")));
            }
        };
        // What has to be there, and nothing else.
        let mut expected = BTreeMap::from([
            ("input_ids".to_owned(), vec![batch, length]),
            ("loss_mask".to_owned(), vec![batch, length]),
            ("losses".to_owned(), vec![steps]),
            ("log_probs".to_owned(), vec![length - 1]),
            ("logits".to_owned(), vec![config.vocab_size]),
        ]);
        let table = params::adapter_table(config, adapter);
        for spec in &table {
            expected.insert(format!("{AFTER}{}", spec.name), vec![spec.len().div_ceil(stride(spec.len()))]);
        }
        let tensors = reader.tensors(|entry| match expected.remove(&entry.name) {
            Some(shape) if shape == entry.shape => Ok(true),
            Some(shape) => Err(wrong(&entry.name, format!("has shape {:?}, expected {shape:?}", entry.shape))),
            None => Err(wrong(&entry.name, "does not belong to this model".to_owned())),
        })?;
        if let Some((name, shape)) = expected.first_key_value() {
            return Err(wrong(name, format!("is missing, expected shape {shape:?}")));
        }
        let mut raw = tensors.collect::<Result<BTreeMap<String, RawTensor>>>()?;
        let mut take = |name: &str| raw.remove(name).ok_or_else(|| wrong(name, "is missing".to_owned()));
        let input_ids = take("input_ids")?.to_i64().map_err(|problem| wrong("input_ids", problem))?;
        if input_ids.iter().any(|&id| id < 0 || id >= config.vocab_size as i64) {
            return Err(wrong("input_ids", "holds a token beyond the vocabulary".to_owned()));
        }
        let mask = take("loss_mask")?.to_i64().map_err(|problem| wrong("loss_mask", problem))?;
        let loss_mask = mask.into_iter().map(|value| value != 0).collect();
        let mut floats = |name: &str| Ok(take(name)?.to_f32().map_err(|problem| wrong(name, problem))?.values);
        let (losses, log_probs, logits) = (floats("losses")?, floats("log_probs")?, floats("logits")?);
        let adapters_after = table
            .into_iter()
            .map(|spec| Ok((spec.name.clone(), floats(&format!("{AFTER}{}", spec.name))?)))
            .collect::<Result<_>>()?;
        Ok(Self { frozen, input_ids, loss_mask, batch, length, losses, adapters_after, log_probs, logits })
    }

    /// Writes the probe atomically.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut raw: BTreeMap<String, RawTensor> = self
            .adapters_after
            .iter()
            .map(|(name, values)| (format!("{AFTER}{name}"), RawTensor::f32(&[values.len()], values)))
            .collect();
        let mask: Vec<i64> = self.loss_mask.iter().map(|&target| i64::from(target)).collect();
        let shape = [self.batch, self.length];
        raw.insert("input_ids".into(), RawTensor::i64(&shape, &self.input_ids));
        raw.insert("loss_mask".into(), RawTensor::i64(&shape, &mask));
        for (name, values) in [("losses", &self.losses), ("log_probs", &self.log_probs), ("logits", &self.logits)] {
            raw.insert(name.into(), RawTensor::f32(&[values.len()], values));
        }
        let frozen = (self.frozen != Precision::Fp32).then(|| (FROZEN.to_owned(), self.frozen.to_string()));
        safetensors_file::write(path, &raw, FileMetadata::Ours(&frozen.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_small_and_meets_every_column() {
        let values = |number: u16| (0..number).map(f32::from).collect::<Vec<f32>>();
        assert_eq!(sample(&values(5)), values(5));
        // 96 rows of 64: every 7th value.
        let sampled = sample(&values(96 * 64));
        assert_eq!((sampled.len(), sampled[1], sampled[877]), (878, 7.0, 6139.0));
        let columns: std::collections::BTreeSet<u16> = sampled.iter().map(|&value| value as u16 % 64).collect();
        assert_eq!(columns.len(), 64);
    }
}
