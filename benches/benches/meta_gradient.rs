//! One persona's meta-gradient on libtorch: first order and exact, with one inner step and with five.

#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use marionette_dialogues::{Encoder, Example, read_dialogues};
use marionette_exporter::{FreshAdapters, Source};
use marionette_models::params;
use marionette_trainer::inner::Support;
use marionette_trainer::meta::meta_gradient;
use marionette_trainer::method::Method;
use marionette_trainer::model::Model;
use marionette_trainer::tensors::{self, TokenBatch};
use tch::{Device, Kind};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");

fn meta(criterion: &mut Criterion) {
    let source = Source::read(TINY.as_ref(), FreshAdapters::default()).unwrap();
    let config = &source.base.config;
    let encoder = Encoder::from_folder(TINY, config.eos_token_id, config.n_positions, config.vocab_size).unwrap();
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
        let examples: Vec<Example> = dialogues.iter().map(|dialogue| encoder.example(dialogue).unwrap()).collect();
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

criterion_group!(benches, meta);
criterion_main!(benches);
