//! With VNNI's dot products of four bytes.

use std::arch::x86_64::*;

use half::f16;

use super::{Affine, Bytes};
use crate::kernels::product::vectors::{load, load_f32s, load_i8s, load_i32s};
use crate::kernels::product::{FAR, GROUP, Rounded};

/// A row as columns of bytes meet it, in pieces of up to 64 values, each of one block.
#[derive(Debug)]
pub(super) struct Spread {
    /// The bytes of each piece, zeros after them.
    lines: Vec<[i8; 64]>,
    /// What to begin each piece's sums with, since its integers are stored as 128 more than they are.
    starts: Vec<[i32; 16]>,
    /// What each of a piece's sums is multiplied with: its group's scale.
    scales: Vec<[f32; 16]>,
    /// Pieces of a block.
    pieces: usize,
}

impl Spread {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn new(rows: &Rounded, row: usize, matrix: &Bytes<'_>) -> Self {
        let block = matrix.inner * matrix.columns / matrix.scales.len();
        let length = block.min(64);
        let (bytes, scales) = rows.row(row, &rows.bytes);
        let mut spread = Self { lines: Vec::new(), starts: Vec::new(), scales: Vec::new(), pieces: block / length };
        for (at, piece) in (0..).step_by(length).zip(bytes[..matrix.inner].chunks(length)) {
            let mut line = [0; 64];
            line[..piece.len()].copy_from_slice(piece);
            let more = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(-128), load_i8s(&line));
            let mut start = [0; 16];
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(start.as_mut_ptr().cast(), _mm512_sub_epi32(_mm512_setzero_si512(), more)) };
            spread.lines.push(line);
            spread.starts.push(start);
            spread.scales.push(std::array::from_fn(|sum| {
                // Four bytes each.
                scales.get((at + 4 * sum) / GROUP).copied().unwrap_or(0.0)
            }));
        }
        spread
    }
}

impl Bytes<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn columns_vnni(&self, first: usize, row: &Spread, y: &mut [f32]) {
        let number = row.lines.len() / row.pieces;
        let piece = self.inner / row.lines.len();
        for (column, y) in (first..).zip(y) {
            let integers = &self.integers[column * self.inner..][..self.inner];
            let scales = &self.scales[column * number..][..number];
            let mut sum = _mm512_setzero_ps();
            let mut pieces = integers.chunks_exact(piece).zip(&row.lines).zip(row.starts.iter().zip(&row.scales));
            for &scale in scales {
                let mut block = _mm512_setzero_ps();
                for ((bytes, line), (start, factors)) in pieces.by_ref().take(row.pieces) {
                    _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(FAR).cast());
                    let total = _mm512_dpbusd_epi32(load_i32s(start), load(bytes), load_i8s(line));
                    block = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), load_f32s(factors), block);
                }
                sum = _mm512_fmadd_ps(block, _mm512_set1_ps(scale), sum);
            }
            *y = _mm512_reduce_add_ps(sum);
        }
    }
}

/// A row as columns of 4 bits meet it.
pub(super) type AffineSpread = super::AffineSpread<64, 16>;

/// Values of a piece.
const PIECE: usize = 128;

impl Affine<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn columns_vnni(&self, first: usize, row: &AffineSpread, y: &mut [f32]) {
        let (number, width) = (self.blocks(), self.inner / 2);
        let (low, places) = (_mm512_set1_epi8(15), load_i32s(&row.places));
        for (column, y) in (first..).zip(y) {
            let integers = &self.integers[column * width..][..width];
            let scales = &self.scales[column * number..][..number];
            let minima = &self.minima[column * number..][..number];
            let mut sum = _mm512_setzero_ps();
            let pieces = integers.chunks(PIECE / 2).zip(scales.chunks(PIECE / self.block));
            for ((bytes, scales), ([lower, higher], factors)) in pieces.zip(row.lines.iter().zip(&row.scales)) {
                _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(FAR).cast());
                let pairs = load(bytes);
                let halves = [_mm512_and_si512(pairs, low), _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), low)];
                let total = _mm512_dpbusd_epi32(_mm512_setzero_si512(), halves[0], load_i8s(lower));
                let total = _mm512_dpbusd_epi32(total, halves[1], load_i8s(higher));
                let scales = _mm512_permutexvar_ps(places, _mm512_cvtph_ps(load_halves(scales)));
                let total = _mm512_mul_ps(_mm512_cvtepi32_ps(total), load_f32s(factors));
                sum = _mm512_fmadd_ps(total, scales, sum);
            }
            for (minima, sums) in minima.chunks(16).zip(&row.sums) {
                sum = _mm512_fmadd_ps(_mm512_cvtph_ps(load_halves(minima)), load_f32s(sums), sum);
            }
            *y = _mm512_reduce_add_ps(sum);
        }
    }
}

/// Up to 16 numbers of 16 bits, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_halves(values: &[f16]) -> __m256i {
    let mask = u16::MAX.checked_shr(16 - values.len().min(16) as u32).unwrap_or(0);
    // SAFETY: the mask has as many ones as there are numbers, and 16 at most.
    unsafe { _mm256_maskz_loadu_epi16(mask, values.as_ptr().cast()) }
}
