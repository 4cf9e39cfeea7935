//! What our own operators compute on the processor: the functions of the domain `marionette` of a bundle's graphs
//! (`exporter/src/ops`), each in one pass over memory where the operators that it is made of take ten. Rows are cut among
//! threads by whoever calls. Each function is compiled for several generations of processors, and the best is taken when it runs.

use std::collections::TryReserveError;
use std::sync::Mutex;

use pulp::Arch;

pub mod adapter;
pub mod attention;
#[cfg(target_arch = "x86_64")]
pub mod block;
#[cfg(target_arch = "x86_64")]
pub mod product;
pub mod quantise;
pub mod shapes;
#[cfg(target_arch = "x86_64")]
mod team;
mod tiles;

/// What integers are multiplied with on this processor, as it is said.
pub fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if let Some(instructions) = product::Instructions::best() {
        return instructions.name();
    }
    "ONNX Runtime: ours need AVX-512 VNNI or AVX2"
}

/// A function to be called with numbers, on any threads.
pub type Calls<'a> = &'a (dyn Fn(usize) + Send + Sync);

/// Why there is no result.
#[derive(Debug)]
pub enum Failure<E> {
    /// Something is of a size that does not fit, or another thread panicked.
    Misfit,
    /// There is no memory.
    Memory(TryReserveError),
    /// What shares out calls failed.
    Threads(E),
}

impl<E> From<TryReserveError> for Failure<E> {
    fn from(error: TryReserveError) -> Self {
        Self::Memory(error)
    }
}

/// Lets threads compute shares: `compute` gets a share's number and the share. `threads` gets a number and calls a function with each
/// index below it.
///
/// # Errors
/// Those of `threads`.
pub fn each_share<T: Send, E>(
    shares: &[Mutex<T>],
    threads: impl FnOnce(usize, Calls<'_>) -> Result<(), E>,
    compute: impl Fn(usize, &mut T) + Send + Sync,
) -> Result<(), E> {
    threads(shares.len(), &|index| {
        // Each share is asked for once: no thread waits.
        if let Some(Ok(mut share)) = shares.get(index).map(Mutex::lock) {
            compute(index, &mut share);
        }
    })
}

/// 2√(2/π), twice the factor of GELU's tanh approximation (Hendrycks & Gimpel 2016, section 2).
const LINEAR: f32 = (2.0 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2) as f32;
/// 0.044715 times that.
const CUBIC: f32 = (0.08943 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2) as f32;

/// The most bytes that each value of a product's rows takes beside it while it is rounded for a product of integers, its share of a group's
/// scale among them: in our kernels. Where
/// there are none, the bodies' copies of a row are not counted.
pub const BYTES_TO_ROUND: u64 = 3;

/// eˣ to about 2e-7 relative, between e^−87 and e^88, which x is cut to: x = n ln 2 + r, eʳ by the polynomial of Cephes'
/// `expf` (S. Moshier), 2ⁿ by the exponent's bits. Without a branch, so that compilers make vectors of it.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding and subtracting it rounds to an integer, which is then in its low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first one exact when multiplied by n.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let fraction = p * r * r + r + 1.0;
    f32::from_bits(fraction.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// The gradient of GELU at `x`, times `dy`: dx = dy σ (1 + w (1 − σ)), σ = σ(x (a + c x²)), w = x (a + 3 c x²).
pub fn gelu_gradient(dy: &[f32], x: &[f32], dx: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                let square = x * x;
                let e = exp(-x * (LINEAR + CUBIC * square));
                let sigma = 1.0 / (1.0 + e);
                let w = x * (LINEAR + 3.0 * CUBIC * square);
                // 1 − σ = e σ: where σ is nearly 1, the difference would be nothing but rounding.
                *dx = dy * sigma * (1.0 + w * (e * sigma));
            }
        },
    );
}

/// The sum of a function of several rows' elements, in many partial sums.
#[inline(always)]
fn sums<const N: usize>(a: &[f32], b: &[f32], c: &[f32], term: impl Fn(f32, f32, f32) -> [f32; N]) -> [f32; N] {
    const LANES: usize = 32;
    let mut partial = [[0.0_f32; LANES]; N];
    let (chunks_a, chunks_b, chunks_c) = (a.chunks_exact(LANES), b.chunks_exact(LANES), c.chunks_exact(LANES));
    let rest = [chunks_a.remainder(), chunks_b.remainder(), chunks_c.remainder()];
    for ((a, b), c) in chunks_a.zip(chunks_b).zip(chunks_c) {
        for lane in 0..LANES {
            let terms = term(a[lane], b[lane], c[lane]);
            for (partial, term) in partial.iter_mut().zip(terms) {
                partial[lane] += term;
            }
        }
    }
    let mut total = [0.0; N];
    for ((&a, &b), &c) in rest[0].iter().zip(rest[1]).zip(rest[2]) {
        for (total, term) in total.iter_mut().zip(term(a, b, c)) {
            *total += term;
        }
    }
    for (total, partial) in total.iter_mut().zip(&partial) {
        *total += partial.iter().sum::<f32>();
    }
    total
}

/// The gradient of layer normalisation with respect to its input, rows of as many elements as `scale` has:
/// dx = s (g − mean(g) − x̂ mean(g x̂)), g = dy w, x̂ = (x − μ) s; `mean` μ and `inverse_deviation` s have one element a row.
pub fn layer_normalization_gradient(
    dy: &[f32],
    x: &[f32],
    scale: &[f32],
    [mean, inverse_deviation]: [&[f32]; 2],
    dx: &mut [f32],
) {
    let width = scale.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
            for (((dy, x), dx), (&mean, &inverse)) in rows.zip(mean.iter().zip(inverse_deviation)) {
                let [sum, along] = sums(dy, x, scale, |dy, x, scale| {
                    let g = dy * scale;
                    [g, g * (x - mean)]
                });
                let (sum, along) = (sum / width as f32, along * inverse * inverse / width as f32);
                for (((dx, &dy), &x), &scale) in dx.iter_mut().zip(dy).zip(x).zip(scale) {
                    *dx = inverse * (dy * scale - sum - (x - mean) * along);
                }
            }
        },
    );
}

/// Layer normalisation of rows of as many elements as `scale` has: y = (x − mean x) / √(var x + ε) ⊙ w + b (Ba et al. 2016).
pub fn layer_normalization(x: &[f32], [scale, shift]: [&[f32]; 2], epsilon: f32, y: &mut [f32]) {
    let width = scale.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                let [sum] = sums(x, x, x, |x, _, _| [x]);
                let mean = sum / width as f32;
                let [square] = sums(x, x, x, |x, _, _| [(x - mean) * (x - mean)]);
                let inverse = (square / width as f32 + epsilon).sqrt().recip();
                for (((y, &x), &scale), &shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                    *y = (x - mean) * inverse * scale + shift;
                }
            }
        },
    );
}

/// gelu(x) = x σ(x (a + c x²)), the tanh approximation (Hendrycks & Gimpel 2016, section 2), in place.
pub fn gelu(x: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for x in x {
                *x /= 1.0 + exp(-*x * (LINEAR + CUBIC * (*x * *x)));
            }
        },
    );
}

/// Root mean square normalisation of rows of as many elements as `scale` has: y = x s ⊙ w, with s = 1 / √(mean x² + ε), one a row.
pub fn rms_normalization(x: &[f32], scale: &[f32], epsilon: f32, y: &mut [f32], inverse: &mut [f32]) {
    let width = scale.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
            for ((x, y), inverse) in rows.zip(inverse) {
                let [square] = sums(x, x, x, |x, _, _| [x * x]);
                *inverse = (square / width as f32 + epsilon).sqrt().recip();
                for ((y, &x), &scale) in y.iter_mut().zip(x).zip(scale) {
                    *y = x * *inverse * scale;
                }
            }
        },
    );
}

/// The gradient of [`rms_normalization`] with respect to its input: dx = s (g − x̂ mean(g x̂)), g = dy w, x̂ = x s.
pub fn rms_normalization_gradient(dy: &[f32], x: &[f32], scale: &[f32], inverse: &[f32], dx: &mut [f32]) {
    let width = scale.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
            for (((dy, x), dx), &inverse) in rows.zip(inverse) {
                let [along] = sums(dy, x, scale, |dy, x, scale| [dy * scale * x]);
                let along = along * inverse * inverse / width as f32;
                for (((dx, &dy), &x), &scale) in dx.iter_mut().zip(dy).zip(x).zip(scale) {
                    *dx = inverse * (dy * scale - x * along);
                }
            }
        },
    );
}

/// silu(u) ⊙ v of rows of u and v side by side, `width` values each: y has one of them a row.
pub fn swi_glu(x: &[f32], width: usize, y: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
                let (u, v) = x.split_at(width);
                for ((y, &u), &v) in y.iter_mut().zip(u).zip(v) {
                    *y = u / (1.0 + exp(-u)) * v;
                }
            }
        },
    );
}

/// The gradient of [`swi_glu`] with respect to u and v, side by side: du = dy v σ (1 + u (1 − σ)), dv = dy u σ, σ = σ(u).
pub fn swi_glu_gradient(dy: &[f32], x: &[f32], width: usize, dx: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = dy.chunks_exact(width).zip(x.chunks_exact(2 * width)).zip(dx.chunks_exact_mut(2 * width));
            for ((dy, x), dx) in rows {
                let ((u, v), (du, dv)) = (x.split_at(width), dx.split_at_mut(width));
                for ((((du, dv), &dy), &u), &v) in du.iter_mut().zip(dv).zip(dy).zip(u).zip(v) {
                    let e = exp(-u);
                    let sigma = 1.0 / (1.0 + e);
                    // 1 − σ = e σ, as in the gradient of GELU.
                    *du = dy * v * sigma * (1.0 + u * (e * sigma));
                    *dv = dy * u * sigma;
                }
            }
        },
    );
}

/// Turns a token's heads side by side, each by the angles whose cosines and sines are given, one a pair of values i and i + dh / 2.
pub fn rotate(x: &[f32], cosines: &[f32], sines: &[f32], y: &mut [f32]) {
    let half = cosines.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
                let ((a, b), (first, second)) = (x.split_at(half), y.split_at_mut(half));
                let angles = cosines.iter().zip(sines);
                for ((((first, second), &a), &b), (&cosine, &sine)) in
                    first.iter_mut().zip(second).zip(a).zip(b).zip(angles)
                {
                    *first = a * cosine - b * sine;
                    *second = b * cosine + a * sine;
                }
            }
        },
    );
}

/// [`rotate`] in place.
pub fn rotate_in_place(x: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let half = cosines.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for x in x.chunks_exact_mut(2 * half) {
                let (a, b) = x.split_at_mut(half);
                for ((a, b), (&cosine, &sine)) in a.iter_mut().zip(b).zip(cosines.iter().zip(sines)) {
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        },
    );
}

/// The logarithm of Σ exp over a row of logits.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            const LANES: usize = 32;
            let (whole, rest) = logits.as_chunks::<LANES>();
            let mut greatest = [f32::NEG_INFINITY; LANES];
            for chunk in whole {
                for (greatest, &logit) in greatest.iter_mut().zip(chunk) {
                    *greatest = if logit > *greatest { logit } else { *greatest };
                }
            }
            let greatest = greatest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 4e-7, "{x}");
        }
        assert!(exp(-1e30) < 1e-37 && exp(1e30).is_finite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_gradient_is_that_of_central_differences() {
        let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
        let x: Vec<f32> = (-300..=300).map(|i| i as f32 / 25.0).collect();
        let dy: Vec<f32> = (0..x.len()).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut dx = vec![0.0; x.len()];
        gelu_gradient(&dy, &x, &mut dx);
        for ((&x, &dy), &dx) in x.iter().zip(&dy).zip(&dx) {
            let x = f64::from(x);
            let slope = (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5;
            assert!((f64::from(dx) - f64::from(dy) * slope).abs() < 2e-6, "{x}: {dx}");
        }
    }

    #[test]
    fn layer_normalization_gradient_is_that_of_central_differences() {
        let (width, rows) = (37, 2);
        let value = |i: usize| ((i * 7919 % 1013) as f64 / 506.0 - 1.0).powi(3);
        let scale: Vec<f64> = (0..width).map(|i| 1.0 + 0.3 * value(i)).collect();
        let x: Vec<f64> = (0..rows * width).map(|i| 2.0 * value(i + 100) + 0.7).collect();
        let dy: Vec<f64> = (0..rows * width).map(|i| value(i + 500)).collect();
        let statistics = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / width as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
            (mean, (variance + 1e-5).sqrt().recip())
        };
        let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<f32>>();
        let (mean, inverse): (Vec<f64>, Vec<f64>) = x.chunks(width).map(statistics).unzip();
        let mut dx = vec![0.0; rows * width];
        let given = [narrow(&mean), narrow(&inverse)];
        layer_normalization_gradient(&narrow(&dy), &narrow(&x), &narrow(&scale), [&given[0], &given[1]], &mut dx);
        for row in 0..rows {
            let loss = |x: &[f64]| -> f64 {
                let (mean, inverse) = statistics(x);
                (0..width).map(|d| dy[row * width + d] * scale[d] * (x[d] - mean) * inverse).sum()
            };
            for d in 0..width {
                let mut at = x[row * width..(row + 1) * width].to_vec();
                at[d] += 1e-5;
                let above = loss(&at);
                at[d] -= 2e-5;
                let slope = (above - loss(&at)) / 2e-5;
                assert!((slope - f64::from(dx[row * width + d])).abs() < 2e-6, "{row} {d}: {slope}");
            }
        }
    }

    /// Checks a gradient, and what it is a gradient of against the same in f64.
    fn slopes(x: &[f32], dy: &[f32], y: &[f32], dx: &[f32], f: impl Fn(&[f64]) -> Vec<f64>) {
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for (found, expected) in y.iter().zip(f(&wide)) {
            assert!((f64::from(*found) - expected).abs() < 2e-6, "{found}, expected {expected}");
        }
        let loss = |x: &[f64]| -> f64 { f(x).iter().zip(dy).map(|(y, &dy)| y * f64::from(dy)).sum() };
        for (index, &found) in dx.iter().enumerate() {
            let mut at = wide.clone();
            at[index] += 1e-5;
            let above = loss(&at);
            at[index] -= 2e-5;
            let slope = (above - loss(&at)) / 2e-5;
            assert!((f64::from(found) - slope).abs() < 4e-6, "{index}: {found}, expected {slope}");
        }
    }

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    #[test]
    fn rms_normalization_and_its_gradient_are_the_definition() {
        let (width, epsilon) = (37, 1e-5);
        let (x, dy, scale) = (numbers(2 * width, 1), numbers(2 * width, 2), numbers(width, 3));
        let (mut y, mut inverse, mut dx) = (vec![0.0; 2 * width], [0.0; 2], vec![0.0; 2 * width]);
        rms_normalization(&x, &scale, epsilon, &mut y, &mut inverse);
        rms_normalization_gradient(&dy, &x, &scale, &inverse, &mut dx);
        slopes(&x, &dy, &y, &dx, |x| {
            let row = |x: &[f64]| {
                let root = (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + f64::from(epsilon)).sqrt();
                x.iter().zip(&scale).map(|(x, &w)| x / root * f64::from(w)).collect::<Vec<_>>()
            };
            x.chunks(width).flat_map(row).collect()
        });
    }

    #[test]
    fn swi_glu_and_its_gradient_are_the_definition() {
        let width = 37;
        let (mut x, dy) = (numbers(4 * width, 1), numbers(2 * width, 2));
        x.iter_mut().for_each(|x| *x *= 4.0);
        let (mut y, mut dx) = (vec![0.0; 2 * width], vec![0.0; 4 * width]);
        swi_glu(&x, width, &mut y);
        swi_glu_gradient(&dy, &x, width, &mut dx);
        slopes(&x, &dy, &y, &dx, |x| {
            let row = |x: &[f64]| {
                let (u, v) = x.split_at(width);
                u.iter().zip(v).map(|(u, v)| u / (1.0 + (-u).exp()) * v).collect::<Vec<_>>()
            };
            x.chunks(2 * width).flat_map(row).collect()
        });
    }

    #[test]
    fn rotation_turns_pairs_and_turns_back() {
        let x = numbers(24, 1);
        let (cosines, sines): (Vec<f32>, Vec<f32>) = (0..4).map(|i| ((i as f32).cos(), (i as f32).sin())).unzip();
        let (mut y, mut back) = (vec![0.0; 24], vec![0.0; 24]);
        rotate(&x, &cosines, &sines, &mut y);
        let mut here = x.clone();
        rotate_in_place(&mut here, &cosines, &sines);
        assert_eq!(here, y);
        // As complex numbers, of the second head: pair 1 is values 9 and 13.
        let expected = [x[9] * cosines[1] - x[13] * sines[1], x[13] * cosines[1] + x[9] * sines[1]];
        assert!((y[9] - expected[0]).abs() < 1e-6 && (y[13] - expected[1]).abs() < 1e-6);
        rotate(&y, &cosines, &sines.iter().map(|sine| -sine).collect::<Vec<_>>(), &mut back);
        assert!(back.iter().zip(&x).all(|(back, x)| (back - x).abs() < 1e-6));
    }

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
}
