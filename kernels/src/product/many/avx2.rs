//! With 16-bit products: integers are laid out as pairs of 16 bits, of which `vpmaddwd` adds up two products of 8 outputs at a time.
//! (`vpmaddubsw`, of bytes, would stop at 16 bits.)

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::factors::{Factors, Part};
use super::{Output, Strip};
use crate::product::affine::halves::one;
use crate::product::{AHEAD, Affine, Direction, Matrix, STRIP};

/// How much of the inner dimension is in a strip at a time: 512 KiB, which second-level caches hold. (With 256 to 1,024, where
/// a tile fits the first-level cache, it is slower by 5 to 15 %.)
const DEPTH: usize = 4096;
/// Outputs of a tile.
const OUTPUTS: usize = 16;
/// Rows of a tile: 12 sums of integers, and what is left of 16 registers for the factors; sums of f32 are in memory.
const ROWS: usize = 6;

/// Two integers after one another of each of 16 outputs.
type Pair = [__m256i; OUTPUTS / 8];

thread_local! {
    /// Kept, since fresh memory costs more than the strip.
    static ROOM: RefCell<Room> = const { RefCell::new(Room { panel: Vec::new(), factors: Vec::new() }) };
}

/// What is laid out of the matrix.
struct Room {
    /// The strip's tiles one after the other.
    panel: Vec<Pair>,
    /// Of 4 bits forward, of each unit.
    factors: Vec<Factors>,
}

impl Strip<'_> {
    /// # Safety
    /// This processor has AVX2 and FMA; nothing else reads or writes these columns of the output meanwhile, and they are there in all
    /// rows.
    pub(super) unsafe fn compute_avx2(&self, output: &Output) {
        ROOM.with_borrow_mut(|room| {
            // SAFETY: as the caller grants.
            unsafe { self.tiles(room, output) }
        });
    }

    /// # Safety
    /// As [`Strip::compute_avx2`].
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tiles(&self, Room { panel, factors }: &mut Room, output: &Output) {
        let depth = self.matrix.depth(self.direction);
        let parts = self.rows.width.div_ceil(DEPTH);
        for part in 0..parts {
            let range = part * DEPTH..depth.min((part + 1) * DEPTH);
            let pairs = range.len().next_multiple_of(OUTPUTS) / 2;
            panel.clear();
            panel.resize(pairs * STRIP / OUTPUTS, [_mm256_setzero_si256(); 2]);
            match self.direction {
                Direction::Forward => {
                    for (tile, panel) in panel.chunks_exact_mut(pairs).enumerate() {
                        self.matrix.lay_columns(self.first + tile * OUTPUTS, range.clone(), panel);
                    }
                }
                Direction::Back => self.matrix.lay_rows(self.first, range.clone(), panel),
            }
            self.lay_factors(range.clone(), factors);
            let place = Part { index: part, range };
            for (tile, panel) in panel.chunks_exact(pairs).enumerate() {
                let (mut row, rows) = (0, self.rows.number());
                while row < rows && tile * OUTPUTS < self.columns.width {
                    // SAFETY: as the caller grants.
                    row += unsafe {
                        match rows - row {
                            1 => self.tile_avx2::<1>(row, tile, (panel, factors), &place, output),
                            2 => self.tile_avx2::<2>(row, tile, (panel, factors), &place, output),
                            3 => self.tile_avx2::<3>(row, tile, (panel, factors), &place, output),
                            4 => self.tile_avx2::<4>(row, tile, (panel, factors), &place, output),
                            5 => self.tile_avx2::<5>(row, tile, (panel, factors), &place, output),
                            _ => self.tile_avx2::<ROWS>(row, tile, (panel, factors), &place, output),
                        }
                    };
                }
            }
        }
    }

    /// # Safety
    /// As [`Strip::compute_avx2`].
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile_avx2<const R: usize>(
        &self,
        first: usize,
        tile: usize,
        (panel, factors): (&[Pair], &[Factors]),
        part: &Part,
        output: &Output,
    ) -> usize {
        let (group, unit, start) = (self.rows.group, self.unit, part.range.start);
        let mut lines: [&[[i16; 2]]; R] = [&[]; R];
        let [mut scales, mut row_sums]: [[&[f32]; R]; 2] = [[&[]; R]; 2];
        for r in 0..R {
            let first = (first + r) * self.rows.width + start;
            lines[r] = &self.rows.words[first..].as_chunks::<2>().0[..panel.len()];
            scales[r] = &self.rows.scales[first / group..][..panel.len().div_ceil(group / 2)];
            if let Some(sums) = self.sums {
                row_sums[r] = &sums[first / unit..][..panel.len().div_ceil(unit / 2)];
            }
        }
        let mut totals = [[_mm256_setzero_ps(); 2]; R];
        for (index, pairs) in panel.chunks(unit / 2).enumerate() {
            let mut sums = [[_mm256_setzero_si256(); 2]; R];
            for (at, pair) in (index * (unit / 2)..).zip(pairs) {
                for r in 0..R {
                    // SAFETY: the lines are as long as the panel, and their pairs 4 bytes.
                    let two = unsafe { lines[r].as_ptr().add(at).cast::<i32>().read_unaligned() };
                    let two = _mm256_set1_epi32(two);
                    for v in 0..2 {
                        sums[r][v] = _mm256_add_epi32(sums[r][v], _mm256_madd_epi16(pair[v], two));
                    }
                }
            }
            let factors = factors.get(index);
            for r in 0..R {
                // SAFETY: there are as many as groups.
                let scale = _mm256_set1_ps(unsafe { *scales[r].get_unchecked(index * unit / group) });
                for v in 0..2 {
                    let mut total = _mm256_cvtepi32_ps(sums[r][v]);
                    if let Some(Factors { scales, minima }) = factors {
                        let at = tile * OUTPUTS + 8 * v;
                        // SAFETY: 8 numbers of each; there are as many sums as units.
                        let (scales, minima, sum) = unsafe {
                            let [scales, minima] = [&scales[at..][..8], &minima[at..][..8]].map(|part| part.as_ptr());
                            (_mm256_loadu_ps(scales), _mm256_loadu_ps(minima), *row_sums[r].get_unchecked(index))
                        };
                        total = _mm256_mul_ps(total, scales);
                        totals[r][v] = _mm256_fmadd_ps(minima, _mm256_set1_ps(sum), totals[r][v]);
                    }
                    totals[r][v] = _mm256_fmadd_ps(total, scale, totals[r][v]);
                }
            }
        }
        let width = (self.columns.width - tile * OUTPUTS).min(OUTPUTS);
        for (r, totals) in totals.iter().enumerate() {
            let mut y = [0.0; OUTPUTS];
            // SAFETY: the columns are there in each row and ours alone.
            let at = unsafe { output.columns(first + r, self.first + tile * OUTPUTS, width) };
            match part.index {
                0 => y.copy_from_slice(&self.columns.bias[tile * OUTPUTS..][..OUTPUTS]),
                _ => y[..width].copy_from_slice(at),
            }
            for (v, &total) in totals.iter().enumerate() {
                // SAFETY: 8 numbers from each place.
                unsafe {
                    let factors = _mm256_loadu_ps(self.columns.scales[tile * OUTPUTS + 8 * v..][..8].as_ptr());
                    let place = y[8 * v..][..8].as_mut_ptr();
                    _mm256_storeu_ps(place, _mm256_fmadd_ps(total, factors, _mm256_loadu_ps(place)));
                }
            }
            at.copy_from_slice(&y[..width]);
        }
        R
    }
}

impl Matrix<'_> {
    /// Lays out a range of the inner dimension for 16 columns side by side: 8 columns of 16 integers at a time, transposed as 8 · 8 pairs.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn lay_columns(&self, first: usize, range: Range<usize>, panel: &mut [Pair]) {
        for vector in 0..2 {
            for (at, pairs) in range.clone().step_by(16).zip(panel.as_chunks_mut::<8>().0) {
                let mut lines = [_mm256_setzero_si256(); 8];
                for (i, line) in lines.iter_mut().enumerate() {
                    let column = first + 8 * vector + i;
                    *line = match self.affine {
                        Some(_) => _mm256_cvtepi8_epi16(self.halves(column, at, 8)),
                        None => self.words(column, at, 8),
                    };
                }
                for (pair, turned) in pairs.iter_mut().zip(transposed(lines)) {
                    pair[vector] = turned;
                }
            }
        }
    }

    /// Lays out a range of the columns for the rows of all tiles: two columns at a time, interleaved.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn lay_rows(&self, first: usize, range: Range<usize>, panel: &mut [Pair]) {
        let (mut tables, pairs) = ([Table::default(); 2], panel.len() * OUTPUTS / STRIP);
        let mut words = |column, from, at: usize| match self.affine {
            Some(affine) => self.bytes_of_halves(affine, column, from, &mut tables[at]),
            None => self.words(column, from, AHEAD),
        };
        for (index, column) in range.step_by(2).enumerate() {
            for (tile, place) in panel[index..].iter_mut().step_by(pairs).enumerate() {
                let from = first + tile * OUTPUTS;
                let (a, b) = (words(column, from, 0), words(column + 1, from, 1));
                let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
                *place = [_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high)];
            }
        }
    }

    /// Whether a column goes on from a place.
    fn has(&self, column: usize, from: usize) -> bool {
        column < self.columns && from < self.inner
    }

    /// 16 integers of a column of bytes from a place on (a multiple of 16), zeros beyond its end.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn words(&self, column: usize, from: usize, ahead: usize) -> __m256i {
        if !self.has(column, from) {
            return _mm256_setzero_si256();
        }
        let number = (self.inner - from).min(16);
        let bytes = &self.integers[column * self.inner + from..][..number];
        _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead * self.inner).cast());
        let bytes = match bytes.first_chunk::<16>() {
            // SAFETY: 16 bytes.
            Some(bytes) => unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) },
            None => {
                let mut whole = [128; 16];
                whole[..number].copy_from_slice(bytes);
                // SAFETY: 16 bytes.
                unsafe { _mm_loadu_si128(whole.as_ptr().cast()) }
            }
        };
        _mm256_sub_epi16(_mm256_cvtepu8_epi16(bytes), _mm256_set1_epi16(128))
    }

    /// 16 integers of 4 bits of a column from a place on (a multiple of 16), a byte each, zeros beyond its end.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn halves(&self, column: usize, from: usize, ahead: usize) -> __m128i {
        if !self.has(column, from) {
            return _mm_setzero_si128();
        }
        // Blocks are of 16 integers or more, and end where the column does.
        let bytes = &self.integers[(column * self.inner + from) / 2..][..8];
        _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead * self.inner / 2).cast());
        // SAFETY: 8 bytes.
        let pairs = _mm_cvtepu8_epi16(unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) });
        let low = _mm_and_si128(pairs, _mm_set1_epi16(0x000f));
        let high = _mm_and_si128(_mm_slli_epi16::<4>(pairs), _mm_set1_epi16(0x0f00));
        _mm_or_si128(low, high)
    }

    /// The same as integers of 8 bits of a scale a column.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn bytes_of_halves(&self, affine: Affine<'_>, column: usize, from: usize, known: &mut Table) -> __m256i {
        if !self.has(column, from) {
            return _mm256_setzero_si256();
        }
        let block = column * affine.blocks() + from / affine.block;
        if known.block != Some(block) {
            let scale = self.scales[column];
            let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
            let [scale, minimum] = [affine.scales[block], affine.minima[block]].map(|value| one(value) * inverse);
            *known = Table { block: Some(block), bytes: table(scale, minimum) };
        }
        // SAFETY: 16 bytes.
        let table = unsafe { _mm_loadu_si128(known.bytes.as_ptr().cast()) };
        _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, self.halves(column, from, AHEAD)))
    }
}

/// What each of the 16 integers of 4 bits becomes in a block.
#[derive(Debug, Clone, Copy, Default)]
struct Table {
    block: Option<usize>,
    bytes: [i8; 16],
}

/// The integers that 4 bits from 0 to 15 become in a block whose scale and minimum are so many times the column's scale.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn table(scale: f32, minimum: f32) -> [i8; 16] {
    let mut integers = [0_i32; 16];
    for (half, integers) in integers.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let steps = _mm256_add_ps(
            _mm256_set_ps(7., 6., 5., 4., 3., 2., 1., 0.),
            _mm256_set1_ps(if half == 0 { 0.0 } else { 8.0 }),
        );
        let values = _mm256_fmadd_ps(steps, _mm256_set1_ps(scale), _mm256_set1_ps(minimum));
        // SAFETY: 8 numbers.
        unsafe { _mm256_storeu_si256(integers.as_mut_ptr().cast(), _mm256_cvtps_epi32(values)) };
    }
    integers.map(|integer| integer as i8)
}

/// 8 · 8 numbers of 32 bits, transposed.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transposed(rows: [__m256i; 8]) -> [__m256i; 8] {
    let mut pairs = rows;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Of rows 4 i to 4 i + 3: column j of each lane.
    let mut fours = pairs;
    for i in 0..2 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        fours[4 * i] = _mm256_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm256_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm256_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm256_unpackhi_epi64(b, d);
    }
    let mut result = fours;
    for j in 0..4 {
        result[j] = _mm256_permute2x128_si256::<0x20>(fours[j], fours[4 + j]);
        result[4 + j] = _mm256_permute2x128_si256::<0x31>(fours[j], fours[4 + j]);
    }
    result
}
