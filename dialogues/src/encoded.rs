//! What encoding gives: sequences, rankings, prompts, and batches of sequences.

use crate::EncodeError;

/// A dialogue, or a window of one that is longer than the context, as T tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sequence {
    /// Token ids \[T\].
    pub ids: Vec<u32>,
    /// \[T\]: whether token t is a target, predicted from position t-1; never true at position 0.
    pub target: Vec<bool>,
    /// White-space words of the replies that end in it.
    pub words: usize,
    /// Replies that end in it.
    pub replies: usize,
    /// Tokens at the beginning that a former window has too.
    pub again: usize,
    /// 1 where the persona's sentences in front were cut, because they fill more than half the context.
    pub cut: usize,
}

impl Sequence {
    /// The number of targets.
    pub fn targets(&self) -> usize {
        self.target.iter().filter(|target| **target).count()
    }

    /// Where targets are predicted: for each, the token before it, from 0, and the target's id.
    pub fn predictions(&self) -> impl Iterator<Item = (usize, u32)> {
        predictions(&self.ids, &self.target)
    }
}

/// The one place that says what a target at token t is predicted from: token t − 1. One at token 0 is predicted from nothing.
fn predictions<Id: Copy>(ids: &[Id], target: &[bool]) -> impl Iterator<Item = (usize, Id)> {
    let next = ids.iter().zip(target).skip(1);
    (0..).zip(next).filter(|(_, (_, target))| **target).map(|(before, (id, _))| (before, *id))
}

/// A dialogue, or a window of one, as the inner loop learns it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Example {
    /// Its tokens.
    pub sequence: Sequence,
    /// Next-utterance classification (Wolf et al. 2019, TransferTransfo): for each exchange that has distractors, its
    /// gold reply, which is candidate 0, among some of them. Empty unless the encoder has choices.
    pub choices: Vec<Ranking>,
}

/// A history of h tokens and all candidates after it in one row of T tokens, so that one pass scores every candidate:
/// token j sees token i iff i <= j and (`branch[i] == 0` or `branch[i] == branch[j]`).
///
/// A candidate's tokens and its closing one are targets. That one predicts nothing, so it is in the row only
/// where a classifier reads its state: where the encoder has choices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranking {
    /// Token ids \[T\].
    pub ids: Vec<u32>,
    /// Positions \[T\]: 0.. for the history, h.. for each candidate.
    pub positions: Vec<u32>,
    /// Branches \[T\]: 0 for the history, c+1 for candidate c.
    pub branch: Vec<u32>,
    /// \[N\]: the token of the row from which target n is predicted.
    pub rows: Vec<u32>,
    /// \[N\]: target ids.
    pub targets: Vec<u32>,
    /// \[N\]: the candidate to which target n belongs.
    pub candidate: Vec<u32>,
    /// \[candidates\]: the token of the row that is candidate c's closing one; empty where these are not in the row.
    pub ends: Vec<u32>,
    /// The number of candidates.
    pub candidates: usize,
    /// Utterances cut, whole or in part, because the context was too short.
    pub cut: usize,
}

/// A history to be continued by a reply.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompt {
    /// Token ids; never empty.
    pub ids: Vec<u32>,
    /// Utterances cut, whole or in part, because the context was too short.
    pub cut: usize,
}

/// Sequences padded on the right to a common length; B rows of T tokens, row after row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Token ids \[B, T\]; 0 where padded.
    pub ids: Vec<i64>,
    /// Loss mask \[B, T\]: whether token t is a target, predicted from position t-1; false where padded.
    pub mask: Vec<bool>,
    /// B.
    pub rows: usize,
    /// T, the longest sequence.
    pub length: usize,
}

impl Batch {
    /// Pads sequences to a batch.
    ///
    /// # Errors
    /// [`EncodeError::NoTargets`] where no sequence has a target.
    pub fn new<'sequence>(sequences: impl IntoIterator<Item = &'sequence Sequence>) -> Result<Self, EncodeError> {
        let sequences: Vec<&Sequence> = sequences.into_iter().collect();
        let (rows, length) = (sequences.len(), sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0));
        let mut batch =
            Self { ids: Vec::with_capacity(rows * length), mask: Vec::with_capacity(rows * length), rows, length };
        for sequence in sequences {
            let end = batch.ids.len() + length;
            batch.ids.extend(sequence.ids.iter().map(|&id| i64::from(id)));
            batch.ids.resize(end, 0);
            batch.mask.extend_from_slice(&sequence.target);
            batch.mask.resize(end, false);
        }
        if batch.targets() == 0 {
            return Err(EncodeError::NoTargets);
        }
        Ok(batch)
    }

    /// The number of targets.
    pub fn targets(&self) -> usize {
        self.mask.iter().filter(|target| **target).count()
    }

    /// Where targets are predicted: for each, the token before it among all B · T, from 0, and the target's id.
    pub fn predictions(&self) -> impl Iterator<Item = (usize, i64)> {
        let length = self.length.max(1);
        let rows = self.ids.chunks(length).zip(self.mask.chunks(length)).enumerate();
        rows.flat_map(move |(row, (ids, mask))| {
            predictions(ids, mask).map(move |(place, id)| (row * length + place, id))
        })
    }
}
