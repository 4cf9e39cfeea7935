//! The other side of a product, rounded.

use std::arch::x86_64::*;

use super::vectors::load_f32s;
use super::{DEPTH, is_supported};

/// Rows rounded to 8 bits.
#[derive(Debug, Default)]
pub struct Rounded {
    /// \[M, width\], zeros after a row's values.
    pub(super) bytes: Vec<i8>,
    pub(super) width: usize,
    /// What a row's bytes are multiplied with, \[M\].
    pub(super) scales: Vec<f32>,
    /// −128 times the sums of each row's parts of [`DEPTH`] bytes, \[M, parts\].
    pub(super) corrections: Vec<i32>,
}

impl Rounded {
    /// Room for `rows` rows of `length` values, to be filled by [`RowToRound::round`]: each row by itself.
    pub fn rows(&mut self, rows: usize, length: usize) -> impl Iterator<Item = RowToRound<'_>> {
        self.width = length.next_multiple_of(64).max(64);
        let parts = self.width.div_ceil(DEPTH);
        self.bytes.resize(rows * self.width, 0);
        self.scales.resize(rows, 0.0);
        self.corrections.resize(rows * parts, 0);
        let bytes = self.bytes.chunks_mut(self.width);
        let corrections = self.corrections.chunks_mut(parts);
        bytes.zip(corrections).zip(&mut self.scales).map(|((bytes, corrections), scale)| RowToRound {
            bytes,
            corrections,
            scale,
        })
    }
}

/// Where one row's bytes belong.
#[derive(Debug)]
pub struct RowToRound<'a> {
    bytes: &'a mut [i8],
    corrections: &'a mut [i32],
    scale: &'a mut f32,
}

impl RowToRound<'_> {
    /// Rounds a row: x ⊙ `factors` where there are some, to the nearest multiples of 1/127 of its largest value. A row with
    /// a value that is not finite gives a scale that is none.
    ///
    /// # Panics
    /// The processor is not one that [`is_supported`].
    pub fn round(&mut self, x: &[f32], factors: Option<&[f32]>) {
        assert!(is_supported());
        // SAFETY: the processor has the instructions.
        unsafe { self.round_here(x, factors) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn round_here(&mut self, x: &[f32], factors: Option<&[f32]>) {
        let value = |at: usize| {
            let value = load_f32s(x.get(at..).unwrap_or_default());
            match factors {
                Some(factors) => _mm512_mul_ps(value, load_f32s(factors.get(at..).unwrap_or_default())),
                None => value,
            }
        };
        // As integers, the greatest is also what is not finite.
        let mut largest = _mm512_setzero_si512();
        for at in (0..x.len()).step_by(16) {
            largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(value(at))));
        }
        let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
        let inverse = _mm512_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        let parts = self.bytes.chunks_mut(DEPTH).zip(&mut *self.corrections);
        for (start, (part, correction)) in (0..).step_by(DEPTH).zip(parts) {
            let mut sum = _mm512_setzero_si512();
            for (at, bytes) in (start..).step_by(16).zip(part.as_chunks_mut::<16>().0) {
                let integers = _mm512_cvtps_epi32(_mm512_mul_ps(value(at), inverse));
                sum = _mm512_add_epi32(sum, integers);
                // SAFETY: 16 bytes.
                unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(integers)) };
            }
            *correction = _mm512_reduce_add_epi32(sum).wrapping_mul(-128);
        }
        *self.scale = largest / 127.0;
    }
}
