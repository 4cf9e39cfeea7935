//! What the trainer computed on a small batch, recorded so that a device can check that it computes the same.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::{AdapterConfig, ModelConfig};
use crate::error::{FileError, Result};
use crate::params;
use crate::safetensors_file::{self, FileMetadata, RawTensor};

/// A batch and what libtorch made of it, beginning with the run's best adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
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

/// What the names of the adapters after the steps begin with.
const AFTER: &str = "after.";

/// The most values of one tensor that a probe holds: enough to see an error in any of its rows' and columns' places, in a small
/// part of the bundle.
const MOST_SAMPLES: usize = 1024;

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
    /// The file is wrong, or does not fit the model.
    pub fn read(path: &Path, config: &ModelConfig, adapter: &AdapterConfig) -> Result<Self> {
        let (mut raw, _) = safetensors_file::read(path)?;
        let mut take = |name: &str| raw.remove(name).ok_or_else(|| FileError::new(path, "is missing").at(name));
        let wrong = |name: &str| {
            let name = name.to_owned();
            move |problem: String| FileError::new(path, problem).at(name)
        };
        let ids = take("input_ids")?;
        let (batch, length) = match ids.shape[..] {
            [batch, length] if batch > 0 && length > 1 && length <= config.n_positions => (batch, length),
            _ => {
                return Err(FileError::new(path, format!("has shape {:?}, expected [batch, tokens]", ids.shape))
                    .at("input_ids"));
            }
        };
        let input_ids = ids.to_i64().map_err(wrong("input_ids"))?;
        if input_ids.iter().any(|&id| id < 0 || id >= config.vocab_size as i64) {
            return Err(FileError::new(path, "holds a token beyond the vocabulary").at("input_ids"));
        }
        let mask = take("loss_mask")?;
        if mask.shape != [batch, length] {
            return Err(FileError::new(path, format!("has shape {:?}, expected {:?}", mask.shape, [batch, length]))
                .at("loss_mask"));
        }
        let loss_mask = mask.to_i64().map_err(wrong("loss_mask"))?.into_iter().map(|value| value != 0).collect();
        let mut floats = |name: &str, expected: Option<usize>| {
            let tensor = take(name)?.to_f32().map_err(wrong(name))?;
            match expected {
                Some(expected) if tensor.values.len() != expected => {
                    Err(FileError::new(path, format!("has {} values, expected {expected}", tensor.values.len()))
                        .at(name))
                }
                _ => Ok(tensor.values),
            }
        };
        let losses = floats("losses", None)?;
        let log_probs = floats("log_probs", Some(length - 1))?;
        let logits = floats("logits", Some(config.vocab_size))?;
        let mut adapters_after = BTreeMap::new();
        for spec in params::adapter_table(config, adapter) {
            let values: usize = spec.shape.iter().product();
            let expected = values.div_ceil(stride(values));
            adapters_after.insert(spec.name.clone(), floats(&format!("{AFTER}{}", spec.name), Some(expected))?);
        }
        Ok(Self { input_ids, loss_mask, batch, length, losses, adapters_after, log_probs, logits })
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
        safetensors_file::write(path, &raw, FileMetadata::Ours(&BTreeMap::new()))
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
