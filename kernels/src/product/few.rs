//! Products of few rows, for each of which the integers are read once.

use std::sync::Mutex;

use super::rounded::Line;
use super::{Affine, Direction, FEW, GROUP, Matrix, Rounded, STRIP, Set, multiply};
use crate::{Calls, Failure, each_share};

mod avx2;
mod vnni;

/// Columns of integers in blocks, for few rows at a time: what counts then is how fast the integers are read.
#[derive(Debug, Clone, Copy)]
pub enum Few<'a> {
    /// Of 8 bits.
    Bytes(Bytes<'a>),
    /// Of 4.
    Affine(Affine<'a>),
}

impl<'a> Few<'a> {
    /// N and K.
    pub fn shape(self) -> [usize; 2] {
        match self {
            Self::Bytes(Bytes { columns, inner, .. }) | Self::Affine(Affine { columns, inner, .. }) => [columns, inner],
        }
    }

    /// The integers, a column after the other.
    pub fn integers(self) -> &'a [u8] {
        match self {
            Self::Bytes(Bytes { integers, .. }) | Self::Affine(Affine { integers, .. }) => integers,
        }
    }

    /// Whether rows have as many values as its columns.
    fn meets(self, rows: &Rounded) -> bool {
        rows.width == self.shape()[1].next_multiple_of(64).max(64) && rows.group == GROUP
    }

    /// For rows back, with the scale of each column, \[N\]: of 4 bits those of [`Affine::column_scales`].
    pub fn back(self, scales: &'a [f32]) -> Option<Matrix<'a>> {
        match self {
            Self::Bytes(bytes) => Matrix::of_bytes(bytes.integers, scales),
            Self::Affine(affine) => Matrix::of_affine_back(affine, scales),
        }
    }

    /// For many rows, forward; `columns` is room for scales.
    pub fn many(self, columns: &'a mut Vec<f32>) -> Option<Matrix<'a>> {
        match self {
            Self::Bytes(bytes) => bytes.many(columns),
            Self::Affine(affine) => Some(Matrix::of_affine(affine)),
        }
    }
}

/// N columns of K integers of 8 bits, in blocks of one scale each.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a> {
    /// \[N, K\], 128 more than the integers.
    integers: &'a [u8],
    /// \[N, blocks\].
    scales: &'a [f32],
    columns: usize,
    inner: usize,
    /// How many integers have one scale, a multiple of 16.
    block: usize,
}

impl<'a> Bytes<'a> {
    /// Of bytes \[N, K\], each 128 more than its integer, and scales \[N, blocks\].
    pub fn new(integers: &'a [u8], scales: &'a [f32], [columns, inner]: [usize; 2]) -> Option<Self> {
        let number = scales.len().checked_div(columns)?;
        let block = inner.checked_div(number)?;
        let fits = number * columns == scales.len()
            && block * number == inner
            && block.is_multiple_of(16)
            && integers.len() == columns * inner;
        fits.then_some(Self { integers, scales, columns, inner, block })
    }

    /// The longest piece of up to `most` values, a power of two, that blocks are whole numbers of.
    fn piece(&self, most: usize) -> usize {
        (1 << self.block.trailing_zeros()).min(most)
    }

    /// Where all blocks of a column have the same scale.
    fn many(self, columns: &'a mut Vec<f32>) -> Option<Matrix<'a>> {
        let number = self.scales.len() / self.columns.max(1);
        columns.clear();
        columns.extend(self.scales.iter().step_by(number.max(1)));
        let same =
            self.scales.chunks(number.max(1)).zip(&*columns).all(|(scales, first)| scales.iter().all(|s| s == first));
        if same { Matrix::of_bytes(self.integers, columns) } else { None }
    }
}

/// y = x W + b, x \[M, K\] rounded on the way: few rows each by itself, more with the matrix laid out for all of them.
///
/// # Errors
/// A length does not fit, or blocks of integers are of no size that there are products for; there is no memory; those of `threads`.
pub fn multiply_rows<E>(
    weights: Few<'_>,
    x: &[f32],
    rounded: &mut Rounded,
    bias: Option<&[f32]>,
    y: &mut [f32],
    threads: impl Fn(usize, Calls<'_>) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    let [_, inner] = weights.shape();
    let rows = x.len() / inner.max(1);
    rounded.try_reserve(rows, inner)?;
    rounded.round(x, inner, Direction::Forward, None, &threads).map_err(Failure::Threads)?;
    let mut scales = Vec::new();
    let fits = if rows <= FEW {
        multiply_few(weights, rounded, bias, y, threads)
    } else {
        let matrix = weights.many(&mut scales).ok_or(Failure::Misfit)?;
        multiply(matrix, Direction::Forward, rounded, bias, y, threads)
    };
    match fits.map_err(Failure::Threads)? {
        true => Ok(()),
        false => Err(Failure::Misfit),
    }
}

/// y = x W + b as [`super::multiply`], for each row by itself and with each block's own scale.
pub fn multiply_few<E>(
    weights: Few<'_>,
    rows: &Rounded,
    bias: Option<&[f32]>,
    y: &mut [f32],
    in_parallel: impl Fn(usize, &(dyn Fn(usize) + Send + Sync)) -> Result<(), E>,
) -> Result<bool, E> {
    let [columns, _] = weights.shape();
    let fits =
        weights.meets(rows) && y.len() == rows.number() * columns && bias.is_none_or(|bias| bias.len() == columns);
    if !fits {
        return Ok(false);
    }
    for (row, y) in y.chunks_mut(columns.max(1)).enumerate() {
        let spread = Spread::new(weights, rows, row);
        let parts: Vec<Mutex<&mut [f32]>> = y.chunks_mut(STRIP).map(Mutex::new).collect();
        each_share(&parts, &in_parallel, |index, part| spread.columns(index * STRIP, bias, part))?;
    }
    Ok(true)
}

/// A row as columns in blocks meet it. There is one only where the processor has the instructions.
pub struct Spread<'a>(Kind<'a>);

enum Kind<'a> {
    Vnni(Bytes<'a>, vnni::Spread),
    Avx2(Bytes<'a>, avx2::Spread),
    AffineVnni(Affine<'a>, vnni::AffineSpread),
    AffineAvx2(Affine<'a>, avx2::AffineSpread),
}

impl<'a> Spread<'a> {
    /// One row, rounded, for columns of as many values.
    pub fn of_one(weights: Few<'a>, row: &Rounded) -> Option<Self> {
        (weights.meets(row) && row.number() == 1).then(|| Self::new(weights, row, 0))
    }

    fn new(weights: Few<'a>, rows: &Rounded, row: usize) -> Self {
        // SAFETY: there are rows, so the processor has their instructions.
        Self(unsafe {
            match (weights, rows.instructions.0) {
                (Few::Bytes(bytes), Set::Vnni) => Kind::Vnni(bytes, vnni::Spread::new(&rows.lines(row), &bytes)),
                (Few::Bytes(bytes), Set::Avx2) => Kind::Avx2(bytes, avx2::Spread::new(rows.words(row), &bytes)),
                (Few::Affine(affine), Set::Vnni) => Kind::AffineVnni(
                    affine,
                    AffineSpread::new(&rows.lines(row), &rows.sums(row, affine.unit()), &affine),
                ),
                (Few::Affine(affine), Set::Avx2) => Kind::AffineAvx2(
                    affine,
                    AffineSpread::new(&rows.lines(row), &rows.sums(row, affine.unit()), &affine),
                ),
            }
        })
    }

    /// Products with the columns from `first` on, plus their part of the bias \[N\].
    pub fn columns(&self, first: usize, bias: Option<&[f32]>, y: &mut [f32]) {
        // SAFETY: the processor has the instructions.
        unsafe {
            match &self.0 {
                Kind::Vnni(bytes, spread) => bytes.columns_vnni(first, spread, y),
                Kind::Avx2(bytes, spread) => bytes.columns_avx2(first, spread, y),
                Kind::AffineVnni(affine, spread) => affine.columns_vnni(first, spread, y),
                Kind::AffineAvx2(affine, spread) => affine.columns_avx2(first, spread, y),
            }
        }
        if let Some(bias) = bias {
            y.iter_mut().zip(&bias[first..]).for_each(|(y, bias)| *y += bias);
        }
    }
}

/// Values of 4 bits whose products with a row one sum adds up: four bytes.
const SUM: usize = 8;

/// A row as columns of 4 bits meet it, in pieces of a vector of integers, two values a byte, or what is left.
#[derive(Debug)]
struct AffineSpread<const BYTES: usize, const SUMS: usize> {
    pieces: Vec<Piece<BYTES, SUMS>>,
    /// Each block's sum, zeros after them.
    sums: Vec<[f32; SUMS]>,
    /// Which of a piece's blocks each of its sums is of.
    places: [i32; SUMS],
}

#[derive(Debug)]
struct Piece<const BYTES: usize, const SUMS: usize> {
    first: Digit<BYTES, SUMS>,
    /// Where one of its groups has second digits.
    second: Option<Digit<BYTES, SUMS>>,
}

#[derive(Debug)]
#[repr(align(64))]
struct Digit<const BYTES: usize, const SUMS: usize> {
    /// The values that meet lower halves, and the others; zeros after them.
    halves: [[i8; BYTES]; 2],
    /// What each of the sums is multiplied with: its group's scale.
    scales: [f32; SUMS],
}

impl<const BYTES: usize, const SUMS: usize> AffineSpread<BYTES, SUMS> {
    /// Of both digits and the sum of each unit.
    fn new(lines: &[Line<'_>; 2], units: &[f32], matrix: &Affine<'_>) -> Self {
        let digit = |line: &Line<'_>, at: usize| {
            let mut halves = [[0; BYTES]; 2];
            let [low, high] = &mut halves;
            let end = matrix.inner.min(at + 2 * BYTES);
            for ((low, high), pair) in low.iter_mut().zip(high).zip(line.bytes[at..end].as_chunks::<2>().0) {
                [*low, *high] = *pair;
            }
            let scale = |sum| line.scales.get((at + sum * SUM) / GROUP).copied().unwrap_or(0.0);
            Digit { halves, scales: std::array::from_fn(scale) }
        };
        let piece = |at: usize| {
            let [first, second] = lines;
            Piece { first: digit(first, at), second: second.has(at, 2 * BYTES).then(|| digit(second, at)) }
        };
        let sums = units.chunks(matrix.block / matrix.unit()).take(matrix.blocks()).map(|units| units.iter().sum());
        let sums: Vec<f32> = sums.collect();
        let filled = |sums: &[f32]| std::array::from_fn(|at| sums.get(at).copied().unwrap_or(0.0));
        Self {
            pieces: (0..matrix.inner).step_by(2 * BYTES).map(piece).collect(),
            sums: sums.chunks(SUMS).map(filled).collect(),
            places: std::array::from_fn(|sum| (sum * SUM / matrix.block) as i32),
        }
    }
}
