//! Rounding where the rest of a column makes up for the error of what is rounded: GPTQ (Frantar et al. 2022, "GPTQ:
//! Accurate post-training quantization for generative pre-trained transformers", algorithm 1), in the order that the
//! values have.

use std::num::NonZeroUsize;
use std::thread;

use half::f16;
use marionette_models::params::Order;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayViewMut1, ArrayViewMut2, Axis, s};

use super::{Grid, QuantisedBlocks, best_grid, exact_grid, read};

/// So many values are worked on at once: what is made of them in f64 stays small beside a matrix.
const AT_ONCE: usize = 1 << 21;
/// The width of the blocks in which a matrix is factored.
const FACTORED: usize = 64;

/// How an error in one value of a column is made up for by those after it.
#[derive(Debug, Clone)]
pub struct Compensation {
    /// U \[K, K\], upper triangular, Uᵀ U = H⁻¹.
    factor: Array2<f64>,
}

impl Compensation {
    /// For a matrix whose products x W have these `moments`, H = Σ x xᵀ \[K, K\]. What is added to the diagonal is
    /// `damping` times its mean: the more, the more an error counts whatever x is. There is none where the moments
    /// are 0, or not finite.
    pub fn new(moments: &Array2<f64>, damping: f64) -> Option<Self> {
        let mean = moments.diag().mean()?;
        if !(mean > 0.0 && mean.is_finite()) {
            return None;
        }
        let mut moments = moments / mean;
        moments.diag_mut().iter_mut().for_each(|moment| *moment += damping);
        Some(Self { factor: factor_of_inverse(&moments)? })
    }
}

/// Upper triangular U with Uᵀ U = H⁻¹, of a symmetric, positive definite H: H = U⁻¹ U⁻ᵀ, so that with rows and
/// columns in reverse order U⁻¹ is H's Cholesky factor L. None where H is not positive definite.
fn factor_of_inverse(matrix: &Array2<f64>) -> Option<Array2<f64>> {
    let size = matrix.nrows();
    let reversed = |matrix: &Array2<f64>| {
        Array2::from_shape_fn((size, size), |(row, column)| matrix[[size - 1 - row, size - 1 - column]])
    };
    let mut lower = reversed(matrix);
    let mut inverse = Array2::zeros((size, size));
    for first in (0..size).step_by(FACTORED) {
        let end = (first + FACTORED).min(size);
        let known = lower.slice(s![first.., ..first]).dot(&lower.slice(s![first..end, ..first]).t());
        let mut panel = lower.slice_mut(s![first.., first..end]);
        panel -= &known;
        let mut corner = panel.slice_mut(s![..end - first, ..]);
        factor_in_place(corner.view_mut())?;
        let corner = inverse_of_lower(&corner.to_owned());
        let mut below = panel.slice_mut(s![end - first.., ..]);
        let solved = below.dot(&corner.t());
        below.assign(&solved);
        // Of L⁻¹ the rows of this block: −L₂₂⁻¹ L₂₁ L₁₁⁻¹ and L₂₂⁻¹.
        let product = lower.slice(s![first..end, ..first]).dot(&inverse.slice(s![..first, ..first]));
        inverse.slice_mut(s![first..end, ..first]).assign(&-corner.dot(&product));
        inverse.slice_mut(s![first..end, first..end]).assign(&corner);
    }
    Some(reversed(&inverse))
}

/// Writes L over the lower triangle of a small L Lᵀ. None where it is not positive definite.
fn factor_in_place(mut matrix: ArrayViewMut2<'_, f64>) -> Option<()> {
    for column in 0..matrix.ncols() {
        for row in column..matrix.nrows() {
            let known: f64 = (0..column).map(|k| matrix[[row, k]] * matrix[[column, k]]).sum();
            let rest = matrix[[row, column]] - known;
            if row > column {
                matrix[[row, column]] = rest / matrix[[column, column]];
            } else if rest > 0.0 && rest.is_finite() {
                matrix[[row, column]] = rest.sqrt();
            } else {
                return None;
            }
        }
    }
    Some(())
}

/// The inverse of a small matrix's lower triangle.
fn inverse_of_lower(lower: &Array2<f64>) -> Array2<f64> {
    let mut inverse = Array2::zeros(lower.raw_dim());
    for row in 0..lower.nrows() {
        inverse[[row, row]] = lower[[row, row]].recip();
        for column in 0..row {
            let known: f64 = (column..row).map(|k| lower[[row, k]] * inverse[[k, column]]).sum();
            inverse[[row, column]] = -known / lower[[row, row]];
        }
    }
    inverse
}

/// [`super::to_int4`] with compensation. A block that nothing before it has changed is held as it is where it lies on a grid.
pub(super) fn to_int4(
    values: &[f32],
    order: Order,
    columns: usize,
    block: usize,
    compensation: &Compensation,
) -> QuantisedBlocks {
    let grid = |_, values: &[f32], weights: &[f64]| exact_grid(values).unwrap_or_else(|| best_grid(values, weights));
    let (integers, grids) = rounded(values, order, [columns, block], compensation, grid);
    let integers = integers.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4).collect();
    let halves = |of: fn(&Grid) -> f32| grids.iter().map(|grid| f16::from_f32(of(grid))).collect();
    QuantisedBlocks { integers, scales: halves(|grid| grid.scale), minima: halves(|grid| grid.minimum) }
}

/// The integers of [`super::to_int8`] with compensation, of columns with these scales.
pub(super) fn to_int8(values: &[f32], order: Order, scales: &[f32], compensation: &Compensation) -> Vec<u8> {
    let inner = values.len() / scales.len();
    // The largest power of two that divides a column, and no more than make a block of errors.
    let block = 1 << inner.trailing_zeros().min(5);
    let grid = |n: usize, _: &[f32], _: &[f64]| Grid::of_bytes(scales[n]);
    rounded(values, order, [scales.len(), block], compensation, grid).0
}

/// The integers \[N, K\] and grids \[N, K / block\] of a matrix: `grid` gives a block's, of its column's number, its values, and how much
/// the square of each one's error counts.
fn rounded(
    values: &[f32],
    order: Order,
    [columns, block]: [usize; 2],
    compensation: &Compensation,
    grid: impl Fn(usize, &[f32], &[f64]) -> Grid + Sync,
) -> (Vec<u8>, Vec<Grid>) {
    let (factor, inner) = (&compensation.factor, values.len() / columns);
    let mut integers = Array2::<u8>::zeros((columns, inner));
    let mut grids = Array2::from_elem((columns, inner / block), Grid::new(0.0, 0.0));
    let at_once = (AT_ONCE / inner).clamp(1, columns);
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut column = vec![0.0; inner];
    for first in (0..columns).step_by(at_once) {
        let count = at_once.min(columns - first);
        let mut rest = Array2::<f64>::zeros((count, inner));
        for (n, mut row) in rest.rows_mut().into_iter().enumerate() {
            read(values, order, columns, first + n, &mut column);
            row.iter_mut().zip(&column).for_each(|(rest, value)| *rest = f64::from(*value));
        }
        let mut errors = Array2::<f64>::zeros((count, block));
        for start in (0..inner).step_by(block) {
            let end = start + block;
            let corner = factor.slice(s![start..end, start..end]).to_owned();
            let weights: Vec<f64> = corner.diag().iter().map(|own| (own * own).recip()).collect();
            let (share, here) = (count.div_ceil(threads), first..first + count);
            let mut rounded = rest.slice_mut(s![.., start..end]);
            let mut integers = integers.slice_mut(s![here.clone(), start..end]);
            let mut grids = grids.slice_mut(s![here, start / block..=start / block]);
            let parts = rounded.axis_chunks_iter_mut(Axis(0), share);
            let parts = parts.zip(errors.axis_chunks_iter_mut(Axis(0), share));
            let parts = parts.zip(integers.axis_chunks_iter_mut(Axis(0), share));
            let parts = parts.zip(grids.axis_chunks_iter_mut(Axis(0), share));
            thread::scope(|scope| {
                for (part, (((mut rest, mut errors), mut integers), mut grids)) in parts.enumerate() {
                    let (corner, weights, choose) = (&corner, &weights[..], &grid);
                    let first = first + part * share;
                    scope.spawn(move || {
                        let rows = rest.rows_mut().into_iter().zip(errors.rows_mut()).zip(integers.rows_mut());
                        for (n, (((rest, errors), integers), grid)) in (first..).zip(rows.zip(&mut grids)) {
                            let values: Vec<f32> = rest.iter().map(|value| *value as f32).collect();
                            *grid = choose(n, &values, weights);
                            round(rest, errors, integers, corner, grid);
                        }
                    });
                }
            });
            let later = factor.slice(s![start..end, end..]);
            general_mat_mul(-1.0, &errors, &later, 1.0, &mut rest.slice_mut(s![.., end..]));
        }
    }
    (integers.into_raw_vec_and_offset().0, grids.into_raw_vec_and_offset().0)
}

/// Rounds a block of a column, one value after the other, each with the errors of those before it made up for. `errors` are what the
/// blocks after it have to make up for, each over U's diagonal.
fn round(
    mut rest: ArrayViewMut1<'_, f64>,
    mut errors: ArrayViewMut1<'_, f64>,
    mut integers: ArrayViewMut1<'_, u8>,
    corner: &Array2<f64>,
    grid: &Grid,
) {
    for (k, factors) in corner.rows().into_iter().enumerate() {
        let q = grid.nearest(rest[k] as f32);
        integers[k] = q as u8;
        let error = (rest[k] - f64::from(grid.value(q))) / factors[k];
        errors[k] = error;
        rest.iter_mut().zip(factors).skip(k + 1).for_each(|(rest, factor)| *rest -= error * factor);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::quantise;

    const BLOCK: usize = 32;

    fn random(shape: [usize; 2], rng: &mut ChaCha8Rng) -> Array2<f64> {
        // Nearly normal.
        Array2::from_shape_simple_fn(shape, || (0..6).map(|_| rng.random_range(-1.0..1.0)).sum::<f64>())
    }

    /// Rows of which each value depends on others: a few directions, and a little noise.
    fn correlated(count: usize, inner: usize, rng: &mut ChaCha8Rng) -> Array2<f64> {
        let rank = inner / 4;
        random([count, rank], rng).dot(&random([rank, inner], rng)) / (rank as f64).sqrt()
            + 0.3 * random([count, inner], rng)
    }

    fn floats(matrix: &Array2<f64>) -> Vec<f32> {
        matrix.iter().map(|&value| (0.02 * value) as f32).collect()
    }

    /// tr((W − Q) H (W − Q)ᵀ) of matrices whose columns lie together.
    fn error(values: &[f32], stored: &[f32], moments: &Array2<f64>) -> f64 {
        let difference = values.iter().zip(stored).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let difference = Array2::from_shape_vec((values.len() / moments.nrows(), moments.nrows()), difference).unwrap();
        (difference.dot(moments) * &difference).sum()
    }

    fn stored(values: &[f32], columns: usize, compensation: Option<&Compensation>) -> Vec<f32> {
        let order = Order::ColumnsTogether;
        quantise::to_int4(values, order, columns, BLOCK, compensation).values(order, columns)
    }

    #[test]
    fn the_factor_is_the_one_worked_by_hand() {
        // H = R Rᵀ of R = ((2, 1, 3), (0, 1, 2), (0, 0, 4)), whose inverse is U.
        let moments = arr2(&[[14.0, 7.0, 12.0], [7.0, 5.0, 8.0], [12.0, 8.0, 16.0]]);
        let expected = arr2(&[[0.5, -0.5, -0.125], [0.0, 1.0, -0.5], [0.0, 0.0, 0.25]]);
        let found = factor_of_inverse(&moments).unwrap();
        assert!((&found - &expected).iter().all(|error| error.abs() < 1e-14), "{found}");
    }

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for size in [1, 5, FACTORED, FACTORED + 1, 3 * FACTORED - 7] {
            let rows = random([2 * size + 3, size], &mut rng);
            let moments = rows.t().dot(&rows) + Array2::<f64>::eye(size);
            let factor = factor_of_inverse(&moments).unwrap();
            assert!(factor.indexed_iter().all(|((row, column), value)| row <= column || *value == 0.0));
            let one = factor.t().dot(&factor).dot(&moments);
            let worst = (one - Array2::<f64>::eye(size)).iter().fold(0.0_f64, |worst, error| worst.max(error.abs()));
            assert!(worst < 1e-10, "{size}: {worst}");
        }
        for matrix in [[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, f64::NAN]]] {
            assert!(factor_of_inverse(&arr2(&matrix)).is_none(), "{matrix:?}");
        }
    }

    #[test]
    fn products_err_less_than_where_each_block_is_rounded_for_itself() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let (columns, inner) = (96, 128);
        for _ in 0..4 {
            let values = floats(&random([columns, inner], &mut rng));
            let mut rows = correlated(400, inner, &mut rng);
            let mut few = rows.slice(s![..20, ..]).to_owned();
            let alone = stored(&values, columns, None);
            // Errors with compensation over those without: in products with all of the rows, and in the values.
            let ratios = |rows: &Array2<f64>, given: &Array2<f64>, damping: f64| {
                let found = stored(&values, columns, Compensation::new(&given.t().dot(given), damping).as_ref());
                [rows.t().dot(rows), Array2::eye(inner)]
                    .map(|moments| error(&values, &found, &moments) / error(&values, &alone, &moments))
            };
            let is_less = |rows: &Array2<f64>, given: &Array2<f64>, damping: f64, most: [f64; 2]| {
                let [products, own] = ratios(rows, given, damping);
                assert!(products < most[0] && own < most[1], "{damping}: {products} {own}, at most {most:?}");
            };
            is_less(&rows, &rows, 0.01, [0.28, 2.2]);
            is_less(&rows, &rows, 0.3, [0.33, 1.4]);
            is_less(&rows, &rows, 3.0, [0.65, 1.1]);
            // What few rows tell holds for others too.
            is_less(&rows, &few, 3.0, [0.8, 1.1]);
            // Three inputs much larger than the others.
            for rows in [&mut rows, &mut few] {
                [5, 50, 77].iter().for_each(|k| rows.column_mut(*k).mapv_inplace(|value| 30.0 * value));
            }
            is_less(&rows, &rows, 0.3, [0.05, 1.2]);
            is_less(&rows, &rows, 3.0, [0.15, 1.1]);
            is_less(&rows, &few, 3.0, [0.2, 1.1]);
        }
    }

    #[test]
    fn products_with_bytes_err_less_than_with_the_nearest_ones() {
        let mut rng = ChaCha8Rng::seed_from_u64(19);
        let (columns, inner) = (50, 80);
        let values = floats(&random([columns, inner], &mut rng));
        let rows = correlated(300, inner, &mut rng);
        let moments = rows.t().dot(&rows);
        let compensation = Compensation::new(&moments, 0.1);
        for order in [Order::ColumnsTogether, Order::ColumnsApart] {
            let given = match order {
                Order::ColumnsTogether => values.clone(),
                Order::ColumnsApart => (0..values.len()).map(|i| values[i % columns * inner + i / columns]).collect(),
            };
            let [nearest, found] = [None, compensation.as_ref()].map(|compensation| {
                let found = quantise::to_int8(&given, order, columns, compensation);
                (found.scales.clone(), found.values(Order::ColumnsTogether))
            });
            // The scales are those of the largest values either way, and no value is further than a few steps.
            assert_eq!(found.0, nearest.0);
            let steps = values.iter().zip(&found.1).zip(found.0.iter().flat_map(|scale| [scale; 80]));
            assert!(steps.clone().all(|((value, found), scale)| (value - found).abs() < 3.0 * scale));
            let [found, nearest] = [found.1, nearest.1].map(|stored| error(&values, &stored, &moments));
            assert!(found < 0.5 * nearest, "{order:?}: {found} {nearest}");
        }
    }

    #[test]
    fn values_on_grids_come_back_to_the_bit() {
        let mut rng = ChaCha8Rng::seed_from_u64(13);
        let (columns, inner) = (40, 64);
        let mut values = Vec::new();
        for _ in 0..columns * inner / BLOCK {
            let [scale, minimum] = [0.01..0.02, -0.2..0.1].map(|range| f16::from_f32(rng.random_range(range)).to_f32());
            values.extend((0..BLOCK).map(|_| scale * rng.random_range(0_u8..16) as f32 + minimum));
        }
        let rows = correlated(100, inner, &mut rng);
        let compensation = Compensation::new(&rows.t().dot(&rows), 0.01);
        assert!(compensation.is_some());
        assert_eq!(stored(&values, columns, compensation.as_ref()), values);
        assert!(quantise::is_on_grids(&values, Order::ColumnsTogether, columns, BLOCK));
        // One other value changes its own column and no more.
        values[5 * inner + 7] += 1e-3;
        assert!(!quantise::is_on_grids(&values, Order::ColumnsTogether, columns, BLOCK));
        let found = stored(&values, columns, compensation.as_ref());
        for (n, (found, values)) in found.chunks(inner).zip(values.chunks(inner)).enumerate() {
            assert_eq!(found == values, n != 5, "{n}");
        }
    }

    #[test]
    fn columns_are_rounded_each_for_itself() {
        let mut rng = ChaCha8Rng::seed_from_u64(17);
        // More columns than are worked on at once.
        let inner = 2 * BLOCK;
        let columns = AT_ONCE / inner + 3;
        let values = floats(&random([columns, inner], &mut rng));
        let rows = correlated(100, inner, &mut rng);
        let compensation = Compensation::new(&rows.t().dot(&rows), 0.3);
        let found = stored(&values, columns, compensation.as_ref());
        for n in [0, 1, columns / 2, columns - 4, columns - 1] {
            let one = n * inner..(n + 1) * inner;
            assert_eq!(stored(&values[one.clone()], 1, compensation.as_ref()), found[one], "{n}");
        }
        let columns = 7;
        let together = &values[..columns * inner];
        let apart: Vec<f32> = (0..together.len()).map(|i| together[i % columns * inner + i / columns]).collect();
        let to_int4 = |values: &[f32], order| quantise::to_int4(values, order, columns, BLOCK, compensation.as_ref());
        assert_eq!(to_int4(&apart, Order::ColumnsApart), to_int4(together, Order::ColumnsTogether));
    }

    #[test]
    fn moments_of_little_meaning_do_no_harm() {
        let mut rng = ChaCha8Rng::seed_from_u64(19);
        let (columns, inner) = (32, 64);
        let values = floats(&random([columns, inner], &mut rng));
        let alone = stored(&values, columns, None);
        let of = |row: Vec<f64>| {
            let row = Array2::from_shape_vec((1, inner), row).unwrap();
            row.t().dot(&row)
        };
        let random = random([1, inner], &mut rng).into_raw_vec_and_offset().0;
        let one = |large: f64| (0..inner).map(|k| if k == 40 { large } else { 0.0 }).collect::<Vec<_>>();
        let huge = random.iter().map(|value| 1e100 * value).collect();
        for row in [random, huge, one(1.0), one(1e-30), one(1e30)] {
            let moments = of(row);
            let found = stored(&values, columns, Compensation::new(&moments, 0.3).as_ref());
            let [with, without] = [&found, &alone].map(|stored| error(&values, stored, &moments));
            assert!(with <= without, "{with} {without}");
            let eye = Array2::eye(inner);
            let [with, without] = [&found, &alone].map(|stored| error(&values, stored, &eye));
            assert!(with <= 1.5 * without, "{with} {without}");
        }
        for value in [0.0, f64::NAN, f64::INFINITY, 1e200] {
            assert!(Compensation::new(&of(vec![value; inner]), 0.3).is_none(), "{value}");
        }
        // Inputs that know nothing of each other.
        let found = stored(&values, columns, Compensation::new(&Array2::eye(inner), 0.3).as_ref());
        assert_eq!(found, alone);
    }
}
