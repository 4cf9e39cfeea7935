//! How an inner loop is computed: which dialogues at once, and, where memory is limited, how a step is made to fit.

use std::fmt;

use bytesize::ByteSize;
use marionette_dialogues::{Batch, EncodeError, Sequence};
use marionette_models::InnerLoop;
use marionette_models::bundle::RunMemory;

use crate::engine::{Activations, Engine};
use crate::error::{Error, Result};
use crate::memory::{self, Resident};
use crate::session::Provider;

/// The most tokens that are computed at once, padding counted; a longer dialogue is computed by itself. More at once need more memory
/// and are no faster.
const TOKENS_AT_ONCE: usize = 512;
/// The most padding, as a part of the tokens.
const MOST_PADDING: f64 = 0.1;
/// One part in so many is lost in gaps between the values. Measured at GPT-2 small, ONNX Runtime's arena loses one in 14 to 19.
const GAPS: u64 = 8;
/// How many copies of the adapters there are beside the graph's: what the persona was, or the best so far; what it becomes; and that as
/// it is written.
const COPIES: u64 = 3;

/// An inner loop in the order and the parts in which it is computed.
pub struct Plan {
    inner: InnerLoop,
    /// One pass over the dialogues: the parts of each step.
    epoch: Vec<Vec<Batch>>,
    /// The parts of the dialogues by which it is judged what was learned.
    held_out: Vec<Batch>,
    activations: Activations,
    fit: Option<Fit>,
}

/// How the steps fit into a limited memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// The limit, in bytes.
    pub limit: u64,
    /// The bytes that the process holds before the first step: itself, the weights, and what ONNX Runtime makes of them.
    pub base: u64,
    /// A bound of the bytes that it holds in a step.
    pub most: u64,
    /// The rows and the length of the largest part.
    pub part: [usize; 2],
    /// What becomes of activations.
    pub activations: Activations,
}

impl Plan {
    /// Plans the inner loop for these dialogues, and how those of `held_out` are judged, if any. Where `limit` bytes are the most that the process may hold, the engine opens the graph
    /// that it will need: a step is computed in more parts first, and where the longest dialogue alone takes too much,
    /// activations are computed twice.
    ///
    /// # Errors
    /// There is nothing to learn from, or there are more than [`InnerLoop::MOST_STEPS`] steps. The limit is too low, or this system does not say what a process holds.
    pub fn new(
        engine: &mut Engine,
        support: &[Sequence],
        held_out: &[Sequence],
        inner: InnerLoop,
        limit: Option<u64>,
    ) -> Result<Self> {
        if inner.steps > InnerLoop::MOST_STEPS {
            let (steps, most) = (inner.steps, InnerLoop::MOST_STEPS);
            return Err(Error::Impossible(format!("{steps} steps, expected at most {most}: take fewer --epochs")));
        }
        // Of one pass alone: the steps after it repeat it.
        let steps: Vec<Vec<&Sequence>> = inner
            .pass(support.len())
            .take(inner.steps)
            .map(|batch| support.get(batch).unwrap_or_default().iter().collect())
            .collect();
        let held_out: Vec<&Sequence> = held_out.iter().filter(|sequence| sequence.targets() > 0).collect();
        engine.forget_dialogues(None);
        let Some(limit) = limit else {
            let epoch = steps.iter().map(|step| parts(step, |_, _, _| true)).collect::<Result<_>>()?;
            let held_out = parts_or_none(&held_out, |_, _, _| true)?;
            return Ok(Self { inner, epoch, held_out, activations: Activations::Kept, fit: None });
        };
        if engine.provider() != Provider::Cpu {
            let problem = "--memory-limit counts the computer's memory, not the GPU's: leave it out, or use --ep cpu";
            return Err(Error::Impossible(problem.into()));
        }
        let mut least = u64::MAX;
        for activations in [Activations::Kept, Activations::Recomputed] {
            let step = engine.step_memory(activations)?;
            engine.prepare_adaptation(activations)?;
            let Some(held) = memory::resident() else {
                let problem = "--memory-limit needs Linux: this system does not say what a program holds";
                return Err(Error::Impossible(problem.into()));
            };
            match fit(&steps, &held_out, activations, step, in_use(engine, held), limit)? {
                Fitted::In(epoch, held_out, mut fit) => {
                    // Of what lies below the adapters as much is kept as there is room for.
                    let parts = epoch.iter().flatten().chain(&held_out);
                    let all = parts.fold(0_u64, |all, part| all.saturating_add(engine.hidden_bytes(part)));
                    let kept = all.min(limit.saturating_sub(fit.most));
                    engine.forget_dialogues(Some(kept));
                    fit.most += kept;
                    return Ok(Self { inner, epoch, held_out, activations, fit: Some(fit) });
                }
                Fitted::Needs(bytes) => least = least.min(bytes),
            }
        }
        let [limit, least] = [limit, whole_mebibytes(least)].map(ByteSize);
        Err(Error::Impossible(format!("--memory-limit {limit}: these dialogues need {least} on this device")))
    }

    /// The inner loop.
    pub fn inner(&self) -> &InnerLoop {
        &self.inner
    }

    /// What becomes of activations.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// How the steps fit, where memory is limited.
    pub fn fit(&self) -> Option<Fit> {
        self.fit
    }

    /// The steps of one pass over the dialogues.
    pub fn pass(&self) -> usize {
        self.epoch.len().max(1)
    }

    /// The parts of the first step.
    pub fn first(&self) -> &[Batch] {
        self.epoch.first().map(Vec::as_slice).unwrap_or_default()
    }

    /// The parts of all dialogues that the steps reach.
    pub fn all(&self) -> Vec<Batch> {
        self.epoch.concat()
    }

    /// The parts of the held-out dialogues.
    pub fn held_out(&self) -> &[Batch] {
        &self.held_out
    }

    /// The tokens of all steps and of all judgements of the held-out dialogues, padding counted: before the first step, after each pass and at
    /// the end.
    pub fn tokens(&self) -> usize {
        let judgements = 1 + self.inner.steps.div_ceil(self.pass());
        self.steps().map(tokens).sum::<usize>() + judgements * tokens(&self.held_out)
    }

    /// The bytes that the values of the largest part take, as far as the bundle says.
    pub fn values(&self, engine: &Engine) -> Option<u64> {
        let step = engine.step_memory(self.activations).ok()?;
        let parts = self.epoch.iter().flatten().chain(&self.held_out);
        parts.map(|part| with_gaps(step.of(part.rows, part.length, part.targets()))).max()
    }

    /// The parts of each step, in the steps' order.
    pub fn steps(&self) -> impl Iterator<Item = &[Batch]> {
        self.epoch.iter().map(Vec::as_slice).cycle().take(self.inner.steps)
    }
}

/// A bound of the bytes that this process holds while it learns from a dialogue of `length` tokens, every one of them a reply's; none where the
/// system does not say what it holds. Opens the graph of the steps.
///
/// # Errors
/// The graph cannot be opened, or the manifest does not say what it takes.
pub fn most_for(engine: &mut Engine, length: usize) -> Result<Option<u64>> {
    let step = engine.step_memory(Activations::Kept)?;
    engine.prepare_adaptation(Activations::Kept)?;
    Ok(memory::resident().map(|held| whole(in_use(engine, held), step, 1, length, length)))
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [limit, base, most] = [self.limit, self.base, self.most].map(ByteSize);
        let [rows, length] = self.part;
        let activations = match self.activations {
            Activations::Kept => "kept",
            Activations::Recomputed => "computed twice",
        };
        write!(
            f,
            "memory limit {limit}: at most {rows} x {length} tokens at once, activations {activations}; \
             {base} before the first step, at most {most} in a step"
        )
    }
}

/// As whole MiB, rounded up; what is beyond all numbers stays the greatest.
fn whole_mebibytes(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(1 << 20).unwrap_or(u64::MAX)
}

/// The tokens of parts, padding counted: what they cost.
pub(crate) fn tokens(parts: &[Batch]) -> usize {
    parts.iter().map(|part| part.rows * part.length).sum()
}

/// What values take, with the gaps between them.
fn with_gaps(values: u64) -> u64 {
    values.saturating_add(values / GAPS)
}

/// What the process holds once all weights were read, and adapters copied.
fn in_use(engine: &Engine, held: Resident) -> Resident {
    let held = held.with_weights();
    Resident { now: held.now.saturating_add(COPIES.saturating_mul(engine.adapter_bytes())), ..held }
}

/// What the process holds in a step, where it held `held` before.
fn whole(held: Resident, step: RunMemory, rows: usize, length: usize, targets: usize) -> u64 {
    held.now.saturating_add(with_gaps(step.of(rows, length, targets))).max(held.peak)
}

/// Whether the steps fit.
#[derive(Debug, PartialEq)]
enum Fitted {
    /// In these parts, of the steps and of the held-out dialogues.
    In(Vec<Vec<Batch>>, Vec<Batch>, Fit),
    /// Not below so many bytes.
    Needs(u64),
}

/// The parts of the steps where `held` is there before the first of them.
fn fit(
    steps: &[Vec<&Sequence>],
    held_out: &[&Sequence],
    activations: Activations,
    step: RunMemory,
    held: Resident,
    limit: u64,
) -> Result<Fitted> {
    let whole = |rows, length, targets| whole(held, step, rows, length, targets);
    let one = |sequence: &&Sequence| whole(1, sequence.ids.len(), sequence.targets());
    let needed =
        steps.iter().flatten().chain(held_out).filter(|sequence| sequence.targets() > 0).map(one).max().unwrap_or(0);
    if needed > limit {
        return Ok(Fitted::Needs(needed));
    }
    let fits = |rows, length, targets| whole(rows, length, targets) <= limit;
    let epoch: Vec<Vec<Batch>> = steps.iter().map(|step| parts(step, fits)).collect::<Result<_>>()?;
    let held_out = parts_or_none(held_out, fits)?;
    let of = |part: &Batch| whole(part.rows, part.length, part.targets());
    let largest = epoch.iter().flatten().chain(&held_out).max_by_key(|part| of(part));
    let (most, part) = largest.map_or((held.peak, [0, 0]), |part| (of(part), [part.rows, part.length]));
    Ok(Fitted::In(epoch, held_out, Fit { limit, base: held.now, most, part, activations }))
}

/// As [`parts`], but of nothing there are none.
fn parts_or_none(sequences: &[&Sequence], fits: impl Fn(usize, usize, usize) -> bool) -> Result<Vec<Batch>> {
    if sequences.is_empty() { Ok(Vec::new()) } else { parts(sequences, fits) }
}

/// A step's dialogues in parts of nearly equal lengths, so that next to nothing of what is computed is padding, and of so many rows,
/// tokens a row and targets as `fits` allows; one row always fits.
fn parts(sequences: &[&Sequence], fits: impl Fn(usize, usize, usize) -> bool) -> Result<Vec<Batch>> {
    // What has no target changes nothing.
    let mut rest: Vec<&Sequence> = sequences.iter().copied().filter(|sequence| sequence.targets() > 0).collect();
    rest.sort_by_key(|sequence| std::cmp::Reverse(sequence.ids.len()));
    let mut parts = Vec::new();
    while let Some(longest) = rest.first().map(|sequence| sequence.ids.len()) {
        let (mut tokens, mut targets) = (0, 0);
        let belongs = |(index, sequence): (usize, &&Sequence)| {
            tokens += sequence.ids.len();
            targets += sequence.targets();
            let (rows, padded) = (index + 1, (index + 1) * longest);
            let is_dense = padded as f64 <= (1.0 + MOST_PADDING) * tokens as f64;
            index == 0 || (padded <= TOKENS_AT_ONCE && is_dense && fits(rows, longest, targets))
        };
        let count = rest.iter().enumerate().map(belongs).take_while(|belongs| *belongs).count();
        parts.push(Batch::new(rest.drain(..count))?);
    }
    if parts.is_empty() {
        return Err(EncodeError::NoTargets.into());
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last token is the target.
    fn sequence(length: usize) -> Sequence {
        Sequence {
            ids: vec![length as u32; length],
            target: (0..length).map(|token| token + 1 == length).collect(),
            ..Sequence::default()
        }
    }

    fn shapes(parts: &[Batch]) -> Vec<[usize; 2]> {
        parts.iter().map(|part| [part.rows, part.length]).collect()
    }

    #[test]
    fn parts_hold_every_dialogue_once_with_little_padding() {
        let lengths = [30, 211, 200, 29, 600, 31, 205, 28, 90, 3];
        let mut sequences: Vec<Sequence> = lengths.into_iter().map(sequence).collect();
        sequences.push(Sequence { ids: vec![7; 50], target: vec![false; 50], ..Sequence::default() });
        let sequences: Vec<&Sequence> = sequences.iter().collect();
        let parts = parts(&sequences, |_, _, _| true).unwrap();
        assert_eq!(shapes(&parts), [[1, 600], [2, 211], [1, 200], [1, 90], [4, 31], [1, 3]]);
        let mut found: Vec<i64> =
            parts.iter().flat_map(|part| part.ids.chunks(part.length).map(|row| row[0])).collect();
        found.sort_unstable();
        let mut expected = lengths.map(|length| length as i64);
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(super::parts(&sequences[10..], |_, _, _| true).is_err());
    }

    #[test]
    fn a_step_takes_no_more_than_there_is() {
        let sequences: Vec<Sequence> = [60, 100, 100, 100, 100].into_iter().map(sequence).collect();
        let steps = vec![sequences[..1].iter().collect(), sequences[1..].iter().collect()];
        // 1,000 bytes before a step; 16 a token, 8 a pair of tokens and 80 a target beside 160.
        let step = RunMemory { constant: 160, token: 16, pair: 8, target: 80 };
        let held = Resident { now: 1000, peak: 1500 };
        let fit = |limit| fit(&steps, &[], Activations::Kept, step, held, limit).unwrap();
        // A row of 100 takes 160 + 1,600 + 80,000 + 80 bytes, each further one 81,680; and an eighth of it is lost.
        let Fitted::In(epoch, _, found) = fit(1000 + (160 + 2 * 81_680) / 8 * 9 + 7) else { panic!() };
        assert_eq!(
            epoch.iter().map(|parts| shapes(parts)).collect::<Vec<_>>(),
            [[[1, 60]; 1].to_vec(), vec![[2, 100]; 2]]
        );
        assert_eq!((found.base, found.most, found.part), (1000, 184_960, [2, 100]));
        let Fitted::In(epoch, ..) = fit(1000 + (160 + 81_680) / 8 * 9) else { panic!() };
        assert_eq!(epoch.iter().map(Vec::len).sum::<usize>(), 5);
        assert_eq!(fit(93_069), Fitted::Needs(93_070));
        // What opening the graph took is over, but was taken.
        let held = Resident { peak: 200_000, ..held };
        assert_eq!(super::fit(&steps, &[], Activations::Kept, step, held, 190_000).unwrap(), Fitted::Needs(200_000));
        // What is judged has to fit too.
        let long = sequence(200);
        let fitted = super::fit(&steps[..1], &[&long], Activations::Kept, step, held, 300_000).unwrap();
        assert_eq!(fitted, Fitted::Needs(1000 + (160 + 16 * 200 + 8 * 40_000 + 80) / 8 * 9));
    }

    #[test]
    fn what_is_needed_is_never_said_to_be_nothing() {
        let sequences = [sequence(100)];
        let step = RunMemory { constant: 1, token: 1, pair: u64::MAX, target: 1 };
        let held = Resident { now: 1000, peak: 1500 };
        let steps = vec![sequences.iter().collect()];
        let Fitted::Needs(bytes) = super::fit(&steps, &[], Activations::Kept, step, held, 1 << 30).unwrap() else {
            panic!()
        };
        assert_eq!(whole_mebibytes(bytes), u64::MAX);
        assert_eq!([0, 1, 1 << 20, (1 << 20) + 1].map(whole_mebibytes), [0, 1 << 20, 1 << 20, 2 << 20]);
    }
}
