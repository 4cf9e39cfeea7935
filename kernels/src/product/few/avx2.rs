//! With AVX2: bytes as 16-bit products (`vpmaddwd`); 4 bits, whose products are small enough, as bytes (`vpmaddubsw`).

use std::arch::x86_64::*;

use half::f16;

use super::digits::Digit;
use super::portable::Spread;
use super::{Affine, Bytes};
use crate::product::FAR;
use crate::product::affine::halves::eight;

impl Bytes<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn columns_avx2(&self, first: usize, row: &Spread, y: &mut [f32]) {
        let (number, pieces) = (row.starts.len(), row.scales.len());
        let piece = self.inner / pieces;
        for (column, y) in (first..).zip(y) {
            let integers = &self.integers[column * self.inner..][..self.inner];
            let scales = &self.scales[column * number..][..number];
            for line in (0..self.inner).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(integers.as_ptr().wrapping_add(line + FAR).cast());
            }
            let mut sum = _mm256_setzero_ps();
            let mut parts = integers.chunks_exact(piece).zip(row.words.chunks_exact(piece / 16)).zip(&row.scales);
            for &scale in scales {
                let mut block = _mm256_setzero_ps();
                for ((bytes, words), &factor) in parts.by_ref().take(pieces / number) {
                    let total = products(bytes, words);
                    block = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(factor), block);
                }
                sum = _mm256_fmadd_ps(block, _mm256_set1_ps(scale), sum);
            }
            let start: f32 = row.starts.iter().zip(scales).map(|(start, scale)| start * scale).sum();
            *y = start + added(sum);
        }
    }
}

/// Bytes times a row's values.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn products(bytes: &[u8], words: &[[i16; 16]]) -> __m256i {
    let mut total = _mm256_setzero_si256();
    for (bytes, words) in bytes.as_chunks::<16>().0.iter().zip(words) {
        // SAFETY: 16 bytes, and 16 numbers of 2.
        let (bytes, words) =
            unsafe { (_mm_loadu_si128(bytes.as_ptr().cast()), _mm256_loadu_si256(words.as_ptr().cast())) };
        total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_cvtepu8_epi16(bytes), words));
    }
    total
}

/// A row as columns of 4 bits meet it.
pub(super) type AffineSpread = super::digits::AffineSpread<32, 8>;

/// Values of a piece.
const PIECE: usize = 64;

impl Affine<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn columns_avx2(&self, first: usize, row: &AffineSpread, y: &mut [f32]) {
        let (number, width) = (self.blocks(), self.inner / 2);
        // SAFETY: 8 numbers.
        let places = unsafe { _mm256_loadu_si256(row.places.as_ptr().cast()) };
        for (column, y) in (first..).zip(y) {
            let integers = &self.integers[column * width..][..width];
            let scales = &self.scales[column * number..][..number];
            let minima = &self.minima[column * number..][..number];
            for line in (0..width).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(integers.as_ptr().wrapping_add(line + FAR).cast());
            }
            let mut sum = _mm256_setzero_ps();
            for (index, (bytes, piece)) in integers.chunks(PIECE / 2).zip(&row.pieces).enumerate() {
                let mut total = products_of_halves(bytes, &piece.first);
                if let Some(second) = &piece.second {
                    total = _mm256_add_ps(total, products_of_halves(bytes, second));
                }
                let scales = up_to_four(&scales[index * PIECE / self.block..]);
                sum = _mm256_fmadd_ps(total, _mm256_permutevar8x32_ps(scales, places), sum);
            }
            for (minima, sums) in minima.chunks(8).zip(&row.sums) {
                // SAFETY: 8 numbers.
                let sums = unsafe { _mm256_loadu_ps(sums.as_ptr()) };
                sum = _mm256_fmadd_ps(eight(minima), sums, sum);
            }
            *y = added(sum);
        }
    }
}

/// The first numbers of 16 bits, at most four, and others or zeros.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn up_to_four(values: &[f16]) -> __m256 {
    let mut all = [f16::ZERO; 4];
    let values: &[f16; 4] = match values.first_chunk() {
        Some(values) => values,
        None => {
            all[..values.len()].copy_from_slice(values);
            &all
        }
    };
    // SAFETY: 8 bytes.
    _mm256_castps128_ps256(_mm_cvtph_ps(unsafe { _mm_loadl_epi64(values.as_ptr().cast()) }))
}

/// Up to 32 pairs of 4 bits times a digit of a row's values. Sums of four products of at most 15 · 127 do not exceed 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn products_of_halves(bytes: &[u8], digit: &Digit<32, 8>) -> __m256 {
    let [lower, higher] = &digit.halves;
    let low = _mm256_set1_epi8(15);
    let mut all = [0; 32];
    let bytes = match bytes.first_chunk() {
        Some(bytes) => bytes,
        None => {
            all[..bytes.len()].copy_from_slice(bytes);
            &all
        }
    };
    // SAFETY: 32 bytes each, and 8 numbers.
    let (pairs, lower, higher, factors) = unsafe {
        (
            _mm256_loadu_si256(bytes.as_ptr().cast()),
            _mm256_loadu_si256(lower.as_ptr().cast()),
            _mm256_loadu_si256(higher.as_ptr().cast()),
            _mm256_loadu_ps(digit.scales.as_ptr()),
        )
    };
    let low_products = _mm256_maddubs_epi16(_mm256_and_si256(pairs, low), lower);
    let high_products = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(pairs), low), higher);
    let total = _mm256_madd_epi16(_mm256_add_epi16(low_products, high_products), _mm256_set1_epi16(1));
    _mm256_mul_ps(_mm256_cvtepi32_ps(total), factors)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn added(sum: __m256) -> f32 {
    let mut sums = [0.0_f32; 8];
    // SAFETY: 8 numbers.
    unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), sum) };
    sums.iter().sum()
}
