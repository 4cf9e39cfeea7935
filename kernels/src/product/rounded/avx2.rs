//! Rounding with AVX2, to 16 bits.

use std::arch::x86_64::*;

use super::{BASE, MOST};

/// Fills in a group's words, both digits of them where its largest value is above `most`, and gives its scale.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn round(x: &[f32], factors: Option<&[f32]>, most: f32, words: &mut [i16]) -> f32 {
    let load = |values: &[f32], at: usize| {
        let values = values.get(at..).unwrap_or_default();
        match values.first_chunk::<8>() {
            // SAFETY: 8 numbers.
            Some(values) => unsafe { _mm256_loadu_ps(values.as_ptr()) },
            None => {
                let mut all = [0.0; 8];
                all[..values.len()].copy_from_slice(values);
                // SAFETY: 8 numbers.
                unsafe { _mm256_loadu_ps(all.as_ptr()) }
            }
        }
    };
    let value = |at: usize| match factors {
        Some(factors) => _mm256_mul_ps(load(x, at), load(factors, at)),
        None => load(x, at),
    };
    let magnitude = _mm256_set1_epi32(i32::MAX);
    // As integers, the greatest is also what is not finite.
    let mut largest = _mm256_setzero_si256();
    for at in (0..x.len()).step_by(8) {
        largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(value(at)), magnitude));
    }
    let mut all = [0_u32; 8];
    // SAFETY: 8 numbers.
    unsafe { _mm256_storeu_si256(all.as_mut_ptr().cast(), largest) };
    let largest = f32::from_bits(all.into_iter().fold(0, u32::max));
    let steps = if largest > most { MOST * BASE } else { MOST };
    let inverse = _mm256_set1_ps(if largest > 0.0 { steps / largest } else { 0.0 });
    for (at, words) in (0..).step_by(16).zip(words.as_chunks_mut::<16>().0) {
        let [low, high] = [at, at + 8].map(|at| _mm256_cvtps_epi32(_mm256_mul_ps(value(at), inverse)));
        // Lanes of 4 and 4, in their order again.
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        // SAFETY: 16 numbers of 2 bytes.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), packed) };
    }
    largest / steps
}
