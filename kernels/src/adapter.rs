//! Adapters (Houlsby et al. 2019, figure 2): products with narrow matrices, added to what goes past them.

use std::cell::RefCell;
use std::collections::TryReserveError;
use std::sync::Mutex;

use pulp::{Simd, WithSimd};

use super::tiles::{COLUMNS, ROWS, Row, ZERO, left, multiply};
use crate::mlp::gelu;
use crate::{Calls, Failure, each_share, zeros};

/// x + gelu(x D + d) U + u.
#[derive(Debug, Clone, Copy)]
pub struct Adapter<'a> {
    /// D \[D, R\] and d \[R\].
    pub down: [&'a [f32]; 2],
    /// U \[R, D\] and u \[D\].
    pub up: [&'a [f32]; 2],
}

/// Adapters of a batch: one for all rows, or one for each.
#[derive(Debug, Clone, Copy)]
pub struct Adapters<'a> {
    all: Adapter<'a>,
    number: usize,
}

impl<'a> Adapters<'a> {
    /// So many adapters, one after the other in each tensor: D \[A, D, R\], d \[A, R\], U \[A, R, D\] and u \[A, D\].
    pub fn new(all: Adapter<'a>, number: usize) -> Option<Self> {
        let [matrix, bias] = all.down.map(|values| values.len().checked_div(number));
        let [up, up_bias] = all.up.map(|values| values.len().checked_div(number));
        let whole = all.down.into_iter().chain(all.up).all(|values| values.len().is_multiple_of(number));
        let size = bias?.checked_mul(up_bias?);
        (whole && matrix == size && up == size).then_some(Self { all, number })
    }

    /// Whether they are those of so many rows.
    pub(crate) fn are_for(&self, rows: usize) -> bool {
        self.number == 1 || self.number == rows
    }

    /// A row's.
    pub(crate) fn of(&self, row: usize) -> Adapter<'a> {
        let at = if self.number == 1 { 0 } else { row };
        let part = |values: &'a [f32]| {
            let each = values.len() / self.number;
            &values[at * each..][..each]
        };
        Adapter { down: self.all.down.map(part), up: self.all.up.map(part) }
    }

    /// y = residual + x + gelu(x D + d) U + u, \[N, D\], each with the adapter of its row of the batch: those of `batch`, \[N\].
    ///
    /// # Errors
    /// Other lengths, no memory, no threads.
    pub fn add<E>(
        &self,
        batch: &[usize],
        [x, residual]: [&[f32]; 2],
        y: &mut [f32],
        threads: &impl Fn(usize, Calls<'_>) -> Result<(), E>,
    ) -> Result<(), Failure<E>> {
        let width = self.all.up[1].len() / self.number.max(1);
        let known = |row: &usize| self.number == 1 || *row < self.number;
        if [x.len(), residual.len(), y.len()] != [batch.len() * width; 3] || !batch.iter().all(known) {
            return Err(Failure::Misfit);
        }
        let (mut at, mut rest) = (0, y);
        for of_one in batch.chunk_by(|a, b| self.number == 1 || a == b) {
            let range = at..at + of_one.len() * width;
            let (y, others) = rest.split_at_mut(range.len());
            (at, rest) = (range.end, others);
            let (adapter, rows) = (self.of(of_one[0]), [&x[range.clone()], &residual[range]]);
            // To lay matrices out takes as long as a few rows.
            if of_one.len() > MOST_APART {
                adapter.add_many(rows, y, threads)?;
                continue;
            }
            let (x, residual) = (rows[0].chunks_exact(width), rows[1].chunks_exact(width));
            for ((x, residual), y) in x.zip(residual).zip(y.chunks_exact_mut(width)) {
                adapter.add_one([x, residual], y, threads)?;
            }
        }
        Ok(())
    }
}

/// So many rows of one adapter are computed each by itself.
const MOST_APART: usize = 2;

thread_local! {
    /// Kept, since fresh memory costs more than laying out does.
    static NARROW: RefCell<Narrow> = RefCell::default();
}

impl Adapter<'_> {
    /// gelu(x D + d) of one row, \[R\]: `sums` are those of parts of x D, \[.., R\].
    pub(crate) fn hidden(&self, sums: &[f32]) -> Vec<f32> {
        let mut hidden = self.down[1].to_vec();
        for sums in sums.chunks_exact(hidden.len().max(1)) {
            hidden.iter_mut().zip(sums).for_each(|(hidden, sum)| *hidden += sum);
        }
        gelu(&mut hidden);
        hidden
    }

    fn add_one<E>(
        &self,
        [x, residual]: [&[f32]; 2],
        y: &mut [f32],
        threads: &impl Fn(usize, Calls<'_>) -> Result<(), E>,
    ) -> Result<(), Failure<E>> {
        /// Values that a thread is worth waking for: of x, and of y.
        const SHARE: usize = 192;
        let (bottleneck, width) = (self.down[1].len(), self.up[1].len());
        let mut sums = zeros(x.len().div_ceil(SHARE) * bottleneck)?;
        let shares: Vec<_> = sums.chunks_mut(bottleneck.max(1)).map(Mutex::new).collect();
        let sum = |index: usize, sums: &mut &mut [f32]| {
            let x = &x[index * SHARE..x.len().min((index + 1) * SHARE)];
            add_product_of_one(x, &self.down[0][index * SHARE * bottleneck..], 0, bottleneck, &[], sums);
        };
        each_share(&shares, threads, sum).map_err(Failure::Threads)?;
        drop(shares);
        let hidden = self.hidden(&sums);
        let shares: Vec<_> = y.chunks_mut(SHARE).map(Mutex::new).collect();
        let up = |index: usize, y: &mut &mut [f32]| {
            let columns = index * SHARE..index * SHARE + y.len();
            let addends = [residual, x, self.up[1]].map(|addend| &addend[columns.clone()]);
            add_product_of_one(&hidden, self.up[0], columns.start, width, &addends, y);
        };
        each_share(&shares, threads, up).map_err(Failure::Threads)
    }

    fn add_many<E>(
        &self,
        [x, residual]: [&[f32]; 2],
        y: &mut [f32],
        threads: &impl Fn(usize, Calls<'_>) -> Result<(), E>,
    ) -> Result<(), Failure<E>> {
        /// Rows of a share.
        const SHARE: usize = 32;
        let (bottleneck, width) = (self.down[1].len(), self.up[1].len());
        let mut hidden = zeros(x.len() / width.max(1) * bottleneck)?;
        let mut narrow = NARROW.with_borrow_mut(std::mem::take);
        let part = |index: usize, values: &[f32], width: usize| {
            index * SHARE * width..values.len().min((index + 1) * SHARE * width)
        };
        narrow.try_reserve([width, bottleneck])?;
        narrow.lay_out(self.down[0], [width, bottleneck], false);
        let shares: Vec<_> = hidden.chunks_mut(SHARE * bottleneck).map(Mutex::new).collect();
        let down = |index: usize, y: &mut &mut [f32]| {
            add_product(&x[part(index, x, width)], &narrow, Some(self.down[1]), &[], bottleneck, y);
            gelu(y);
        };
        each_share(&shares, threads, down).map_err(Failure::Threads)?;
        drop(shares);
        narrow.try_reserve([bottleneck, width])?;
        narrow.lay_out(self.up[0], [bottleneck, width], false);
        let shares: Vec<_> = y.chunks_mut(SHARE * width).map(Mutex::new).collect();
        let up = |index: usize, y: &mut &mut [f32]| {
            let addends = [x, residual].map(|addend| &addend[part(index, addend, width)]);
            let hidden = &hidden[part(index, &hidden, bottleneck)];
            add_product(hidden, &narrow, Some(self.up[1]), &addends, width, y);
        };
        each_share(&shares, threads, up).map_err(Failure::Threads)?;
        NARROW.with_borrow_mut(|kept| *kept = narrow);
        Ok(())
    }
}

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

/// How many rows ahead the next ones are fetched, where some columns of them are read: so many, and so many values at least.
const AHEAD: usize = 4;
const DISTANCE: usize = 1024;

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
    struct One<'a>(&'a [f32], &'a [f32], [usize; 2], &'a [&'a [f32]], &'a mut [f32]);
    impl WithSimd for One<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self(a, b, [first, width], addends, y) = self;
            y.fill(0.0);
            for addend in addends {
                y.iter_mut().zip(*addend).for_each(|(y, addend)| *y += addend);
            }
            let columns = y.len();
            let ahead = AHEAD.max(DISTANCE / columns.max(1)) * width;
            let part = |row: usize| {
                let row = &b[row * width + first..][..columns];
                fetch(row.as_ptr().wrapping_add(ahead), row.len());
                row
            };
            // Four at a time, so that y is read and written a quarter as often.
            let (fours, rest) = a.as_chunks::<4>();
            for (four, at) in fours.iter().zip((0..).step_by(4)) {
                let [p, q, r, s] = [part(at), part(at + 1), part(at + 2), part(at + 3)];
                for ((((y, p), q), r), s) in y.iter_mut().zip(p).zip(q).zip(r).zip(s) {
                    *y = *y + four[0] * p + four[1] * q + four[2] * r + four[3] * s;
                }
            }
            for (a, at) in rest.iter().zip(4 * fours.len()..) {
                let row = part(at);
                y.iter_mut().zip(row).for_each(|(y, b)| *y += a * b);
            }
        }
    }
    pulp::Arch::new().dispatch(One(a, b, [first, width], addends, y));
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
