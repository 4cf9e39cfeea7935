//! With VNNI's dot products of four bytes, of which `vpdpbusd` adds up four products of 16 outputs at a time.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::factors::{Factors, Part};
use super::{Output, Strip};
use crate::product::affine::halves::one;
use crate::product::vectors::{load, load_f32s};
use crate::product::{AHEAD, Direction, Matrix, STRIP};

/// How much of the inner dimension is in a strip of bytes at a time: 256 KiB, which second-level caches hold.
const DEPTH: usize = 4096;
/// Vectors of a strip.
const VECTORS: usize = STRIP / 16;
/// Vectors of a tile.
const WIDE: usize = 2;
/// Rows of a tile: 12 sums of integers, as many of f32, and what is left of 32 registers for the factors.
const ROWS: usize = 6;

/// Four integers after one another of each of 64 outputs.
type Quad = [__m512i; VECTORS];

thread_local! {
    /// Kept, since fresh memory costs more than the strip.
    static ROOM: RefCell<Room> =
        const { RefCell::new(Room { panel: Vec::new(), factors: Vec::new(), finer: Vec::new() }) };
}

/// What is laid out of a part of the matrix.
#[derive(Debug, Clone, Copy)]
struct Laid<'a> {
    panel: &'a [Quad],
    factors: &'a [Factors],
}

/// What a strip is computed with.
struct Room {
    /// What is laid out of the matrix.
    panel: Vec<Quad>,
    /// Of 4 bits forward, of each unit.
    factors: Vec<Factors>,
    /// What the second digits give, a row each; none where no group has them.
    finer: Vec<[f32; STRIP]>,
}

impl Strip<'_> {
    /// # Safety
    /// This processor has AVX-512 with VNNI; nothing else reads or writes these columns of the output meanwhile, and they are there in
    /// all rows.
    pub(super) unsafe fn compute_vnni(&self, output: &Output) {
        ROOM.with_borrow_mut(|room| {
            // SAFETY: as the caller grants.
            unsafe { self.tiles_vnni(room, output) }
        });
    }

    /// # Safety
    /// As [`Strip::compute_vnni`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn tiles_vnni(&self, Room { panel, factors, finer }: &mut Room, output: &Output) {
        let (depth, parts) = (self.matrix.depth(self.direction), self.rows.width.div_ceil(DEPTH));
        for part in 0..parts {
            let range = part * DEPTH..depth.min((part + 1) * DEPTH);
            match self.direction {
                Direction::Forward => self.lay_columns(range.clone(), panel),
                Direction::Back => self.lay_rows(range.clone(), panel),
            }
            self.lay_factors(range.clone(), factors);
            let part = Part { index: part, range };
            let laid = Laid { panel, factors };
            // SAFETY: as the caller grants.
            unsafe {
                match self.sums {
                    Some(_) => self.part_vnni::<true>(laid, &part, finer, output),
                    None => self.part_vnni::<false>(laid, &part, finer, output),
                }
            }
        }
    }

    /// # Safety
    /// As [`Strip::compute_vnni`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn part_vnni<const AFFINE: bool>(
        &self,
        laid: Laid<'_>,
        part: &Part,
        finer: &mut Vec<[f32; STRIP]>,
        output: &Output,
    ) {
        self.second_digits_vnni::<AFFINE>(laid, part, finer);
        let (mut row, rows) = (0, self.rows.number());
        while row < rows {
            // SAFETY: as the caller grants.
            row += unsafe {
                match rows - row {
                    1 => self.tile_vnni::<1, AFFINE>(row, laid, finer, part, output),
                    2 => self.tile_vnni::<2, AFFINE>(row, laid, finer, part, output),
                    3 => self.tile_vnni::<3, AFFINE>(row, laid, finer, part, output),
                    4 => self.tile_vnni::<4, AFFINE>(row, laid, finer, part, output),
                    5 => self.tile_vnni::<5, AFFINE>(row, laid, finer, part, output),
                    _ => self.tile_vnni::<ROWS, AFFINE>(row, laid, finer, part, output),
                }
            };
        }
    }

    /// Products of the second digits of those groups that have them, each group's of all its rows at once: few have them, but in the
    /// same groups.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn second_digits_vnni<const AFFINE: bool>(&self, laid: Laid<'_>, part: &Part, finer: &mut Vec<[f32; STRIP]>) {
        finer.clear();
        for index in 0..part.range.len().div_ceil(self.rows.group) {
            for rows in self.finer.rows(part.range.start / self.rows.group + index).chunks(ROWS) {
                finer.resize(self.rows.number(), [0.0; STRIP]);
                match *rows {
                    [a] => self.second_digits_of::<_, AFFINE>([a], index, laid, part, finer),
                    [a, b] => self.second_digits_of::<_, AFFINE>([a, b], index, laid, part, finer),
                    [a, b, c] => self.second_digits_of::<_, AFFINE>([a, b, c], index, laid, part, finer),
                    [a, b, c, d] => self.second_digits_of::<_, AFFINE>([a, b, c, d], index, laid, part, finer),
                    [a, b, c, d, e] => self.second_digits_of::<_, AFFINE>([a, b, c, d, e], index, laid, part, finer),
                    [a, b, c, d, e, f] => {
                        self.second_digits_of::<_, AFFINE>([a, b, c, d, e, f], index, laid, part, finer);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Those of a part's group, of R rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn second_digits_of<const R: usize, const AFFINE: bool>(
        &self,
        rows: [u32; R],
        group: usize,
        laid: Laid<'_>,
        part: &Part,
        finer: &mut [[f32; STRIP]],
    ) {
        let (length, digits) = (self.rows.group, &self.rows.digits[1]);
        let quads = laid.panel.chunks(length / 4).nth(group).unwrap_or_default();
        let mut lines: [&[[i8; 4]]; R] = [&[]; R];
        let (mut scales, mut corrections) = ([0.0; R], [0; R]);
        for r in 0..R {
            let first = rows[r] as usize * self.rows.width + part.range.start + group * length;
            lines[r] = &digits.bytes[first..].as_chunks::<4>().0[..quads.len()];
            (scales[r], corrections[r]) = (digits.scales[first / length], digits.corrections[first / length]);
        }
        let unit = self.unit / 4;
        for (index, quads) in quads.chunks(unit).enumerate() {
            for tile in 0..VECTORS / WIDE {
                let mut sums = [[_mm512_setzero_si512(); WIDE]; R];
                for r in 0..R {
                    sums[r] = [_mm512_set1_epi32(if AFFINE { 0 } else { corrections[r] }); WIDE];
                }
                for (at, quad) in (index * unit..).zip(quads) {
                    for r in 0..R {
                        // SAFETY: the lines are as long.
                        let four = unsafe { repeated(lines[r], at) };
                        for v in 0..WIDE {
                            sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], quad[tile * WIDE + v], four);
                        }
                    }
                }
                for r in 0..R {
                    let place = &mut finer[rows[r] as usize][tile * WIDE * 16..][..WIDE * 16];
                    for v in 0..WIDE {
                        let mut total = _mm512_cvtepi32_ps(sums[r][v]);
                        if AFFINE {
                            let factors = &laid.factors[group * (length / self.unit) + index];
                            total = _mm512_mul_ps(total, load_f32s(&factors.scales[(tile * WIDE + v) * 16..][..16]));
                        }
                        let place = place[16 * v..][..16].as_mut_ptr();
                        // SAFETY: 16 numbers.
                        unsafe {
                            let total = _mm512_fmadd_ps(total, _mm512_set1_ps(scales[r]), _mm512_loadu_ps(place));
                            _mm512_storeu_ps(place, total);
                        }
                    }
                }
            }
        }
    }

    /// Lays out a range of the inner dimension, columns side by side: 16 columns of 64 integers at a time, transposed as 16 · 16 numbers
    /// of 32 bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn lay_columns(&self, range: Range<usize>, panel: &mut Vec<Quad>) {
        let zero = _mm512_setzero_si512();
        panel.clear();
        panel.resize(range.len().div_ceil(64) * 16, [zero; VECTORS]);
        for vector in 0..VECTORS {
            for (at, quads) in range.clone().step_by(64).zip(panel.as_chunks_mut::<16>().0) {
                let mut lines = [zero; 16];
                for (i, line) in lines.iter_mut().enumerate() {
                    *line = self.matrix.stored(self.first + 16 * vector + i, at, 16);
                }
                let turned = transposed(lines);
                for (quad, turned) in quads.iter_mut().zip(turned) {
                    quad[vector] = turned;
                }
            }
        }
    }

    /// Lays out a range of the columns: 64 rows of four columns at a time, their bytes interleaved.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn lay_rows(&self, range: Range<usize>, panel: &mut Vec<Quad>) {
        panel.clear();
        for column in range.step_by(4) {
            let [a, b, c, d] = [
                self.matrix.bytes(column, self.first),
                self.matrix.bytes(column + 1, self.first),
                self.matrix.bytes(column + 2, self.first),
                self.matrix.bytes(column + 3, self.first),
            ];
            let (low_ab, high_ab) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (low_cd, high_cd) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            // Of each lane of 16 rows the first, second, third and last four.
            let quarters = [
                _mm512_unpacklo_epi16(low_ab, low_cd),
                _mm512_unpackhi_epi16(low_ab, low_cd),
                _mm512_unpacklo_epi16(high_ab, high_cd),
                _mm512_unpackhi_epi16(high_ab, high_cd),
            ];
            panel.push(lanes_turned(quarters));
        }
    }

    /// # Safety
    /// As [`Strip::compute_vnni`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn tile_vnni<const R: usize, const AFFINE: bool>(
        &self,
        first: usize,
        Laid { panel, factors }: Laid<'_>,
        finer: &[[f32; STRIP]],
        part: &Part,
        output: &Output,
    ) -> usize {
        let (digits, width, start) = (&self.rows.digits[0], self.rows.width, part.range.start);
        let (group, unit) = (self.rows.group, self.unit);
        let mut lines: [&[[i8; 4]]; R] = [&[]; R];
        let mut corrections: [&[i32]; R] = [&[]; R];
        let [mut scales, mut row_sums]: [[&[f32]; R]; 2] = [[&[]; R]; 2];
        for r in 0..R {
            let first = (first + r) * width + start;
            lines[r] = &digits.bytes[first..].as_chunks::<4>().0[..panel.len()];
            let number = panel.len().div_ceil(group / 4);
            scales[r] = &digits.scales[first / group..][..number];
            corrections[r] = &digits.corrections[first / group..][..number];
            if AFFINE {
                row_sums[r] = &self.sums.unwrap_or_default()[first / unit..][..panel.len().div_ceil(unit / 4)];
            }
        }
        let factors = if AFFINE { &factors[..panel.len().div_ceil(unit / 4)] } else { factors };
        for tile in 0..self.columns.width.div_ceil(16 * WIDE) {
            let mut totals = [[_mm512_setzero_ps(); WIDE]; R];
            if let Some(finer) = finer.get(first..first + R) {
                for r in 0..R {
                    for v in 0..WIDE {
                        totals[r][v] = load_f32s(&finer[r][(tile * WIDE + v) * 16..][..16]);
                    }
                }
            }
            for (index, quads) in panel.chunks(unit / 4).enumerate() {
                let of_row = index * unit / group;
                let mut sums = [[_mm512_setzero_si512(); WIDE]; R];
                if !AFFINE {
                    for r in 0..R {
                        // SAFETY: there are as many as groups.
                        sums[r] = [_mm512_set1_epi32(unsafe { *corrections[r].get_unchecked(of_row) }); WIDE];
                    }
                }
                for (at, quad) in (index * (unit / 4)..).zip(quads) {
                    for r in 0..R {
                        // SAFETY: the lines are as long as the panel.
                        let four = unsafe { repeated(lines[r], at) };
                        for v in 0..WIDE {
                            sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], quad[tile * WIDE + v], four);
                        }
                    }
                }
                let mut of_columns = [[_mm512_setzero_ps(); 2]; WIDE];
                if AFFINE {
                    // SAFETY: there are as many as units.
                    let factors = unsafe { factors.get_unchecked(index) };
                    for (v, [scale, minimum]) in (tile * WIDE..).zip(&mut of_columns) {
                        *scale = load_f32s(&factors.scales[16 * v..][..16]);
                        *minimum = load_f32s(&factors.minima[16 * v..][..16]);
                    }
                }
                for r in 0..R {
                    // SAFETY: there are as many as groups, and as units.
                    let (scale, sum) = unsafe {
                        let sum = if AFFINE { *row_sums[r].get_unchecked(index) } else { 0.0 };
                        (_mm512_set1_ps(*scales[r].get_unchecked(of_row)), _mm512_set1_ps(sum))
                    };
                    for v in 0..WIDE {
                        let mut total = _mm512_cvtepi32_ps(sums[r][v]);
                        if AFFINE {
                            total = _mm512_mul_ps(total, of_columns[v][0]);
                            totals[r][v] = _mm512_fmadd_ps(sum, of_columns[v][1], totals[r][v]);
                        }
                        totals[r][v] = _mm512_fmadd_ps(total, scale, totals[r][v]);
                    }
                }
            }
            for (r, totals) in totals.iter().enumerate() {
                for (v, &total) in (tile * WIDE..).zip(totals) {
                    let width = self.columns.width.saturating_sub(16 * v).min(16);
                    let mask = ((1_u32 << width) - 1) as __mmask16;
                    // Beyond the columns it may point beyond the output: a place that is computed, and never read or written.
                    let at = output.first.wrapping_add((first + r) * output.width + self.first + 16 * v);
                    // SAFETY: the mask leaves out what is beyond the columns, which are there in each row and ours alone.
                    unsafe {
                        let before = match part.index {
                            0 => _mm512_loadu_ps(self.columns.bias.as_ptr().add(16 * v)),
                            _ => _mm512_maskz_loadu_ps(mask, at),
                        };
                        let factor = _mm512_loadu_ps(self.columns.scales.as_ptr().add(16 * v));
                        _mm512_mask_storeu_ps(at, mask, _mm512_fmadd_ps(total, factor, before));
                    }
                }
            }
        }
        R
    }
}

/// Four bytes, 16 times.
///
/// # Safety
/// The line has as many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn repeated(line: &[[i8; 4]], at: usize) -> __m512i {
    // SAFETY: as the caller grants.
    let four = unsafe { *line.get_unchecked(at) }.map(|byte| byte as u8);
    _mm512_set1_epi32(i32::from_ne_bytes(four))
}

impl Matrix<'_> {
    /// 64 integers of a column from a place on as they are stored, zeros beyond its end.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn stored(&self, column: usize, from: usize, ahead: usize) -> __m512i {
        if column >= self.columns {
            return _mm512_setzero_si512();
        }
        let number = self.inner.saturating_sub(from).min(64);
        if self.affine.is_none() {
            let bytes = &self.integers[column * self.inner + from..][..number];
            _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead * self.inner).cast());
            return load(bytes);
        }
        let bytes = &self.integers[(column * self.inner + from) / 2..][..number / 2];
        _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead * self.inner / 2).cast());
        let half = (u32::MAX as u64).checked_shr(32 - bytes.len() as u32).unwrap_or(0) as __mmask32;
        // SAFETY: the mask has as many ones as there are bytes.
        let pairs = _mm512_cvtepu8_epi16(unsafe { _mm256_maskz_loadu_epi8(half, bytes.as_ptr().cast()) });
        let low = _mm512_and_si512(pairs, _mm512_set1_epi16(0x000f));
        let high = _mm512_and_si512(_mm512_slli_epi16::<4>(pairs), _mm512_set1_epi16(0x0f00));
        _mm512_or_si512(low, high)
    }

    /// The same as bytes, 128 more than the integers of a scale a column.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn bytes(&self, column: usize, from: usize) -> __m512i {
        let places = self.stored(column, from, AHEAD);
        let (Some(affine), Some(&scale)) = (self.affine, self.scales.get(column)) else { return places };
        let number = self.inner.saturating_sub(from).min(64);
        let mask = u64::MAX.checked_shr(64 - number as u32).unwrap_or(0);
        // What each of the 16 integers becomes, a lane of 16 values at a time: blocks are no shorter.
        let number = affine.blocks();
        let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
        let table = |lane: usize| {
            let block = column * number + ((from + 16 * lane) / affine.block).min(number - 1);
            table(one(affine.scales[block]) * inverse, one(affine.minima[block]) * inverse)
        };
        let tables = match affine.block {
            16 => {
                let tables = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(table(0)), table(1));
                _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(tables, table(2)), table(3))
            }
            32 => {
                let [low, high] = [table(0), table(2)].map(|table| _mm256_broadcastsi128_si256(table));
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
            }
            _ => _mm512_broadcast_i32x4(table(0)),
        };
        _mm512_maskz_shuffle_epi8(mask, tables, places)
    }
}

/// The bytes, 128 more than the integers, that 4 bits from 0 to 15 become in a block whose scale and minimum are so many times the
/// column's scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn table(scale: f32, minimum: f32) -> __m128i {
    let steps = _mm512_set_ps(15., 14., 13., 12., 11., 10., 9., 8., 7., 6., 5., 4., 3., 2., 1., 0.);
    let values = _mm512_fmadd_ps(steps, _mm512_set1_ps(scale), _mm512_set1_ps(minimum));
    _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(values), _mm512_set1_epi32(128)))
}

/// 16 · 16 numbers of 32 bits, transposed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // Of rows 4 i to 4 i + 3: column j of each lane.
    let mut fours = pairs;
    for i in 0..4 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        fours[4 * i] = _mm512_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut result = fours;
    for j in 0..4 {
        let turned = lanes_turned([fours[j], fours[4 + j], fours[8 + j], fours[12 + j]]);
        for lane in 0..4 {
            result[4 * lane + j] = turned[lane];
        }
    }
    result
}

/// 4 · 4 lanes of 128 bits, transposed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn lanes_turned([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (even_ab, odd_ab) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
    let (even_cd, odd_cd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
    [
        _mm512_shuffle_i32x4::<0x88>(even_ab, even_cd),
        _mm512_shuffle_i32x4::<0x88>(odd_ab, odd_cd),
        _mm512_shuffle_i32x4::<0xdd>(even_ab, even_cd),
        _mm512_shuffle_i32x4::<0xdd>(odd_ab, odd_cd),
    ]
}
