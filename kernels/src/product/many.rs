//! Products of many rows, which share what is laid out of the matrix.

use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_arch = "x86_64")]
use super::rounded::Finer;
use super::{Direction, Matrix, Rounded, STRIP, Set};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod factors;
mod portable;
#[cfg(target_arch = "x86_64")]
mod vnni;

/// An output that several threads write, each its own columns.
pub(crate) struct Output {
    /// The first value of the first row.
    pub(crate) first: *mut f32,
    /// From one row to the next.
    pub(crate) width: usize,
}

// SAFETY: who calls `Product::strip` gives each strip of columns to one thread.
unsafe impl Send for Output {}
unsafe impl Sync for Output {}

impl Output {
    /// Some columns of a row.
    ///
    /// # Safety
    /// They are there, and nothing else reads or writes them meanwhile.
    #[allow(clippy::mut_from_ref)] // Several threads have it, each for its own columns.
    unsafe fn columns(&self, row: usize, first: usize, width: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.width + first), width) }
    }
}

/// y = x W + b or y = x Wᵀ, row-major: `rows` are those of x, and for the latter those of x times the columns' scales. Sums over a
/// group are those of integers; each is multiplied with its group's scale, and all are added up in f32. `in_parallel` gets a number
/// and calls a function with each index below it, on any threads. False where the shapes do not fit, and nothing is computed.
pub fn multiply<E>(
    matrix: Matrix<'_>,
    direction: Direction,
    rows: &Rounded,
    bias: Option<&[f32]>,
    y: &mut [f32],
    in_parallel: impl FnOnce(usize, &(dyn Fn(usize) + Send + Sync)) -> Result<(), E>,
) -> Result<bool, E> {
    let width = matrix.outputs(direction);
    let Some(product) = Product::new(matrix, direction, rows, bias).filter(|_| y.len() == rows.number() * width) else {
        return Ok(false);
    };
    let output = Output { first: y.as_mut_ptr(), width };
    let strips: Vec<AtomicBool> = (0..product.strips()).map(|_| AtomicBool::new(false)).collect();
    in_parallel(strips.len(), &|index| {
        let is_first = strips.get(index).is_some_and(|taken| !taken.swap(true, Ordering::Relaxed));
        if is_first {
            // SAFETY: the output has as many rows, and a strip is asked for once.
            unsafe { product.strip(index, &output) };
        }
    })?;
    Ok(true)
}

/// A product that is computed strip by strip.
pub(crate) struct Product<'a> {
    matrix: Matrix<'a>,
    direction: Direction,
    rows: &'a Rounded,
    bias: Option<&'a [f32]>,
    #[cfg(target_arch = "x86_64")]
    finer: Finer,
    unit: usize,
    sums: Option<Vec<f32>>,
}

impl<'a> Product<'a> {
    /// Of rows with a matrix, where the shapes fit.
    pub(crate) fn new(
        matrix: Matrix<'a>,
        direction: Direction,
        rows: &'a Rounded,
        bias: Option<&'a [f32]>,
    ) -> Option<Self> {
        let is_forward = direction == Direction::Forward;
        let fits = (matrix.scales.len() == matrix.columns || (matrix.affine.is_some() && is_forward))
            && rows.width == matrix.depth(direction).next_multiple_of(64).max(64)
            && rows.group == direction.rounding().group
            && bias.is_none_or(|bias| bias.len() == matrix.outputs(direction));
        // Of 4 bits forward each block's integers are multiplied as they are, with its own scale and minimum.
        let unit = matrix.affine.filter(|_| is_forward).map(|affine| affine.unit());
        fits.then(|| Self {
            matrix,
            direction,
            rows,
            bias,
            #[cfg(target_arch = "x86_64")]
            finer: rows.finer(),
            unit: unit.unwrap_or(rows.group),
            sums: unit.map(|unit| (0..rows.number()).flat_map(|row| rows.sums(row, unit)).collect()),
        })
    }

    /// How many there are.
    pub(crate) fn strips(&self) -> usize {
        self.matrix.outputs(self.direction).div_ceil(STRIP)
    }

    /// A strip's columns of all rows: [`STRIP`] of them, or what is left.
    ///
    /// # Safety
    /// The output has as many rows and columns, and nothing else reads or writes these columns meanwhile.
    pub(crate) unsafe fn strip(&self, index: usize, output: &Output) {
        let (first, sums) = (index * STRIP, self.sums.as_deref());
        let strip = Strip {
            matrix: self.matrix,
            direction: self.direction,
            first,
            rows: self.rows,
            #[cfg(target_arch = "x86_64")]
            finer: &self.finer,
            unit: self.unit,
            sums,
            columns: Columns::new(self.matrix, self.direction, first, self.bias, sums.is_some()),
        };
        match self.rows.instructions.0 {
            // SAFETY: there are rows, so the processor has their instructions; no other thread writes the strip's columns.
            #[cfg(target_arch = "x86_64")]
            Set::Vnni => unsafe { strip.compute_vnni(output) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { strip.compute_avx2(output) },
            Set::Portable => strip.compute_portable(|row, part, sums| {
                // SAFETY: no other thread writes the strip's columns, and there are as many rows as were rounded.
                strip.columns.put(part, sums, unsafe { output.columns(row, first, strip.columns.width) });
            }),
        }
    }
}

/// Some of a product's outputs.
struct Strip<'a> {
    matrix: Matrix<'a>,
    direction: Direction,
    /// The first of them.
    first: usize,
    rows: &'a Rounded,
    #[cfg(target_arch = "x86_64")]
    finer: &'a Finer,
    /// How many values one sum of integers adds up: a group of the row's or, of 4 bits forward, [`Affine::unit`](super::Affine).
    unit: usize,
    /// Of 4 bits forward: the sum of each unit of a row, \[M, units\].
    sums: Option<&'a [f32]>,
    columns: Columns,
}

/// What the outputs of a strip are multiplied with, and what is added.
struct Columns {
    scales: [f32; STRIP],
    bias: [f32; STRIP],
    /// How many of them there are.
    width: usize,
}

impl Columns {
    fn new(matrix: Matrix<'_>, direction: Direction, first: usize, all: Option<&[f32]>, in_blocks: bool) -> Self {
        let width = STRIP.min(matrix.outputs(direction) - first);
        let mut columns = Self { scales: [1.0; STRIP], bias: [0.0; STRIP], width };
        if direction == Direction::Forward && !in_blocks {
            columns.scales[..width].copy_from_slice(&matrix.scales[first..first + width]);
        }
        if let Some(all) = all {
            columns.bias[..width].copy_from_slice(&all[first..first + width]);
        }
        columns
    }
    /// Adds a part's sums of a row to what the parts before it have given.
    fn put(&self, part: usize, sums: &[f32; STRIP], y: &mut [f32]) {
        if part == 0 {
            y.copy_from_slice(&self.bias[..self.width]);
        }
        y.iter_mut().zip(sums.iter().zip(&self.scales)).for_each(|(y, (sum, scale))| *y += sum * scale);
    }
}
