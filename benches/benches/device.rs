//! The three graphs on ONNX Runtime: one adaptation step, one generated token, one ranking of twenty candidates.

#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::atomic::AtomicBool;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use marionette_dialogues::{Batch, read_dialogues};
use marionette_exporter::{FreshAdapters, Source, export};
use marionette_models::bundle::{Bundle, Operators, Precision};
use marionette_runtime::engine::{self, Scored};
use marionette_runtime::generate::LanguageModel as _;
use marionette_runtime::{Engine, Options};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");

fn device(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let source = Source::read(TINY.as_ref(), FreshAdapters::default(), None).unwrap();
    export(&source, Precision::Fp32, Operators::Ort, &path, &AtomicBool::new(false)).unwrap();
    let bundle = Bundle::open(&path).unwrap();
    let encoder = engine::encoder(&bundle).unwrap();
    let mut engine = Engine::open(&bundle, Options::default()).unwrap();
    let dialogues = read_dialogues(format!("{TINY}/dialogues/test.txt")).unwrap();
    let sequences: Vec<_> = dialogues.iter().take(5).flat_map(|dialogue| encoder.windows(dialogue).unwrap()).collect();
    let batch = Batch::new(&sequences).unwrap();
    let rates = vec![0.01; engine.adapters().len()];

    let mut group = criterion.benchmark_group("device");
    group.throughput(Throughput::Elements(batch.ids.len() as u64));
    group.bench_function("adapt step, 5 dialogues", |b| {
        b.iter(|| engine.adapt_step(std::slice::from_ref(&batch), &rates).unwrap())
    });
    group.throughput(Throughput::Elements(1));
    let prompt = &sequences[0].ids[..32];
    group.bench_function("decode, 1 token after 32", |b| {
        engine.advance(prompt).unwrap();
        b.iter(|| {
            engine.truncate(prompt.len());
            engine.advance(&prompt[..1]).unwrap()[0]
        });
        engine.truncate(0);
    });
    let ranking = Scored::candidates_of(&encoder.ranking(&dialogues[0], 1).unwrap());
    group.bench_function("rank 20 candidates", |b| b.iter(|| engine.score(&ranking).unwrap()));
    group.finish();
}

criterion_group!(benches, device);
criterion_main!(benches);
