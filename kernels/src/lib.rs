//! What our own operators compute on the processor: the functions of the domain `marionette` of a bundle's graphs
//! (`exporter/src/ops`), each in one pass over memory where the operators that it is made of take ten. Rows are cut among
//! threads by whoever calls. Each function is compiled for several generations of processors, and the best is taken when it runs.

use std::collections::TryReserveError;
use std::sync::Mutex;

pub mod adapter;
pub mod attention;
pub mod block;
pub mod logits;
pub mod mlp;
pub mod norm;
pub mod product;
pub mod quantise;
pub mod rotary;
pub mod shapes;
mod team;
mod tiles;

/// What a device multiplies integers with on this processor, as it is said.
pub fn instructions() -> &'static str {
    match product::Instructions::best() {
        best if best.is_portable() => "ONNX Runtime: ours need AVX-512 VNNI or AVX2",
        best => best.name(),
    }
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

/// Zeros.
fn zeros(length: usize) -> Result<Vec<f32>, TryReserveError> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(length)?;
    zeros.resize(length, 0.0);
    Ok(zeros)
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

/// The most bytes that each value of a product's rows takes beside it while it is rounded for a product of integers, its share of a group's
/// scale among them: in our kernels. Where a device has none, the bodies' copies of a row are not counted.
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

    /// Checks a gradient, and what it is a gradient of against the same in f64.
    pub(crate) fn slopes(x: &[f32], dy: &[f32], y: &[f32], dx: &[f32], f: impl Fn(&[f64]) -> Vec<f64>) {
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

    pub(crate) fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1013) as f32 / 506.0 - 1.0).collect()
    }
}
