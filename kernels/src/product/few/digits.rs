//! Rows as AVX2's and VNNI's products of bytes of two halves meet them.

use super::Affine;
use crate::product::GROUP;
use crate::product::rounded::Line;

/// Values of 4 bits whose products with a row one sum adds up: four bytes.
const SUM: usize = 8;

/// A row as columns of 4 bits meet it, in pieces of a vector of integers, two values a byte, or what is left.
#[derive(Debug)]
pub(super) struct AffineSpread<const BYTES: usize, const SUMS: usize> {
    pub pieces: Vec<Piece<BYTES, SUMS>>,
    /// Each block's sum, zeros after them.
    pub sums: Vec<[f32; SUMS]>,
    /// Which of a piece's blocks each of its sums is of.
    pub places: [i32; SUMS],
}

#[derive(Debug)]
pub(super) struct Piece<const BYTES: usize, const SUMS: usize> {
    pub first: Digit<BYTES, SUMS>,
    /// Where one of its groups has second digits.
    pub second: Option<Digit<BYTES, SUMS>>,
}

#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Digit<const BYTES: usize, const SUMS: usize> {
    /// The values that meet lower halves, and the others; zeros after them.
    pub halves: [[i8; BYTES]; 2],
    /// What each of the sums is multiplied with: its group's scale.
    pub scales: [f32; SUMS],
}

impl<const BYTES: usize, const SUMS: usize> AffineSpread<BYTES, SUMS> {
    /// Of both digits and the sum of each unit.
    pub fn new(lines: &[Line<'_>; 2], units: &[f32], matrix: &Affine<'_>) -> Self {
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
