//! Two learners on the same replies.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::interval::ratio_interval;
use crate::metrics::Tally;
use crate::report::Cell;

/// Samples of a bootstrap.
const SAMPLES: usize = 10_000;
/// With so many clusters the linearised variance is good enough, and draws nothing.
const MANY: usize = 100;
/// Of the random numbers, so that the same figures give the same interval.
const SEED: u64 = 1;

/// A difference, with its 95 % interval over personas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// The difference.
    pub value: f64,
    /// `[low, high]`.
    pub interval: [f64; 2],
}

/// How far one learner is from another on the same replies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Of the perplexity, in per cent of the other's.
    pub perplexity: Option<Change>,
    /// Of Hits@1, in points of a per cent.
    pub hits_at_1: Option<Change>,
    /// Of F1, in points of a per cent.
    pub f1: Option<Change>,
}

impl Difference {
    /// One learner's tests less another's of the same personas and replies. Each persona is a cluster: its mean difference, weighted
    /// by its replies. So the seeds of a training, whose tests of a persona are added up, need not be as many for both.
    /// `None` where the cells are of other personas.
    pub fn of(one: &Cell, other: &Cell) -> Option<Self> {
        if one.personas.len() != other.personas.len() {
            return None;
        }
        let change = |of: fn(&Tally) -> (f64, usize)| {
            let pairs: Vec<(f64, f64)> =
                one.personas.iter().zip(&other.personas).filter_map(|pair| of_pair(of, pair)).collect();
            let (differences, weights) = pairs.iter().fold((0.0, 0.0), |(y, x), pair| (y + pair.0, x + pair.1));
            let interval = if pairs.len() < MANY { bootstrap(&pairs) } else { ratio_interval(pairs) }?;
            Some(Change { value: differences / weights, interval })
        };
        let turned = |change: Change, turn: fn(f64) -> f64| Change {
            value: turn(change.value),
            interval: change.interval.map(turn),
        };
        let per_cent = |share: f64| 100.0 * share;
        Some(Self {
            // exp(a - b) is the quotient of two perplexities.
            perplexity: change(Tally::nats).map(|nats| turned(nats, |nats| 100.0 * nats.exp_m1())),
            hits_at_1: change(Tally::hit_share).map(|share| turned(share, per_cent)),
            f1: change(Tally::f1_share).map(|share| turned(share, per_cent)),
        })
    }
}

/// A persona's difference of means times its weight, and the weight; none where either has no count.
fn of_pair(of: fn(&Tally) -> (f64, usize), (one, other): (&Tally, &Tally)) -> Option<(f64, f64)> {
    let ((y, n), (other_y, m)) = (of(one), of(other));
    let weight = m as f64;
    (n > 0 && m > 0).then(|| (weight * (y / n as f64 - other_y / weight), weight))
}

/// The 95 % interval of Σy/Σx over n clusters by the percentile bootstrap: n of them are drawn with replacement 10,000 times, and the
/// interval is what the middle 95 % of the quotients span (Efron & Tibshirani 1993, An Introduction to the Bootstrap, 13.3).
/// `None` with fewer than two clusters, or where a number is not finite.
fn bootstrap(pairs: &[(f64, f64)]) -> Option<[f64; 2]> {
    if pairs.len() < 2 || pairs.iter().any(|(y, x)| !(y.is_finite() && x.is_finite())) {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut quotient = || {
        let (mut sum_y, mut sum_x) = (0.0, 0.0);
        for _ in pairs {
            let (y, x) = pairs[rng.random_range(0..pairs.len())];
            (sum_y, sum_x) = (sum_y + y, sum_x + x);
        }
        sum_y / sum_x
    };
    let mut quotients: Vec<f64> = (0..SAMPLES).map(|_| quotient()).collect();
    quotients.sort_unstable_by(f64::total_cmp);
    let tail = SAMPLES / 40;
    let (low, high) = (*quotients.get(tail)?, *quotients.get(SAMPLES - 1 - tail)?);
    (low.is_finite() && high.is_finite()).then_some([low, high])
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::report::Cost;

    fn cell(personas: Vec<Tally>) -> Cell {
        Cell { k: 1, epochs: None, personas, too_few: 0, cost: Cost::default() }
    }

    fn tally(nll: f64, tokens: usize, hits: usize) -> Tally {
        Tally { nll, tokens, hits, ranked: 10, f1_sum: 0.0, generated: 0, ..Tally::default() }
    }

    #[test]
    fn two_personas_have_three_samples() {
        // By hand: 2.0 less 2.1 nats a token for one, 3.0 less 3.3 for the other, 10 and 30 tokens. Together -(1 + 9) / 40 = -0.25; drawn
        // both times, each alone: -0.1 and -0.3. Both ends have a quarter of the samples.
        let one = cell(vec![tally(20.0, 10, 4), tally(90.0, 30, 5)]);
        let other = cell(vec![tally(21.0, 10, 3), tally(99.0, 30, 5)]);
        let Difference { perplexity, hits_at_1, f1 } = Difference::of(&one, &other).unwrap();
        let perplexity = perplexity.unwrap();
        assert_relative_eq!(perplexity.value, 100.0 * ((-0.25_f64).exp() - 1.0), max_relative = 1e-12);
        assert_relative_eq!(perplexity.interval[0], 100.0 * ((-0.3_f64).exp() - 1.0), max_relative = 1e-12);
        assert_relative_eq!(perplexity.interval[1], 100.0 * ((-0.1_f64).exp() - 1.0), max_relative = 1e-12);
        let hits = hits_at_1.unwrap();
        assert_relative_eq!(hits.value, 5.0, max_relative = 1e-12);
        assert_eq!((hits.interval.map(f64::round), f1), ([0.0, 10.0], None));
    }

    #[test]
    fn two_seeds_of_one_are_as_one_of_the_other() {
        let other = cell(vec![tally(21.0, 10, 3), tally(99.0, 30, 5), tally(30.0, 12, 1)]);
        let mut twice = other.clone();
        twice.personas.iter_mut().for_each(|tally| tally.merge(&tally.clone()));
        for (one, other) in [(&other, &other), (&twice, &other), (&other, &twice)] {
            let same = Difference::of(one, other).unwrap();
            let none = Change { value: 0.0, interval: [0.0, 0.0] };
            assert_eq!((same.perplexity, same.hits_at_1), (Some(none), Some(none)));
        }
        // Those of other personas, and of one alone, say nothing.
        assert_eq!(Difference::of(&other, &cell(vec![tally(1.0, 1, 1)])), None);
        let alone = cell(vec![tally(1.0, 1, 1)]);
        assert_eq!(Difference::of(&alone, &alone).unwrap().perplexity, None);
    }

    #[test]
    fn the_bootstrap_is_as_wide_as_the_linearised_variance() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let pairs: Vec<(f64, f64)> = (0..90)
            .map(|_| {
                let weight = rng.random_range(20.0..60.0);
                (weight * rng.random_range(-1.0..0.8), weight)
            })
            .collect();
        let (drawn, reckoned) = (bootstrap(&pairs).unwrap(), ratio_interval(pairs.iter().copied()).unwrap());
        let width = reckoned[1] - reckoned[0];
        for (drawn, reckoned) in drawn.iter().zip(reckoned) {
            assert!((drawn - reckoned).abs() < 0.08 * width, "{drawn}, reckoned {reckoned}");
        }
    }
}
