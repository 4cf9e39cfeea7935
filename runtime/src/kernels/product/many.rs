//! Products of many rows, which share what is laid out of the matrix.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::rounded::Finer;
use super::{Direction, Instructions, Matrix, Rounded, STRIP};

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
    let fits = rows.width == matrix.depth(direction).next_multiple_of(64).max(64)
        && rows.group == direction.rounding().group
        && y.len() == rows.number() * width
        && bias.is_none_or(|bias| bias.len() == width);
    if !fits {
        return Ok(false);
    }
    let output = Output { first: y.as_mut_ptr(), width };
    let finer = rows.finer();
    let strips: Vec<AtomicBool> = (0..width.div_ceil(STRIP)).map(|_| AtomicBool::new(false)).collect();
    in_parallel(strips.len(), &|index| {
        let is_first = strips.get(index).is_some_and(|taken| !taken.swap(true, Ordering::Relaxed));
        if is_first {
            let strip = Strip::new(matrix, direction, index * STRIP, (rows, &finer), bias);
            // SAFETY: there are rows, so the processor has their instructions; no other thread writes the strip's columns.
            unsafe {
                match rows.instructions {
                    Instructions::Vnni => strip.compute_vnni(&output),
                    Instructions::Avx2 => strip.compute_avx2(&output),
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

impl<'a> Strip<'a> {
    fn new(
        matrix: Matrix<'a>,
        direction: Direction,
        first: usize,
        (rows, finer): (&'a Rounded, &'a Finer),
        all: Option<&[f32]>,
    ) -> Self {
        let width = STRIP.min(matrix.outputs(direction) - first);
        let mut columns = Columns { scales: [1.0; STRIP], bias: [0.0; STRIP], width };
        if direction == Direction::Forward {
            columns.scales[..width].copy_from_slice(&matrix.scales[first..first + width]);
        }
        if let Some(all) = all {
            columns.bias[..width].copy_from_slice(&all[first..first + width]);
        }
        Self { matrix, direction, first, rows, finer, columns }
    }
}
