use half::f16;

use super::rounded::Line;
use super::*;

fn numbers(len: usize, seed: usize) -> impl Iterator<Item = usize> {
    (0..len).map(move |i| (i * 7919 + seed * 104_729) % 2027)
}

fn floats(len: usize, seed: usize) -> Vec<f32> {
    numbers(len, seed).map(|number| (number as f32 / 1013.0 - 1.0).powi(3)).collect()
}

/// The same with outliers, as models have them: a column of 40 times the others' values, and a row of 30 times.
fn with_outliers(rows: usize, width: usize, seed: usize) -> Vec<f32> {
    let times = |index: usize| match (index / width % 5, index % width % 97) {
        (2, 13) => 1200.0,
        (2, _) => 30.0,
        (_, 13) => 40.0,
        _ => 1.0,
    };
    floats(rows * width, seed).iter().enumerate().map(|(index, value)| value * times(index)).collect()
}

/// The sizes of the steps that a row's values are rounded to: 1/127 of the largest of each group; forward, 1/254 of that where the largest
/// is more than 6 times the root of the row's mean square.
fn steps(x: &[f64], direction: Direction) -> Vec<f64> {
    let most = 6.0 * (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
    let step = |group: &[f64]| {
        let largest = group.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        // f32 would say the same.
        assert!(largest == 0.0 || (largest / most - 1.0).abs() > 1e-5);
        largest / if direction == Direction::Forward && largest > most { 127.0 * 254.0 } else { 127.0 }
    };
    x.chunks(if direction == Direction::Back { 64 } else { 32 }).flat_map(|x| vec![step(x); x.len()]).collect()
}

/// Room for rows, once for all instructions that this processor has.
fn rounded() -> impl Iterator<Item = Rounded> {
    let lacking = Set::ALL.iter().filter(|set| !set.is_supported());
    lacking.for_each(|set| eprintln!("skipped: this processor does not have {}", Instructions(*set).name()));
    Instructions::supported().map(Rounded::new)
}

/// A matrix's value as a direction meets it: forward the value itself, back over its column's scale.
type Value<'a> = &'a dyn Fn(Direction, usize, usize) -> f64;

fn check(matrix: Matrix<'_>, value: Value<'_>, rows: usize) {
    rounded().for_each(|room| check_in(room, matrix, value, rows));
}

/// Products by the definition, in f64, of the rounded rows: all that is left are roundings of f32.
fn check_in(mut rounded: Rounded, matrix: Matrix<'_>, value: Value<'_>, rows: usize) {
    let columns = matrix.scales.len();
    for direction in [Direction::Forward, Direction::Back] {
        let (depth, width) = (matrix.depth(direction), matrix.outputs(direction));
        let bias = floats(width, 6);
        for x in [floats(rows * depth, 5), with_outliers(rows, depth, 5)] {
            let factors = (direction == Direction::Back).then_some(matrix.scales);
            rounded
                .rows(rows, depth, direction)
                .iter_mut()
                .zip(x.chunks(depth))
                .for_each(|(row, x)| row.round(x, factors));
            let mut y = vec![f32::NAN; rows * width];
            let done = multiply::<()>(matrix, direction, &rounded, Some(&bias), &mut y, |number, compute| {
                // Twice, as nobody should.
                (0..number).chain([0]).for_each(compute);
                Ok(())
            });
            assert_eq!(done, Ok(true));
            for row in 0..rows {
                let x: Vec<f64> = (0..depth)
                    .map(|i| f64::from(x[row * depth + i]) * factors.map_or(1.0, |factors| f64::from(factors[i])))
                    .collect();
                let steps = steps(&x, direction);
                for output in 0..width {
                    let terms = |i: usize| match direction {
                        Direction::Forward => value(direction, output, i),
                        Direction::Back => value(direction, i, output),
                    };
                    let exact: f64 =
                        (0..depth).map(|i| (x[i] / steps[i].max(1e-30)).round() * steps[i] * terms(i)).sum();
                    let size: f64 = (0..depth).map(|i| (x[i] * terms(i)).abs()).sum();
                    let (found, exact) = (f64::from(y[row * width + output]), exact + f64::from(bias[output]));
                    // A value at a half may be rounded either way.
                    let half = (0..depth)
                        .filter(|&i| ((x[i] / steps[i].max(1e-30)).fract().abs() - 0.5).abs() < 1e-4)
                        .map(|i| (steps[i] * terms(i)).abs())
                        .sum::<f64>();
                    let most = 1e-5 * (1.0 + size) + half;
                    assert!((found - exact).abs() < most, "{direction:?} {columns} {row} {output}: {found}, {exact}");
                }
            }
        }
    }
}

#[test]
fn products_with_bytes_are_the_definition() {
    for [columns, inner, rows] in [[64, 64, 6], [1, 4, 1], [70, 100, 7], [130, 48, 13], [9000, 20, 2], [3, 9000, 5]] {
        let integers: Vec<u8> = numbers(columns * inner, 1).map(|number| (number % 255 + 1) as u8).collect();
        let scales: Vec<f32> = floats(columns, 2).iter().map(|scale| 0.01 + scale.abs()).collect();
        let matrix = Matrix::of_bytes(&integers, &scales).unwrap();
        let integer = |n: usize, k: usize| f64::from(integers[n * inner + k]) - 128.0;
        let value = |direction, n, k| match direction {
            Direction::Forward => integer(n, k) * f64::from(scales[n]),
            Direction::Back => integer(n, k),
        };
        check(matrix, &value, rows);
    }
}

/// A page of memory that ends where memory that cannot be touched begins.
#[cfg(target_os = "linux")]
struct Fenced {
    pages: *mut libc::c_void,
    page: usize,
}

#[cfg(target_os = "linux")]
impl Fenced {
    fn new() -> Self {
        // SAFETY: fresh pages, which only this value knows of.
        unsafe {
            let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap();
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let pages = libc::mmap(std::ptr::null_mut(), 2 * page, access, kind, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(pages.wrapping_byte_add(page), page, libc::PROT_NONE), 0);
            Self { pages, page }
        }
    }

    /// The last `len` values before the fence.
    fn last<T: Copy>(&mut self, len: usize) -> &mut [T] {
        assert!(len * size_of::<T>() <= self.page);
        // SAFETY: within the first page, as far from its end as the values are long; zeros are values of numbers.
        unsafe {
            let first = self.pages.wrapping_byte_add(self.page - len * size_of::<T>()).cast::<T>();
            std::slice::from_raw_parts_mut(first, len)
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: what was mapped, and nothing borrows it any more.
        unsafe { libc::munmap(self.pages, 2 * self.page) };
    }
}

#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(miri, ignore = "Miri has no pages that cannot be touched, and watches every access by itself")]
fn nothing_beyond_the_last_row_is_touched() {
    // 50,257 outputs, GPT-2's, are 17 more than a multiple of 64. All that is read and written ends at a fence.
    const K: usize = 20;
    for width in [50_257 % 64, 64 + 50_257 % 64, 63, 1] {
        let [mut integers, mut scales, mut output] = [(); 3].map(|()| Fenced::new());
        let integers = integers.last::<u8>(width * K);
        integers.iter_mut().zip(numbers(width * K, 1)).for_each(|(place, number)| *place = (number % 255 + 1) as u8);
        let scales = scales.last::<f32>(width);
        scales.fill(0.5);
        let matrix = Matrix::of_bytes(integers, scales).unwrap();
        for mut room in rounded() {
            for direction in [Direction::Forward, Direction::Back] {
                let (depth, outputs, rows) = (matrix.depth(direction), matrix.outputs(direction), 7);
                let x = floats(rows * depth, 5);
                let factors = (direction == Direction::Back).then_some(matrix.scales);
                room.rows(rows, depth, direction)
                    .iter_mut()
                    .zip(x.chunks(depth))
                    .for_each(|(row, x)| row.round(x, factors));
                let run = |number, compute: &(dyn Fn(usize) + Send + Sync)| {
                    (0..number).for_each(compute);
                    Ok::<_, ()>(())
                };
                let y = output.last::<f32>(rows * outputs);
                y.fill(f32::NAN);
                assert_eq!(multiply(matrix, direction, &room, None, y, run), Ok(true));
                assert!(y.iter().all(|value| value.is_finite()), "{direction:?} {width}");
            }
        }
    }
}

/// 4-bit integers in blocks: pairs, scales of either sign and minima.
fn affine(columns: usize, inner: usize, block: usize) -> (Vec<u8>, Vec<f16>, Vec<f16>) {
    let halves = |seed| floats(columns * inner / block, seed).into_iter().map(f16::from_f32).collect::<Vec<f16>>();
    let integers = numbers(columns * inner / 2, 1).map(|number| (number % 256) as u8).collect();
    (integers, halves(2), halves(3))
}

fn nibble(integers: &[u8], at: usize) -> f32 {
    f32::from(integers[at / 2] >> (4 * (at % 2)) & 15)
}

#[test]
fn products_with_halves_of_bytes_are_the_definition() {
    let shapes =
        [[64, 128, 128], [70, 96, 32], [5, 80, 16], [33, 320, 64], [4100, 16, 16], [3, 576, 32], [2, 4128, 32]];
    for ([columns, inner, block], instructions) in
        shapes.into_iter().flat_map(|shape| Instructions::supported().map(move |instructions| (shape, instructions)))
    {
        let (integers, scales, minima) = affine(columns, inner, block);
        let affine = Affine::new(&integers, [&scales, &minima], [columns, inner]).unwrap();
        let of_columns = affine.column_scales(instructions);
        let values = |n: usize, k: usize| {
            let at = n * (inner / block) + k / block;
            (scales[at].to_f32(), minima[at].to_f32(), nibble(&integers, n * inner + k))
        };
        for (n, found) in of_columns.iter().enumerate() {
            let most = (0..inner)
                .map(|k| values(n, k))
                .fold(0.0_f32, |most, (s, m, _)| most.max(m.abs()).max((15.0 * s + m).abs()));
            assert!((found * 127.0 / most - 1.0).abs() < 1e-6);
        }
        let matrix = Matrix::of_affine_back(affine, &of_columns).unwrap();
        let value = |direction, n: usize, k: usize| {
            let ((s, m, q), inverse) = (values(n, k), of_columns[n].recip());
            match direction {
                Direction::Forward => f64::from(s) * f64::from(q) + f64::from(m),
                // Half-way here and there: the same rounding in f32.
                Direction::Back => f64::from(q.mul_add(s * inverse, m * inverse).round_ties_even()),
            }
        };
        check_in(Rounded::new(instructions), matrix, &value, 7);
        // What was made for one way has no scales for the other.
        let mut rounded = Rounded::new(instructions);
        rounded.rows(1, columns, Direction::Back);
        let run = |_: usize, _: &(dyn Fn(usize) + Send + Sync)| Ok::<_, ()>(());
        let forward = Matrix::of_affine(affine);
        assert_eq!(multiply(forward, Direction::Back, &rounded, None, &mut vec![0.0; inner], run), Ok(false));
    }
}

#[test]
fn products_of_few_rows_are_the_definition() {
    let shapes = || [[64, 256, 128], [70, 96, 32], [5, 80, 16], [3, 320, 64], [2, 1024, 128], [4, 576, 32]].into_iter();
    let cases = || [true, false].into_iter().flat_map(|halves| shapes().map(move |shape| (halves, shape)));
    for (mut rounded, (halves, [columns, inner, block])) in
        Instructions::supported().flat_map(|i| cases().map(move |case| (Rounded::new(i), case)))
    {
        let (nibbles, halves_of_scales, minima) = affine(columns, inner, block);
        let bytes: Vec<u8> = numbers(columns * inner, 1).map(|number| (number % 256) as u8).collect();
        let scales = floats(columns * inner / block, 2);
        let size = [columns, inner];
        let few = match halves {
            true => Few::Affine(Affine::new(&nibbles, [&halves_of_scales, &minima], size).unwrap()),
            false => Few::Bytes(Bytes::new(&bytes, &scales, size).unwrap()),
        };
        let (x, bias) = (with_outliers(3, inner, 5), floats(columns, 6));
        rounded
            .rows(3, inner, Direction::Forward)
            .iter_mut()
            .zip(x.chunks(inner))
            .for_each(|(row, x)| row.round(x, None));
        let mut y = vec![f32::NAN; 3 * columns];
        let run = |number, compute: &(dyn Fn(usize) + Send + Sync)| {
            (0..number).for_each(compute);
            Ok::<_, ()>(())
        };
        assert_eq!(multiply_few(few, &rounded, Some(&bias), &mut y, run), Ok(true));
        let lines: Vec<_> = (0..3).map(|row| rounded.lines(row)).collect();
        for (index, found) in y.iter().enumerate() {
            let (row, n) = (index / columns, index % columns);
            let x: Vec<f64> = x[row * inner..][..inner].iter().map(|&x| f64::from(x)).collect();
            let steps = steps(&x, Direction::Forward);
            let rounded = |k: usize| {
                let value = |line: &Line| f64::from(line.bytes[k]) * f64::from(line.scales[k / 32]);
                let rounded: f64 = lines[row].iter().map(value).sum();
                assert!((rounded - x[k]).abs() < 0.501 * steps[k], "{row} {k}: {rounded}");
                rounded
            };
            let value = |k: usize| {
                let at = n * (inner / block) + k / block;
                match halves {
                    true => [
                        halves_of_scales[at].to_f64() * f64::from(nibble(&nibbles, n * inner + k)),
                        minima[at].to_f64(),
                    ],
                    false => [(f64::from(bytes[n * inner + k]) - 128.0) * f64::from(scales[at]), 0.0],
                }
            };
            let exact = (0..inner).map(|k| rounded(k) * (value(k)[0] + value(k)[1])).sum::<f64>() + f64::from(bias[n]);
            let size: f64 =
                (0..inner).map(|k| (rounded(k) * value(k)[0]).abs() + (rounded(k) * value(k)[1]).abs()).sum();
            assert!((f64::from(*found) - exact).abs() < 1e-5 * (1.0 + size), "{halves} {index}: {found}, {exact}");
        }
        // The same with many rows, where bytes have one scale a column.
        let mut room = Vec::new();
        assert_eq!(few.many(&mut room).is_some(), halves);
        let repeated = vec![0.5; scales.len()];
        assert!(Few::Bytes(Bytes::new(&bytes, &repeated, size).unwrap()).many(&mut room).is_some());
    }
}

#[test]
fn what_is_not_finite_stays_so_and_nothing_stays_nothing() {
    let matrix = Matrix::of_bytes(&[200; 8], &[0.5, 0.25]).unwrap();
    let x = [[1.0, f32::NAN, 0.0, 0.0], [0.0; 4], [0.0, 0.0, f32::INFINITY, 1.0], [1.0, 2.0, 3.0, 4.0]];
    for mut rounded in rounded() {
        rounded.rows(4, 4, Direction::Forward).iter_mut().zip(&x).for_each(|(row, x)| row.round(x, None));
        let mut y = [0.0; 8];
        let run = |number, compute: &(dyn Fn(usize) + Send + Sync)| {
            (0..number).for_each(compute);
            Ok::<_, ()>(())
        };
        assert_eq!(multiply(matrix, Direction::Forward, &rounded, None, &mut y, run), Ok(true));
        assert!(y[0].is_nan() && y[1].is_nan() && y[2..4] == [0.0; 2] && !y[4].is_finite() && y[6].is_finite());
        assert_eq!(multiply(matrix, Direction::Back, &rounded, None, &mut y, run), Ok(false));
        // With few rows.
        let x: Vec<[f32; 32]> = x.iter().map(|x| std::array::from_fn(|k| x[k % 4])).collect();
        rounded.rows(4, 32, Direction::Forward).iter_mut().zip(&x).for_each(|(row, x)| row.round(x, None));
        let halves = [[f16::ONE; 4], [f16::ZERO; 4]];
        for few in [
            Few::Bytes(Bytes::new(&[200; 64], &[0.5; 2], [2, 32]).unwrap()),
            Few::Affine(Affine::new(&[0x21; 32], halves.each_ref().map(|halves| &halves[..]), [2, 32]).unwrap()),
        ] {
            let mut y = [0.0; 8];
            assert_eq!(multiply_few(few, &rounded, None, &mut y, run), Ok(true));
            assert!(y[0].is_nan() && y[1].is_nan() && y[2..4] == [0.0; 2] && !y[4].is_finite() && y[6].is_finite());
        }
    }
    assert!(Matrix::of_bytes(&[0; 7], &[1.0; 2]).is_none());
    // Blocks of 8; of 24; as many minima as scales, and pairs of integers.
    let halves = [f16::ONE; 8];
    for (scales, minima, pairs, size) in
        [(4, 4, 8, [2, 8]), (2, 2, 24, [2, 24]), (2, 1, 32, [2, 32]), (2, 2, 31, [2, 32])]
    {
        assert!(Affine::new(&[0; 64][..pairs], [&halves[..scales], &halves[..minima]], size).is_none());
    }
    assert!(Affine::new(&[0; 32], [&halves[..2]; 2], [2, 32]).is_some());
}
