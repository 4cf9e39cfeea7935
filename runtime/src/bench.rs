//! How fast a bundle is on this machine.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use marionette_dialogues::Sequence;
use marionette_models::{InnerLoop, LearningRate};
use serde::Serialize;

use crate::adapt;
use crate::engine::{Engine, Rows};
use crate::error::{Error, Result};
use crate::generate::{self, Go, LanguageModel};
use crate::memory;
use crate::plan::{Fit, Plan};
use crate::sampling::{Sampler, Sampling};

/// Each part is run once to warm up and then so many times; the median is given.
pub const REPETITIONS: usize = 5;

/// The shapes of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens to generate.
    pub new_tokens: usize,
    /// B, rows of a step's batch.
    pub batch: usize,
    /// T, tokens of a row.
    pub length: usize,
}

/// How many conversations there may be side by side.
pub const MOST_CONVERSATIONS: usize = 64;

impl Shape {
    /// The most rows of a step's batch, which are all made before the first step.
    pub const MOST_ROWS: usize = 4096;

    /// Checks the shapes against the model.
    ///
    /// # Errors
    /// One is zero or does not fit the context; there are more than [`Shape::MOST_ROWS`] rows.
    pub fn check(&self, context: usize) -> Result<()> {
        let wrong = |what: String| Err(Error::Impossible(what));
        let together = self.prompt_tokens.saturating_add(self.new_tokens);
        if self.prompt_tokens == 0 || self.new_tokens == 0 || together > context {
            let (prompt, new) = (self.prompt_tokens, self.new_tokens);
            return wrong(format!(
                "--prompt-tokens {prompt} and --new-tokens {new}: expected at least 1 each and at most {context} together, the context"
            ));
        }
        if self.batch == 0 || self.batch > Self::MOST_ROWS || self.length < 2 || self.length > context {
            let (batch, length, most) = (self.batch, self.length, Self::MOST_ROWS);
            return wrong(format!(
                "--batch {batch} and --length {length}: expected 1 to {most}, and 2 to {context} (the model's context)"
            ));
        }
        Ok(())
    }
}

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Prefill and decoding
    Generate,
    /// A step of adaptation
    Adapt,
}

impl Part {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Generate, Self::Adapt];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Adapt => "adapt",
        }
    }
}

/// What a measurement says while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// A part begins.
    Begins(Part),
    /// The steps fit into the memory.
    Fits(Fit),
}

/// What `bench --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Generation, where it was measured.
    #[serde(flatten)]
    pub generation: Option<Generation>,
    /// Several conversations at once, for each number of them that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Together>,
    /// Adaptation, where it was measured.
    #[serde(flatten)]
    pub adaptation: Option<Adaptation>,
    /// The most memory that the process held, in MiB; absent where the system does not say.
    pub peak_rss_mib: Option<f64>,
}

/// How fast a reply is generated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Generation {
    /// Tokens of the prompt read a second.
    pub prefill_tokens_per_s: f64,
    /// Tokens generated a second, after the first, greedy.
    pub decode_tokens_per_s: f64,
    /// Milliseconds from the prompt to the first token.
    pub first_token_ms: f64,
}

/// How fast several conversations go on at once, each with adapters of its own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Together {
    /// How many there are.
    pub rows: usize,
    /// Tokens generated a second by all of them together, after their prompts, greedy.
    pub tokens_per_s: f64,
}

/// How fast the adapters learn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Adaptation {
    /// Tokens (B · T) learned from a second: forward, backward and update.
    pub adapt_tokens_per_s: f64,
    /// Milliseconds of one step: B rows of T tokens with the loss on each row's last quarter.
    pub adapt_step_ms: f64,
}

/// Measures all parts, or one, and so many conversations at once; adapting in no more than so many bytes of memory where there is a
/// limit. `heard` hears each part before it begins, and how steps fit into the memory.
///
/// # Errors
/// The shapes do not fit, into the context or the memory; a graph fails.
pub fn measure(
    engine: &mut Engine,
    shape: Shape,
    only: Option<Part>,
    rows: &[NonZeroUsize],
    memory_limit: Option<u64>,
    mut heard: impl FnMut(Heard),
) -> Result<Measured> {
    shape.check(engine.context())?;
    let per_second = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut measured = Measured { generation: None, rows: Vec::new(), adaptation: None, peak_rss_mib: None };
    if only != Some(Part::Adapt) {
        heard(Heard::Begins(Part::Generate));
        let (first_token, decode) = measure_generation(engine, shape)?;
        measured.generation = Some(Generation {
            prefill_tokens_per_s: per_second(shape.prompt_tokens, first_token),
            decode_tokens_per_s: per_second(shape.new_tokens - 1, decode).max(0.0),
            first_token_ms: ms(first_token),
        });
        // Each graph's memory is its own: the peak is the larger one's, as when one command does one thing.
        engine.close_graphs();
        for &rows in rows {
            let tokens = rows.get() * (shape.new_tokens - 1);
            let tokens_per_s = per_second(tokens, measure_rows(engine, shape, rows)?);
            measured.rows.push(Together { rows: rows.get(), tokens_per_s });
        }
    }
    if only != Some(Part::Generate) {
        heard(Heard::Begins(Part::Adapt));
        let plan = plan(engine, shape, memory_limit)?;
        plan.fit().into_iter().for_each(|fit| heard(Heard::Fits(fit)));
        let step = measure_adaptation(engine, &plan)?;
        measured.adaptation = Some(Adaptation {
            adapt_tokens_per_s: per_second(shape.batch * shape.length, step),
            adapt_step_ms: ms(step),
        });
    }
    measured.peak_rss_mib = memory::resident().map(|held| held.peak as f64 / f64::from(1 << 20));
    Ok(measured)
}

/// Token ids that are different enough from each other, the same every time.
fn token(index: usize, vocabulary: usize) -> usize {
    index.wrapping_mul(7919) % vocabulary
}

/// A prompt: such tokens, from one on.
fn prompt(shape: Shape, first: usize, vocabulary: usize) -> Vec<u32> {
    (first..first + shape.prompt_tokens).map(|index| token(index, vocabulary) as u32).collect()
}

/// The median times to the first token (prefill and one draw) and of all others.
fn measure_generation(engine: &mut Engine, shape: Shape) -> Result<(Duration, Duration)> {
    let model = &engine.manifest().model;
    let prompt = prompt(shape, 0, model.vocab_size);
    // No token is the end: the reply is as long as asked for.
    let no_end = u32::MAX;
    let (mut firsts, mut decodes) = (Vec::new(), Vec::new());
    for _ in 0..=REPETITIONS {
        engine.truncate(0);
        let mut sampler = Sampler::new(Sampling::GREEDY)?;
        let started = Instant::now();
        let mut first = None;
        generate::generate(engine, &mut sampler, &prompt, no_end, shape.new_tokens, |_| {
            first.get_or_insert_with(|| started.elapsed());
            Ok(Go::On)
        })?;
        let first = first.unwrap_or_default();
        firsts.push(first);
        decodes.push(started.elapsed().saturating_sub(first));
    }
    Ok((median(&firsts), median(&decodes)))
}

/// The median time of all tokens after the first of so many conversations at once.
fn measure_rows(engine: &Engine, shape: Shape, number: NonZeroUsize) -> Result<Duration> {
    let vocabulary = engine.manifest().model.vocab_size;
    let adapters = engine.adapters();
    let mut rows = Rows::open(engine, number)?;
    let mut all = Vec::new();
    for _ in 0..number.get() {
        all.push(rows.join(&adapters)?);
    }
    let (mut sampler, mut times) = (Sampler::new(Sampling::GREEDY)?, Vec::new());
    for _ in 0..=REPETITIONS {
        let mut next = Vec::new();
        for (row, &id) in all.iter().enumerate() {
            rows.truncate(id, 0);
            next.push((id, sampler.sample(rows.read(id, &prompt(shape, row, vocabulary))?, &[])?));
        }
        let started = Instant::now();
        for _ in 1..shape.new_tokens {
            rows.step(&next)?;
            for (id, token) in &mut next {
                *token = sampler.sample(rows.logits(*id).unwrap_or_default(), &[])?;
            }
        }
        times.push(started.elapsed());
    }
    Ok(median(&times))
}

/// One step for a warm-up and one for each repetition, all on the same dialogues.
fn plan(engine: &mut Engine, shape: Shape, memory_limit: Option<u64>) -> Result<Plan> {
    let vocabulary = engine.manifest().model.vocab_size;
    let quarter = (shape.length / 4).max(1);
    let row = |row: usize| Sequence {
        ids: (0..shape.length).map(|place| token(row * shape.length + place, vocabulary) as u32).collect(),
        target: (0..shape.length).map(|place| place >= shape.length - quarter).collect(),
        ..Sequence::default()
    };
    let rows: Vec<Sequence> = (0..shape.batch).map(row).collect();
    let inner = InnerLoop {
        steps: 1 + REPETITIONS,
        dialogues_per_step: shape.batch,
        // The steps change nothing, so that none of them diverges however many there are; the work is the same.
        learning_rate: LearningRate::Shared(0.0),
    };
    Plan::new(engine, &rows, &[], inner, memory_limit)
}

fn measure_adaptation(engine: &mut Engine, plan: &Plan) -> Result<Duration> {
    let mut started = Instant::now();
    let mut times = Vec::new();
    adapt::follow(engine, plan, |_, _| {
        times.push(started.elapsed());
        started = Instant::now();
        Ok(Go::On)
    })?;
    Ok(median(&times))
}

/// The median of all but the first, which warmed up.
fn median(times: &[Duration]) -> Duration {
    let mut times = times.get(1..).unwrap_or_default().to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_leaves_the_first_out() {
        let ms = |values: &[u64]| values.iter().copied().map(Duration::from_millis).collect::<Vec<_>>();
        assert_eq!(median(&ms(&[900, 3, 1, 2, 5, 4])), Duration::from_millis(3));
    }

    #[test]
    fn shapes_that_do_not_fit_the_context_are_refused() {
        let shape = Shape { prompt_tokens: 64, new_tokens: 128, batch: 4, length: 128 };
        assert!(shape.check(192).is_ok());
        assert!(shape.check(191).is_err());
        assert!(Shape { length: 193, ..shape }.check(192).is_err());
        assert!(Shape { batch: 0, ..shape }.check(192).is_err());
        assert!(Shape { prompt_tokens: 0, ..shape }.check(192).is_err());
        for huge in [1 << 40, usize::MAX / 2 + 1, usize::MAX] {
            assert!(Shape { prompt_tokens: huge, ..shape }.check(192).is_err());
            assert!(Shape { new_tokens: huge, ..shape }.check(192).is_err());
            assert!(Shape { batch: huge, ..shape }.check(192).is_err());
            assert!(Shape { length: huge, ..shape }.check(192).is_err());
        }
    }
}
