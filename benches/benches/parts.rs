//! The inner parts on one thread, at GPT-2 small's shapes: kernels, sampling, encoding, rounding, opening.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::atomic::AtomicBool;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use marionette_dialogues::{Dialogue, Exchange, group_by_persona, read_dialogues};
use marionette_exporter::{FreshAdapters, Source, export};
use marionette_kernels as kernels;
use marionette_kernels::attention::{self, Gradients, Head, Heads};
use marionette_kernels::quantise;
use marionette_models::bundle::{Bundle, Operators, Precision};
use marionette_models::params::Order;
use marionette_runtime::sampling::{Sampler, Sampling};
use marionette_runtime::{Engine, Options, engine};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");
const VOCABULARY: usize = 50_257;
const WIDTH: usize = 768;
const INNER: usize = 3072;
/// Tokens that are computed at once.
const TOKENS: usize = 512;

fn floats(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 2027) as f32 / 1013.0 - 1.0).collect()
}

/// Rows as real models have them: a few columns 40 times the others, and each 50th row 30 times.
fn with_outliers(values: &[f32], width: usize) -> Vec<f32> {
    let column = |at: usize| if at % width % 97 == 13 { 40.0 } else { 1.0 };
    let row = |at: usize| if at / width % 50 == 7 { 30.0 } else { 1.0 };
    values.iter().enumerate().map(|(at, value)| value * column(at) * row(at)).collect()
}

/// Throughput is in operations: two for each number of the matrix and row, so that "elem/s" are FLOP/s or their like. Weights and rows
/// have outliers; what the rounding of rows costs there, and without, is printed.
fn products(criterion: &mut Criterion) {
    use half::f16;
    use marionette_kernels::product::{self, Affine, Bytes, Direction, Few, Instructions, Matrix, Rounded};
    let here = |number: usize, compute: &(dyn Fn(usize) + Send + Sync)| {
        (0..number).for_each(compute);
        Ok::<_, ()>(())
    };
    let mut group = criterion.benchmark_group("products");
    let plain = [floats(INNER * WIDTH), floats(TOKENS * INNER)];
    let outliers = [with_outliers(&plain[0], WIDTH), with_outliers(&plain[1], WIDTH)];
    for (kind, [weights, x]) in [("plain", plain), ("with outliers", outliers)] {
        let eight = quantise::to_int8(&weights, Order::ColumnsTogether, INNER, None);
        let four = quantise::to_int4(&weights, Order::ColumnsTogether, INNER, 32, None);
        let halves: [&[f16]; 2] = [&four.scales, &four.minima];
        let affine = Affine::new(&four.integers, halves, [INNER, WIDTH]).unwrap();
        let stored = [eight.values(Order::ColumnsTogether), four.values(Order::ColumnsTogether, INNER)];
        for instructions in Instructions::supported() {
            let columns = affine.column_scales(instructions);
            let matrices = [
                ("8 bits", Matrix::of_bytes(&eight.integers, &eight.scales).unwrap()),
                ("4 bits", Matrix::of_affine_back(affine, &columns).unwrap()),
            ];
            for ((name, matrix), values) in matrices.into_iter().zip(&stored) {
                for (direction, depth, width) in [(Direction::Forward, WIDTH, INNER), (Direction::Back, INNER, WIDTH)] {
                    let (mut rounded, mut y) = (Rounded::new(instructions), vec![0.0; TOKENS * width]);
                    let factors = (direction == Direction::Back).then(|| matrix.scales());
                    let places = rounded.rows(TOKENS, depth, direction);
                    places.into_iter().zip(x.chunks(depth)).for_each(|(mut row, x)| row.round(x, factors));
                    product::multiply(matrix, direction, &rounded, None, &mut y, here).unwrap();
                    let exact = |row: usize, output: usize| -> f64 {
                        let term = |i: usize| match direction {
                            Direction::Forward => values[output * WIDTH + i],
                            Direction::Back => values[i * WIDTH + output],
                        };
                        (0..depth).map(|i| f64::from(x[row * depth + i]) * f64::from(term(i))).sum()
                    };
                    let all = (0..16).flat_map(|row| (0..64).map(move |output| (row, output)));
                    let (error, size) = all.fold((0.0, 0.0), |(error, size), (row, output)| {
                        let exact = exact(row, output);
                        (error + (f64::from(y[row * width + output]) - exact).powi(2), size + exact * exact)
                    });
                    println!(
                        "{instructions:?}, {kind}, {name}, {direction:?}: relative error {:.4}",
                        f64::sqrt(error / size)
                    );
                    if kind == "plain" {
                        continue;
                    }
                    group.throughput(Throughput::Elements((2 * TOKENS * WIDTH * INNER) as u64));
                    group.bench_function(format!("{instructions:?}, 512 rows, {name}, {direction:?}"), |b| {
                        b.iter(|| product::multiply(matrix, direction, &rounded, None, &mut y, here).unwrap());
                    });
                }
            }
            if kind == "plain" {
                continue;
            }
            let (mut rounded, mut y) = (Rounded::new(instructions), vec![0.0; INNER]);
            rounded
                .rows(1, WIDTH, Direction::Forward)
                .iter_mut()
                .zip(x.chunks(WIDTH))
                .for_each(|(row, x)| row.round(x, None));
            let few = [
                ("8 bits", Few::Bytes(Bytes::new(&eight.integers, &eight.scales, [INNER, WIDTH]).unwrap()), 8),
                ("4 bits", Few::Affine(affine), 5),
            ];
            for (name, few, bits) in few {
                group.throughput(Throughput::Bytes((INNER * WIDTH * bits / 8) as u64));
                group.bench_function(format!("{instructions:?}, 1 row, {name}"), |b| {
                    b.iter(|| product::multiply_few(few, &rounded, None, &mut y, here).unwrap());
                });
            }
            group.throughput(Throughput::Elements((TOKENS * INNER) as u64));
            group.bench_function(format!("{instructions:?}, rounding 512 rows of 3,072"), |b| {
                b.iter(|| {
                    rounded
                        .rows(TOKENS, INNER, Direction::Forward)
                        .iter_mut()
                        .zip(x.chunks(INNER))
                        .for_each(|(row, x)| row.round(x, None))
                });
            });
        }
    }
    group.finish();
}

fn passes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    let (dy, x, mut dx) = (floats(TOKENS * INNER), floats(TOKENS * INNER), vec![0.0; TOKENS * INNER]);
    group.throughput(Throughput::Bytes((12 * dx.len()) as u64));
    group.bench_function("gradient of GELU", |b| b.iter(|| kernels::mlp::gelu_gradient(&dy, &x, &mut dx)));
    let rows = TOKENS * WIDTH;
    let (scale, mean, inverse) = (vec![1.0; WIDTH], vec![0.1; TOKENS], vec![1.5; TOKENS]);
    group.throughput(Throughput::Bytes((12 * rows) as u64));
    group.bench_function("gradient of layer normalisation", |b| {
        b.iter(|| {
            let statistics = [&mean[..], &inverse];
            kernels::norm::layer_normalization_gradient(&dy[..rows], &x[..rows], &scale, statistics, &mut dx[..rows]);
        });
    });
    let logits = floats(VOCABULARY);
    group.throughput(Throughput::Bytes(4 * VOCABULARY as u64));
    group.bench_function("log-sum of a row of logits", |b| b.iter(|| kernels::logits::log_sum_exp(black_box(&logits))));

    // One head of 128 tokens; forward two products, back five, of half a square each.
    let (tokens, head_dim) = (128, 64);
    let qkv = floats(tokens * 3 * WIDTH);
    let heads = Heads { queries: WIDTH / head_dim, shared: WIDTH / head_dim, width: head_dim };
    let head = Head { qkv: &qkv, branch: None, index: 3, heads, cache: None };
    let (mut y, mut sums) = (vec![0.0; tokens * WIDTH], vec![0.0; tokens]);
    fn parts(values: &mut [f32], stride: usize, part: usize) -> Vec<&mut [f32]> {
        values.chunks_mut(stride).map(|row| &mut row[part * WIDTH + 3 * 64..part * WIDTH + 4 * 64]).collect()
    }
    let operations = |products: u64| Throughput::Elements(products * (tokens * tokens * head_dim) as u64);
    group.throughput(operations(2));
    group.bench_function("attention, a head of 128 tokens", |b| {
        b.iter(|| attention::forward(head, &mut parts(&mut y, WIDTH, 0), &mut sums));
    });
    let (dy, mut d) = (floats(tokens * WIDTH), [0; 3].map(|_| vec![0.0; tokens * WIDTH]));
    group.throughput(operations(5));
    group.bench_function("gradient of attention, a head of 128 tokens", |b| {
        b.iter(|| {
            let [q, k, v] = &mut d;
            let [q, keys, values] = [q, k, v].map(|values| parts(values, WIDTH, 0));
            let mut gradients = Gradients { queries: vec![q], keys, values };
            attention::backward(head, [&dy, &y], &sums, &mut gradients);
        });
    });
    group.finish();
}

fn text(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("text");
    let logits: Vec<f32> = floats(VOCABULARY).iter().map(|logit| 8.0 * logit).collect();
    group.throughput(Throughput::Elements(1));
    for (name, options) in [("greedy", Sampling::GREEDY), ("nucleus 0.9", Sampling::default())] {
        let mut sampler = Sampler::new(options).unwrap();
        group.bench_function(format!("draw, {name}"), |b| b.iter(|| sampler.sample(&logits, &[]).unwrap()));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let source = Source::read(TINY.as_ref(), FreshAdapters::default(), None).unwrap();
    export(&source, Precision::Int8, Operators::Ort, &path, &AtomicBool::new(false)).unwrap();
    group.bench_function("open and verify a bundle of 3 million parameters", |b| {
        b.iter(|| Bundle::open(&path).unwrap())
    });
    let bundle = Bundle::open(&path).unwrap();
    let mut engine = Engine::open(&bundle, Options::default()).unwrap();
    group.bench_function("open the graph of a step", |b| {
        b.iter(|| {
            engine.close_graphs();
            engine.prepare_adaptation(engine::Activations::Kept).unwrap();
        });
    });
    let encoder = engine::encoder(&bundle).unwrap();
    let dialogues = read_dialogues(format!("{TINY}/dialogues/test.txt")).unwrap();
    let length = |dialogue| encoder.windows(dialogue).unwrap().iter().map(|window| window.ids.len()).sum::<usize>();
    let tokens: usize = dialogues.iter().map(length).sum();
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function("encode dialogues, tokens", |b| {
        b.iter(|| dialogues.iter().map(length).sum::<usize>());
    });
    group.finish();
}

/// Personas as a large training file has them: a system line each, and sentences of which strangers share one.
fn personas(criterion: &mut Criterion) {
    const DIALOGUES: usize = 100_000;
    let dialogue = |number: usize| Dialogue {
        persona: vec![
            "You are a helpful assistant.".into(),
            format!("stock {}", number % 97),
            format!("first {}", number / 8),
            format!("second {}", number / 8),
        ],
        partner_persona: Vec::new(),
        exchanges: vec![Exchange::new("hi", format!("reply {number}"))],
        line: number + 1,
    };
    let dialogues: Vec<Dialogue> = (0..DIALOGUES).map(dialogue).collect();
    let mut group = criterion.benchmark_group("personas");
    group.sample_size(10).throughput(Throughput::Elements(DIALOGUES as u64));
    group.bench_function("100,000 dialogues with a system line each", |b| {
        b.iter_batched(|| dialogues.clone(), |all| group_by_persona(all).unwrap(), BatchSize::LargeInput);
    });
    group.finish();
}

fn rounding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("export");
    let values = floats(INNER * WIDTH);
    group.throughput(Throughput::Elements(values.len() as u64));
    group.bench_function("a matrix to 8 bits", |b| {
        b.iter(|| quantise::to_int8(&values, Order::ColumnsApart, INNER, None))
    });
    group.bench_function("a matrix to 4 bits", |b| {
        b.iter(|| quantise::to_int4(&values, Order::ColumnsApart, INNER, 32, None))
    });
    group.finish();
}

criterion_group!(benches, products, passes, text, personas, rounding);
criterion_main!(benches);
