//! Products with 8- and 4-bit integers, by the kernels that the device has.

use std::cell::RefCell;

use marionette_kernels::product::{self, Affine, Bytes, Direction, Few, Instructions, Rounded};
use marionette_kernels::quantise::{self, Quantised, QuantisedBlocks};
use marionette_models::params::Order;
use tch::Tensor;

use crate::error::{Result, TrainError};
use crate::host::{self, on_threads, values};

thread_local! {
    /// Kept, since fresh memory costs more than rounding does.
    static ROOM: RefCell<Option<Rounded>> = const { RefCell::new(None) };
}

/// N columns of K integers, in the place of a matrix.
#[derive(Debug)]
pub struct Integers {
    stored: Stored,
    /// A column's scale, \[N\]; of 4 bits the one of the bytes that the way back makes of it.
    scales: Vec<f32>,
    inner: usize,
    instructions: Instructions,
}

#[derive(Debug)]
enum Stored {
    /// Of 8 bits, \[N, K\].
    Bytes(Vec<u8>),
    Blocks(QuantisedBlocks),
}

/// A new matrix [rows, columns], filled by a function.
fn filled(rows: usize, columns: usize, fill: impl FnOnce(&mut [f32]) -> bool) -> Result<Tensor> {
    let [y] = host::new([&[rows as i64, columns as i64]], |[y]| match fill(y) {
        true => Ok(()),
        false => Err(TrainError::Torch("the shapes of a product with integers do not fit".to_owned())),
    })?;
    Ok(y)
}

/// Four bits as the kernels take them.
fn affine(blocks: &QuantisedBlocks, size: [usize; 2]) -> Option<Affine<'_>> {
    let QuantisedBlocks { integers, scales, minima } = blocks;
    Affine::new(integers, [scales, minima], size)
}

impl Integers {
    /// The nearest integers to the values of a matrix of `columns` columns, as `marionette-export --precision int8` stores them.
    pub fn of_8_bits(values: &[f32], order: Order, columns: usize) -> Self {
        let instructions = Instructions::best();
        let Quantised { integers, scales } = quantise::to_int8(values, order, columns, None);
        let inner = values.len().checked_div(columns).unwrap_or(0);
        Self { stored: Stored::Bytes(integers), scales, inner, instructions }
    }

    /// The same of 4 bits, each `block` of them with a scale and a minimum, as `--precision int4` stores them where nothing is made up for.
    ///
    /// # Errors
    /// There are no products with such blocks.
    pub fn of_4_bits(values: &[f32], order: Order, columns: usize, block: usize) -> Result<Self> {
        let instructions = Instructions::best();
        let blocks = quantise::to_int4(values, order, columns, block, None);
        let inner = values.len().checked_div(columns).unwrap_or(0);
        let scales = affine(&blocks, [columns, inner]).map(|affine| affine.column_scales(instructions));
        let scales = scales
            .ok_or_else(|| TrainError::option("--frozen", "is int4, in blocks that there are no products with"))?;
        Ok(Self { stored: Stored::Blocks(blocks), scales, inner, instructions })
    }

    /// x W: x [M, K] to [M, N], each row of x rounded as the device rounds it.
    ///
    /// # Errors
    /// x does not fit; what libtorch says.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, Direction::Forward, [self.inner, self.scales.len()])
    }

    /// y Wᵀ: y [M, N] to [M, K].
    ///
    /// # Errors
    /// y does not fit; what libtorch says.
    pub(crate) fn back(&self, y: &Tensor) -> Result<Tensor> {
        self.product(y, Direction::Back, [self.scales.len(), self.inner])
    }

    fn product(&self, x: &Tensor, direction: Direction, [inputs, outputs]: [usize; 2]) -> Result<Tensor> {
        let x = x.f_contiguous()?;
        let (rows, depth) = x.size2()?;
        let (rows, depth) = (rows as usize, depth as usize);
        let x = values(&x)?;
        let matrix = self.matrix()?;
        filled(rows, outputs, |y| {
            if rows == 0 || depth != inputs {
                return depth == inputs;
            }
            ROOM.with_borrow_mut(|room| {
                let rounded = Rounded::kept(room, self.instructions);
                if direction == Direction::Forward {
                    return product::multiply_rows(matrix, x, rounded, None, y, on_threads).is_ok();
                }
                let Some(matrix) = matrix.back(&self.scales) else { return false };
                let Ok(()) = rounded.round(x, depth, direction, Some(&self.scales), on_threads);
                let Ok(fits) = product::multiply(matrix, direction, rounded, None, y, on_threads);
                fits
            })
        })
    }

    /// As the kernels take it.
    fn matrix(&self) -> Result<Few<'_>> {
        let size = [self.scales.len(), self.inner];
        match &self.stored {
            Stored::Bytes(bytes) => Bytes::new(bytes, &self.scales, size).map(Few::Bytes),
            Stored::Blocks(blocks) => affine(blocks, size).map(Few::Affine),
        }
        .ok_or_else(|| TrainError::Torch("integers in blocks that there are no products with".to_owned()))
    }

    /// The columns that `ids`, i64 of any shape, name, as floats: […, K].
    ///
    /// # Errors
    /// One of them is not there; what libtorch says.
    pub(crate) fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        let flat = Vec::<i64>::try_from(ids.f_reshape([-1])?)?;
        let column = |id: i64| usize::try_from(id).ok().filter(|&at| at < self.scales.len());
        let columns = flat.iter().map(|&id| column(id)).collect::<Option<Vec<_>>>();
        let columns = columns.ok_or_else(|| TrainError::Torch("a token is beyond the embedding".to_owned()))?;
        let inner = self.inner;
        let rows = filled(columns.len(), inner, |y| {
            for (y, at) in y.chunks_mut(inner.max(1)).zip(columns) {
                match &self.stored {
                    Stored::Bytes(bytes) => {
                        let bytes = &bytes[at * inner..][..inner];
                        y.iter_mut().zip(bytes).for_each(|(y, &byte)| *y = (f32::from(byte) - 128.0) * self.scales[at]);
                    }
                    Stored::Blocks(blocks) => blocks.column(at, y),
                }
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

    /// Matrices of 70 columns of 96 values, of 8 and 4 bits and in both orders, and the values that are stored of them, [K, N] in f64.
    fn matrices() -> Vec<(Integers, Tensor)> {
        const SIZE: [usize; 2] = [70, 96];
        let [columns, inner] = SIZE;
        let values = spread(columns * inner, 0.37);
        let of = |order: Order, has_4_bits: bool| {
            let (integers, stored) = match has_4_bits {
                true => (
                    Integers::of_4_bits(&values, order, columns, 32).unwrap(),
                    quantise::to_int4(&values, order, columns, 32, None).values(order, columns),
                ),
                false => (
                    Integers::of_8_bits(&values, order, columns),
                    quantise::to_int8(&values, order, columns, None).values(order),
                ),
            };
            let stored = Tensor::from_slice(&stored).to_kind(Kind::Double);
            let stored = match order {
                Order::ColumnsTogether => stored.reshape([columns as i64, inner as i64]).transpose(0, 1),
                Order::ColumnsApart => stored.reshape([inner as i64, columns as i64]),
            };
            (integers, stored)
        };
        let orders = [Order::ColumnsTogether, Order::ColumnsApart];
        orders.into_iter().flat_map(|order| [of(order, false), of(order, true)]).collect()
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
                // Of each of the numbers that are added up half a step of 127 is rounded off at most, and of what bytes are made of 4 bits
                // for the way back, as much again.
                let most = |x: &Tensor, w: &Tensor| 0.5 / 127.0 * x.abs().mm(&w.abs()).max().double_value(&[]);
                let within = |found: Tensor, x: &Tensor, w: &Tensor, times: f64| {
                    let error = (found.to_kind(Kind::Double) - x.mm(w)).abs().max().double_value(&[]);
                    assert!(error > 0.0 && error < times * most(x, w), "{rows} rows: {error}");
                };
                let back = if matches!(integers.stored, Stored::Blocks(_)) { 2.0 } else { 1.0 };
                within(integers.forward(&x).unwrap(), &double(&x), &stored, 1.0);
                within(integers.back(&y).unwrap(), &double(&y), &stored.transpose(0, 1), back);
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
        let x = Tensor::from_slice(&spread(200 * 96, 0.71)).reshape([200, 96]);
        for (integers, _) in matrices() {
            tch::set_num_threads(1);
            let alone = integers.forward(&x).unwrap();
            tch::set_num_threads(2);
            assert_eq!(integers.forward(&x).unwrap(), alone);
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let of = |size: [i64; 2], kind| Tensor::zeros(size, (kind, Device::Cpu));
        for (integers, _) in matrices() {
            assert!(integers.forward(&of([3, 95], Kind::Float)).is_err());
            assert!(integers.back(&of([3, 96], Kind::Float)).is_err());
            assert!(integers.forward(&of([3, 96], Kind::Double)).is_err());
            assert_eq!(integers.forward(&of([0, 96], Kind::Float)).unwrap().size(), [0, 70]);
            for beyond in [70, -1] {
                assert!(integers.rows(&Tensor::from_slice(&[beyond])).is_err());
            }
        }
    }
}
