//! In plain Rust: sums of products of 16-bit numbers that lie one after another, of which compilers make vectors on every processor that
//! has any (`pmaddwd`, `smlal`). Integers are laid out column by column (back: row by row), as the rows of the other side are.

use std::cell::RefCell;
use std::ops::Range;

use super::Strip;
use crate::product::affine::{Affine, float};
use crate::product::portable::{self, ROUND};
use crate::product::{Direction, Matrix, STRIP};

/// How much of the inner dimension is in a strip at a time: 128 KiB, which second-level caches hold, 2 a column.
const DEPTH: usize = 1024;
/// Rows that meet a column one after another, while it is in the first-level cache.
const ROWS: usize = 8;
/// Columns that are turned at a time.
const TURNED: usize = 32;

thread_local! {
    /// Kept, since fresh memory costs more than the strip.
    static ROOM: RefCell<Room> = RefCell::default();
}

/// What is laid out of the matrix.
#[derive(Default)]
struct Room {
    /// Each output's integers, as many as a whole number of 64.
    panel: Vec<i16>,
    /// Of 4 bits forward: each output's scale for each unit, and its minimum.
    scales: Vec<f32>,
    minima: Vec<f32>,
    /// Of a row, where units are shorter than groups: the scale of each.
    row_scales: Vec<f32>,
}

impl Strip<'_> {
    /// `put` gets a row, the number of a part of the inner dimension, and that part's sums for the row.
    pub(super) fn compute_portable(&self, mut put: impl FnMut(usize, usize, &[f32; STRIP])) {
        let depth = self.matrix.depth(self.direction);
        ROOM.with_borrow_mut(|room| {
            for index in 0..self.rows.width.div_ceil(DEPTH) {
                let range = index * DEPTH..depth.min((index + 1) * DEPTH);
                self.lay(range.clone(), room);
                for first in (0..self.rows.number()).step_by(ROWS) {
                    let rows = first..self.rows.number().min(first + ROWS);
                    let mut sums = [[0.0; STRIP]; ROWS];
                    self.products(room, range.start, rows.clone(), &mut sums);
                    rows.zip(&sums).for_each(|(row, sums)| put(row, index, sums));
                }
            }
        });
    }

    /// Lays out a range of the inner dimension.
    fn lay(&self, range: Range<usize>, Room { panel, scales, minima, .. }: &mut Room) {
        let length = range.len().next_multiple_of(64).max(64);
        panel.clear();
        panel.resize(length * self.columns.width, 0);
        match (self.direction, self.matrix.affine) {
            (Direction::Back, _) => self.matrix.turn(self.first, range, panel, length),
            (Direction::Forward, None) => {
                for (column, words) in (self.first..).zip(panel.chunks_exact_mut(length)) {
                    let bytes = &self.matrix.integers[column * self.matrix.inner..][range.clone()];
                    words.iter_mut().zip(bytes).for_each(|(word, &byte)| *word = i16::from(byte) - 128);
                }
            }
            (Direction::Forward, Some(affine)) => {
                for room in [&mut *scales, minima] {
                    room.clear();
                    room.resize(length / self.unit * self.columns.width, 0.0);
                }
                let factors =
                    scales.chunks_exact_mut(length / self.unit).zip(minima.chunks_exact_mut(length / self.unit));
                for ((column, words), (scales, minima)) in
                    (self.first..).zip(panel.chunks_exact_mut(length)).zip(factors)
                {
                    let pairs = &affine.integers[column * affine.inner / 2..][range.start / 2..range.end / 2];
                    for (words, &pair) in words.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                        *words = [pair & 15, pair >> 4].map(i16::from);
                    }
                    let blocks = range.start / affine.block..range.end.div_ceil(affine.block);
                    for (all, units) in [(affine.scales, scales), (affine.minima, minima)] {
                        affine.lay_units(&all[column * affine.blocks()..][blocks.clone()], units);
                    }
                }
            }
        }
    }

    /// Up to 8 rows' sums with each output of the strip, of what is laid out from a place on.
    fn products(&self, room: &mut Room, start: usize, rows: Range<usize>, sums: &mut [[f32; STRIP]; ROWS]) {
        let Room { panel, scales, minima, row_scales } = room;
        let length = panel.len() / self.columns.width;
        let (groups, units) = (length / self.rows.group, length / self.unit);
        let (first_group, first_unit) = (start / self.rows.group, start / self.unit);
        for (output, integers) in panel.chunks_exact(length).enumerate() {
            for (row, sums) in rows.clone().zip(&mut *sums) {
                let (words, of_groups) = self.rows.words(row);
                let (words, of_groups) = (&words[start..][..length], &of_groups[first_group..][..groups]);
                sums[output] = match self.sums {
                    None if self.rows.group == 32 => portable::products::<1>(words, integers, of_groups),
                    None => portable::products::<2>(words, integers, of_groups),
                    Some(all) => {
                        let here = output * units..(output + 1) * units;
                        let all = &all[row * (self.rows.width / self.unit) + first_unit..][..units];
                        let words = [words, integers];
                        let sum = match self.unit {
                            16 => {
                                row_scales.clear();
                                row_scales.extend(of_groups.iter().flat_map(|scale| [*scale; 2]));
                                portable::products_in_units::<16>(words, [row_scales, &scales[here.clone()]])
                            }
                            _ => portable::products_in_units::<32>(words, [of_groups, &scales[here.clone()]]),
                        };
                        sum + portable::products_of_floats(&minima[here], all)
                    }
                };
            }
        }
    }
}

impl Matrix<'_> {
    /// Lays out a range of the columns for the rows from `first` on, `length` integers each: some columns at a time, turned.
    fn turn(&self, first: usize, range: Range<usize>, panel: &mut [i16], length: usize) {
        let outputs = panel.len() / length;
        for (place, start) in (0..).step_by(TURNED).zip(range.clone().step_by(TURNED)) {
            let mut columns = [[0_i16; STRIP]; TURNED];
            for (column, words) in (start..range.end).zip(&mut columns) {
                match self.affine {
                    Some(affine) => affine.as_bytes(column, self.scales[column], first, &mut words[..outputs]),
                    None => {
                        let bytes = &self.integers[column * self.inner + first..][..outputs];
                        words.iter_mut().zip(bytes).for_each(|(word, &byte)| *word = i16::from(byte) - 128);
                    }
                }
            }
            for (output, words) in panel.chunks_exact_mut(length).enumerate() {
                words[place..][..TURNED].iter_mut().zip(&columns).for_each(|(word, column)| *word = column[output]);
            }
        }
    }
}

impl Affine<'_> {
    /// Some values of a column as integers of 8 bits, of which the column's scale is `scale`.
    fn as_bytes(&self, column: usize, scale: f32, first: usize, words: &mut [i16]) {
        let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
        let mut at = first;
        // Blocks are whole numbers of 16 integers, and so is what comes before.
        for words in words.chunks_mut(self.block.min(STRIP)) {
            let block = column * self.blocks() + at / self.block;
            let [scale, minimum] = [self.scales[block], self.minima[block]].map(|value| float(value) * inverse);
            let table: [i16; 16] = std::array::from_fn(|step| nearest(step as f32, scale, minimum));
            let pairs = &self.integers[(column * self.inner + at) / 2..][..words.len() / 2];
            for (words, &pair) in words.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                *words = [pair & 15, pair >> 4].map(|step| table[usize::from(step)]);
            }
            at += words.len();
        }
    }
}

/// a b + c, rounded as a sum that is f32's, and then to the nearest integer, ties to even. The product is exact in 53 bits.
fn nearest(a: f32, b: f32, c: f32) -> i16 {
    ((f64::from(a) * f64::from(b) + f64::from(c)) as f32 + ROUND).to_bits() as i16
}
