//! A block against the same in f64, written by the definition; and one token at a time against all at once.

use half::f16;

use super::*;
use crate::Calls;
use crate::adapter::Adapter;
use crate::product::{Affine, Bytes};

/// D, F, R, dh and C.
const WIDTH: usize = 64;
const HIDDEN: usize = 96;
const BOTTLENECK: usize = 24;
const HEAD: usize = 16;
const CAPACITY: usize = 40;

fn numbers(length: usize, seed: usize) -> Vec<f32> {
    (0..length).map(|i| ((i * 7919 + seed * 104_729) % 2027) as f32 / 1013.0 - 1.0).collect()
}

fn scaled(length: usize, seed: usize, by: f32) -> Vec<f32> {
    numbers(length, seed).into_iter().map(|value| value * by).collect()
}

/// A matrix in 8 or 4 bits, and its values.
struct Stored {
    integers: Vec<u8>,
    scales: Vec<f32>,
    halves: [Vec<f16>; 2],
    bias: Vec<f32>,
    size: [usize; 2],
}

impl Stored {
    fn new(size @ [columns, inner]: [usize; 2], seed: usize) -> Self {
        let integers = (0..columns * inner).map(|i| ((i * 7919 + seed * 31) % 251) as u8).collect();
        let small = 1.0 / (60.0 * (inner as f32).sqrt());
        let halves = [(10.0, 1.5), (11.0, -8.0 * 1.5)].map(|(more, by)| {
            let values = scaled(columns * inner / 32, seed + more as usize, 0.3);
            values.into_iter().map(|value| f16::from_f32((1.0 + value) * by * 12.0 * small)).collect()
        });
        let scales = scaled(columns, seed, 0.3).into_iter().map(|value| (1.0 + value) * small).collect();
        Self { integers, scales, halves, bias: scaled(columns, seed + 1, 0.2), size }
    }

    fn linear(&self, affine: bool, bias: bool) -> Linear<'_> {
        let [columns, inner] = self.size;
        let weights = if affine {
            let [scales, minima] = &self.halves;
            Few::Affine(Affine::new(&self.integers[..columns * inner / 2], [scales, minima], self.size).unwrap())
        } else {
            Few::Bytes(Bytes::new(&self.integers, &self.scales, self.size).unwrap())
        };
        Linear { weights, bias: bias.then_some(&self.bias) }
    }

    fn value(&self, affine: bool, n: usize, k: usize) -> f64 {
        let [_, inner] = self.size;
        let at = n * inner + k;
        if affine {
            let block = n * (inner / 32) + k / 32;
            let q = self.integers[at / 2] >> (4 * (at % 2)) & 15;
            self.halves[0][block].to_f64() * f64::from(q) + self.halves[1][block].to_f64()
        } else {
            (f64::from(self.integers[at]) - 128.0) * f64::from(self.scales[n])
        }
    }

    fn product(&self, affine: bool, bias: bool, x: &[f64]) -> Vec<f64> {
        let of = |n: usize| {
            let sum: f64 = x.iter().enumerate().map(|(k, x)| x * self.value(affine, n, k)).sum();
            sum + if bias { f64::from(self.bias[n]) } else { 0.0 }
        };
        (0..self.size[0]).map(of).collect()
    }
}

struct Case {
    affine: bool,
    gpt2: bool,
    /// Without adapters.
    bare: bool,
    heads: Heads,
    norms: [Vec<f32>; 4],
    matrices: [Stored; 4],
    adapters: [[Vec<f32>; 4]; 2],
    angles: [Vec<f32>; 2],
}

impl Case {
    fn new([affine, gpt2, bare]: [bool; 3]) -> Self {
        let shared = if gpt2 { 4 } else { 2 };
        let heads = Heads { queries: 4, shared, width: HEAD };
        let fc = if gpt2 { HIDDEN } else { 2 * HIDDEN };
        let adapter = |seed| {
            [
                scaled(WIDTH * BOTTLENECK, seed, 0.3),
                scaled(BOTTLENECK, seed + 1, 0.5),
                scaled(BOTTLENECK * WIDTH, seed + 2, 0.3),
                scaled(WIDTH, seed + 3, 0.5),
            ]
        };
        let angle = |position: usize, pair: usize| position as f64 * 100.0_f64.powf(-(pair as f64) / 8.0);
        let angles = [f64::sin_cos, f64::sin_cos].map(|_| vec![0.0_f32; CAPACITY * HEAD / 2]);
        let mut case = Self {
            affine,
            gpt2,
            bare,
            heads,
            norms: [1, 2, 3, 4].map(|seed| numbers(WIDTH, seed).into_iter().map(|v| 1.0 + 0.3 * v).collect()),
            matrices: [[heads.all(), WIDTH], [WIDTH, WIDTH], [fc, WIDTH], [WIDTH, HIDDEN]]
                .map(|size| Stored::new(size, size[0])),
            adapters: [adapter(20), adapter(30)],
            angles,
        };
        for (at, (cosine, sine)) in (0..).zip({
            let [cosines, sines] = &mut case.angles;
            cosines.iter_mut().zip(sines)
        }) {
            let angle = angle(at / (HEAD / 2), at % (HEAD / 2));
            (*cosine, *sine) = (angle.cos() as f32, angle.sin() as f32);
        }
        case
    }

    fn block(&self, instructions: Instructions) -> Block<'_> {
        let norm = |at: usize| match self.gpt2 {
            true => Norm::Layer([&self.norms[at], &self.norms[at + 1]]),
            false => Norm::Rms(&self.norms[at]),
        };
        let [qkv, projection, fc, mlp_projection] = self.matrices.each_ref().map(|m| m.linear(self.affine, self.gpt2));
        let [adapter_1, adapter_2] = self
            .adapters
            .each_ref()
            .map(|[down, d, up, u]| Adapter { down: [&down[..], &d[..]], up: [&up[..], &u[..]] })
            .map(|adapter| (!self.bare).then(|| Adapters::new(adapter, 1).unwrap()));
        let mlp = if self.gpt2 { Mlp::Gelu } else { Mlp::SwiGlu };
        let (norm_1, norm_2) = (norm(0), norm(2));
        let heads = self.heads;
        Block {
            instructions,
            threads: NonZeroUsize::new(3).unwrap(),
            heads,
            epsilon: 1e-5,
            norm_1,
            qkv,
            projection,
            adapter_1,
            norm_2,
            fc,
            mlp,
            mlp_projection,
            adapter_2,
        }
    }

    /// With other adapters: so many.
    fn with<'a>(&'a self, instructions: Instructions, adapters: [[&'a [f32]; 4]; 2], number: usize) -> Block<'a> {
        let [adapter_1, adapter_2] = adapters.map(|[down, d, up, u]| {
            let all = Adapter { down: [down, d], up: [up, u] };
            (!self.bare).then(|| Adapters::new(all, number).unwrap())
        });
        Block { adapter_1, adapter_2, ..self.block(instructions) }
    }

    fn normal(&self, at: usize, x: &[f64]) -> Vec<f64> {
        let mean = if self.gpt2 { x.iter().sum::<f64>() / x.len() as f64 } else { 0.0 };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let inverse = (square + 1e-5).sqrt().recip();
        let shift = |i: usize| if self.gpt2 { f64::from(self.norms[at + 1][i]) } else { 0.0 };
        x.iter().enumerate().map(|(i, x)| (x - mean) * inverse * f64::from(self.norms[at][i]) + shift(i)).collect()
    }

    fn adapt(&self, which: usize, x: &[f64], residual: &[f64]) -> Vec<f64> {
        if self.bare {
            return x.iter().zip(residual).map(|(x, residual)| x + residual).collect();
        }
        let [down, d, up, u] = &self.adapters[which];
        let hidden = (0..BOTTLENECK).map(|r| {
            let sum: f64 = x.iter().enumerate().map(|(i, x)| x * f64::from(down[i * BOTTLENECK + r])).sum();
            gelu(sum + f64::from(d[r]))
        });
        let hidden: Vec<f64> = hidden.collect();
        let of = |i: usize| {
            let sum: f64 = hidden.iter().enumerate().map(|(r, h)| h * f64::from(up[r * WIDTH + i])).sum();
            residual[i] + x[i] + sum + f64::from(u[i])
        };
        (0..WIDTH).map(of).collect()
    }

    /// All tokens of a row that begins at position 0.
    fn expected(&self, x: &[f32]) -> Vec<f64> {
        let bias = self.gpt2;
        let rows: Vec<Vec<f64>> = x.chunks(WIDTH).map(|x| x.iter().map(|&x| f64::from(x)).collect()).collect();
        let turned = |position: usize, part: &[f64]| -> Vec<f64> {
            let half = HEAD / 2;
            let angle = |i: usize| position * half + i;
            let value = |i: usize| {
                if self.gpt2 {
                    return part[i];
                }
                let (cosine, sine) =
                    (f64::from(self.angles[0][angle(i % half)]), f64::from(self.angles[1][angle(i % half)]));
                if i < half {
                    part[i] * cosine - part[i + half] * sine
                } else {
                    part[i] * cosine + part[i - half] * sine
                }
            };
            (0..HEAD).map(value).collect()
        };
        let qkv: Vec<Vec<f64>> =
            rows.iter().map(|x| self.matrices[0].product(self.affine, bias, &self.normal(0, x))).collect();
        let part = |token: usize, place: usize| &qkv[token][place * HEAD..(place + 1) * HEAD];
        let mut all = Vec::new();
        for (token, x) in rows.iter().enumerate() {
            let mut attended = Vec::new();
            for head in 0..self.heads.queries {
                let group = self.heads.queries + head / self.heads.sharing();
                let query = turned(token, part(token, head));
                let score = |seen: usize| {
                    let key = turned(seen, part(seen, group));
                    (query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (HEAD as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (0..=token).map(score).collect();
                let sum: f64 = scores.iter().sum();
                attended.extend((0..HEAD).map(|i| {
                    let mixed = scores.iter().enumerate().map(|(seen, s)| s * part(seen, group + self.heads.shared)[i]);
                    mixed.sum::<f64>() / sum
                }));
            }
            let middle = self.adapt(0, &self.matrices[1].product(self.affine, bias, &attended), x);
            let fc = self.matrices[2].product(self.affine, bias, &self.normal(2, &middle));
            let hidden: Vec<f64> = match self.gpt2 {
                true => fc.into_iter().map(gelu).collect(),
                false => (0..HIDDEN).map(|i| fc[i] / (1.0 + (-fc[i]).exp()) * fc[HIDDEN + i]).collect(),
            };
            all.extend(self.adapt(1, &self.matrices[3].product(self.affine, bias, &hidden), &middle));
        }
        all
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// Calls on three threads.
fn threads(number: usize, calls: Calls<'_>) -> Result<(), ()> {
    std::thread::scope(|scope| {
        for first in 0..3 {
            scope.spawn(move || (first..number).step_by(3).for_each(calls));
        }
    });
    Ok(())
}

fn distance(found: &[f32], expected: &[f64]) -> f64 {
    let difference: f64 = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).powi(2)).sum();
    (difference / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

fn cases() -> impl Iterator<Item = (Case, Instructions)> {
    let instructions = Instructions::supported;
    let kinds = (0..8).map(|kind| [kind & 1 != 0, kind & 2 != 0, kind & 4 != 0]);
    kinds.flat_map(move |kind| instructions().map(move |i| (Case::new(kind), i)))
}

#[test]
fn a_block_is_the_definition_token_by_token_and_all_at_once() {
    const TOKENS: usize = 37;
    for (case, instructions) in cases() {
        let block = case.block(instructions);
        let name = format!("{instructions:?}, 4 bits {}, gpt2 {}, bare {}", case.affine, case.gpt2, case.bare);
        let x = numbers(TOKENS * WIDTH, 9);
        let expected = case.expected(&x);
        let of_cache = case.heads.shared * CAPACITY * HEAD;
        let angles = |from: usize, number: usize| {
            let half = HEAD / 2;
            (!case.gpt2).then(|| case.angles.each_ref().map(|all| &all[from * half..(from + number) * half]))
        };
        let places = |from: usize, number: usize, last: &'static [i32]| {
            Places::new(number, CAPACITY, last, angles(from, number)).unwrap()
        };
        // All at once.
        let mut caches = [vec![f32::NAN; of_cache], vec![f32::NAN; of_cache]];
        let mut y = vec![f32::NAN; TOKENS * WIDTH];
        let [keys, values] = &mut caches;
        let last = Box::leak(Box::new([TOKENS as i32 - 1]));
        of_tokens(&block, places(0, TOKENS, last), &x, None, [keys, values], &mut y, threads).unwrap();
        // Rows have 8 bits.
        assert!(distance(&y, &expected) < 0.02, "{name}: {}", distance(&y, &expected));
        // Begun by many, gone on with by one at a time, by a few, and by many again; the same values within what sums of f32 differ in.
        let mut others = [vec![f32::NAN; of_cache], vec![f32::NAN; of_cache]];
        let mut at = 0;
        for number in [7, 1, 1, 3, 1, 9, 1, 14] {
            let last = Box::leak(Box::new([(at + number) as i32 - 1]));
            let (x, mut found) = (&x[at * WIDTH..(at + number) * WIDTH], vec![f32::NAN; number * WIDTH]);
            let [keys, values] = &mut others;
            match number {
                1 => of_a_token_each(&block, places(at, 1, last), x, [keys, values], &mut found, threads).unwrap(),
                _ => of_tokens(&block, places(at, number, last), x, None, [keys, values], &mut found, threads).unwrap(),
            }
            let same: Vec<f64> = y[at * WIDTH..(at + number) * WIDTH].iter().map(|&y| f64::from(y)).collect();
            assert!(distance(&found, &same) < 3e-3, "{name}, {number} at {at}: {}", distance(&found, &same));
            at += number;
        }
        assert_eq!(at, TOKENS);
        for (cache, other) in caches.iter().zip(&others) {
            for (of_head, other) in cache.chunks(CAPACITY * HEAD).zip(other.chunks(CAPACITY * HEAD)) {
                let (known, rest) = of_head.split_at(TOKENS * HEAD);
                let known: Vec<f64> = known.iter().map(|&value| f64::from(value)).collect();
                assert!(distance(&other[..TOKENS * HEAD], &known) < 1e-5, "{name}");
                // Nothing beyond them is touched.
                assert!(rest.iter().chain(&other[TOKENS * HEAD..]).all(|value| value.is_nan()), "{name}");
            }
        }
        // Some rows alone.
        let mut some = vec![f32::NAN; 2 * WIDTH];
        let [keys, values] = &mut caches;
        of_tokens(&block, places(0, TOKENS, last), &x, Some(&[36, 4]), [keys, values], &mut some, threads).unwrap();
        for (found, row) in some.chunks(WIDTH).zip([36, 4]) {
            let same: Vec<f64> = y[row * WIDTH..(row + 1) * WIDTH].iter().map(|&y| f64::from(y)).collect();
            assert!(distance(found, &same) < 3e-3, "{name} row {row}");
        }
    }
}

#[test]
fn rows_of_a_batch_are_rows_of_their_own() {
    for (case, instructions) in cases() {
        let block = case.block(instructions);
        let of_cache = case.heads.shared * CAPACITY * HEAD;
        let x = numbers(2 * 3 * WIDTH, 5);
        let angles = (!case.gpt2).then(|| case.angles.each_ref().map(|all| &all[..3 * HEAD / 2]));
        let mut both = [vec![0.0; 2 * of_cache], vec![0.0; 2 * of_cache]];
        let mut y = vec![f32::NAN; x.len()];
        let places = |batch: usize| Places::new(3, CAPACITY, &[2, 2][..batch], angles).unwrap();
        let [keys, values] = &mut both;
        of_tokens(&block, places(2), &x, None, [keys, values], &mut y, threads).unwrap();
        for (row, (x, y)) in x.chunks(3 * WIDTH).zip(y.chunks(3 * WIDTH)).enumerate() {
            let mut one = [vec![0.0; of_cache], vec![0.0; of_cache]];
            let mut alone = vec![f32::NAN; x.len()];
            let [keys, values] = &mut one;
            of_tokens(&block, places(1), x, None, [keys, values], &mut alone, threads).unwrap();
            let y: Vec<f64> = y.iter().map(|&y| f64::from(y)).collect();
            assert!(distance(&alone, &y) < 3e-3, "{}", distance(&alone, &y));
            for (one, both) in one.iter().zip(&both) {
                let both: Vec<f64> = both[row * of_cache..][..of_cache].iter().map(|&v| f64::from(v)).collect();
                assert!(distance(one, &both) < 1e-5);
            }
        }
    }
}

/// Rows that stand at different places, with one adapter for all or one for each: a token of each at once, and several, as each alone.
#[test]
fn rows_with_adapters_of_their_own_are_what_each_is_alone() {
    const BEFORE: [usize; 3] = [5, 0, 17];
    for (case, instructions) in cases() {
        let name = format!("{instructions:?}, 4 bits {}, gpt2 {}, bare {}", case.affine, case.gpt2, case.bare);
        let of_cache = case.heads.shared * CAPACITY * HEAD;
        let half = HEAD / 2;
        // Three adapters, tensor by tensor.
        let adapters = case.adapters.each_ref().map(|tensors| {
            let of_row = |values: &Vec<f32>, row: usize| -> Vec<f32> {
                values.iter().enumerate().map(|(i, value)| value * (1.0 + 0.3 * (row * (1 + i % 5)) as f32)).collect()
            };
            [0, 1, 2].map(|row| tensors.each_ref().map(|values| of_row(values, row)))
        });
        let joined =
            adapters.each_ref().map(|rows| [0, 1, 2, 3].map(|at| rows.each_ref().map(|row| &row[at][..]).concat()));
        let of_each = |row: usize| {
            case.with(instructions, adapters.each_ref().map(|rows| rows[row].each_ref().map(|v| &v[..])), 1)
        };
        let together = case.with(instructions, joined.each_ref().map(|tensors| tensors.each_ref().map(|v| &v[..])), 3);
        for tokens in [1, 2, 7] {
            let past = [scaled(3 * of_cache, 40, 1.0), scaled(3 * of_cache, 41, 1.0)];
            let x = numbers(3 * tokens * WIDTH, 6);
            let last = BEFORE.map(|before| (before + tokens) as i32 - 1);
            let at = |row: usize| BEFORE[row] * half..(BEFORE[row] + tokens) * half;
            let angles = case.angles.each_ref().map(|all| [0, 1, 2].map(|row| &all[at(row)]).concat());
            let all = (!case.gpt2).then(|| angles.each_ref().map(|all| &all[..]));
            let places = Places::new(tokens, CAPACITY, &last, all).unwrap();
            let mut cache = past.clone();
            let mut y = vec![f32::NAN; x.len()];
            let [keys, values] = &mut cache;
            match tokens {
                1 => of_a_token_each(&together, places, &x, [keys, values], &mut y, threads).unwrap(),
                _ => of_tokens(&together, places, &x, None, [keys, values], &mut y, threads).unwrap(),
            }
            // The last token of each row alone.
            let ends: Vec<usize> = (1..=3).map(|row| row * tokens - 1).collect();
            let mut some = vec![f32::NAN; 3 * WIDTH];
            let mut again = past.clone();
            let [keys, values] = &mut again;
            of_tokens(&together, places, &x, Some(&ends), [keys, values], &mut some, threads).unwrap();
            for row in 0..3 {
                let x = &x[row * tokens * WIDTH..(row + 1) * tokens * WIDTH];
                let mut alone = past.each_ref().map(|all| all[row * of_cache..(row + 1) * of_cache].to_vec());
                let angles = all.map(|all| all.map(|all| &all[row * tokens * half..(row + 1) * tokens * half]));
                let places = Places::new(tokens, CAPACITY, &last[row..row + 1], angles).unwrap();
                let mut expected = vec![f32::NAN; x.len()];
                let [keys, values] = &mut alone;
                of_tokens(&of_each(row), places, x, None, [keys, values], &mut expected, threads).unwrap();
                let expected: Vec<f64> = expected.iter().map(|&value| f64::from(value)).collect();
                let found = &y[row * tokens * WIDTH..][..tokens * WIDTH];
                assert!(
                    distance(found, &expected) < 3e-3,
                    "{name}, {tokens} of row {row}: {}",
                    distance(found, &expected)
                );
                let (end, found) = (&expected[(tokens - 1) * WIDTH..], &some[row * WIDTH..][..WIDTH]);
                assert!(distance(found, end) < 3e-3, "{name}, the end of row {row}: {}", distance(found, end));
                for (cache, alone) in cache.iter().zip(&alone) {
                    let alone: Vec<f64> = alone.iter().map(|&value| f64::from(value)).collect();
                    assert!(distance(&cache[row * of_cache..][..of_cache], &alone) < 1e-5, "{name}, row {row}");
                }
            }
        }
        if !case.bare {
            let places = Places::new(1, CAPACITY, &[0, 0], None).unwrap();
            let [mut keys, mut values] = [vec![0.0; 2 * of_cache], vec![0.0; 2 * of_cache]];
            let (x, mut y) = (numbers(2 * WIDTH, 1), vec![0.0; 2 * WIDTH]);
            let refused = of_a_token_each(&together, places, &x, [&mut keys, &mut values], &mut y, threads);
            assert!(matches!(refused, Err(crate::Failure::Misfit)), "three adapters for two rows");
        }
    }
}

/// Whichever way its matrices are multiplied: more outputs than heads take would lie among the next row's.
#[test]
fn a_matrix_that_is_no_heads_is_refused() {
    for instructions in Instructions::supported() {
        let case = Case::new([false, true, false]);
        let heads = Heads { queries: 2, shared: 2, width: HEAD };
        let block = Block { heads, ..case.block(instructions) };
        for last in [&[0][..], &[0, 0, 0]] {
            let places = Places::new(1, CAPACITY, last, None).unwrap();
            let of_cache = last.len() * heads.shared * CAPACITY * HEAD;
            let [mut keys, mut values] = [vec![0.0; of_cache], vec![0.0; of_cache]];
            let (x, mut y) = (numbers(last.len() * WIDTH, 1), vec![0.0; last.len() * WIDTH]);
            let refused = of_a_token_each(&block, places, &x, [&mut keys, &mut values], &mut y, threads);
            assert!(matches!(refused, Err(crate::Failure::Misfit)), "{instructions:?}, {} rows", last.len());
        }
    }
}

#[test]
fn tokens_that_end_where_they_cannot_are_refused() {
    let refused = |tokens, last| Places::new(tokens, 8, &[7, last][..], None).unwrap_err().to_string();
    assert_eq!(refused(3, 1), "3 tokens end at position 1, expected 2 to 7");
    assert_eq!(refused(3, 8), "3 tokens end at position 8, expected 2 to 7");
    assert_eq!(refused(1, -1), "1 tokens end at position -1, expected 0 to 7");
    assert!(Places::new(3, 8, &[2, 7], None).is_ok());
}
