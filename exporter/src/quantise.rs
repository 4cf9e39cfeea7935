//! Frozen matrices as small integers. A matrix is read here as N columns of K values, the K that a product sums over;
//! each column is cut into blocks, each block stored as integers times one scale.

use std::num::NonZeroUsize;
use std::thread;

/// The values of a matrix, as they lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// \[N, K\]: the embedding as the head reads it.
    ColumnsTogether,
    /// \[K, N\]: a linear layer as GPT-2 stores it.
    ColumnsApart,
}

/// The integers of a matrix and their scales. A value is (q − z) s with z in the middle of the range: 128 of 8 bits, 8 of 4.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// \[N, K\] bytes, or \[N, K / 2\] pairs of 4 bits, the first one lower.
    pub integers: Vec<u8>,
    /// \[N, K / block\].
    pub scales: Vec<f32>,
}

impl Quantised {
    /// The values that are stored, of a matrix of `columns` columns as they lie in memory: of 8 bits, or of 4.
    pub fn values(&self, order: Order, columns: usize, bits: usize) -> Vec<f32> {
        let inner = self.integers.len() * 8 / bits / columns;
        let block = inner * columns / self.scales.len();
        let value = |n: usize, k: usize| {
            let at = n * inner + k;
            let integer = match bits {
                8 => f32::from(self.integers[at]) - 128.0,
                _ => f32::from(self.integers[at / 2] >> (4 * (at % 2)) & 15) - 8.0,
            };
            integer * self.scales[at / block]
        };
        match order {
            Order::ColumnsTogether => {
                (0..columns).flat_map(|n| (0..inner).map(move |k| (n, k))).map(|(n, k)| value(n, k)).collect()
            }
            Order::ColumnsApart => {
                (0..inner).flat_map(|k| (0..columns).map(move |n| (n, k))).map(|(n, k)| value(n, k)).collect()
            }
        }
    }
}

/// Reads column `n` of a matrix with `columns` columns into `column` \[K\].
fn read(values: &[f32], order: Order, columns: usize, n: usize, column: &mut [f32]) {
    let inner = column.len();
    match order {
        Order::ColumnsTogether => column.copy_from_slice(&values[n * inner..(n + 1) * inner]),
        Order::ColumnsApart => {
            column.iter_mut().enumerate().for_each(|(k, value)| *value = values[k * columns + n]);
        }
    }
}

/// A matrix of `columns` columns as 8-bit integers with one scale a column, the one that makes its largest value ±127.
pub fn to_int8(values: &[f32], order: Order, columns: usize) -> Quantised {
    in_parallel(values, order, columns, values.len() / columns, |column, integers, scales| {
        let largest = column.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
        integers.extend(column.iter().map(|value| ((value / scale).round().clamp(-127.0, 127.0) as i32 + 128) as u8));
        scales.push(scale);
    })
}

/// A matrix of `columns` columns as 4-bit integers with one scale for each `block` values (even, a divisor of K). Of a few
/// scales the one with the least squared error is taken: the integers reach from −8 to 7, so that the block's largest value may
/// be either end, or be cut for the good of all others.
pub fn to_int4(values: &[f32], order: Order, columns: usize, block: usize) -> Quantised {
    in_parallel(values, order, columns, block, |column, integers, scales| {
        for values in column.chunks(block) {
            let scale = best_scale(values);
            scales.push(scale);
            let inverse = scale.recip();
            integers.extend(values.chunks(2).map(|pair| {
                let [low, high] = [pair[0], pair.get(1).copied().unwrap_or(0.0)].map(|value| nibble(value, inverse));
                low | high << 4
            }));
        }
    })
}

fn nibble(value: f32, inverse: f32) -> u8 {
    ((value * inverse).round().clamp(-8.0, 7.0) as i32 + 8) as u8
}

fn best_scale(values: &[f32]) -> f32 {
    let extreme = values.iter().fold(0.0_f32, |most, value| if value.abs() > most.abs() { *value } else { most });
    if extreme == 0.0 {
        return 1.0;
    }
    // The extreme value as −8, or as ±7 and less.
    let candidates = [-8.0, -7.5, -7.0, -6.5, -6.0, 7.0, 6.5, 6.0];
    let squared_error = |scale: f32| -> f32 {
        let inverse = scale.recip();
        let error = |value: &f32| value - scale * (f32::from(nibble(*value, inverse)) - 8.0);
        values.iter().map(|value| error(value) * error(value)).sum()
    };
    let tried = candidates.map(|end| extreme / end).map(|scale| (squared_error(scale), scale));
    tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(1.0, |(_, scale)| scale)
}

/// Quantises the columns with all processors.
fn in_parallel(
    values: &[f32],
    order: Order,
    columns: usize,
    block: usize,
    quantise: impl Fn(&[f32], &mut Vec<u8>, &mut Vec<f32>) + Sync,
) -> Quantised {
    let inner = values.len() / columns;
    let share = columns.div_ceil(thread::available_parallelism().map_or(1, NonZeroUsize::get));
    let range = |first: usize| {
        let last = (first + share).min(columns);
        let mut part = Quantised {
            integers: Vec::with_capacity((last - first) * inner),
            scales: Vec::with_capacity((last - first) * (inner / block)),
        };
        let mut column = vec![0.0; inner];
        for n in first..last {
            read(values, order, columns, n, &mut column);
            quantise(&column, &mut part.integers, &mut part.scales);
        }
        part
    };
    let mut whole = Quantised { integers: Vec::new(), scales: Vec::new() };
    thread::scope(|scope| {
        let range = &range;
        let parts: Vec<_> = (0..columns).step_by(share).map(|first| scope.spawn(move || range(first))).collect();
        for part in parts {
            // A thread that panicked has a fault of this file: it goes on here.
            let part = part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            whole.integers.extend(part.integers);
            whole.scales.extend(part.scales);
        }
    });
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_worked_by_hand() {
        // Columns (1.27, −0.5) and (0, 0).
        let expected = Quantised { integers: vec![255, 78, 128, 128], scales: vec![0.01, 1.0] };
        let found = to_int8(&[1.27, 0.0, -0.5, 0.0], Order::ColumnsApart, 2);
        assert_eq!(found.integers, expected.integers);
        assert!((found.scales[0] - 0.01).abs() < 1e-8 && found.scales[1] == 1.0);
        assert_eq!(to_int8(&[1.27, -0.5, 0.0, 0.0], Order::ColumnsTogether, 2), found);
    }

    #[test]
    fn halves_of_bytes_are_those_worked_by_hand() {
        // −8 … 7 times 0.25 are exact, whichever sign the extreme has.
        for sign in [1.0, -1.0] {
            let values: Vec<f32> = (-8..8).map(|q| sign * 0.25 * q as f32).collect();
            let found = to_int4(&values, Order::ColumnsTogether, 1, 16);
            assert_eq!(found.scales, [sign * 0.25]);
            assert_eq!(found.integers, [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]);
        }
    }

    #[test]
    fn errors_are_at_most_half_a_step() {
        let (columns, inner) = (37, 64);
        let values: Vec<f32> =
            (0..columns * inner).map(|i| ((i * 7919 % 1013) as f32 / 1013.0 - 0.5).powi(3)).collect();
        let eight = to_int8(&values, Order::ColumnsApart, columns);
        let four = to_int4(&values, Order::ColumnsApart, columns, 32);
        assert_eq!((eight.scales.len(), four.scales.len()), (columns, columns * 2));
        let mut largest = 0.0_f32;
        for n in 0..columns {
            for k in 0..inner {
                let value = values[k * columns + n];
                let q = f32::from(eight.integers[n * inner + k]) - 128.0;
                assert!((value - q * eight.scales[n]).abs() <= 0.5001 * eight.scales[n]);
                let byte = four.integers[(n * inner + k) / 2];
                let q = f32::from(if k % 2 == 0 { byte & 15 } else { byte >> 4 }) - 8.0;
                let scale = four.scales[n * 2 + k / 32];
                largest = largest.max((value - q * scale).abs() / scale.abs());
            }
        }
        // Half a step, but for values beyond the cut ends: the lowest end tried is 6 of 7.
        assert!(largest <= 2.0, "{largest}");
    }
}
