//! Products of f32 matrices in tiles of 8 rows and 32 columns, whose sums stay in registers (Goto & van de Geijn 2008).

use pulp::Simd;

/// Rows of a tile.
pub(super) const ROWS: usize = 8;
/// Columns of a tile, and queries of a block.
pub(super) const COLUMNS: usize = 32;
/// Several rows' numbers of one column.
pub(super) type Column = [f32; ROWS];
/// Several columns' numbers of one row.
pub(super) type Row = [f32; COLUMNS];
pub(super) type Tile = [Row; ROWS];

pub(super) const ZERO: Tile = [[0.0; COLUMNS]; ROWS];

/// A matrix for tiles, \[rows, dh\], in one of three orders; zeros beyond its rows and columns.
pub(super) struct Packed<T> {
    pub(super) values: Vec<T>,
    /// How many of `values` follow one another in a strip.
    pub(super) strip: usize,
}

impl<T> Packed<T> {
    #[inline(always)]
    pub(super) fn strip(&self, index: usize) -> &[T] {
        &self.values[index * self.strip..][..self.strip]
    }

    #[inline(always)]
    pub(super) fn strip_mut(&mut self, index: usize) -> &mut [T] {
        &mut self.values[index * self.strip..][..self.strip]
    }
}

/// Strips of 8 rows, one column after the other: the left side of a product that sums over columns.
#[inline(always)]
pub(super) fn left<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, head_dim: usize) -> Packed<Column> {
    let mut values = vec![[0.0; ROWS]; rows.len().next_multiple_of(COLUMNS) / ROWS * head_dim];
    for (index, row) in rows.enumerate() {
        for (column, &value) in values[index / ROWS * head_dim..].iter_mut().zip(row) {
            column[index % ROWS] = value;
        }
    }
    Packed { values, strip: head_dim }
}

/// Strips of 32 columns, one row after the other: the right side of a product that sums over rows.
#[inline(always)]
pub(super) fn right<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, head_dim: usize) -> Packed<Row> {
    let strip = rows.len().next_multiple_of(COLUMNS);
    let mut values = vec![[0.0; COLUMNS]; strip * head_dim.div_ceil(COLUMNS)];
    for (index, row) in rows.enumerate() {
        for (number, part) in row.chunks(COLUMNS).enumerate() {
            values[number * strip + index][..part.len()].copy_from_slice(part);
        }
    }
    Packed { values, strip }
}

/// Strips of 32 rows, one column after the other: the right side of a product that sums over columns, with the matrix transposed.
#[inline(always)]
pub(super) fn turned<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, head_dim: usize, factor: f32) -> Packed<Row> {
    let mut values = vec![[0.0; COLUMNS]; rows.len().div_ceil(COLUMNS) * head_dim];
    for (index, row) in rows.enumerate() {
        for (column, &value) in values[index / COLUMNS * head_dim..].iter_mut().zip(row) {
            column[index % COLUMNS] = value * factor;
        }
    }
    Packed { values, strip: head_dim }
}

/// Adds a product to a tile: a column of the left side times a row of the right one, for each row of that. `N` vectors of a row are
/// computed at once, as many as the registers hold the sums of.
#[inline(always)]
pub(super) fn multiply<S: Simd, const N: usize>(
    simd: S,
    left: impl Fn(usize) -> Column,
    right: &[Row],
    tile: &mut Tile,
) {
    for first in (0..COLUMNS / S::F32_LANES).step_by(N) {
        let vectors = |row: &Row| -> [S::f32s; N] {
            let all = S::as_simd_f32s(row).0;
            std::array::from_fn(|n| all[first + n])
        };
        let mut sums: [[S::f32s; N]; ROWS] = std::array::from_fn(|m| vectors(&tile[m]));
        for (index, row) in right.iter().enumerate() {
            let (column, row) = (left(index), vectors(row));
            for m in 0..ROWS {
                let factor = simd.splat_f32s(column[m]);
                for n in 0..N {
                    sums[m][n] = simd.mul_add_e_f32s(factor, row[n], sums[m][n]);
                }
            }
        }
        for (row, sums) in tile.iter_mut().zip(sums) {
            S::as_mut_simd_f32s(row).0[first..first + N].copy_from_slice(&sums);
        }
    }
}
