//! Products of rows of f32 with a frozen matrix of 8- or 4-bit integers, which is read as it lies in its file: no other copy of it is
//! made or kept. Each row is rounded to 8 bits with a scale of its own, so that the products are those of integers.
//!
//! 64 outputs are computed at a time, for all rows: what they need of the matrix is laid out for the processor's dot products of four
//! bytes (VNNI) in a scratch strip, which takes as long as a few rows, and is then multiplied with tiles of rows whose sums stay in
//! registers (Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication").

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Outputs of a strip.
const STRIP: usize = 64;
/// Vectors of a strip.
const VECTORS: usize = STRIP / 16;
/// How much of the inner dimension is in a strip at a time: 256 KiB, which second-level caches hold.
const DEPTH: usize = 4096;
/// How many columns ahead of those that are laid out the next ones are fetched, and how many bytes ahead of those that few rows meet:
/// memory takes so long.
const AHEAD: usize = 16;
const FAR: usize = 2048;
/// Rows of a tile: 24 sums, and what is left of 32 registers for the factors.
const ROWS: usize = 6;

/// Four integers after one another of each of 64 outputs.
type Quad = [__m512i; VECTORS];

thread_local! {
    /// Kept, since fresh memory costs more than the strip.
    static PANEL: RefCell<Vec<Quad>> = const { RefCell::new(Vec::new()) };
}

/// Whether this processor has the instructions.
pub fn is_supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// N columns of K integers.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    integers: &'a [u8],
    /// \[N\].
    scales: &'a [f32],
    /// Of 4 bits, \[N, blocks\].
    blocks: Option<&'a [f32]>,
    inner: usize,
}

/// Which way a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From K values a row to N.
    Forward,
    /// From N values a row to K.
    Back,
}

impl<'a> Matrix<'a> {
    /// Of bytes \[N, K\], each 128 more than its integer, and a scale a column.
    pub fn of_bytes(integers: &'a [u8], scales: &'a [f32]) -> Option<Self> {
        let inner = integers.len().checked_div(scales.len())?;
        (inner * scales.len() == integers.len()).then_some(Self { integers, scales, blocks: None, inner })
    }

    /// Of pairs of 4 bits \[N, K / 2\], each 8 more than its integer, the first one lower, and a scale a block \[N, blocks\]. What is
    /// multiplied are bytes: the integer times its block's scale over the column's, rounded. `columns` gets the columns' scales,
    /// \[N\], as [`column_scales`] gives them.
    pub fn of_halves(integers: &'a [u8], blocks: &'a [f32], columns: &'a [f32]) -> Option<Self> {
        let inner = (2 * integers.len()).checked_div(columns.len())?;
        let number = blocks.len().checked_div(columns.len())?;
        let fits = inner * columns.len() == 2 * integers.len()
            && number * columns.len() == blocks.len()
            && number > 0
            && inner % (16 * number) == 0;
        fits.then_some(Self { integers, scales: columns, blocks: Some(blocks), inner })
    }

    /// N and K.
    pub fn shape(&self) -> [usize; 2] {
        [self.scales.len(), self.inner]
    }

    /// What a column's integers of 8 bits are multiplied with, \[N\].
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }

    fn outputs(&self, direction: Direction) -> usize {
        match direction {
            Direction::Forward => self.scales.len(),
            Direction::Back => self.inner,
        }
    }

    fn depth(&self, direction: Direction) -> usize {
        match direction {
            Direction::Forward => self.inner,
            Direction::Back => self.scales.len(),
        }
    }
}

/// The scale of each column of 4-bit integers in blocks: that of its largest block, as its integers reach to −8 and bytes to 127.
pub fn column_scales(blocks: &[f32], number: usize) -> Vec<f32> {
    let largest = |blocks: &[f32]| blocks.iter().fold(0.0_f32, |most, scale| most.max(scale.abs()));
    blocks.chunks(number.max(1)).map(|blocks| largest(blocks) * (8.0 / 127.0)).collect()
}

/// Rows rounded to 8 bits.
#[derive(Debug, Default)]
pub struct Rounded {
    /// \[M, width\], zeros after a row's values.
    bytes: Vec<i8>,
    width: usize,
    /// What a row's bytes are multiplied with, \[M\].
    scales: Vec<f32>,
    /// −128 times the sums of each row's parts of [`DEPTH`] bytes, \[M, parts\].
    corrections: Vec<i32>,
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

/// An output that several threads write, each its own columns.
struct Output {
    first: *mut f32,
    width: usize,
}

// SAFETY: `multiply` gives each strip of columns to one thread.
unsafe impl Send for Output {}
unsafe impl Sync for Output {}

/// y = x W + b or y = x Wᵀ, row-major: `rows` are those of x, and for the latter those of x times the columns' scales. `in_parallel`
/// gets a number and calls a function with each index below it, on any threads. False where the shapes do not fit, and nothing is
/// computed.
///
/// # Panics
/// The processor is not one that [`is_supported`].
pub fn multiply<E>(
    matrix: Matrix<'_>,
    direction: Direction,
    rows: &Rounded,
    bias: Option<&[f32]>,
    y: &mut [f32],
    in_parallel: impl FnOnce(usize, &(dyn Fn(usize) + Send + Sync)) -> Result<(), E>,
) -> Result<bool, E> {
    assert!(is_supported());
    let width = matrix.outputs(direction);
    let fits = rows.width == matrix.depth(direction).next_multiple_of(64).max(64)
        && y.len() == rows.scales.len() * width
        && bias.is_none_or(|bias| bias.len() == width);
    if !fits {
        return Ok(false);
    }
    let output = Output { first: y.as_mut_ptr(), width };
    let strips: Vec<AtomicBool> = (0..width.div_ceil(STRIP)).map(|_| AtomicBool::new(false)).collect();
    in_parallel(strips.len(), &|index| {
        let is_first = strips.get(index).is_some_and(|taken| !taken.swap(true, Ordering::Relaxed));
        if is_first {
            let strip = Strip { matrix, direction, first: index * STRIP, rows, bias };
            PANEL.with_borrow_mut(|panel| {
                // SAFETY: the processor has the instructions, and no other thread writes the strip's columns.
                unsafe { strip.compute(panel, &output) }
            });
        }
    })?;
    Ok(true)
}

/// Some of a product's outputs.
struct Strip<'a> {
    matrix: Matrix<'a>,
    direction: Direction,
    /// The first of them.
    first: usize,
    rows: &'a Rounded,
    bias: Option<&'a [f32]>,
}

impl Strip<'_> {
    /// # Safety
    /// This processor [`is_supported`]; nothing else reads or writes these columns of the output meanwhile, and they are there in all rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn compute(&self, panel: &mut Vec<Quad>, output: &Output) {
        let width = STRIP.min(self.matrix.outputs(self.direction) - self.first);
        let mut scales = [1.0; STRIP];
        let mut bias = [0.0; STRIP];
        if self.direction == Direction::Forward {
            scales[..width].copy_from_slice(&self.matrix.scales[self.first..self.first + width]);
        }
        if let Some(all) = self.bias {
            bias[..width].copy_from_slice(&all[self.first..self.first + width]);
        }
        let columns = Columns { scales: &scales, bias: &bias, width };
        let (depth, parts) = (self.matrix.depth(self.direction), self.rows.width.div_ceil(DEPTH));
        for part in 0..parts {
            let range = part * DEPTH..depth.min((part + 1) * DEPTH);
            match self.direction {
                Direction::Forward => self.lay_columns(range.clone(), panel),
                Direction::Back => self.lay_rows(range.clone(), panel),
            }
            let place = Part { index: part, parts, range };
            let mut row = 0;
            while row < self.rows.scales.len() {
                // SAFETY: as the caller grants.
                row += unsafe {
                    match self.rows.scales.len() - row {
                        1 => self.tile::<1>(row, panel, &place, &columns, output),
                        2 => self.tile::<2>(row, panel, &place, &columns, output),
                        3 => self.tile::<3>(row, panel, &place, &columns, output),
                        4 => self.tile::<4>(row, panel, &place, &columns, output),
                        5 => self.tile::<5>(row, panel, &place, &columns, output),
                        _ => self.tile::<ROWS>(row, panel, &place, &columns, output),
                    }
                };
            }
        }
    }

    /// Lays out a range of the inner dimension, columns side by side: 16 columns of 64 integers at a time, transposed as 16 · 16 numbers
    /// of 32 bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn lay_columns(&self, range: std::ops::Range<usize>, panel: &mut Vec<Quad>) {
        let zero = _mm512_setzero_si512();
        panel.clear();
        panel.resize(range.len().div_ceil(64) * 16, [zero; VECTORS]);
        for vector in 0..VECTORS {
            for (at, quads) in range.clone().step_by(64).zip(panel.as_chunks_mut::<16>().0) {
                let mut lines = [zero; 16];
                for (i, line) in lines.iter_mut().enumerate() {
                    *line = self.matrix.load(self.first + 16 * vector + i, at, 16);
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
    fn lay_rows(&self, range: std::ops::Range<usize>, panel: &mut Vec<Quad>) {
        panel.clear();
        for column in range.step_by(4) {
            let [a, b, c, d] = [
                self.matrix.load(column, self.first, AHEAD),
                self.matrix.load(column + 1, self.first, AHEAD),
                self.matrix.load(column + 2, self.first, AHEAD),
                self.matrix.load(column + 3, self.first, AHEAD),
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
    /// As [`Strip::compute`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn tile<const R: usize>(
        &self,
        first: usize,
        panel: &[Quad],
        part: &Part,
        columns: &Columns<'_>,
        output: &Output,
    ) -> usize {
        let mut lines: [&[[i8; 4]]; R] = [&[]; R];
        let mut sums = [[_mm512_setzero_si512(); VECTORS]; R];
        for r in 0..R {
            let line = &self.rows.bytes[(first + r) * self.rows.width..][part.range.start..];
            lines[r] = &line.as_chunks::<4>().0[..panel.len()];
            sums[r] = [_mm512_set1_epi32(self.rows.corrections[(first + r) * part.parts + part.index]); VECTORS];
        }
        for (index, quad) in panel.iter().enumerate() {
            for r in 0..R {
                // SAFETY: the lines are as long as the panel.
                let four = unsafe { *lines[r].get_unchecked(index) }.map(|byte| byte as u8);
                let four = _mm512_set1_epi32(i32::from_ne_bytes(four));
                for v in 0..VECTORS {
                    sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], quad[v], four);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let scale = _mm512_set1_ps(self.rows.scales[first + r]);
            for (v, &sum) in sums.iter().enumerate() {
                let width = columns.width.saturating_sub(16 * v).min(16);
                let mask = ((1_u32 << width) - 1) as __mmask16;
                // SAFETY: the mask leaves out what is beyond the columns, which are there in each row and ours alone.
                unsafe {
                    let at = output.first.add((first + r) * output.width + self.first + 16 * v);
                    let before = match part.index {
                        0 => _mm512_loadu_ps(columns.bias.as_ptr().add(16 * v)),
                        _ => _mm512_maskz_loadu_ps(mask, at),
                    };
                    let factor = _mm512_mul_ps(scale, _mm512_loadu_ps(columns.scales.as_ptr().add(16 * v)));
                    _mm512_mask_storeu_ps(at, mask, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, before));
                }
            }
        }
        R
    }
}

/// What the outputs of a strip are multiplied with, and what is added.
struct Columns<'a> {
    scales: &'a [f32; STRIP],
    bias: &'a [f32; STRIP],
    /// How many of them there are.
    width: usize,
}

/// A part of the inner dimension.
struct Part {
    index: usize,
    parts: usize,
    range: std::ops::Range<usize>,
}

impl Matrix<'_> {
    /// 64 bytes of a column from a place on, zeros beyond its end; 128 more than the integers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn load(&self, column: usize, from: usize, ahead: usize) -> __m512i {
        if column >= self.scales.len() {
            return _mm512_setzero_si512();
        }
        let number = self.inner.saturating_sub(from).min(64);
        let mask = u64::MAX.checked_shr(64 - number as u32).unwrap_or(0);
        let Some(blocks) = self.blocks else {
            let bytes = &self.integers[column * self.inner + from..][..number];
            _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead * self.inner).cast());
            return load(bytes);
        };
        let bytes = &self.integers[(column * self.inner + from) / 2..][..number / 2];
        _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(ahead * self.inner / 2).cast());
        let half = (u32::MAX as u64).checked_shr(32 - bytes.len() as u32).unwrap_or(0) as __mmask32;
        // SAFETY: the mask has as many ones as there are bytes.
        let pairs = _mm512_cvtepu8_epi16(unsafe { _mm256_maskz_loadu_epi8(half, bytes.as_ptr().cast()) });
        let low = _mm512_and_si512(pairs, _mm512_set1_epi16(0x000f));
        let high = _mm512_and_si512(_mm512_slli_epi16::<4>(pairs), _mm512_set1_epi16(0x0f00));
        let places = _mm512_or_si512(low, high);
        // What each of the 16 integers becomes, a lane of 16 values at a time: blocks are no shorter.
        let number = blocks.len() / self.scales.len();
        let (scale, block) = (self.scales[column], self.inner / number);
        let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
        let table = |lane: usize| {
            let block = ((from + 16 * lane) / block).min(number - 1);
            table(blocks[column * number + block] * inverse)
        };
        let tables = if block >= 64 {
            _mm512_broadcast_i32x4(table(0))
        } else {
            let tables = _mm512_castsi128_si512(table(0));
            let tables = _mm512_inserti32x4::<1>(tables, table(1));
            let tables = _mm512_inserti32x4::<2>(tables, table(2));
            _mm512_inserti32x4::<3>(tables, table(3))
        };
        _mm512_maskz_shuffle_epi8(mask, tables, places)
    }
}

/// The bytes, 128 more than the integers, that 4 bits from 0 to 15 become in a block whose scale is so many times the column's.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn table(scale: f32) -> __m128i {
    let steps = _mm512_set_ps(7., 6., 5., 4., 3., 2., 1., 0., -1., -2., -3., -4., -5., -6., -7., -8.);
    let integers = _mm512_cvtps_epi32(_mm512_mul_ps(steps, _mm512_set1_ps(scale)));
    _mm512_cvtepi32_epi8(_mm512_add_epi32(integers, _mm512_set1_epi32(128)))
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

/// Columns of integers in blocks of one scale each, for few rows at a time: what counts then is how fast the integers are read.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    /// \[N, K bits / 8\], as of [`Matrix`].
    integers: &'a [u8],
    /// \[N, blocks\].
    scales: &'a [f32],
    columns: usize,
    inner: usize,
    /// Of 4 bits, and not of 8.
    halves: bool,
}

impl<'a> Blocks<'a> {
    /// N columns of K integers of 8 bits, or of 4.
    pub fn new(integers: &'a [u8], scales: &'a [f32], [columns, inner]: [usize; 2], halves: bool) -> Option<Self> {
        let number = scales.len().checked_div(columns)?;
        let block = inner.checked_div(number)?;
        let fits = number * columns == scales.len()
            && block * number == inner
            && block > 0
            && integers.len() == columns * inner / if halves { 2 } else { 1 }
            && (!halves || block.is_multiple_of(2) && block <= 2 * STRIP);
        fits.then_some(Self { integers, scales, columns, inner, halves })
    }

    /// As bytes with a scale a column, for many rows; `columns` is room for the scales.
    pub fn many(self, columns: &'a mut Vec<f32>) -> Option<Matrix<'a>> {
        let number = self.scales.len() / self.columns.max(1);
        if self.halves {
            *columns = column_scales(self.scales, number);
            return Matrix::of_halves(self.integers, self.scales, columns);
        }
        columns.clear();
        columns.extend(self.scales.iter().step_by(number.max(1)));
        let same =
            self.scales.chunks(number.max(1)).zip(&*columns).all(|(scales, first)| scales.iter().all(|s| s == first));
        if same { Matrix::of_bytes(self.integers, columns) } else { None }
    }
}

/// A row as columns in blocks meet it.
#[derive(Debug, Default)]
struct Spread {
    /// The bytes of each block, zeros after them: of 8 bits in their order, of 4 bits those that meet lower halves, then the others.
    lines: Vec<[i8; 64]>,
    /// What to begin each block's sums with, since its integers are stored as more than they are.
    starts: Vec<[i32; 16]>,
}

impl Spread {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn new(row: &[i8], block: usize, halves: bool) -> Self {
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

/// y = x W + b as [`multiply`], for each row by itself and with each block's own scale.
///
/// # Panics
/// The processor is not one that [`is_supported`].
pub fn multiply_few<E>(
    blocks: Blocks<'_>,
    rows: &Rounded,
    bias: Option<&[f32]>,
    y: &mut [f32],
    in_parallel: impl Fn(usize, &(dyn Fn(usize) + Send + Sync)) -> Result<(), E>,
) -> Result<bool, E> {
    assert!(is_supported());
    let Blocks { columns, inner, .. } = blocks;
    let fits = rows.width == inner.next_multiple_of(64).max(64)
        && y.len() == rows.scales.len() * columns
        && bias.is_none_or(|bias| bias.len() == columns);
    if !fits {
        return Ok(false);
    }
    for ((bytes, &scale), y) in rows.bytes.chunks(rows.width).zip(&rows.scales).zip(y.chunks_mut(columns.max(1))) {
        // SAFETY: the processor has the instructions.
        let row = unsafe { Spread::new(&bytes[..inner], inner * columns / blocks.scales.len(), blocks.halves) };
        let parts: Vec<Mutex<&mut [f32]>> = y.chunks_mut(STRIP).map(Mutex::new).collect();
        in_parallel(parts.len(), &|index| {
            if let Some(Ok(mut part)) = parts.get(index).map(Mutex::lock) {
                // SAFETY: the processor has the instructions.
                unsafe { blocks.columns(index * STRIP, &row, &mut part) };
                for (i, y) in part.iter_mut().enumerate() {
                    *y = *y * scale + bias.map_or(0.0, |bias| bias[index * STRIP + i]);
                }
            }
        })?;
    }
    Ok(true)
}

impl Blocks<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn columns(&self, first: usize, row: &Spread, y: &mut [f32]) {
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

/// Up to 64 bytes, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load(bytes: &[u8]) -> __m512i {
    let mask = u64::MAX.checked_shr(64 - bytes.len().min(64) as u32).unwrap_or(0);
    // SAFETY: the mask has as many ones as there are bytes, and 64 at most.
    unsafe { _mm512_maskz_loadu_epi8(mask, bytes.as_ptr().cast()) }
}

/// Up to 16 numbers, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_f32s(values: &[f32]) -> __m512 {
    let mask = u16::MAX.checked_shr(16 - values.len().min(16) as u32).unwrap_or(0);
    // SAFETY: the mask has as many ones as there are numbers, and 16 at most.
    unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_i8s(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_i32s(values: &[i32; 16]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: usize) -> impl Iterator<Item = usize> {
        (0..len).map(move |i| (i * 7919 + seed * 104_729) % 2027)
    }

    fn floats(len: usize, seed: usize) -> Vec<f32> {
        numbers(len, seed).map(|number| (number as f32 / 1013.0 - 1.0).powi(3)).collect()
    }

    /// Products by the definition, in f64, of the rounded rows: all that is left are roundings of f32.
    fn check(matrix: Matrix<'_>, value: &dyn Fn(usize, usize) -> f64, rows: usize) {
        let columns = matrix.scales.len();
        for direction in [Direction::Forward, Direction::Back] {
            let (depth, width) = (matrix.depth(direction), matrix.outputs(direction));
            let (x, bias) = (floats(rows * depth, 5), floats(width, 6));
            let factors = (direction == Direction::Back).then_some(matrix.scales);
            let mut rounded = Rounded::default();
            rounded.rows(rows, depth).zip(x.chunks(depth)).for_each(|(mut row, x)| row.round(x, factors));
            let mut y = vec![f32::NAN; rows * width];
            let done = multiply::<()>(matrix, direction, &rounded, Some(&bias), &mut y, |number, compute| {
                // Twice, as nobody should.
                (0..number).chain([0]).for_each(compute);
                Ok(())
            });
            assert_eq!(done, Ok(true));
            for row in 0..rows {
                let x: Vec<f64> = (0..depth)
                    .map(|i| f64::from(x[row * depth + i]) * factors.map_or(1.0, |factors| f64::from(factors[i])))
                    .collect();
                let step = x.iter().fold(0.0_f64, |most, x| most.max(x.abs())) / 127.0;
                for output in 0..width {
                    let terms = |i: usize| match direction {
                        Direction::Forward => value(output, i) * f64::from(matrix.scales[output]),
                        Direction::Back => value(i, output),
                    };
                    let exact: f64 = (0..depth).map(|i| (x[i] / step).round() * step * terms(i)).sum();
                    let size: f64 = (0..depth).map(|i| (x[i] * terms(i)).abs()).sum();
                    let (found, exact) = (f64::from(y[row * width + output]), exact + f64::from(bias[output]));
                    // A value at a half may be rounded either way.
                    let most = 1e-5 * (1.0 + size) + step * terms(0).abs().max(127.0 * f64::from(matrix.scales[0]));
                    assert!((found - exact).abs() < most, "{direction:?} {columns} {row} {output}: {found}, {exact}");
                }
            }
        }
    }

    #[test]
    fn products_with_bytes_are_the_definition() {
        if !is_supported() {
            return eprintln!("skipped: this processor has no VNNI");
        }
        for [columns, inner, rows] in [[64, 64, 6], [1, 4, 1], [70, 100, 7], [130, 48, 13], [9000, 20, 2], [3, 9000, 5]]
        {
            let integers: Vec<u8> = numbers(columns * inner, 1).map(|number| (number % 255 + 1) as u8).collect();
            let scales: Vec<f32> = floats(columns, 2).iter().map(|scale| 0.01 + scale.abs()).collect();
            let matrix = Matrix::of_bytes(&integers, &scales).unwrap();
            check(matrix, &|n, k| f64::from(integers[n * inner + k]) - 128.0, rows);
        }
    }

    #[test]
    fn products_with_halves_of_bytes_are_the_definition() {
        if !is_supported() {
            return eprintln!("skipped: this processor has no VNNI");
        }
        for [columns, inner, block] in [[64, 128, 128], [70, 96, 32], [5, 80, 16], [33, 320, 64], [4100, 16, 16]] {
            let integers: Vec<u8> = numbers(columns * inner / 2, 1).map(|number| (number % 256) as u8).collect();
            let blocks: Vec<f32> = floats(columns * inner / block, 2).iter().map(|scale| scale + 0.001).collect();
            let scales = column_scales(&blocks, inner / block);
            let matrix = Matrix::of_halves(&integers, &blocks, &scales).unwrap();
            let value = |n: usize, k: usize| {
                let byte = integers[(n * inner + k) / 2];
                let q = f32::from(if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 }) - 8.0;
                // Half-way where there is one block: the same rounding in f32.
                f64::from((q * (blocks[n * (inner / block) + k / block] * scales[n].recip())).round_ties_even())
            };
            check(matrix, &value, 7);
        }
    }

    #[test]
    fn products_of_few_rows_are_the_definition() {
        if !is_supported() {
            return eprintln!("skipped: this processor has no VNNI");
        }
        for (halves, [columns, inner, block]) in [true, false]
            .into_iter()
            .flat_map(|halves| [[64, 256, 128], [70, 96, 32], [5, 80, 16], [3, 320, 64]].map(|shape| (halves, shape)))
        {
            let integers: Vec<u8> =
                numbers(columns * inner / if halves { 2 } else { 1 }, 1).map(|number| (number % 256) as u8).collect();
            let scales = floats(columns * inner / block, 2);
            let (x, bias) = (floats(2 * inner, 5), floats(columns, 6));
            let mut rounded = Rounded::default();
            rounded.rows(2, inner).zip(x.chunks(inner)).for_each(|(mut row, x)| row.round(x, None));
            let blocks = Blocks::new(&integers, &scales, [columns, inner], halves).unwrap();
            let mut y = vec![f32::NAN; 2 * columns];
            let run = |number, compute: &(dyn Fn(usize) + Send + Sync)| {
                (0..number).for_each(compute);
                Ok::<_, ()>(())
            };
            assert_eq!(multiply_few(blocks, &rounded, Some(&bias), &mut y, run), Ok(true));
            for (index, found) in y.iter().enumerate() {
                let (row, n) = (index / columns, index % columns);
                let terms = |k: usize| {
                    let q = match (halves, k % 2) {
                        (false, _) => f64::from(integers[n * inner + k]) - 128.0,
                        (true, 0) => f64::from(integers[(n * inner + k) / 2] & 15) - 8.0,
                        (true, _) => f64::from(integers[(n * inner + k) / 2] >> 4) - 8.0,
                    };
                    let x = f64::from(rounded.bytes[row * rounded.width + k]) * f64::from(rounded.scales[row]);
                    x * q * f64::from(scales[n * (inner / block) + k / block])
                };
                let exact = (0..inner).map(terms).sum::<f64>() + f64::from(bias[n]);
                let size: f64 = (0..inner).map(|k| terms(k).abs()).sum();
                assert!((f64::from(*found) - exact).abs() < 1e-5 * (1.0 + size), "{halves} {index}: {found}, {exact}");
            }
            // The same with many rows, where bytes have one scale a column.
            let mut room = Vec::new();
            assert_eq!(blocks.many(&mut room).is_some(), halves);
            let repeated = vec![0.5; scales.len()];
            assert!(Blocks::new(&integers, &repeated, [columns, inner], halves).unwrap().many(&mut room).is_some());
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_and_nothing_stays_nothing() {
        if !is_supported() {
            return eprintln!("skipped: this processor has no VNNI");
        }
        let matrix = Matrix::of_bytes(&[200; 8], &[0.5, 0.25]).unwrap();
        let x = [[1.0, f32::NAN, 0.0, 0.0], [0.0; 4], [0.0, 0.0, f32::INFINITY, 1.0], [1.0, 2.0, 3.0, 4.0]];
        let mut rounded = Rounded::default();
        rounded.rows(4, 4).zip(&x).for_each(|(mut row, x)| row.round(x, None));
        let mut y = [0.0; 8];
        let run = |number, compute: &(dyn Fn(usize) + Send + Sync)| {
            (0..number).for_each(compute);
            Ok::<_, ()>(())
        };
        assert_eq!(multiply(matrix, Direction::Forward, &rounded, None, &mut y, run), Ok(true));
        assert!(y[0].is_nan() && y[1].is_nan() && y[2..4] == [0.0; 2] && !y[4].is_finite() && y[6].is_finite());
        assert_eq!(multiply(matrix, Direction::Back, &rounded, None, &mut y, run), Ok(false));
        assert!(
            Matrix::of_bytes(&[0; 7], &[1.0; 2]).is_none()
                && Matrix::of_halves(&[0; 8], &[1.0; 4], &[1.0; 2]).is_none()
        );
    }
}
