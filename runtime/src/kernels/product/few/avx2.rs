//! With AVX2: bytes as 16-bit products (`vpmaddwd`); 4 bits, whose products are small enough, as bytes (`vpmaddubsw`).

use std::arch::x86_64::*;

use super::Blocks;
use crate::kernels::product::{FAR, GROUP};

/// A row as columns in blocks meet it.
#[derive(Debug, Default)]
pub(super) struct Spread {
    /// Of 8 bits, 16 values each.
    words: Vec<[i16; 16]>,
    /// Of 4 bits, for each group, or each block where it is shorter, and zeros: those that meet lower halves, and the others.
    bytes: Vec<[[i8; 32]; 2]>,
    /// What each group, or each block where it is shorter, is multiplied with.
    scales: Vec<f32>,
    /// What to begin each block's sum with, since its integers are stored as more than they are.
    starts: Vec<f32>,
}

impl Spread {
    pub(super) fn new(row: &[i16], scales: &[f32], block: usize, halves: bool) -> Self {
        let mut spread = Self::default();
        let piece = block.min(GROUP);
        for (index, block) in row.chunks(block).enumerate() {
            let mut start = 0.0;
            for (at, part) in (index * block.len()..).step_by(piece).zip(block.chunks(piece)) {
                let sum: i32 = part.iter().map(|&value| i32::from(value)).sum();
                let scale = scales[at / GROUP];
                start += (sum * if halves { -8 } else { -128 }) as f32 * scale;
                spread.scales.push(scale);
                if halves {
                    let mut lines = [[0; 32]; 2];
                    let [low, high] = &mut lines;
                    for ((low, high), pair) in low.iter_mut().zip(high).zip(part.as_chunks::<2>().0) {
                        [*low, *high] = pair.map(|value| value as i8);
                    }
                    spread.bytes.push(lines);
                } else {
                    spread.words.extend(part.as_chunks::<16>().0);
                }
            }
            spread.starts.push(start);
        }
        spread
    }
}

impl Blocks<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn columns_avx2(&self, first: usize, row: &Spread, y: &mut [f32]) {
        let (number, pieces) = (row.starts.len(), row.scales.len());
        let width = if self.halves { self.inner / 2 } else { self.inner };
        let (piece, words) = (width / pieces, row.words.len() / pieces);
        for (column, y) in (first..).zip(y) {
            let integers = &self.integers[column * width..][..width];
            let scales = &self.scales[column * number..][..number];
            for line in (0..width).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(integers.as_ptr().wrapping_add(line + FAR).cast());
            }
            let mut sum = _mm256_setzero_ps();
            let mut parts = (0..pieces).zip(integers.chunks_exact(piece)).zip(&row.scales);
            for &scale in scales {
                let mut block = _mm256_setzero_ps();
                for ((index, bytes), &factor) in parts.by_ref().take(pieces / number) {
                    let total = match self.halves {
                        true => halves(bytes, &row.bytes[index]),
                        false => whole(bytes, &row.words[index * words..][..words]),
                    };
                    block = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(factor), block);
                }
                sum = _mm256_fmadd_ps(block, _mm256_set1_ps(scale), sum);
            }
            let mut sums = [0.0; 8];
            // SAFETY: 8 numbers.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), sum) };
            let start: f32 = row.starts.iter().zip(scales).map(|(start, scale)| start * scale).sum();
            *y = start + sums.iter().sum::<f32>();
        }
    }
}

/// Bytes times a row's values.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn whole(bytes: &[u8], words: &[[i16; 16]]) -> __m256i {
    let mut total = _mm256_setzero_si256();
    for (bytes, words) in bytes.as_chunks::<16>().0.iter().zip(words) {
        // SAFETY: 16 bytes, and 16 numbers of 2.
        let (bytes, words) =
            unsafe { (_mm_loadu_si128(bytes.as_ptr().cast()), _mm256_loadu_si256(words.as_ptr().cast())) };
        total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_cvtepu8_epi16(bytes), words));
    }
    total
}

/// Up to 32 pairs of 4 bits times a row's values. Sums of four products of at most 15 · 127 do not exceed 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn halves(bytes: &[u8], [lower, higher]: &[[i8; 32]; 2]) -> __m256i {
    let low = _mm256_set1_epi8(15);
    let mut all = [0; 32];
    let bytes = match bytes.first_chunk() {
        Some(bytes) => bytes,
        None => {
            all[..bytes.len()].copy_from_slice(bytes);
            &all
        }
    };
    // SAFETY: 32 bytes each.
    let (pairs, lower, higher) = unsafe {
        (
            _mm256_loadu_si256(bytes.as_ptr().cast()),
            _mm256_loadu_si256(lower.as_ptr().cast()),
            _mm256_loadu_si256(higher.as_ptr().cast()),
        )
    };
    let low_products = _mm256_maddubs_epi16(_mm256_and_si256(pairs, low), lower);
    let high_products = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(pairs), low), higher);
    _mm256_madd_epi16(_mm256_add_epi16(low_products, high_products), _mm256_set1_epi16(1))
}
