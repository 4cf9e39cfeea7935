//! What is between an MLP's matrices, with its derivatives: GELU and SwiGLU (Shazeer 2020).

use pulp::Arch;

use crate::exp;

/// 2√(2/π), twice the factor of GELU's tanh approximation (Hendrycks & Gimpel 2016, section 2).
const LINEAR: f32 = (2.0 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2) as f32;
/// 0.044715 times that.
const CUBIC: f32 = (0.08943 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2) as f32;

/// σ(x) = 1 / (1 + e^−x), and 1 − σ = e^−x σ: where σ is nearly 1, the difference would be nothing but rounding.
#[inline(always)]
fn logistic(x: f32) -> [f32; 2] {
    let e = exp(-x);
    let sigma = 1.0 / (1.0 + e);
    [sigma, e * sigma]
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

/// The gradient of GELU at `x`, times `dy`: dx = dy σ (1 + w (1 − σ)), σ = σ(x (a + c x²)), w = x (a + 3 c x²).
pub fn gelu_gradient(dy: &[f32], x: &[f32], dx: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                let square = x * x;
                let [sigma, other] = logistic(x * (LINEAR + CUBIC * square));
                let w = x * (LINEAR + 3.0 * CUBIC * square);
                *dx = dy * sigma * (1.0 + w * other);
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
                    let [sigma, other] = logistic(u);
                    *du = dy * v * sigma * (1.0 + u * other);
                    *dv = dy * u * sigma;
                }
            }
        },
    );
}

/// The derivatives of gelu at x, the first and the second: with σ = σ(g), g = x (a + c x²), they are σ + x σ′ g′ and
/// 2 σ′ g′ + x (σ′ (1 − 2 σ) g′² + σ′ g″), σ′ = σ (1 − σ).
#[inline(always)]
fn gelu_slopes(x: f32) -> [f32; 2] {
    let square = x * x;
    let [sigma, other] = logistic(x * (LINEAR + CUBIC * square));
    let spread = sigma * other;
    let (slope, bend) = (LINEAR + 3.0 * CUBIC * square, 6.0 * CUBIC * x);
    let turned = (1.0 - 2.0 * sigma) * slope * slope + bend;
    [sigma + x * spread * slope, spread * (2.0 * slope + x * turned)]
}

/// The tangent of [`gelu_gradient`] along those of x and dy: dẋ = dẏ gelu′(x) + dy gelu″(x) ẋ.
pub fn gelu_gradient_tangent([dy, dy_dot]: [&[f32]; 2], [x, x_dot]: [&[f32]; 2], dx_dot: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let given = dy.iter().zip(dy_dot).zip(x.iter().zip(x_dot));
            for (out, ((&dy, &dy_dot), (&x, &x_dot))) in dx_dot.iter_mut().zip(given) {
                let [slope, bend] = gelu_slopes(x);
                *out = dy_dot * slope + dy * bend * x_dot;
            }
        },
    );
}

/// silu(u) and its first two derivatives: u σ, σ (1 + u (1 − σ)) and σ (1 − σ) (2 + u (1 − 2 σ)).
#[inline(always)]
fn silu(u: f32) -> [f32; 3] {
    let [sigma, other] = logistic(u);
    [u * sigma, sigma * (1.0 + u * other), sigma * other * (2.0 + u * (1.0 - 2.0 * sigma))]
}

/// The tangent of [`swi_glu`]: silu′(u) u̇ v + silu(u) v̇.
pub fn swi_glu_tangent(x: &[f32], x_dot: &[f32], width: usize, y_dot: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(2 * width).zip(x_dot.chunks_exact(2 * width));
            for ((x, x_dot), y_dot) in rows.zip(y_dot.chunks_exact_mut(width)) {
                let ((u, v), (u_dot, v_dot)) = (x.split_at(width), x_dot.split_at(width));
                for (i, out) in y_dot.iter_mut().enumerate() {
                    let [value, slope, _] = silu(u[i]);
                    *out = slope * u_dot[i] * v[i] + value * v_dot[i];
                }
            }
        },
    );
}

/// The tangent of [`swi_glu_gradient`] along those of x and dy: du̇ = silu′(u) (dẏ v + dy v̇) + silu″(u) u̇ v dy,
/// dv̇ = silu(u) dẏ + silu′(u) u̇ dy.
pub fn swi_glu_gradient_tangent([dy, dy_dot]: [&[f32]; 2], [x, x_dot]: [&[f32]; 2], width: usize, dx_dot: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let by_output = dy.chunks_exact(width).zip(dy_dot.chunks_exact(width));
            let rows = x.chunks_exact(2 * width).zip(x_dot.chunks_exact(2 * width)).zip(by_output);
            for (((x, x_dot), (dy, dy_dot)), out) in rows.zip(dx_dot.chunks_exact_mut(2 * width)) {
                let ((u, v), (u_dot, v_dot)) = (x.split_at(width), x_dot.split_at(width));
                let (by_u, by_v) = out.split_at_mut(width);
                for (i, (by_u, by_v)) in by_u.iter_mut().zip(by_v).enumerate() {
                    let [value, slope, bend] = silu(u[i]);
                    *by_u = slope * (dy_dot[i] * v[i] + dy[i] * v_dot[i]) + bend * u_dot[i] * v[i] * dy[i];
                    *by_v = value * dy_dot[i] + slope * u_dot[i] * dy[i];
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

    /// Checks the tangent of a gradient against central differences of the gradient itself, along the tangents of what it is computed from.
    fn along(values: [&[f32]; 4], found: &[f32], gradient: impl Fn(&[f64], &[f64]) -> Vec<f64>) {
        let [dy, dy_dot, x, x_dot] = values.map(|values| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        let moved = |values: &[f64], dot: &[f64], step: f64| -> Vec<f64> {
            values.iter().zip(dot).map(|(value, dot)| value + step * dot).collect()
        };
        let at = |step: f64| gradient(&moved(&dy, &dy_dot, step), &moved(&x, &x_dot, step));
        for (index, ((above, below), found)) in at(1e-5).iter().zip(at(-1e-5)).zip(found).enumerate() {
            let slope = (above - below) / 2e-5;
            assert!((slope - f64::from(*found)).abs() < 2e-5, "{index}: {found}, expected {slope}");
        }
    }

    #[test]
    fn tangents_of_gradients_are_those_of_central_differences() {
        let width = 37;
        let [dy, dy_dot, y_dot] = [1, 2, 3].map(|seed| numbers(2 * width, seed));
        let [mut x, x_dot] = [4, 5].map(|seed| numbers(4 * width, seed));
        x.iter_mut().for_each(|x| *x *= 4.0);
        let mut found = vec![0.0; 2 * width];
        gelu_gradient_tangent([&dy, &dy_dot], [&x[..2 * width], &y_dot], &mut found);
        along([&dy, &dy_dot, &x[..2 * width], &y_dot], &found, |dy, x| {
            let slope = |x: f64| {
                let (a, c) = (f64::from(LINEAR), f64::from(CUBIC));
                let sigma = 1.0 / (1.0 + (-x * (a + c * x * x)).exp());
                sigma + x * sigma * (1.0 - sigma) * (a + 3.0 * c * x * x)
            };
            dy.iter().zip(x).map(|(dy, &x)| dy * slope(x)).collect()
        });
        let sigma = |u: f64| 1.0 / (1.0 + (-u).exp());
        let mut found = vec![0.0; 4 * width];
        swi_glu_gradient_tangent([&dy, &dy_dot], [&x, &x_dot], width, &mut found);
        along([&dy, &dy_dot, &x, &x_dot], &found, |dy, x| {
            let row = |(dy, x): (&[f64], &[f64])| {
                let slope = |i: usize| sigma(x[i]) * (1.0 + x[i] * (1.0 - sigma(x[i])));
                let by_u = (0..width).map(|i| dy[i] * x[width + i] * slope(i));
                by_u.chain((0..width).map(|i| dy[i] * x[i] * sigma(x[i]))).collect::<Vec<_>>()
            };
            dy.chunks(width).zip(x.chunks(2 * width)).flat_map(row).collect()
        });
        let mut found = vec![0.0; 2 * width];
        swi_glu_tangent(&x, &x_dot, width, &mut found);
        along([&dy, &dy_dot, &x, &x_dot], &found, |_, x| {
            let row = |x: &[f64]| (0..width).map(|i| x[i] * sigma(x[i]) * x[width + i]).collect::<Vec<_>>();
            x.chunks(2 * width).flat_map(row).collect()
        });
    }
}
