//! Numbers of 16 bits by the instructions that there are for them (F16C).

use std::arch::x86_64::*;

use half::f16;

/// The largest of |m| and |15 s + m|.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn largest(scales: &[f16], minima: &[f16]) -> f32 {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
    let mut most = _mm256_setzero_ps();
    for (scales, minima) in scales.chunks(8).zip(minima.chunks(8)) {
        let [scales, minima] = [eight(scales), eight(minima)];
        let last = _mm256_fmadd_ps(scales, _mm256_set1_ps(15.0), minima);
        most = _mm256_max_ps(most, _mm256_and_ps(minima, magnitude));
        most = _mm256_max_ps(most, _mm256_and_ps(last, magnitude));
    }
    let mut all = [0.0_f32; 8];
    // SAFETY: 8 numbers.
    unsafe { _mm256_storeu_ps(all.as_mut_ptr(), most) };
    all.into_iter().fold(0.0, f32::max)
}

/// Up to 8 numbers of 16 bits, and zeros.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::product) fn eight(values: &[f16]) -> __m256 {
    let mut all = [f16::ZERO; 8];
    let values = match values.first_chunk() {
        Some(values) => values,
        None => {
            all[..values.len()].copy_from_slice(values);
            &all
        }
    };
    // SAFETY: 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(values.as_ptr().cast()) })
}

/// The same in memory.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::product) fn floats(values: &[f16]) -> [f32; 8] {
    let mut all = [0.0; 8];
    // SAFETY: 8 numbers.
    unsafe { _mm256_storeu_ps(all.as_mut_ptr(), eight(values)) };
    all
}

/// One number of 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::product) fn one(value: f16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(value.to_bits()))))
}
