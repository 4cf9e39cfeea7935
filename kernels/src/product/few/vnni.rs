//! With VNNI's dot products of four bytes.

use std::arch::x86_64::*;

use super::{Affine, Bytes};
use crate::product::rounded::Line;
use crate::product::vectors::{load, load_f32s, load_halves, load_i8s, load_i32s};
use crate::product::{FAR, GROUP};

/// A row as columns of bytes meet it, in pieces of up to 64 values, each of one block.
#[derive(Debug)]
pub(super) struct Spread {
    /// Of each piece the first digits, and the second ones where one of its groups has them.
    digits: Vec<Digit>,
    /// Of each piece whether there are second ones.
    pieces: Vec<bool>,
    /// Pieces of a block.
    of_block: usize,
}

#[derive(Debug)]
#[repr(align(64))]
struct Digit {
    /// Zeros after the values.
    bytes: [i8; 64],
    /// What to begin the sums with, since a column's integers are stored as 128 more than they are.
    starts: [i32; 16],
    /// What each of the sums is multiplied with: its group's scale.
    scales: [f32; 16],
}

impl Spread {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn new([first, second]: &[Line<'_>; 2], matrix: &Bytes<'_>) -> Self {
        let length = matrix.piece(64);
        let number = matrix.inner / length;
        let mut spread = Self {
            digits: Vec::with_capacity(2 * number),
            pieces: Vec::with_capacity(number),
            of_block: matrix.block / length,
        };
        for at in (0..matrix.inner).step_by(length) {
            let has_second = second.has(at, length);
            spread.digits.push(Digit::new(first, at, length));
            if has_second {
                spread.digits.push(Digit::new(second, at, length));
            }
            spread.pieces.push(has_second);
        }
        spread
    }
}

impl Digit {
    /// Of up to 64 values from a place on, which are those of one group or of two.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn new(line: &Line<'_>, at: usize, length: usize) -> Self {
        let mut digit = Self { bytes: [0; 64], starts: [0; 16], scales: [0.0; 16] };
        digit.bytes[..length].copy_from_slice(&line.bytes[at..][..length]);
        let more = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(-128), load_i8s(&digit.bytes));
        let [low, high] = [at, at + length - 1].map(|at| _mm512_set1_ps(line.scales[at / GROUP]));
        // SAFETY: 64 bytes each.
        unsafe {
            let starts = _mm512_sub_epi32(_mm512_setzero_si512(), more);
            _mm512_storeu_si512(digit.starts.as_mut_ptr().cast(), starts);
            _mm512_storeu_ps(digit.scales.as_mut_ptr(), _mm512_mask_blend_ps(UPPER, low, high));
        }
        digit
    }

    /// Adds the products with up to 64 of a column's bytes to `sum`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add_products(&self, bytes: __m512i, sum: __m512) -> __m512 {
        let total = _mm512_dpbusd_epi32(load_i32s(&self.starts), bytes, load_i8s(&self.bytes));
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), load_f32s(&self.scales), sum)
    }
}

/// How many bytes ahead those of 8 bits are fetched into the second-level cache, which waits for more of them at once than the first.
const FARTHER: usize = 8192;

/// Columns whose sums grow side by side, since each waits for itself.
const COLUMNS: usize = 4;

/// Those of a piece's sums, of four values each, that are not of its first group.
const UPPER: u16 = !0 << (GROUP / 4);

impl Bytes<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn columns_vnni(&self, first: usize, row: &Spread, y: &mut [f32]) {
        match self.inner / row.pieces.len() {
            64 => self.columns_of::<64>(first, row, y),
            32 => self.columns_of::<32>(first, row, y),
            _ => self.columns_of::<16>(first, row, y),
        }
    }

    /// With pieces of so many values.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn columns_of<const LENGTH: usize>(&self, first: usize, row: &Spread, y: &mut [f32]) {
        let number = row.pieces.len() / row.of_block;
        for (at, y) in (first..).step_by(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
            // The last one again where there are fewer.
            let column = |column: usize| {
                let column = at + column.min(y.len() - 1);
                let (pieces, _) = self.integers[column * self.inner..][..self.inner].as_chunks::<LENGTH>();
                (pieces, &self.scales[column * number..][..number])
            };
            let columns = [column(0), column(1), column(2), column(3)];
            let mut sums = [_mm512_setzero_ps(); COLUMNS];
            let mut digits = row.digits.iter();
            for (block, pieces) in row.pieces.chunks(row.of_block).enumerate() {
                let mut blocks = [_mm512_setzero_ps(); COLUMNS];
                let [a, b, c, d] = columns.map(|(of_column, _)| &of_column[block * row.of_block..][..pieces.len()]);
                for ((((&has_second, a), b), c), d) in pieces.iter().zip(a).zip(b).zip(c).zip(d) {
                    let mut bytes = [_mm512_setzero_si512(); COLUMNS];
                    for (bytes, column) in bytes.iter_mut().zip([a, b, c, d]) {
                        _mm_prefetch::<_MM_HINT_T1>(column.as_ptr().wrapping_add(FARTHER).cast());
                        *bytes = load(column);
                    }
                    for digit in digits.by_ref().take(1 + usize::from(has_second)) {
                        for (block, bytes) in blocks.iter_mut().zip(bytes) {
                            *block = digit.add_products(bytes, *block);
                        }
                    }
                }
                for ((sum, products), (_, scales)) in sums.iter_mut().zip(blocks).zip(columns) {
                    *sum = _mm512_fmadd_ps(products, _mm512_set1_ps(scales[block]), *sum);
                }
            }
            added(&sums, y);
        }
    }
}

/// What the values of each vector add up to, for up to four of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn added([a, b, c, d]: &[__m512; 4], y: &mut [f32]) {
    // In each quarter of a vector pairs of a and b, and of c and d; then one sum of each.
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(*a, *b), _mm512_unpackhi_ps(*a, *b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(*c, *d), _mm512_unpackhi_ps(*c, *d));
    let sums = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
    let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sums)));
    let halves = _mm256_add_ps(_mm512_castps512_ps256(sums), upper);
    let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
    let mut all = [0.0_f32; 4];
    // SAFETY: 4 numbers.
    unsafe { _mm_storeu_ps(all.as_mut_ptr(), sums) };
    y.copy_from_slice(&all[..y.len()]);
}

/// A row as columns of 4 bits meet it.
pub(super) type AffineSpread = super::digits::AffineSpread<64, 16>;

/// Values of a piece.
const PIECE: usize = 128;

impl Affine<'_> {
    /// Some columns' products with a row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn columns_vnni(&self, first: usize, row: &AffineSpread, y: &mut [f32]) {
        let (number, width) = (self.blocks(), self.inner / 2);
        let (low, places) = (_mm512_set1_epi8(15), load_i32s(&row.places));
        let of_piece = PIECE / self.block;
        for (at, y) in (first..).step_by(COLUMNS).zip(y.chunks_mut(COLUMNS)) {
            // The last one again where there are fewer.
            let columns: [usize; COLUMNS] = std::array::from_fn(|column| at + column.min(y.len() - 1));
            let mut integers = columns.map(|column| self.integers[column * width..][..width].chunks(PIECE / 2));
            let mut scales = columns.map(|column| self.scales[column * number..][..number].chunks(of_piece));
            let mut minima = columns.map(|column| self.minima[column * number..][..number].chunks(16));
            let mut sums = [_mm512_setzero_ps(); COLUMNS];
            for piece in &row.pieces {
                let parts = integers.iter_mut().zip(&mut scales).zip(&mut sums);
                for ((integers, scales), sum) in parts {
                    let (bytes, scales) = (integers.next().unwrap_or_default(), scales.next().unwrap_or_default());
                    _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(FAR).cast());
                    let pairs = load(bytes);
                    let halves = [_mm512_and_si512(pairs, low), _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), low)];
                    let mut total = products_of_halves(halves, &piece.first);
                    if let Some(second) = &piece.second {
                        total = _mm512_add_ps(total, products_of_halves(halves, second));
                    }
                    let scales = _mm512_permutexvar_ps(places, _mm512_cvtph_ps(load_halves(scales)));
                    *sum = _mm512_fmadd_ps(total, scales, *sum);
                }
            }
            for of_row in &row.sums {
                for (minima, sum) in minima.iter_mut().zip(&mut sums) {
                    let minima = _mm512_cvtph_ps(load_halves(minima.next().unwrap_or_default()));
                    *sum = _mm512_fmadd_ps(minima, load_f32s(of_row), *sum);
                }
            }
            added(&sums, y);
        }
    }
}

/// Lower and higher halves of bytes times a digit of a row's values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn products_of_halves([low, high]: [__m512i; 2], digit: &super::digits::Digit<64, 16>) -> __m512 {
    let [lower, higher] = &digit.halves;
    let total = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, load_i8s(lower));
    let total = _mm512_dpbusd_epi32(total, high, load_i8s(higher));
    _mm512_mul_ps(_mm512_cvtepi32_ps(total), load_f32s(&digit.scales))
}
