//! Products of few rows, for all of which the integers are read once.

use std::sync::Mutex;

use super::{Affine, Direction, FEW, GROUP, Matrix, Rounded, STRIP, Set, multiply};
use crate::{Calls, Failure, each_share};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod digits;
mod portable;
#[cfg(target_arch = "x86_64")]
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

/// y = x W + b as [`super::multiply`], for each row by itself and with each block's own scale; the integers are read once for all rows.
pub fn multiply_few<E>(
    weights: Few<'_>,
    rows: &Rounded,
    bias: Option<&[f32]>,
    y: &mut [f32],
    in_parallel: impl Fn(usize, &(dyn Fn(usize) + Send + Sync)) -> Result<(), E>,
) -> Result<bool, E> {
    let [columns, _] = weights.shape();
    let fits = y.len() == rows.number() * columns && bias.is_none_or(|bias| bias.len() == columns);
    let Some(spreads) = Spreads::new(weights, rows).filter(|_| fits) else { return Ok(false) };
    let mut parts: Vec<Vec<&mut [f32]>> = (0..columns.div_ceil(STRIP)).map(|_| Vec::new()).collect();
    for y in y.chunks_mut(columns.max(1)) {
        parts.iter_mut().zip(y.chunks_mut(STRIP)).for_each(|(part, y)| part.push(y));
    }
    let parts: Vec<_> = parts.into_iter().map(Mutex::new).collect();
    each_share(&parts, &in_parallel, |index, part| spreads.columns(index * STRIP, bias, part))?;
    Ok(true)
}

/// Rows as columns in blocks meet them.
pub struct Spreads<'a>(Vec<Spread<'a>>);

impl<'a> Spreads<'a> {
    /// Rounded rows, for columns of as many values.
    pub fn new(weights: Few<'a>, rows: &Rounded) -> Option<Self> {
        weights.meets(rows).then(|| Self((0..rows.number()).map(|row| Spread::new(weights, rows, row)).collect()))
    }

    /// Some columns' products, from `first` on, with each row: `y` has room for as many of each. With the bias, which is of all columns.
    pub fn columns(&self, first: usize, bias: Option<&[f32]>, y: &mut [&mut [f32]]) {
        /// So many columns' integers stay in the first-level cache until all rows have met them.
        const AT_ONCE: usize = 16;
        let columns = y.first().map_or(0, |y| y.len());
        let at_once = if self.0.len() > 1 { AT_ONCE } else { columns.max(1) };
        for at in (0..columns).step_by(at_once) {
            for (row, y) in self.0.iter().zip(&mut *y) {
                let end = columns.min(at + at_once);
                row.columns(first + at, bias, &mut y[at..end]);
            }
        }
    }
}

/// A row as columns in blocks meet it. There is one only where the processor has the instructions.
struct Spread<'a>(Kind<'a>);

enum Kind<'a> {
    #[cfg(target_arch = "x86_64")]
    Vnni(Bytes<'a>, vnni::Spread),
    #[cfg(target_arch = "x86_64")]
    Avx2(Bytes<'a>, portable::Spread),
    Portable(Bytes<'a>, portable::Spread),
    #[cfg(target_arch = "x86_64")]
    AffineVnni(Affine<'a>, vnni::AffineSpread),
    #[cfg(target_arch = "x86_64")]
    AffineAvx2(Affine<'a>, avx2::AffineSpread),
    AffinePortable(Affine<'a>, portable::AffineSpread),
}

impl<'a> Spread<'a> {
    fn new(weights: Few<'a>, rows: &Rounded, row: usize) -> Self {
        let sums = |affine: &Affine<'_>| rows.sums(row, affine.unit());
        Self(match (weights, rows.instructions.0) {
            #[cfg(target_arch = "x86_64")]
            (Few::Bytes(bytes), Set::Vnni) => {
                // SAFETY: there are rows, so the processor has their instructions.
                Kind::Vnni(bytes, unsafe { vnni::Spread::new(&rows.lines(row), &bytes) })
            }
            #[cfg(target_arch = "x86_64")]
            (Few::Bytes(bytes), Set::Avx2) => Kind::Avx2(bytes, portable::Spread::new(rows.words(row), &bytes)),
            (Few::Bytes(bytes), Set::Portable) => Kind::Portable(bytes, portable::Spread::new(rows.words(row), &bytes)),
            #[cfg(target_arch = "x86_64")]
            (Few::Affine(affine), Set::Vnni) => {
                Kind::AffineVnni(affine, vnni::AffineSpread::new(&rows.lines(row), &sums(&affine), &affine))
            }
            #[cfg(target_arch = "x86_64")]
            (Few::Affine(affine), Set::Avx2) => {
                Kind::AffineAvx2(affine, avx2::AffineSpread::new(&rows.lines(row), &sums(&affine), &affine))
            }
            (Few::Affine(affine), Set::Portable) => {
                Kind::AffinePortable(affine, portable::AffineSpread::new(rows.words(row), sums(&affine), &affine))
            }
        })
    }

    /// Products with the columns from `first` on, plus their part of the bias \[N\].
    fn columns(&self, first: usize, bias: Option<&[f32]>, y: &mut [f32]) {
        match &self.0 {
            // SAFETY: there is a row, so the processor has the instructions; and so below.
            #[cfg(target_arch = "x86_64")]
            Kind::Vnni(bytes, spread) => unsafe { bytes.columns_vnni(first, spread, y) },
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(bytes, spread) => unsafe { bytes.columns_avx2(first, spread, y) },
            Kind::Portable(bytes, spread) => bytes.columns_portable(first, spread, y),
            #[cfg(target_arch = "x86_64")]
            Kind::AffineVnni(affine, spread) => unsafe { affine.columns_vnni(first, spread, y) },
            #[cfg(target_arch = "x86_64")]
            Kind::AffineAvx2(affine, spread) => unsafe { affine.columns_avx2(first, spread, y) },
            Kind::AffinePortable(affine, spread) => affine.columns_portable(first, spread, y),
        }
        if let Some(bias) = bias {
            y.iter_mut().zip(&bias[first..]).for_each(|(y, bias)| *y += bias);
        }
    }
}
