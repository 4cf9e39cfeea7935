//! Rows of logits.

use pulp::Arch;

use crate::exp;

/// The greatest of a row of logits; one that is not a number is none.
#[inline(always)]
fn greatest(logits: &[f32]) -> f32 {
    const LANES: usize = 32;
    let (whole, rest) = logits.as_chunks::<LANES>();
    let mut greatest = [f32::NEG_INFINITY; LANES];
    for chunk in whole {
        for (greatest, &logit) in greatest.iter_mut().zip(chunk) {
            *greatest = if logit > *greatest { logit } else { *greatest };
        }
    }
    greatest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| a.max(b))
}

/// The logarithm of Σ exp over a row of logits.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            const LANES: usize = 32;
            let greatest = greatest(logits);
            let (whole, rest) = logits.as_chunks::<LANES>();
            let mut partial = [0.0; LANES];
            for chunk in whole {
                for (sum, &logit) in partial.iter_mut().zip(chunk) {
                    *sum += exp(logit - greatest);
                }
            }
            let sum = partial.iter().sum::<f32>() + rest.iter().map(|&logit| exp(logit - greatest)).sum::<f32>();
            greatest + sum.ln()
        },
    )
}

/// Makes exp((z − `greatest`) `factor`) of each of a row of logits, 0 where that is below e^−87, and gives their sum.
pub fn exponentials(logits: &mut [f32], greatest: f32, factor: f32) -> f64 {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for logit in &mut *logits {
                let power = (*logit - greatest) * factor;
                *logit = if power > -87.0 { exp(power) } else { 0.0 };
            }
            sum_of(logits, |value| value)
        },
    )
}

/// The sum of the values that are no less than `least`.
pub fn sum_of_at_least(values: &[f32], least: f32) -> f64 {
    Arch::new().dispatch(
        #[inline(always)]
        || sum_of(values, |value| if value >= least { value } else { 0.0 }),
    )
}

/// Σ f over the values, in many partial sums.
#[inline(always)]
fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 32;
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut partial = [0.0; LANES];
    for chunk in whole {
        for (sum, &value) in partial.iter_mut().zip(chunk) {
            *sum += f(value);
        }
    }
    partial.iter().map(|&sum| f64::from(sum)).sum::<f64>() + rest.iter().map(|&value| f64::from(f(value))).sum::<f64>()
}

/// The gradient of log softmax at one class with respect to a row of logits, whose [`log_sum_exp`] is given: dy (e − exp(z − l)), e
/// being 1 at the class and 0 elsewhere.
pub fn target_log_prob_gradient(dy: f32, logits: &[f32], target: usize, log_sum: f32, gradient: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (gradient, &logit) in gradient.iter_mut().zip(logits) {
                *gradient = -dy * exp(logit - log_sum);
            }
        },
    );
    if let Some(gradient) = gradient.get_mut(target) {
        *gradient += dy;
    }
}

/// Makes softmax of a row of logits, in their place, and gives the logarithm of Σ exp.
pub fn softmax(logits: &mut [f32]) -> f32 {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let greatest = greatest(logits);
            for logit in &mut *logits {
                *logit = exp(*logit - greatest);
            }
            let sum = sum_of(logits, |value| value);
            let factor = sum.recip() as f32;
            logits.iter_mut().for_each(|value| *value *= factor);
            greatest + (sum as f32).ln()
        },
    )
}

/// The tangent of softmax p, in the place of that of the logits: p ⊙ (ż − Σ p ⊙ ż).
pub fn softmax_tangent(p: &[f32], z_dot: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            const LANES: usize = 32;
            let (whole, whole_dot) = (p.as_chunks::<LANES>(), z_dot.as_chunks::<LANES>());
            let mut partial = [0.0; LANES];
            for (p, z_dot) in whole.0.iter().zip(whole_dot.0) {
                for lane in 0..LANES {
                    partial[lane] += p[lane] * z_dot[lane];
                }
            }
            let rest = whole.1.iter().zip(whole_dot.1).map(|(p, z_dot)| f64::from(p * z_dot)).sum::<f64>();
            let mean = (partial.iter().map(|&sum| f64::from(sum)).sum::<f64>() + rest) as f32;
            z_dot.iter_mut().zip(p).for_each(|(z_dot, p)| *z_dot = p * (*z_dot - mean));
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_exponentials_are_the_definition() {
        let logits: Vec<f32> =
            (0..1003).map(|i| ((i * 7919 % 1013) as f32 / 10.0) - 80.0).chain([f32::NEG_INFINITY]).collect();
        let (greatest, factor) = (21.2, 1.4);
        let expected: Vec<f64> = logits.iter().map(|&z| ((f64::from(z) - 21.2) * 1.4).exp()).collect();
        let mut values = logits.clone();
        let sum = exponentials(&mut values, greatest, factor);
        assert!((sum / expected.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{sum}");
        for (value, expected) in values.iter().zip(&expected) {
            assert!((f64::from(*value) - expected).abs() <= 2e-5 * expected + 1e-36, "{value}, expected {expected}");
        }
        assert_eq!(values[1003], 0.0);
        let most: f64 = expected.iter().filter(|value| **value >= 0.01).sum();
        assert!((sum_of_at_least(&values, 0.01) / most - 1.0).abs() < 1e-5);
    }

    #[test]
    fn target_log_prob_and_its_gradient_are_the_definition() {
        let logits: Vec<f32> = (0..101).map(|i| ((i * 7919 % 1013) as f32 / 50.0) - 8.0).collect();
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let log_sum = log_sum_exp(&logits);
        assert!((f64::from(log_sum) - sum.ln()).abs() < 2e-6, "{log_sum}, expected {}", sum.ln());
        let mut gradient = vec![0.0; logits.len()];
        target_log_prob_gradient(-0.5, &logits, 97, log_sum, &mut gradient);
        for (class, (&got, &logit)) in gradient.iter().zip(&logits).enumerate() {
            let expected = -0.5 * (f64::from(u8::from(class == 97)) - f64::from(logit).exp() / sum);
            assert!((f64::from(got) - expected).abs() < 1e-6, "{class}: {got}, expected {expected}");
        }
        assert!(log_sum_exp(&[1.0, f32::NAN, 0.0]).is_nan());
        assert!((log_sum_exp(&[1e4; 4]) - (1e4 + 4.0_f32.ln())).abs() < 1e-3);
    }

    #[test]
    fn softmax_and_its_tangent_are_the_definition() {
        let logits: Vec<f32> = (0..101).map(|i| ((i * 7919 % 1013) as f32 / 50.0) - 8.0).collect();
        let dot: Vec<f32> = (0..101).map(|i| ((i * 104_729 % 1013) as f32 / 500.0) - 1.0).collect();
        let exact = |step: f64| -> Vec<f64> {
            let at = |i: usize| (f64::from(logits[i]) + step * f64::from(dot[i])).exp();
            let sum: f64 = (0..101).map(at).sum();
            (0..101).map(|i| at(i) / sum).collect()
        };
        let mut p = logits.clone();
        let log_sum = softmax(&mut p);
        assert!((log_sum - log_sum_exp(&logits)).abs() < 2e-6);
        let mut p_dot = dot.clone();
        softmax_tangent(&p, &mut p_dot);
        let expected = exact(0.0);
        let slopes = exact(1e-5).into_iter().zip(exact(-1e-5)).map(|(above, below)| (above - below) / 2e-5);
        for (index, slope) in slopes.enumerate() {
            assert!((f64::from(p[index]) - expected[index]).abs() < 1e-6, "{index}");
            assert!((f64::from(p_dot[index]) - slope).abs() < 1e-6, "{index}: {slope}");
        }
        assert!(softmax(&mut [1.0, f32::NAN, 0.0]).is_nan());
    }
}
