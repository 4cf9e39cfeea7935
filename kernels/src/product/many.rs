//! Products of many rows, which share what is laid out of the matrix.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::affine::floats;
use super::rounded::Finer;
use super::{Direction, Matrix, Rounded, STRIP, Set};

mod avx2;
mod vnni;

/// An output that several threads write, each its own columns.
struct Output {
    first: *mut f32,
    width: usize,
}

// SAFETY: `multiply` gives each strip of columns to one thread.
unsafe impl Send for Output {}
unsafe impl Sync for Output {}

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
    let has_scales =
        matrix.scales.len() == matrix.columns || (matrix.affine.is_some() && direction == Direction::Forward);
    let fits = has_scales
        && rows.width == matrix.depth(direction).next_multiple_of(64).max(64)
        && rows.group == direction.rounding().group
        && y.len() == rows.number() * width
        && bias.is_none_or(|bias| bias.len() == width);
    if !fits {
        return Ok(false);
    }
    let output = Output { first: y.as_mut_ptr(), width };
    // Of 4 bits forward each block's integers are multiplied as they are, with its own scale and minimum.
    let unit = matrix.affine.filter(|_| direction == Direction::Forward).map(|affine| affine.unit());
    let (finer, sums) =
        (rows.finer(), unit.map(|unit| (0..rows.number()).flat_map(|row| rows.sums(row, unit)).collect::<Vec<_>>()));
    let strips: Vec<AtomicBool> = (0..width.div_ceil(STRIP)).map(|_| AtomicBool::new(false)).collect();
    in_parallel(strips.len(), &|index| {
        let is_first = strips.get(index).is_some_and(|taken| !taken.swap(true, Ordering::Relaxed));
        if is_first {
            let first = index * STRIP;
            let (unit, sums) = (unit.unwrap_or(rows.group), sums.as_deref());
            let columns = Columns::new(matrix, direction, first, bias, sums.is_some());
            let strip = Strip { matrix, direction, first, rows, finer: &finer, unit, sums, columns };
            // SAFETY: there are rows, so the processor has their instructions; no other thread writes the strip's columns.
            unsafe {
                match rows.instructions.0 {
                    Set::Vnni => strip.compute_vnni(&output),
                    Set::Avx2 => strip.compute_avx2(&output),
                }
            }
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

/// A part of the inner dimension.
struct Part {
    index: usize,
    range: Range<usize>,
}

impl Strip<'_> {
    /// Lays out the factors of 4 bits forward, for a range of the inner dimension.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn lay_factors(&self, range: Range<usize>, factors: &mut Vec<Factors>) {
        factors.clear();
        let (Some(affine), Some(_)) = (self.matrix.affine, self.sums) else { return };
        // As many as a panel has, which may go on beyond the last column's end.
        let units = range.len().next_multiple_of(64) / self.unit;
        factors.resize(units, Factors { scales: [0.0; STRIP], minima: [0.0; STRIP] });
        let blocks = range.start / affine.block..range.end.div_ceil(affine.block);
        for column in 0..self.columns.width {
            let start = (self.first + column) * affine.blocks();
            let here = start + blocks.start..start + blocks.end;
            let blocks = affine.scales[here.clone()].chunks(8).zip(affine.minima[here].chunks(8));
            for (units, (scales, minima)) in factors.chunks_mut(8 * affine.block / self.unit).zip(blocks) {
                let [scales, minima] = [floats(scales), floats(minima)];
                for ((units, scale), minimum) in units.chunks_mut(affine.block / self.unit).zip(scales).zip(minima) {
                    for unit in units {
                        (unit.scales[column], unit.minima[column]) = (scale, minimum);
                    }
                }
            }
        }
    }
}

/// Of 4 bits forward: what each of a strip's columns has in a unit.
#[derive(Debug, Clone, Copy)]
struct Factors {
    scales: [f32; STRIP],
    minima: [f32; STRIP],
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
}
