//! Matrices of 4-bit integers in blocks, each with a scale and a minimum.

use std::arch::x86_64::*;

use half::f16;

use super::{GROUP, Instructions};

/// N columns of K integers of 4 bits: a value is q s + m.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// Pairs \[N, K / 2\], the first one lower.
    pub(super) integers: &'a [u8],
    /// s \[N, blocks\].
    pub(super) scales: &'a [f16],
    /// m \[N, blocks\].
    pub(super) minima: &'a [f16],
    pub(super) columns: usize,
    pub(super) inner: usize,
    /// How many integers have one of each: 16, 32, 64 or 128.
    pub(super) block: usize,
}

impl<'a> Affine<'a> {
    /// Of pairs \[N, K / 2\], scales and minima \[N, blocks\].
    pub fn new(integers: &'a [u8], [scales, minima]: [&'a [f16]; 2], [columns, inner]: [usize; 2]) -> Option<Self> {
        let number = scales.len().checked_div(columns)?;
        let block = inner.checked_div(number)?;
        let fits = number * columns == scales.len()
            && minima.len() == scales.len()
            && block * number == inner
            && matches!(block, 16 | 32 | 64 | 128)
            && integers.len() == columns * inner / 2;
        fits.then_some(Self { integers, scales, minima, columns, inner, block })
    }

    /// How many values one sum of integers adds up, which share a scale of the row's and one of the column's.
    pub(super) fn unit(&self) -> usize {
        self.block.min(GROUP)
    }

    /// How many blocks a column has.
    pub(super) fn blocks(&self) -> usize {
        self.inner / self.block
    }

    /// The scale of each column where its values are bytes: 1/127 of the largest that its blocks can hold.
    pub fn column_scales(&self, _: Instructions) -> Vec<f32> {
        let number = self.blocks().max(1);
        let columns = self.scales.chunks(number).zip(self.minima.chunks(number));
        // SAFETY: the processor has the instructions, of which both kinds have these.
        columns.map(|(scales, minima)| unsafe { largest(scales, minima) } / 127.0).collect()
    }
}

/// The largest of |m| and |15 s + m|.
#[target_feature(enable = "avx2,fma,f16c")]
fn largest(scales: &[f16], minima: &[f16]) -> f32 {
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
pub(super) fn eight(values: &[f16]) -> __m256 {
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
pub(super) fn floats(values: &[f16]) -> [f32; 8] {
    let mut all = [0.0; 8];
    // SAFETY: 8 numbers.
    unsafe { _mm256_storeu_ps(all.as_mut_ptr(), eight(values)) };
    all
}

/// One number of 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn one(value: f16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(value.to_bits()))))
}
