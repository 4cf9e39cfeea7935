//! Drawing the next token from a model's logits.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::kernels;

/// How a token is drawn. The order of the steps: repetition penalty, temperature, top-k, top-p, min-p, draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most probable token (greedy).
    pub temperature: f32,
    /// Only the k most probable tokens; 0 for all.
    pub top_k: usize,
    /// Only the nucleus: the fewest tokens, most probable first, whose probabilities add up to p (Holtzman et al. 2020,
    /// section 3.1); 1 for all.
    pub top_p: f32,
    /// Only tokens at least so many times as probable as the most probable one (Nguyen et al. 2024, equation 2); 0 for all.
    pub min_p: f32,
    /// θ: the logits of tokens that were there before are divided by it where positive and multiplied where negative; 1 for
    /// none (Keskar et al. 2019, section 4.1, whose formula divides either way and so favours tokens of negative logit).
    pub repetition_penalty: f32,
    /// The seed of the random numbers (ChaCha8).
    pub seed: u64,
}

impl Sampling {
    /// Always the most probable token.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 };
}

impl Default for Sampling {
    /// Transfertransfo's decoding: temperature 0.7, nucleus 0.9.
    fn default() -> Self {
        Self { temperature: 0.7, top_k: 0, top_p: 0.9, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
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

/// The nucleus is looked for among tokens that are at most so many times less probable than the first, then among so many times as
/// many, and so on: a full sort of GPT-2's vocabulary would take a fifth of a token's time.
const FIRST_SORTED: f32 = 16.0;
/// The greatest logits are looked for in so many places, each the greatest of its own.
const PLACE: usize = 32;

/// Draws tokens. Nothing is allocated for a token after the first.
pub struct Sampler {
    options: Sampling,
    random: ChaCha8Rng,
    /// The logits after the penalty, then what the tokens' probabilities are proportional to.
    values: Vec<f32>,
    /// The same and the token, of those among which the draw is.
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
        let Sampling { temperature: t, top_p: p, min_p: m, repetition_penalty: r, .. } = options;
        check("--temperature", t, t.is_finite() && t >= 0.0, "a number from 0")?;
        check("--top-p", p, p > 0.0 && p <= 1.0, "a number above 0, at most 1")?;
        check("--min-p", m, (0.0..=1.0).contains(&m), "a number from 0 to 1")?;
        check("--repetition-penalty", r, r.is_finite() && r > 0.0, "a number above 0")?;
        let random = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self { options, random, values: Vec::new(), candidates: Vec::new(), seen: Vec::new() })
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
        // Whole rows at a time: a search that may end at any logit takes ten times as long.
        let is_possible = |logit: f32| logit < f32::INFINITY;
        let (possible, greatest) = logits.iter().fold((true, f32::NEG_INFINITY), |(possible, greatest), &logit| {
            (possible & is_possible(logit), if logit > greatest { logit } else { greatest })
        });
        if !possible || greatest == f32::NEG_INFINITY {
            let found = logits.iter().position(|&logit| !is_possible(logit)).unwrap_or(0);
            return Err(SamplingError::Logit { token: found, value: logits.get(found).copied().unwrap_or(f32::NAN) });
        }
        if self.options.temperature == 0.0 && self.options.repetition_penalty == 1.0 {
            return Ok(logits.iter().position(|&logit| logit == greatest).unwrap_or(0) as u32);
        }
        self.values.clear();
        self.values.extend_from_slice(logits);
        self.penalise(history);
        let greatest =
            self.values.iter().fold(f32::NEG_INFINITY, |most, &value| if value > most { value } else { most });
        let best = self.values.iter().position(|&value| value == greatest).unwrap_or(0) as u32;
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.options;
        if temperature == 0.0 {
            return Ok(best);
        }
        self.candidates.clear();
        let mut kept = if top_k > 0 && top_k < self.values.len() {
            self.take_greatest(top_k);
            // The greatest becomes 1, so nothing overflows however small the temperature.
            for (value, _) in &mut self.candidates {
                *value = ((*value - greatest) / temperature).exp();
            }
            let total = self.candidates.iter().map(|(value, _)| f64::from(*value)).sum::<f64>();
            if top_p < 1.0 { self.nucleus(f64::from(top_p) * total) } else { None }
        } else {
            let total = kernels::logits::exponentials(&mut self.values, greatest, temperature.recip());
            if top_p < 1.0 {
                self.take_nucleus(f64::from(top_p) * total)
            } else {
                self.candidates.extend(self.values.iter().copied().zip(0..));
                None
            }
        };
        if min_p > 0.0 {
            // The most probable one has weight 1.
            self.candidates.truncate(kept.take().unwrap_or(self.candidates.len()));
            self.candidates.retain(|(weight, _)| *weight >= min_p);
        }
        Ok(self.draw(kept.unwrap_or(self.candidates.len())).unwrap_or(best))
    }

    /// How tokens are drawn.
    pub fn options(&self) -> Sampling {
        self.options
    }

    fn penalise(&mut self, history: &[u32]) {
        let penalty = self.options.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        self.seen.clear();
        self.seen.resize(self.values.len(), false);
        for &token in history {
            let token = token as usize;
            if let (Some(seen), Some(value)) = (self.seen.get_mut(token), self.values.get_mut(token)) {
                let factor = if *value > 0.0 { penalty.recip() } else { penalty };
                *value *= if std::mem::replace(seen, true) { 1.0 } else { factor };
            }
        }
    }

    /// Makes the k greatest values candidates.
    fn take_greatest(&mut self, k: usize) {
        // At least k values are no less than the k-th of the places' greatest.
        let greatest = |place: &[f32]| place.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let places = self.values.chunks(PLACE).map(|place| (greatest(place), 0));
        self.candidates.extend(places);
        let bound = if k <= self.candidates.len() {
            let (_, (bound, _), _) = self.candidates.select_nth_unstable_by(k - 1, most_probable_first);
            *bound
        } else {
            f32::NEG_INFINITY
        };
        self.candidates.clear();
        self.candidates.extend(self.values.iter().copied().zip(0..).filter(|(value, _)| *value >= bound));
        self.candidates.select_nth_unstable_by(k - 1, most_probable_first);
        self.candidates.truncate(k);
    }

    /// Makes candidates of tokens that hold the nucleus, whose weights add up to `wanted`: sorts them, and gives its size.
    fn take_nucleus(&mut self, wanted: f64) -> Option<usize> {
        let mut least = FIRST_SORTED.recip();
        while least > 0.0 {
            if kernels::logits::sum_of_at_least(&self.values, least) >= wanted {
                self.candidates.extend(self.values.iter().copied().zip(0..).filter(|(value, _)| *value >= least));
                if let Some(size) = self.nucleus(wanted) {
                    return Some(size);
                }
                self.candidates.clear();
            }
            least /= FIRST_SORTED;
        }
        self.candidates.extend(self.values.iter().copied().zip(0..));
        self.nucleus(wanted)
    }

    /// Sorts the candidates, most probable first, and gives the size of the nucleus, whose weights add up to `wanted`, if they do.
    fn nucleus(&mut self, wanted: f64) -> Option<usize> {
        self.candidates.sort_unstable_by(most_probable_first);
        let mut sum = 0.0;
        let size = self.candidates.iter().position(|(weight, _)| {
            sum += f64::from(*weight);
            sum >= wanted
        });
        size.map(|last| last + 1)
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
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 7 }
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
    fn min_p_is_relative_to_the_most_probable() {
        let least = |min_p| Sampling { min_p, ..plain() };
        assert_shares(&shares(least(0.5), &logits(), &[]), &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        assert_shares(&shares(least(0.2), &logits(), &[]), &[0.5, 0.25, 0.125, 0.125]);
        assert_shares(&shares(least(1.0), &logits(), &[]), &[1.0, 0.0, 0.0, 0.0]);
        // After the nucleus and the k most probable, of what is left: three, and of these the ones above 0.3 of the first.
        for nucleus in [Sampling { top_p: 0.8, ..least(0.3) }, Sampling { top_k: 3, ..least(0.3) }] {
            assert_shares(&shares(nucleus, &logits(), &[]), &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        }
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
            Sampling { min_p: -0.1, ..plain() },
            Sampling { min_p: 1.1, ..plain() },
            Sampling { min_p: f32::NAN, ..plain() },
            Sampling { repetition_penalty: 0.0, ..plain() },
        ] {
            assert!(Sampler::new(options).is_err(), "{options:?}");
        }
    }
}
