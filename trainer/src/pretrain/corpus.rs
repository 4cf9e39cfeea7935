//! Encoded dialogues, cut into batches of about equal length so that little padding is computed.

use marionette_dialogues::{Dialogue, Encoder};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::error::Result;
use crate::tensors::TokenBatch;

/// So many batches' worth of shuffled dialogues are sorted by length at a time.
const SORTED_BATCHES: usize = 50;

/// Dialogues, or windows of them where they are longer than the context, as token ids.
pub struct Corpus {
    sequences: Vec<Vec<u32>>,
    n_positions: usize,
    batch_tokens: usize,
}

impl Corpus {
    /// Encodes dialogues; a batch has at most `batch_tokens` tokens, or one dialogue.
    pub fn new(encoder: &Encoder, dialogues: &[Dialogue], batch_tokens: usize) -> Result<Self> {
        let mut sequences = Vec::with_capacity(dialogues.len());
        for dialogue in dialogues {
            sequences.extend(encoder.windows(dialogue)?.into_iter().map(|window| window.ids));
        }
        sequences.retain(|ids| ids.len() > 1);
        Ok(Self { sequences, n_positions: encoder.n_positions(), batch_tokens })
    }

    /// The number of dialogues.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }

    fn length(&self, index: usize) -> usize {
        self.sequences.get(index).map_or(0, Vec::len)
    }

    /// The batches of one pass over the data in random order.
    pub fn epoch(&self, rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(rng);
        let mean = (self.tokens() / self.len().max(1)).max(1);
        let sorted = (SORTED_BATCHES * self.batch_tokens / mean).max(1);
        let mut batches = Vec::new();
        for window in order.chunks_mut(sorted) {
            window.sort_by_key(|&index| self.length(index));
            self.cut(window, &mut batches);
        }
        batches.shuffle(rng);
        batches
    }

    /// The batches of one pass in a fixed order.
    pub fn in_order(&self) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|&index| self.length(index));
        let mut batches = Vec::new();
        self.cut(&order, &mut batches);
        batches
    }

    /// Cuts dialogues sorted by length into batches.
    fn cut(&self, sorted: &[usize], batches: &mut Vec<Vec<usize>>) {
        let mut batch: Vec<usize> = Vec::new();
        for &index in sorted {
            // The newest is the longest, so it sets the padded length.
            if !batch.is_empty() && (batch.len() + 1) * self.length(index) > self.batch_tokens {
                batches.push(std::mem::take(&mut batch));
            }
            batch.push(index);
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
    }

    /// A batch whose loss covers every token but the first of each row. With `rng`, half of the rows begin at a random
    /// position instead of 0: dialogues are shorter than the context, and the positions beyond them must be learned too.
    pub fn batch(&self, rows: &[usize], rng: Option<&mut ChaCha8Rng>, device: Device) -> Result<TokenBatch> {
        let rows: Vec<&[u32]> = rows.iter().filter_map(|&index| self.sequences.get(index)).map(Vec::as_slice).collect();
        let length = rows.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let shape = [rows.len() as i64, length as i64];
        let (mut ids, mut targets, mut places) = (Vec::with_capacity(rows.len() * length), Vec::new(), Vec::new());
        for row in &rows {
            let first = ids.len() as i64;
            ids.extend(row.iter().map(|&id| i64::from(id)));
            targets.extend(row.iter().skip(1).map(|&id| i64::from(id)));
            places.extend((first..).take(row.len() - 1));
            ids.resize(first as usize + length, 0);
        }
        let positions = rng.map(|rng| self.positions(rows.len(), length, rng));
        let tensor = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
        Ok(TokenBatch {
            ids: tensor(&ids)?.f_reshape(shape)?,
            positions: positions.map(|positions| tensor(&positions)?.f_reshape(shape)).transpose()?,
            rows: tensor(&places)?,
            targets: tensor(&targets)?,
            choices: None,
        })
    }

    fn positions(&self, rows: usize, length: usize, rng: &mut ChaCha8Rng) -> Vec<i64> {
        let mut positions = Vec::with_capacity(rows * length);
        for _ in 0..rows {
            let latest = self.n_positions.saturating_sub(length);
            let first = if rng.random_bool(0.5) { 0 } else { rng.random_range(0..=latest) };
            positions.extend((first..first + length).map(|position| position as i64));
        }
        positions
    }
}
