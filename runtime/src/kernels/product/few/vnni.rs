//! With VNNI's dot products of four bytes.

use std::arch::x86_64::*;

use super::Blocks;
use crate::kernels::product::FAR;
use crate::kernels::product::vectors::{load, load_i8s, load_i32s};

/// A row as columns in blocks meet it.
#[derive(Debug, Default)]
pub(super) struct Spread {
    /// The bytes of each block, zeros after them: of 8 bits in their order, of 4 bits those that meet lower halves, then the others.
    lines: Vec<[i8; 64]>,
    /// What to begin each block's sums with, since its integers are stored as more than they are.
    starts: Vec<[i32; 16]>,
}

impl Spread {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn new(row: &[i8], block: usize, halves: bool) -> Self {
        let mut spread = Self::default();
        let middle = _mm512_set1_epi8(if halves { 8 } else { -128 });
        for block in row.chunks(block) {
            let first = spread.lines.len();
            if halves {
                let mut lines = [[0; 64]; 2];
                let [low, high] = &mut lines;
                for ((low, high), pair) in low.iter_mut().zip(high).zip(block.as_chunks::<2>().0) {
                    [*low, *high] = *pair;
                }
                spread.lines.extend(lines);
            } else {
                for part in block.chunks(64) {
                    let mut line = [0; 64];
                    line[..part.len()].copy_from_slice(part);
                    spread.lines.push(line);
                }
            }
            let mut more = _mm512_setzero_si512();
            for line in &spread.lines[first..] {
                more = _mm512_dpbusd_epi32(more, middle, load_i8s(line));
            }
            let mut start = [0; 16];
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(start.as_mut_ptr().cast(), _mm512_sub_epi32(_mm512_setzero_si512(), more)) };
            spread.starts.push(start);
        }
        spread
    }
}

impl Blocks<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn columns_vnni(&self, first: usize, row: &Spread, y: &mut [f32]) {
        let number = row.starts.len();
        let width = if self.halves { self.inner / 2 } else { self.inner };
        let (block, lines) = (width / number, row.lines.len() / number);
        let low = _mm512_set1_epi8(15);
        for (column, y) in (first..).zip(y) {
            let integers = &self.integers[column * width..][..width];
            let scales = &self.scales[column * number..][..number];
            let mut sum = _mm512_setzero_ps();
            let blocks = integers.chunks_exact(block).zip(row.lines.chunks_exact(lines)).zip(&row.starts).zip(scales);
            for (((bytes, lines), start), &scale) in blocks {
                let mut total = load_i32s(start);
                for line in (0..block).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(line + FAR).cast());
                }
                if self.halves {
                    let pairs = load(bytes);
                    let halves = [_mm512_and_si512(pairs, low), _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), low)];
                    for (half, line) in halves.into_iter().zip(lines) {
                        total = _mm512_dpbusd_epi32(total, half, load_i8s(line));
                    }
                } else {
                    for (bytes, line) in bytes.chunks(64).zip(lines) {
                        total = _mm512_dpbusd_epi32(total, load(bytes), load_i8s(line));
                    }
                }
                sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(scale), sum);
            }
            *y = _mm512_reduce_add_ps(sum);
        }
    }
}
