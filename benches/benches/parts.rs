//! The inner parts on one thread, at GPT-2 small's shapes: kernels, sampling, encoding, rounding, opening.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::atomic::AtomicBool;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use marionette_dialogues::{Dialogue, Exchange, group_by_persona, read_dialogues};
use marionette_exporter::quantise::{self, Order};
use marionette_exporter::{FreshAdapters, Source, export};
use marionette_models::bundle::{Bundle, Operators, Precision};
use marionette_runtime::kernels::attention::{self, Gradients, Head, Heads};
use marionette_runtime::kernels::{self};
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

/// Throughput is in operations: two for each number of the matrix and row, so that "elem/s" are FLOP/s or their like.
#[cfg(target_arch = "x86_64")]
fn products(criterion: &mut Criterion) {
    use marionette_runtime::kernels::product::{self, Blocks, Direction, Instructions, Matrix, Rounded};
    let here = |number: usize, compute: &(dyn Fn(usize) + Send + Sync)| {
        (0..number).for_each(compute);
        Ok::<_, ()>(())
    };
    let mut group = criterion.benchmark_group("products");
    let integers: Vec<u8> = (0..INNER * WIDTH).map(|i| (i * 7919 % 255) as u8).collect();
    let halves = &integers[..INNER * WIDTH / 2];
    let blocks = vec![0.01; INNER * WIDTH / 128];
    let columns = product::column_scales(&blocks, WIDTH / 128);
    let matrices = [
        ("8 bits", Matrix::of_bytes(&integers, &columns).unwrap()),
        ("4 bits", Matrix::of_halves(halves, &blocks, &columns).unwrap()),
    ];
    let x = floats(TOKENS * INNER);
    for instructions in Instructions::ALL.into_iter().filter(|instructions| instructions.are_supported()) {
        group.throughput(Throughput::Elements((2 * TOKENS * WIDTH * INNER) as u64));
        for (name, matrix) in matrices {
            for (direction, depth, width) in [(Direction::Forward, WIDTH, INNER), (Direction::Back, INNER, WIDTH)] {
                let (mut rounded, mut y) = (Rounded::new(instructions), vec![0.0; TOKENS * width]);
                rounded.rows(TOKENS, depth).iter_mut().zip(x.chunks(depth)).for_each(|(row, x)| row.round(x, None));
                group.bench_function(format!("{instructions:?}, 512 rows, {name}, {direction:?}"), |b| {
                    b.iter(|| product::multiply(matrix, direction, &rounded, None, &mut y, here).unwrap());
                });
            }
        }
        let (mut rounded, mut y) = (Rounded::new(instructions), vec![0.0; INNER]);
        rounded.rows(1, WIDTH).iter_mut().zip(x.chunks(WIDTH)).for_each(|(row, x)| row.round(x, None));
        for (name, bytes, is_halves) in [("8 bits", &integers[..], false), ("4 bits", halves, true)] {
            let blocks = Blocks::new(bytes, &blocks, [INNER, WIDTH], is_halves).unwrap();
            group.throughput(Throughput::Bytes(bytes.len() as u64));
            group.bench_function(format!("{instructions:?}, 1 row, {name}"), |b| {
                b.iter(|| product::multiply_few(blocks, &rounded, None, &mut y, here).unwrap());
            });
        }
        group.throughput(Throughput::Elements((TOKENS * INNER) as u64));
        group.bench_function(format!("{instructions:?}, rounding 512 rows of 3,072"), |b| {
            b.iter(|| {
                rounded.rows(TOKENS, INNER).iter_mut().zip(x.chunks(INNER)).for_each(|(row, x)| row.round(x, None))
            });
        });
    }
    group.finish();
}

#[cfg(not(target_arch = "x86_64"))]
fn products(_: &mut Criterion) {}

fn passes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    let (dy, x, mut dx) = (floats(TOKENS * INNER), floats(TOKENS * INNER), vec![0.0; TOKENS * INNER]);
    group.throughput(Throughput::Bytes((12 * dx.len()) as u64));
    group.bench_function("gradient of GELU", |b| b.iter(|| kernels::gelu_gradient(&dy, &x, &mut dx)));
    let rows = TOKENS * WIDTH;
    let (scale, mean, inverse) = (vec![1.0; WIDTH], vec![0.1; TOKENS], vec![1.5; TOKENS]);
    group.throughput(Throughput::Bytes((12 * rows) as u64));
    group.bench_function("gradient of layer normalisation", |b| {
        b.iter(|| {
            let statistics = [&mean[..], &inverse];
            kernels::layer_normalization_gradient(&dy[..rows], &x[..rows], &scale, statistics, &mut dx[..rows]);
        });
    });
    let logits = floats(VOCABULARY);
    group.throughput(Throughput::Bytes(4 * VOCABULARY as u64));
    group.bench_function("log-sum of a row of logits", |b| b.iter(|| kernels::log_sum_exp(black_box(&logits))));

    // One head of 128 tokens; forward two products, back five, of half a square each.
    let (tokens, head_dim) = (128, 64);
    let qkv = floats(tokens * 3 * WIDTH);
    let heads = Heads { queries: WIDTH / head_dim, shared: WIDTH / head_dim, width: head_dim };
    let head = Head { qkv: &qkv, branch: None, index: 3, heads };
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
    group.bench_function("a matrix to 8 bits", |b| b.iter(|| quantise::to_int8(&values, Order::ColumnsApart, INNER)));
    group.bench_function("a matrix to 4 bits", |b| {
        b.iter(|| quantise::to_int4(&values, Order::ColumnsApart, INNER, 128))
    });
    group.finish();
}

criterion_group!(benches, products, passes, text, personas, rounding);
criterion_main!(benches);
