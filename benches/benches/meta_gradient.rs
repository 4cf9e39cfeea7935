//! One persona's meta-gradient on libtorch, first order and exact: of the bundled model with one inner step and with five,
//! and of GPT-2 small's shapes, two rows of 128 tokens and two steps.

#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use marionette_benches::Task;
use marionette_dialogues::{Encoder, Example, read_dialogues};
use marionette_exporter::{FreshAdapters, Source};
use marionette_models::bundle::Precision;
use marionette_models::params;
use marionette_trainer::inner::Support;
use marionette_trainer::meta::meta_gradient;
use marionette_trainer::method::Method;
use marionette_trainer::model::Model;
use marionette_trainer::tensors::{self, TokenBatch};
use tch::{Device, Kind};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");

fn meta(criterion: &mut Criterion) {
    let source = Source::read(TINY.as_ref(), FreshAdapters::default(), None).unwrap();
    let config = &source.base.config;
    let encoder = Encoder::from_folder(TINY, config).unwrap();
    let table = params::adapter_table(config, &source.adapter);
    let frozen = tensors::all_to_torch(source.base.tensors.clone(), Kind::Float, Device::Cpu).unwrap();
    let parts = Method::ExtraPlace.parts();
    let model = Model::new(config, parts, frozen, table.clone(), Kind::Float, Device::Cpu).unwrap();
    let start: Vec<_> = table
        .iter()
        .map(|spec| tensors::to_torch(&source.adapters[&spec.name], Kind::Float, Device::Cpu).unwrap())
        .collect();
    let dialogues = read_dialogues(format!("{TINY}/dialogues/train.txt")).unwrap();
    let batch = |dialogues: &[_]| {
        let examples: Vec<Example> =
            dialogues.iter().flat_map(|dialogue| encoder.examples(dialogue).unwrap()).collect();
        TokenBatch::of(&examples.iter().collect::<Vec<_>>(), 0, Device::Cpu).unwrap()
    };
    let query = batch(&dialogues[5..8]);
    let rates = vec![0.1; start.len()];

    let mut group = criterion.benchmark_group("meta-gradient");
    group.sample_size(10);
    for steps in [1, 5] {
        let support = Support::repeat(batch(&dialogues[..5]), steps);
        for (name, exact) in [("first order", false), ("exact", true)] {
            group.bench_function(BenchmarkId::new(name, format!("S = {steps}")), |b| {
                b.iter(|| meta_gradient(&model, &start, &support, &query, &rates, exact, false).unwrap());
            });
        }
    }
    group.finish();
}

fn gpt2_small(criterion: &mut Criterion) {
    const ROWS: i64 = 2;
    const LENGTH: i64 = 128;
    const STEPS: usize = 2;
    let task = Task::new(None, Precision::Fp32).unwrap();
    let mut group = criterion.benchmark_group("meta-gradient, GPT-2 small");
    group.sample_size(10).throughput(Throughput::Elements((STEPS as u64 + 1) * (ROWS * LENGTH) as u64));
    for (name, exact) in [("first order", false), ("exact", true)] {
        group.bench_function(name, |b| b.iter(|| task.meta_gradient([ROWS, LENGTH], STEPS, exact).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, meta, gpt2_small);
criterion_main!(benches);
