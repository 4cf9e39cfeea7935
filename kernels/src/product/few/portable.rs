//! In plain Rust: sums of products of 16-bit numbers, of which compilers make vectors.

use super::{Affine, Bytes};
use crate::product::GROUP;
use crate::product::portable::products_of_floats;

/// A row as columns of bytes meet it, in pieces of up to 32 values, each of one block.
#[derive(Debug)]
pub(super) struct Spread {
    /// Whole numbers of 16, since blocks are.
    pub words: Vec<[i16; 16]>,
    /// Each piece's group's scale.
    pub scales: Vec<f32>,
    /// What to begin each block's sum with, since its integers are stored as 128 more than they are.
    pub starts: Vec<f32>,
}

impl Spread {
    pub fn new((words, scales): (&[i16], &[f32]), matrix: &Bytes<'_>) -> Self {
        let length = matrix.piece(GROUP);
        let words = &words[..matrix.inner];
        let scales = (0..matrix.inner).step_by(length).map(|at| scales[at / GROUP]).collect();
        let mut spread = Self { words: words.as_chunks().0.to_vec(), scales, starts: Vec::new() };
        let pieces: Vec<f32> = words
            .chunks(length)
            .zip(&spread.scales)
            .map(|(piece, scale)| (-128 * piece.iter().map(|&value| i32::from(value)).sum::<i32>()) as f32 * scale)
            .collect();
        spread.starts = pieces.chunks(matrix.block / length).map(|pieces| pieces.iter().sum()).collect();
        spread
    }
}

impl Bytes<'_> {
    /// Some columns' products with a row.
    pub(super) fn columns_portable(&self, first: usize, row: &Spread, y: &mut [f32]) {
        let products = if self.piece(GROUP) == GROUP { products::<GROUP> } else { products::<16> };
        let (number, words) = (row.starts.len(), row.words.as_flattened());
        for (column, y) in (first..).zip(y) {
            let integers = self.integers[column * self.inner..][..self.inner].chunks_exact(self.block);
            let parts =
                integers.zip(words.chunks_exact(self.block)).zip(row.scales.chunks_exact(row.scales.len() / number));
            let parts = parts.zip(row.starts.iter().zip(&self.scales[column * number..][..number]));
            *y = parts
                .map(|(((bytes, words), scales), (start, scale))| (products(bytes, words, scales) + start) * scale)
                .sum();
        }
    }
}

/// Of a block's bytes and a row's values, in pieces of one scale each.
// See `portable::products`.
#[inline(never)]
fn products<const PIECE: usize>(bytes: &[u8], words: &[i16], scales: &[f32]) -> f32 {
    let pieces = bytes.as_chunks::<PIECE>().0.iter().zip(words.as_chunks::<PIECE>().0).zip(scales);
    let product = |bytes: &[u8; PIECE], words: &[i16; PIECE]| -> i32 {
        bytes.iter().zip(words).map(|(&byte, &word)| i32::from(byte) * i32::from(word)).sum()
    };
    pieces.map(|((bytes, words), scale)| product(bytes, words) as f32 * scale).sum()
}

/// A row as columns of 4 bits meet it.
#[derive(Debug)]
pub(super) struct AffineSpread {
    /// Of each unit the values that meet lower halves of bytes, and then the others.
    words: Vec<i16>,
    /// Each unit's group's scale.
    scales: Vec<f32>,
    /// Each unit's sum.
    sums: Vec<f32>,
}

impl AffineSpread {
    /// Of the row and the sum of each unit.
    pub fn new((words, scales): (&[i16], &[f32]), mut sums: Vec<f32>, matrix: &Affine<'_>) -> Self {
        let unit = matrix.unit();
        sums.truncate(matrix.inner / unit);
        let halves = |words: &[i16]| -> Vec<i16> {
            let (pairs, _) = words.as_chunks::<2>();
            pairs.iter().map(|pair| pair[0]).chain(pairs.iter().map(|pair| pair[1])).collect()
        };
        Self {
            words: words[..matrix.inner].chunks(unit).flat_map(halves).collect(),
            scales: (0..matrix.inner).step_by(unit).map(|at| scales[at / GROUP]).collect(),
            sums,
        }
    }
}

impl Affine<'_> {
    /// Some columns' products with a row.
    pub(super) fn columns_portable(&self, first: usize, row: &AffineSpread, y: &mut [f32]) {
        let products = if self.unit() == 32 { products_of_halves::<16> } else { products_of_halves::<8> };
        let (number, width) = (self.blocks(), self.inner / 2);
        let mut factors = [(); 2].map(|()| vec![0.0; row.sums.len()]);
        for (column, y) in (first..).zip(y) {
            let [scales, minima] = &mut factors;
            for (all, units) in [(self.scales, &mut *scales), (self.minima, &mut *minima)] {
                self.lay_units(&all[column * number..][..number], units);
            }
            let integers = &self.integers[column * width..][..width];
            *y = products(integers, &row.words, [&row.scales, scales]) + products_of_floats(minima, &row.sums);
        }
    }
}

/// Of pairs and a row's values, in units of twice `HALF`: their products times both scales.
// See `portable::products`.
#[inline(never)]
fn products_of_halves<const HALF: usize>(bytes: &[u8], words: &[i16], [row_scales, scales]: [&[f32]; 2]) -> f32 {
    let words = words.as_chunks::<HALF>().0.as_chunks::<2>().0;
    let product = |bytes: &[u8; HALF], [lower, higher]: &[[i16; HALF]; 2]| -> i32 {
        let products = bytes.iter().zip(lower.iter().zip(higher)).map(|(&pair, (&lower, &higher))| {
            i32::from(pair & 15) * i32::from(lower) + i32::from(pair >> 4) * i32::from(higher)
        });
        products.sum()
    };
    let units = bytes.as_chunks::<HALF>().0.iter().zip(words).zip(row_scales.iter().zip(scales));
    units.map(|((bytes, words), (s, t))| product(bytes, words) as f32 * (s * t)).sum()
}
