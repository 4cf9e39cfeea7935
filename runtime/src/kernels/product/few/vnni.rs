//! With VNNI's dot products of four bytes.

use std::arch::x86_64::*;

use super::Blocks;
use crate::kernels::product::vectors::{load, load_f32s, load_i8s, load_i32s};
use crate::kernels::product::{FAR, GROUP};

/// A row as columns in blocks meet it, in pieces of a vector's bytes: of 8 bits up to 64 values, of 4 bits a block.
#[derive(Debug, Default)]
pub(super) struct Spread {
    /// The bytes of each piece, zeros after them: of 8 bits in their order, of 4 bits those that meet lower halves, then the others.
    lines: Vec<[i8; 64]>,
    /// What to begin each piece's sums with, since its integers are stored as more than they are.
    starts: Vec<[i32; 16]>,
    /// What each of a piece's sums is multiplied with: its group's scale.
    scales: Vec<[f32; 16]>,
    /// Pieces of a block.
    pieces: usize,
}

impl Spread {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn new(row: &[i8], scales: &[f32], block: usize, halves: bool) -> Self {
        let length = if halves { block } else { block.min(64) };
        let mut spread = Self { pieces: block / length, ..Self::default() };
        let middle = _mm512_set1_epi8(if halves { 8 } else { -128 });
        for (start, piece) in (0..).step_by(length).zip(row.chunks(length)) {
            let first = spread.lines.len();
            if halves {
                let mut lines = [[0; 64]; 2];
                let [low, high] = &mut lines;
                for ((low, high), pair) in low.iter_mut().zip(high).zip(piece.as_chunks::<2>().0) {
                    [*low, *high] = *pair;
                }
                spread.lines.extend(lines);
            } else {
                let mut line = [0; 64];
                line[..piece.len()].copy_from_slice(piece);
                spread.lines.push(line);
            }
            let mut more = _mm512_setzero_si512();
            for line in &spread.lines[first..] {
                more = _mm512_dpbusd_epi32(more, middle, load_i8s(line));
            }
            let mut begin = [0; 16];
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(begin.as_mut_ptr().cast(), _mm512_sub_epi32(_mm512_setzero_si512(), more)) };
            spread.starts.push(begin);
            // Four bytes a sum: of 4 bits, eight values.
            let values = if halves { 8 } else { 4 };
            let scale = |sum: usize| scales[((start + sum * values) / GROUP).min(scales.len() - 1)];
            spread.scales.push(std::array::from_fn(scale));
        }
        spread
    }
}

impl Blocks<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn columns_vnni(&self, first: usize, row: &Spread, y: &mut [f32]) {
        let number = row.starts.len() / row.pieces;
        let width = if self.halves { self.inner / 2 } else { self.inner };
        let (piece, lines) = (width / row.starts.len(), row.lines.len() / row.starts.len());
        let low = _mm512_set1_epi8(15);
        for (column, y) in (first..).zip(y) {
            let integers = &self.integers[column * width..][..width];
            let scales = &self.scales[column * number..][..number];
            let mut sum = _mm512_setzero_ps();
            let mut pieces =
                integers.chunks_exact(piece).zip(row.lines.chunks_exact(lines)).zip(row.starts.iter().zip(&row.scales));
            for &scale in scales {
                let mut block = _mm512_setzero_ps();
                for ((bytes, lines), (start, factors)) in pieces.by_ref().take(row.pieces) {
                    _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(FAR).cast());
                    let bytes = load(bytes);
                    let mut total = load_i32s(start);
                    if self.halves {
                        let halves =
                            [_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low)];
                        for (half, line) in halves.into_iter().zip(lines) {
                            total = _mm512_dpbusd_epi32(total, half, load_i8s(line));
                        }
                    } else if let [line] = lines {
                        total = _mm512_dpbusd_epi32(total, bytes, load_i8s(line));
                    }
                    block = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), load_f32s(factors), block);
                }
                sum = _mm512_fmadd_ps(block, _mm512_set1_ps(scale), sum);
            }
            *y = _mm512_reduce_add_ps(sum);
        }
    }
}
