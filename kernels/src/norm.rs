//! Normalisations (Ba et al. 2016; Zhang & Sennrich 2019) and their derivatives.

use pulp::Arch;

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
                let inverse = inverse_root(square / width as f32 + epsilon);
                for (((y, &x), &scale), &shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                    *y = (x - mean) * inverse * scale + shift;
                }
            }
        },
    );
}

/// 1 / √v; of an infinity it is not a number: what overflowed would else become zeros, which nobody sees.
#[inline(always)]
fn inverse_root(v: f32) -> f32 {
    if v == f32::INFINITY { f32::NAN } else { v.sqrt().recip() }
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

/// Root mean square normalisation of rows of as many elements as `scale` has: y = x s ⊙ w, with s = 1 / √(mean x² + ε), one a row.
pub fn rms_normalization(x: &[f32], scale: &[f32], epsilon: f32, y: &mut [f32], inverse: &mut [f32]) {
    let width = scale.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
            for ((x, y), inverse) in rows.zip(inverse) {
                let [square] = sums(x, x, x, |x, _, _| [x * x]);
                *inverse = inverse_root(square / width as f32 + epsilon);
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

/// Whether a normalisation takes off the mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Centred {
    /// Layer normalisation.
    Yes,
    /// Root mean square normalisation.
    No,
}

impl Centred {
    #[inline(always)]
    fn mean(self, sum: f32, width: usize) -> f32 {
        match self {
            Self::Yes => sum / width as f32,
            Self::No => 0.0,
        }
    }
}

/// x̂ = r (x − mean x) and r = 1 / √(var x + ε), one a row, of rows of D values; and y = x̂ ⊙ w + b. Without centring the
/// same with no means; without `shift` with no b.
pub fn normalize(
    centred: Centred,
    x: &[f32],
    (scale, shift): (&[f32], Option<&[f32]>),
    epsilon: f32,
    [hat, r, y]: [&mut [f32]; 3],
) {
    let width = scale.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(width).zip(hat.chunks_exact_mut(width)).zip(y.chunks_exact_mut(width));
            for (((x, hat), y), r) in rows.zip(r) {
                let [sum] = sums(x, x, x, |x, _, _| [x]);
                let mean = centred.mean(sum, width);
                let [square] = sums(x, x, x, |x, _, _| [(x - mean) * (x - mean)]);
                *r = inverse_root(square / width as f32 + epsilon);
                for (((hat, y), &x), &scale) in hat.iter_mut().zip(&mut *y).zip(x).zip(scale) {
                    *hat = (x - mean) * *r;
                    *y = *hat * scale;
                }
                if let Some(shift) = shift {
                    y.iter_mut().zip(shift).for_each(|(y, shift)| *y += shift);
                }
            }
        },
    );
}

/// The Jacobian of x̂, which is symmetric, times v: r (v − mean v − x̂ k) with k = mean(v ⊙ x̂), one a row; and an addend.
pub fn jacobian_times(
    centred: Centred,
    [hat, r]: [&[f32]; 2],
    v: &[f32],
    addend: Option<&[f32]>,
    [out, k]: [&mut [f32]; 2],
) {
    let width = (hat.len() / r.len().max(1)).max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = hat.chunks_exact(width).zip(v.chunks_exact(width)).zip(out.chunks_exact_mut(width));
            for (row, (((hat, v), out), (&r, k))) in rows.zip(r.iter().zip(k)).enumerate() {
                let [sum, along] = sums(v, hat, hat, |v, hat, _| [v, v * hat]);
                let mean = centred.mean(sum, width);
                *k = along / width as f32;
                for ((out, &v), &hat) in out.iter_mut().zip(v).zip(hat) {
                    *out = r * (v - mean - hat * *k);
                }
                if let Some(addend) = addend {
                    let addend = &addend[row * width..][..width];
                    out.iter_mut().zip(addend).for_each(|(out, addend)| *out += addend);
                }
            }
        },
    );
}

/// The tangent of [`jacobian_times`] an adjoint p along that of x, which moves x̂ by h and r by −r² k, and that of p, and an addend:
/// with s = ṗ − r k p it is r (s − mean s − x̂ (mean(s ⊙ x̂) + mean(p ⊙ h))) − r h mean(p ⊙ x̂).
pub fn jacobian_tangent(
    centred: Centred,
    [hat, r]: [&[f32]; 2],
    [hat_dot, k]: [&[f32]; 2],
    [p, p_dot]: [&[f32]; 2],
    addend: Option<&[f32]>,
    out: &mut [f32],
) {
    let width = (hat.len() / r.len().max(1)).max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let hats = hat.chunks_exact(width).zip(hat_dot.chunks_exact(width));
            let ps = p.chunks_exact(width).zip(p_dot.chunks_exact(width));
            let outs = out.chunks_exact_mut(width).zip(r.iter().zip(k));
            for (row, (((hat, hat_dot), (p, p_dot)), (out, (&r, &k)))) in hats.zip(ps).zip(outs).enumerate() {
                let shrunk = r * k;
                let [sum, along] = sums(p_dot, p, hat, |p_dot, p, hat| {
                    let s = p_dot - shrunk * p;
                    [s, s * hat]
                });
                let [by_hat, by_dot] = sums(p, hat, hat_dot, |p, hat, hat_dot| [p * hat, p * hat_dot]);
                let mean = centred.mean(sum, width);
                let (along, by_hat) = ((along + by_dot) / width as f32, by_hat / width as f32);
                for (i, out) in out.iter_mut().enumerate() {
                    let s = p_dot[i] - shrunk * p[i];
                    *out = r * (s - mean - hat[i] * along - hat_dot[i] * by_hat);
                }
                if let Some(addend) = addend {
                    let addend = &addend[row * width..][..width];
                    out.iter_mut().zip(addend).for_each(|(out, addend)| *out += addend);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{numbers, slopes};

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

    /// x̂ of rows, in f64.
    fn hats(centred: Centred, x: &[f64], width: usize) -> Vec<f64> {
        let row = |x: &[f64]| {
            let mean = if centred == Centred::Yes { x.iter().sum::<f64>() / width as f64 } else { 0.0 };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
            x.iter().map(|x| (x - mean) / (variance + 1e-5).sqrt()).collect::<Vec<_>>()
        };
        x.chunks(width).flat_map(row).collect()
    }

    /// The gradient of Σ p ⊙ x̂, in f64.
    fn back(centred: Centred, x: &[f64], p: &[f64], width: usize) -> Vec<f64> {
        let row = |(x, p): (&[f64], &[f64])| {
            let mean = |f: &dyn Fn(usize) -> f64| (0..width).map(f).sum::<f64>() / width as f64;
            let centre = if centred == Centred::Yes { [mean(&|i| x[i]), mean(&|i| p[i])] } else { [0.0; 2] };
            let r = (mean(&|i| (x[i] - centre[0]).powi(2)) + 1e-5).sqrt().recip();
            let hat = |i: usize| (x[i] - centre[0]) * r;
            let along = mean(&|i| p[i] * hat(i));
            (0..width).map(|i| r * (p[i] - centre[1] - hat(i) * along)).collect::<Vec<_>>()
        };
        x.chunks(width).zip(p.chunks(width)).flat_map(row).collect()
    }

    fn near(found: &[f32], expected: &[f64], tolerance: f64) {
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() < tolerance, "{index}: {found}, expected {expected}");
        }
    }

    #[test]
    fn walks_and_their_tangents_are_the_definition() {
        let (width, rows) = (37, 3);
        let many = |seed| numbers(rows * width, seed);
        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
        let ([x, x_dot, p, p_dot, addend], [scale, shift]) =
            ([1, 2, 3, 4, 5].map(many), [6, 7].map(|seed| numbers(width, seed)));
        let x: Vec<f32> = x.iter().map(|x| 3.0 * x + 0.7).collect();
        for centred in [Centred::Yes, Centred::No] {
            let [mut hat, mut y, mut out, mut hat_dot] = [(); 4].map(|()| vec![f32::NAN; rows * width]);
            let [mut r, mut k, mut unused] = [(); 3].map(|()| vec![f32::NAN; rows]);
            normalize(centred, &x, (&scale, Some(&shift)), 1e-5, [&mut hat, &mut r, &mut y]);
            let expected = hats(centred, &wide(&x), width);
            near(&hat, &expected, 2e-6);
            let shifted = |i: usize| expected[i] * f64::from(scale[i % width]) + f64::from(shift[i % width]);
            near(&y, &(0..rows * width).map(shifted).collect::<Vec<_>>(), 4e-6);
            // Without b.
            normalize(centred, &x, (&scale, None), 1e-5, [&mut hat, &mut r, &mut y]);
            let scaled = |i: usize| expected[i] * f64::from(scale[i % width]);
            near(&y, &(0..rows * width).map(scaled).collect::<Vec<_>>(), 4e-6);

            jacobian_times(centred, [&hat, &r], &p, Some(&addend), [&mut out, &mut unused]);
            let at = |step: f64| -> [Vec<f64>; 2] {
                let moved = |values: &[f32], dot: &[f32]| -> Vec<f64> {
                    values.iter().zip(dot).map(|(&v, &dot)| f64::from(v) + step * f64::from(dot)).collect()
                };
                let (x, p) = (moved(&x, &x_dot), moved(&p, &p_dot));
                [hats(centred, &x, width), back(centred, &x, &p, width)]
            };
            let added = |values: &[f64]| values.iter().zip(&addend).map(|(v, a)| v + f64::from(*a)).collect::<Vec<_>>();
            near(&out, &added(&at(0.0)[1]), 4e-6);
            let (above, below) = (at(1e-5), at(-1e-5));
            let slope = |which: usize| -> Vec<f64> {
                above[which].iter().zip(&below[which]).map(|(above, below)| (above - below) / 2e-5).collect()
            };
            jacobian_times(centred, [&hat, &r], &x_dot, None, [&mut hat_dot, &mut k]);
            near(&hat_dot, &slope(0), 4e-6);
            jacobian_tangent(centred, [&hat, &r], [&hat_dot, &k], [&p, &p_dot], Some(&addend), &mut out);
            near(&out, &added(&slope(1)), 1e-5);
        }
    }

    #[test]
    fn what_overflows_is_not_a_number() {
        let (x, scale) = ([1e30, -1e30, 2e30], [1.0; 3]);
        let [mut y, mut hat, mut inverse] = [vec![0.0; 3], vec![0.0; 3], vec![0.0]];
        layer_normalization(&x, [&scale, &scale], 1e-5, &mut y);
        assert!(y.iter().all(|y| y.is_nan()));
        rms_normalization(&x, &scale, 1e-5, &mut hat, &mut inverse);
        assert!(hat.iter().all(|y| y.is_nan()));
        for centred in [Centred::Yes, Centred::No] {
            normalize(centred, &x, (&scale, None), 1e-5, [&mut hat, &mut inverse, &mut y]);
            assert!(hat.iter().chain(&y).all(|y| y.is_nan()));
        }
    }
}
