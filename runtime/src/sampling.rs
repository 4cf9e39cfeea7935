//! Drawing the next token from a model's logits.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// How a token is drawn. The order of the steps: repetition penalty, temperature, top-k, top-p, draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most probable token (greedy).
    pub temperature: f32,
    /// Only the k most probable tokens; 0 for all.
    pub top_k: usize,
    /// Only the nucleus: the fewest tokens, most probable first, whose probabilities add up to p (Holtzman et al. 2020,
    /// section 3.1); 1 for all.
    pub top_p: f32,
    /// θ: the logits of tokens that were there before are divided by it where positive and multiplied where negative; 1 for
    /// none (Keskar et al. 2019, section 4.1, whose formula divides either way and so favours tokens of negative logit).
    pub repetition_penalty: f32,
    /// The seed of the random numbers (ChaCha8).
    pub seed: u64,
}

impl Sampling {
    /// Always the most probable token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 };
}

impl Default for Sampling {
    /// Transfertransfo's decoding: temperature 0.7, nucleus 0.9.
    fn default() -> Self {
        Self { temperature: 0.7, top_k: 0, top_p: 0.9, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Why no token can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// An option is out of its range.
    #[error("{option} is {value}, expected {expected}")]
    Option {
        /// Its name on the command line.
        option: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// The model gave something that is no distribution.
    #[error(
        "the model's logit of token {token} is {value}: the adapters do not fit or have diverged; adapt the persona again"
    )]
    Logit {
        /// The token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// The model gave no logits.
    #[error("the model gave no logits")]
    NoLogits,
}

/// The nucleus is looked for among this many most probable tokens first, then among four times as many, and so on: a full
/// sort of GPT-2's vocabulary would take a fifth of a token's time.
const FIRST_SORTED: usize = 256;

/// Draws tokens. Nothing is allocated for a token after the first.
pub struct Sampler {
    options: Sampling,
    random: ChaCha8Rng,
    /// Logit, then probability, and token.
    candidates: Vec<(f32, u32)>,
    /// Whether a token was there before, by id.
    seen: Vec<bool>,
}

impl Sampler {
    /// A sampler with its own stream of random numbers.
    ///
    /// # Errors
    /// [`SamplingError::Option`].
    pub fn new(options: Sampling) -> Result<Self, SamplingError> {
        let check = |option, value: f32, good: bool, expected| {
            if good { Ok(()) } else { Err(SamplingError::Option { option, value, expected }) }
        };
        let Sampling { temperature: t, top_p: p, repetition_penalty: r, .. } = options;
        check("--temperature", t, t.is_finite() && t >= 0.0, "a number from 0")?;
        check("--top-p", p, p > 0.0 && p <= 1.0, "a number above 0, at most 1")?;
        check("--repetition-penalty", r, r.is_finite() && r > 0.0, "a number above 0")?;
        let random = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self { options, random, candidates: Vec::new(), seen: Vec::new() })
    }

    /// Draws a token. `logits` \[V\] are the model's; `history` is what the repetition penalty counts as there before.
    ///
    /// Between tokens of equal probability the one with the lower id comes first.
    ///
    /// # Errors
    /// [`SamplingError::Logit`] for a logit that is NaN or +∞, or where all are −∞; [`SamplingError::NoLogits`].
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SamplingError> {
        if logits.is_empty() {
            return Err(SamplingError::NoLogits);
        }
        if let Some((token, &value)) =
            logits.iter().enumerate().find(|(_, logit)| logit.is_nan() || **logit == f32::INFINITY)
        {
            return Err(SamplingError::Logit { token, value });
        }
        self.candidates.clear();
        self.candidates.extend(logits.iter().copied().zip(0..));
        self.penalise(history);
        let Some(&best) = self.candidates.iter().reduce(|best, next| if next.0 > best.0 { next } else { best }) else {
            return Err(SamplingError::NoLogits);
        };
        if best.0 == f32::NEG_INFINITY {
            return Err(SamplingError::Logit { token: best.1 as usize, value: best.0 });
        }
        if self.options.temperature == 0.0 {
            return Ok(best.1);
        }
        if self.options.top_k > 0 && self.options.top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(self.options.top_k - 1, most_probable_first);
            self.candidates.truncate(self.options.top_k);
        }
        // Unnormalised probabilities; the greatest is 1, so nothing overflows however small the temperature.
        let mut total = 0.0;
        for (value, _) in &mut self.candidates {
            *value = ((*value - best.0) / self.options.temperature).exp();
            total += f64::from(*value);
        }
        let kept = if self.options.top_p < 1.0 { self.nucleus(total) } else { self.candidates.len() };
        Ok(self.draw(kept).unwrap_or(best.1))
    }

    fn penalise(&mut self, history: &[u32]) {
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        self.seen.clear();
        self.seen.resize(self.candidates.len(), false);
        for &token in history {
            if let Some(seen) = self.seen.get_mut(token as usize) {
                *seen = true;
            }
        }
        for ((logit, _), _) in self.candidates.iter_mut().zip(&self.seen).filter(|(_, seen)| **seen) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }

    /// Puts the nucleus in front, most probable first, and gives its size.
    fn nucleus(&mut self, total: f64) -> usize {
        let wanted = f64::from(self.options.top_p) * total;
        let mut sorted = FIRST_SORTED;
        loop {
            let all = sorted >= self.candidates.len();
            if !all {
                self.candidates.select_nth_unstable_by(sorted - 1, most_probable_first);
            }
            let end = sorted.min(self.candidates.len());
            let front = self.candidates.get_mut(..end).unwrap_or_default();
            front.sort_unstable_by(most_probable_first);
            let mut sum = 0.0;
            for (index, (probability, _)) in front.iter().enumerate() {
                sum += f64::from(*probability);
                if sum >= wanted {
                    return index + 1;
                }
            }
            if all {
                return end;
            }
            sorted *= 4;
        }
    }

    /// Draws among the first `kept` candidates in proportion to their probabilities.
    fn draw(&mut self, kept: usize) -> Option<u32> {
        let kept = self.candidates.get(..kept)?;
        let total: f64 = kept.iter().map(|(probability, _)| f64::from(*probability)).sum();
        let mut left = self.random.random::<f64>() * total;
        for (probability, token) in kept {
            left -= f64::from(*probability);
            if left < 0.0 {
                return Some(*token);
            }
        }
        // Rounding may leave a little: the last one that can be drawn at all.
        kept.iter().rev().find(|(probability, _)| *probability > 0.0).map(|(_, token)| *token)
    }
}

fn most_probable_first(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of `tokens` tokens comes in 20,000 draws, as a share.
    fn shares(options: Sampling, logits: &[f32], history: &[u32]) -> Vec<f64> {
        const DRAWS: usize = 20_000;
        let mut sampler = Sampler::new(options).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..DRAWS {
            counts[sampler.sample(logits, history).unwrap() as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / DRAWS as f64).collect()
    }

    /// Four standard deviations of a share over 20,000 draws are at most 0.0142.
    fn assert_shares(got: &[f64], expected: &[f64]) {
        for (got_one, expected_one) in got.iter().zip(expected) {
            assert!((got_one - expected_one).abs() < 0.0142, "{got:?}, expected {expected:?}");
            assert_eq!(*got_one == 0.0, *expected_one == 0.0, "{got:?}, expected {expected:?}");
        }
    }

    fn plain() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 7 }
    }

    /// Probabilities 0.5, 0.25, 0.125, 0.125.
    fn logits() -> Vec<f32> {
        [0.5_f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn plain_sampling_follows_the_distribution() {
        assert_shares(&shares(plain(), &logits(), &[]), &[0.5, 0.25, 0.125, 0.125]);
    }

    #[test]
    fn temperature_is_a_power_of_the_probabilities() {
        // At temperature 1/2 probabilities are squared: 1/4, 1/16, 1/64, 1/64, over 22/64.
        let expected = [16.0 / 22.0, 4.0 / 22.0, 1.0 / 22.0, 1.0 / 22.0];
        assert_shares(&shares(Sampling { temperature: 0.5, ..plain() }, &logits(), &[]), &expected);
    }

    #[test]
    fn temperature_zero_takes_the_best_and_of_equals_the_first() {
        let mut sampler = Sampler::new(Sampling::GREEDY).unwrap();
        assert_eq!(sampler.sample(&[0.0, 3.0, 1.0, 3.0], &[]), Ok(1));
        // Nearly zero is nearly greedy, without overflow.
        let cold = Sampling { temperature: 1e-30, ..plain() };
        assert_shares(&shares(cold, &[0.0, 100.0, -100.0], &[]), &[0.0, 1.0, 0.0]);
    }

    #[test]
    fn top_k_keeps_k_and_of_equals_the_first() {
        let top = |top_k| Sampling { top_k, ..plain() };
        assert_shares(&shares(top(2), &logits(), &[]), &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        assert_shares(&shares(top(3), &logits(), &[]), &[4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0, 0.0]);
        assert_shares(&shares(top(100), &logits(), &[]), &[0.5, 0.25, 0.125, 0.125]);
    }

    #[test]
    fn the_nucleus_is_the_fewest_tokens_that_reach_p() {
        let nucleus = |top_p| Sampling { top_p, ..plain() };
        assert_shares(&shares(nucleus(0.5), &logits(), &[]), &[1.0, 0.0, 0.0, 0.0]);
        assert_shares(&shares(nucleus(0.51), &logits(), &[]), &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        // 0.8 needs three, and of the two equal ones the first.
        assert_shares(&shares(nucleus(0.8), &logits(), &[]), &[4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0, 0.0]);
        assert_shares(&shares(nucleus(1e-6), &logits(), &[]), &[1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_nucleus_of_a_flat_distribution_is_found_beyond_the_first_tokens_sorted() {
        // 1,000 equal tokens: p = 0.5 keeps exactly the first 500.
        let mut sampler = Sampler::new(Sampling { top_p: 0.5, ..plain() }).unwrap();
        let drawn: Vec<u32> = (0..5000).map(|_| sampler.sample(&[0.0; 1000], &[]).unwrap()).collect();
        assert!(drawn.iter().all(|&token| token < 500));
        assert!(drawn.iter().any(|&token| token > 450));
    }

    #[test]
    fn the_repetition_penalty_lowers_positive_and_negative_logits() {
        let penalty = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
        let mut sampler = Sampler::new(penalty).unwrap();
        assert_eq!(sampler.sample(&[3.0, 2.0], &[]), Ok(0));
        assert_eq!(sampler.sample(&[3.0, 2.0], &[0]), Ok(1));
        // Twice in the history counts once: 3 / 2 > 1.
        assert_eq!(sampler.sample(&[3.0, 1.0], &[0, 0, 0]), Ok(0));
        assert_eq!(sampler.sample(&[-1.0, -1.5], &[0]), Ok(1));
        // A token beyond the vocabulary is no one's.
        assert_eq!(sampler.sample(&[3.0, 2.0], &[99]), Ok(0));
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..plain() }).unwrap();
            (0..64).map(|_| sampler.sample(&logits(), &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn what_is_no_distribution_is_an_error() {
        for options in [plain(), Sampling::GREEDY] {
            let mut sampler = Sampler::new(options).unwrap();
            assert!(matches!(sampler.sample(&[0.0, f32::NAN], &[]), Err(SamplingError::Logit { token: 1, .. })));
            assert!(sampler.sample(&[0.0, f32::INFINITY], &[]).is_err());
            assert!(sampler.sample(&[f32::NEG_INFINITY; 3], &[]).is_err());
            assert_eq!(sampler.sample(&[], &[]), Err(SamplingError::NoLogits));
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY, 0.0], &[]), Ok(1));
        }
    }

    #[test]
    fn impossible_options_are_refused() {
        for options in [
            Sampling { temperature: -0.1, ..plain() },
            Sampling { temperature: f32::NAN, ..plain() },
            Sampling { temperature: f32::INFINITY, ..plain() },
            Sampling { top_p: 0.0, ..plain() },
            Sampling { top_p: 1.1, ..plain() },
            Sampling { top_p: f32::NAN, ..plain() },
            Sampling { repetition_penalty: 0.0, ..plain() },
        ] {
            assert!(Sampler::new(options).is_err(), "{options:?}");
        }
    }
}
