//! Products of few rows, for each of which the integers are read once.

use std::arch::x86_64::*;
use std::sync::Mutex;

use super::vectors::{load, load_i8s, load_i32s};
use super::{FAR, Matrix, Rounded, STRIP, column_scales, is_supported};

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

/// y = x W + b as [`super::multiply`], for each row by itself and with each block's own scale.
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
