//! Products with 8-bit integers, by the kernels that the device has.

use std::cell::RefCell;

use marionette_kernels::product::{self, Bytes, Direction, Few, Instructions, Matrix, Rounded};
use marionette_kernels::quantise::{self, Quantised};
use marionette_models::params::Order;
use tch::Tensor;

use crate::error::{Result, TrainError};
use crate::host::{self, on_threads, values};

thread_local! {
    /// Kept, since fresh memory costs more than rounding does.
    static ROOM: RefCell<Option<Rounded>> = const { RefCell::new(None) };
}

/// N columns of K integers, and a scale a column, in the place of a matrix.
#[derive(Debug)]
pub struct Integers {
    bytes: Vec<u8>,
    scales: Vec<f32>,
    instructions: Instructions,
}

/// A new matrix [rows, columns], filled by a function.
fn filled(rows: usize, columns: usize, fill: impl FnOnce(&mut [f32]) -> bool) -> Result<Tensor> {
    let [y] = host::new([&[rows as i64, columns as i64]], |[y]| match fill(y) {
        true => Ok(()),
        false => Err(TrainError::Torch("the shapes of a product with integers do not fit".to_owned())),
    })?;
    Ok(y)
}

impl Integers {
    /// The nearest integers to the values of a matrix of `columns` columns, as `marionette-export --precision int8` stores them.
    ///
    /// # Errors
    /// This processor has no instructions for products of integers.
    pub fn new(values: &[f32], order: Order, columns: usize) -> Result<Self> {
        let instructions = Instructions::best().ok_or_else(TrainError::no_integers)?;
        let Quantised { integers, scales } = quantise::to_int8(values, order, columns, None);
        Ok(Self { bytes: integers, scales, instructions })
    }

    fn inner(&self) -> usize {
        self.bytes.len().checked_div(self.scales.len()).unwrap_or(0)
    }

    /// x W: x [M, K] to [M, N], each row of x rounded as the device rounds it.
    ///
    /// # Errors
    /// x does not fit; what libtorch says.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, Direction::Forward, [self.inner(), self.scales.len()])
    }

    /// y Wᵀ: y [M, N] to [M, K].
    ///
    /// # Errors
    /// y does not fit; what libtorch says.
    pub(crate) fn back(&self, y: &Tensor) -> Result<Tensor> {
        self.product(y, Direction::Back, [self.scales.len(), self.inner()])
    }

    fn product(&self, x: &Tensor, direction: Direction, [inputs, outputs]: [usize; 2]) -> Result<Tensor> {
        let x = x.f_contiguous()?;
        let (rows, depth) = x.size2()?;
        let (rows, depth) = (rows as usize, depth as usize);
        let x = values(&x)?;
        let size = [self.scales.len(), self.inner()];
        filled(rows, outputs, |y| {
            if rows == 0 || depth != inputs {
                return depth == inputs;
            }
            ROOM.with_borrow_mut(|room| {
                let rounded = Rounded::kept(room, self.instructions);
                match (direction, Bytes::new(&self.bytes, &self.scales, size)) {
                    (Direction::Forward, Some(weights)) => {
                        product::multiply_rows(Few::Bytes(weights), x, rounded, None, y, on_threads).is_ok()
                    }
                    _ => {
                        let Some(matrix) = Matrix::of_bytes(&self.bytes, &self.scales) else { return false };
                        let factors = (direction == Direction::Back).then_some(self.scales.as_slice());
                        let Ok(()) = rounded.round(x, depth, direction, factors, on_threads);
                        let Ok(fits) = product::multiply(matrix, direction, rounded, None, y, on_threads);
                        fits
                    }
                }
            })
        })
    }

    /// The columns that `ids`, i64 of any shape, name, as floats: […, K].
    ///
    /// # Errors
    /// One of them is not there; what libtorch says.
    pub(crate) fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        let inner = self.inner();
        let flat = Vec::<i64>::try_from(ids.f_reshape([-1])?)?;
        let column = |id: i64| {
            let at = usize::try_from(id).ok()?;
            Some((self.bytes.get(at * inner..(at + 1) * inner)?, *self.scales.get(at)?))
        };
        let columns = flat.iter().map(|&id| column(id)).collect::<Option<Vec<_>>>();
        let columns = columns.ok_or_else(|| TrainError::Torch("a token is beyond the embedding".to_owned()))?;
        let rows = filled(columns.len(), inner, |y| {
            for (y, (bytes, scale)) in y.chunks_mut(inner.max(1)).zip(columns) {
                y.iter_mut().zip(bytes).for_each(|(y, &byte)| *y = (f32::from(byte) - 128.0) * scale);
            }
            true
        })?;
        let size: Vec<i64> = ids.size().into_iter().chain([inner as i64]).collect();
        Ok(rows.f_reshape(size)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn spread(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * step).sin()).collect()
    }

    /// A matrix of 70 columns of 96 values, in both orders, and the values that are stored of it, [K, N] in f64.
    fn matrices() -> [(Integers, Tensor); 2] {
        const SIZE: [usize; 2] = [70, 96];
        let [columns, inner] = SIZE;
        [Order::ColumnsTogether, Order::ColumnsApart].map(|order| {
            let values = spread(columns * inner, 0.37);
            let stored = quantise::to_int8(&values, order, columns, None).values(order);
            let stored = Tensor::from_slice(&stored).to_kind(Kind::Double);
            let stored = match order {
                Order::ColumnsTogether => stored.reshape([columns as i64, inner as i64]).transpose(0, 1),
                Order::ColumnsApart => stored.reshape([inner as i64, columns as i64]),
            };
            (Integers::new(&values, order, columns).unwrap(), stored)
        })
    }

    /// The largest error over the largest value.
    fn error(found: &Tensor, expected: &Tensor) -> f64 {
        assert_eq!(found.size(), expected.size());
        (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
    }

    #[test]
    fn products_are_those_of_the_stored_values() {
        for (integers, stored) in matrices() {
            for rows in [1, 4, 33] {
                let x = Tensor::from_slice(&spread(rows * 96, 0.71)).reshape([rows as i64, 96]);
                let y = Tensor::from_slice(&spread(rows * 70, 0.53)).reshape([rows as i64, 70]);
                let double = |x: &Tensor| x.to_kind(Kind::Double);
                // Of each of the numbers that are added up half a step of 127 is rounded off at most.
                let most = |x: &Tensor, w: &Tensor| 0.5 / 127.0 * x.abs().mm(&w.abs()).max().double_value(&[]);
                let within = |found: Tensor, x: &Tensor, w: &Tensor| {
                    let error = (found.to_kind(Kind::Double) - x.mm(w)).abs().max().double_value(&[]);
                    assert!(error > 0.0 && error < most(x, w), "{rows} rows: {error}");
                };
                within(integers.forward(&x).unwrap(), &double(&x), &stored);
                within(integers.back(&y).unwrap(), &double(&y), &stored.transpose(0, 1));
                // Rows that are as integers are: nothing is rounded.
                let whole = (&x * 127.0).round();
                let _ = whole.narrow(1, 0, 1).fill_(127.0);
                let _ = whole.narrow(1, 32, 1).fill_(127.0);
                let _ = whole.narrow(1, 64, 1).fill_(-127.0);
                let forward = error(&integers.forward(&whole).unwrap(), &double(&whole).mm(&stored));
                assert!(forward < 1e-6, "{rows} rows: {forward}");
            }
            let ids = Tensor::from_slice(&[69_i64, 0, 3, 3]).reshape([2, 2]);
            let expected = stored.transpose(0, 1).index_select(0, &ids.reshape(-1)).reshape([2, 2, 96]);
            assert!(error(&integers.rows(&ids).unwrap(), &expected) < 1e-6);
        }
    }

    #[test]
    fn on_several_threads_they_are_the_same() {
        let [(integers, _), _] = matrices();
        let x = Tensor::from_slice(&spread(200 * 96, 0.71)).reshape([200, 96]);
        tch::set_num_threads(1);
        let alone = integers.forward(&x).unwrap();
        tch::set_num_threads(2);
        assert_eq!(integers.forward(&x).unwrap(), alone);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let [(integers, _), _] = matrices();
        let of = |size: [i64; 2], kind| Tensor::zeros(size, (kind, Device::Cpu));
        assert!(integers.forward(&of([3, 95], Kind::Float)).is_err());
        assert!(integers.back(&of([3, 96], Kind::Float)).is_err());
        assert!(integers.forward(&of([3, 96], Kind::Double)).is_err());
        assert_eq!(integers.forward(&of([0, 96], Kind::Float)).unwrap().size(), [0, 70]);
        for beyond in [70, -1] {
            assert!(integers.rows(&Tensor::from_slice(&[beyond])).is_err());
        }
    }
}
