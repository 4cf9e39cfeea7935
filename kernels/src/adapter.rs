//! The ends of an adapter (Houlsby et al. 2019, figure 2): a product with a narrow matrix, added to what goes past it.

use std::collections::TryReserveError;

use pulp::{Simd, WithSimd};

use super::tiles::{COLUMNS, ROWS, Row, ZERO, left, multiply};

/// A matrix \[K, N\], K narrow, laid out for all rows: strips of 32 columns, one row after the other.
#[derive(Debug, Default)]
pub struct Narrow {
    values: Vec<Row>,
    depth: usize,
}

impl Narrow {
    /// Has memory for what [`Narrow::lay_out`] lays out.
    ///
    /// # Errors
    /// There is none.
    pub fn try_reserve(&mut self, [depth, width]: [usize; 2]) -> Result<(), TryReserveError> {
        self.values.clear();
        self.values.try_reserve(width.div_ceil(COLUMNS).saturating_mul(depth))
    }

    /// Lays out values \[K, N\], or \[N, K\] where they are `transposed`.
    pub fn lay_out(&mut self, values: &[f32], [depth, width]: [usize; 2], transposed: bool) {
        self.depth = depth;
        self.values.clear();
        self.values.resize(width.div_ceil(COLUMNS) * depth, [0.0; COLUMNS]);
        if transposed {
            for (column, values) in values.chunks_exact(depth.max(1)).enumerate() {
                let strip = &mut self.values[column / COLUMNS * depth..][..depth];
                strip.iter_mut().zip(values).for_each(|(row, &value)| row[column % COLUMNS] = value);
            }
        } else {
            for (row, values) in values.chunks_exact(width.max(1)).enumerate() {
                for (strip, part) in values.chunks(COLUMNS).enumerate() {
                    self.values[strip * depth + row][..part.len()].copy_from_slice(part);
                }
            }
        }
    }
}

/// y = A B + b + the sum of the addends, for some rows: A \[M, K\], y and the addends \[M, N\], b \[N\] where there is one.
pub fn add_product(a: &[f32], b: &Narrow, bias: Option<&[f32]>, addends: &[&[f32]], width: usize, y: &mut [f32]) {
    struct Add<'a>(&'a [f32], &'a Narrow, Option<&'a [f32]>, &'a [&'a [f32]], usize, &'a mut [f32]);
    impl WithSimd for Add<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            match S::REGISTER_COUNT {
                32.. => add_on::<S, 2>(simd, self.0, self.1, self.2, self.3, self.4, self.5),
                _ => add_on::<S, 1>(simd, self.0, self.1, self.2, self.3, self.4, self.5),
            }
        }
    }
    pulp::Arch::new().dispatch(Add(a, b, bias, addends, width, y));
}

#[inline(always)]
fn add_on<S: Simd, const N: usize>(
    simd: S,
    a: &[f32],
    b: &Narrow,
    bias: Option<&[f32]>,
    addends: &[&[f32]],
    width: usize,
    y: &mut [f32],
) {
    let a = left(a.chunks_exact(b.depth.max(1)), b.depth);
    for (index, rows) in y.chunks_mut(ROWS * width).enumerate() {
        let column = a.strip(index);
        for first in (0..width).step_by(COLUMNS) {
            let mut tile = ZERO;
            multiply::<S, N>(simd, |k| column[k], &b.values[first / COLUMNS * b.depth..][..b.depth], &mut tile);
            let count = COLUMNS.min(width - first);
            if let Some(bias) = bias {
                tile.iter_mut().for_each(|row| row.iter_mut().zip(&bias[first..]).for_each(|(sum, b)| *sum += b));
            }
            for (row, (y, sums)) in rows.chunks_mut(width).zip(&mut tile).enumerate() {
                for addend in addends {
                    let addend = &addend[(index * ROWS + row) * width + first..][..count];
                    sums.iter_mut().zip(addend).for_each(|(sum, addend)| *sum += addend);
                }
                y[first..first + count].copy_from_slice(&sums[..count]);
            }
        }
    }
}

/// How many rows ahead the next ones are fetched, where some columns of them are read.
const AHEAD: usize = 4;

/// Begins to read so many values, which may lie anywhere.
#[inline(always)]
fn fetch(values: *const f32, number: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..number).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every processor of this architecture has the instruction, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, number);
}

/// The same for one row and some columns of B \[K, N\], from `first` on: y, the bias and the addends are those columns alone.
pub fn add_product_of_one(a: &[f32], b: &[f32], first: usize, width: usize, addends: &[&[f32]], y: &mut [f32]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            y.fill(0.0);
            for addend in addends {
                y.iter_mut().zip(*addend).for_each(|(y, addend)| *y += addend);
            }
            for (&a, row) in a.iter().zip(b.chunks_exact(width)) {
                let row = &row[first..][..y.len()];
                fetch(row.as_ptr().wrapping_add(AHEAD * width), row.len());
                y.iter_mut().zip(row).for_each(|(y, b)| *y += a * b);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2027) as f32 / 1013.0 - 1.0).collect()
    }

    #[test]
    fn sums_are_the_definition() {
        for [rows, depth, width] in [[1, 8, 32], [7, 5, 40], [19, 64, 70], [8, 16, 9]] {
            let (a, b, bias) = (values(rows * depth, 1), values(depth * width, 2), values(width, 3));
            let (x, residual) = (values(rows * width, 4), values(rows * width, 5));
            for (transposed, bias) in [(false, Some(&bias[..])), (true, None)] {
                let mut y = vec![f32::NAN; rows * width];
                let mut narrow = Narrow::default();
                narrow.lay_out(&b, [depth, width], transposed);
                add_product(&a, &narrow, bias, &[&x, &residual], width, &mut y);
                let mut one = vec![f32::NAN; width - width / 3];
                let some: Vec<&[f32]> =
                    bias.into_iter().chain([&x[..], &residual]).map(|v| &v[width / 3..width]).collect();
                add_product_of_one(&a[..depth], &b, width / 3, width, &some, &mut one);
                for (index, found) in y.iter().enumerate() {
                    let (row, column) = (index / width, index % width);
                    let at = |k: usize| if transposed { b[column * depth + k] } else { b[k * width + column] };
                    let product: f64 = (0..depth).map(|k| f64::from(a[row * depth + k]) * f64::from(at(k))).sum();
                    let others = x[index] + residual[index] + bias.map_or(0.0, |bias| bias[column]);
                    let expected = product + f64::from(others);
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{index}: {found}, expected {expected}");
                    if row == 0 && column >= width / 3 && !transposed {
                        let found = f64::from(one[column - width / 3]);
                        assert!((found - expected).abs() < 1e-5, "{index}: {found}, expected {expected}");
                    }
                }
            }
        }
    }
}
