//! The forward pass against transformers, against itself with a cache, and against separate passes.

#![allow(clippy::unwrap_used, clippy::panic)] // Clippy knows tests, but not their helpers.

mod support;

use std::path::Path;

use marionette_models::checkpoint::read_base;
use marionette_models::{params, safetensors_file};
use marionette_trainer::gpt2::{Cache, Layout};
use marionette_trainer::tensors;
use support::{ADAPTER, adapters, model, random, small_config, worst};
use tch::{Device, Kind, Tensor, no_grad};

fn ids(rows: i64, length: i64, vocabulary: i64) -> Tensor {
    // 31 and 50 have no common divisor, so the rows are far from periodic in the context.
    ((Tensor::arange(rows * length, (Kind::Int64, Device::Cpu)) * 31 + 7).remainder(vocabulary)).reshape([rows, length])
}

#[test]
fn logits_are_those_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2");
    let base = read_base(&folder).unwrap();
    let (expected, _) = safetensors_file::read(&folder.join("expected.safetensors")).unwrap();
    let ids = Tensor::from_slice(&expected["input_ids"].to_i64().unwrap()).reshape([2, 40]);
    let expected = tensors::to_torch(&expected["logits"].to_f32().unwrap(), Kind::Float, Device::Cpu).unwrap();
    let model = model(&base.config, &base.tensors, Kind::Float);
    let logits = no_grad(|| model.forward(None, &ids, Layout::default(), None)).unwrap();
    let error = worst(&logits.reshape([2, 40, 96]), &expected);
    println!("worst absolute error of the logits against transformers: {error:.2e}");
    assert!(error <= 1e-4, "{error}");
}

#[test]
fn zero_adapters_are_the_bare_model_exactly() {
    let config = small_config();
    let model = model(&config, &random(&params::base_table(&config), 0.3, 1), Kind::Float);
    let table = params::adapter_table(&config, &ADAPTER);
    // As a run begins: the down-projections random, the up-projections zero.
    let mut start = random(&table, 1.0, 2);
    for (name, tensor) in &mut start {
        if name.contains(".up.") {
            tensor.values.fill(0.0);
        }
    }
    let with = |host| Some(adapters(&config, host, Kind::Float));
    let ids = ids(3, 20, 50);
    let logits = |adapters: Option<_>| model.forward(adapters.as_ref(), &ids, Layout::default(), None).unwrap();
    assert!(logits(with(&start)).equal(&logits(None)));
    // And an adapter that is not zero is not without effect.
    assert!(worst(&logits(with(&random(&table, 0.3, 2))), &logits(None)) > 0.1);
}

#[test]
fn the_head_is_the_same_where_only_some_rows_are_asked_for() {
    let config = small_config();
    let model = model(&config, &random(&params::base_table(&config), 0.3, 1), Kind::Float);
    let ids = ids(2, 10, 50);
    let rows = Tensor::from_slice(&[3_i64, 19, 0]);
    let some = model.forward(None, &ids, Layout::default(), Some(&rows)).unwrap();
    let all = model.forward(None, &ids, Layout::default(), None).unwrap();
    assert!(worst(&some, &all.index_select(0, &rows)) < 1e-5);
}

#[test]
fn decoding_with_a_cache_is_the_full_forward() {
    let config = small_config();
    let model = model(&config, &random(&params::base_table(&config), 0.3, 1), Kind::Float);
    let adapters = adapters(&config, &random(&params::adapter_table(&config, &ADAPTER), 0.2, 2), Kind::Float);
    let mut tokens: Vec<i64> = vec![5, 17, 40, 8];
    let mut cache = Cache::default();
    let mut input = tokens.clone();
    let mut worst_error = 0.0_f64;
    for _ in 0..64 {
        let row = |ids: &[i64]| Tensor::from_slice(ids).unsqueeze(0);
        let step = no_grad(|| model.step(Some(&adapters), &row(&input), &mut cache)).unwrap();
        let whole = no_grad(|| model.forward(Some(&adapters), &row(&tokens), Layout::default(), None)).unwrap();
        let whole = whole.narrow(0, tokens.len() as i64 - 1, 1);
        worst_error = worst_error.max(worst(&step, &whole));
        let next = step.argmax(-1, false).int64_value(&[0]);
        assert_eq!(next, whole.argmax(-1, false).int64_value(&[0]));
        tokens.push(next);
        input = vec![next];
    }
    println!("worst absolute error of the logits over 64 cached tokens: {worst_error:.2e}");
    assert!(worst_error <= 1e-4, "{worst_error}");
    // Several tokens after a past, too.
    let row = |ids: &[i64]| Tensor::from_slice(ids).unsqueeze(0);
    let mut cache = Cache::default();
    let _ = no_grad(|| model.step(Some(&adapters), &row(&tokens[..10]), &mut cache)).unwrap();
    let step = no_grad(|| model.step(Some(&adapters), &row(&tokens[10..15]), &mut cache)).unwrap();
    let whole = no_grad(|| model.forward(Some(&adapters), &row(&tokens[..15]), Layout::default(), None)).unwrap();
    assert!(worst(&step, &whole.narrow(0, 14, 1)) <= 1e-4);
    assert_eq!(cache.length(), 15);
}

#[test]
fn branches_are_separate_passes() {
    let config = small_config();
    let model = model(&config, &random(&params::base_table(&config), 0.3, 1), Kind::Double);
    let (history, candidates) = (vec![3_i64, 44, 12, 9], [vec![7_i64, 30], vec![21_i64, 2, 16], vec![5_i64]]);
    let (mut ids, mut positions, mut branch) = (history.clone(), vec![0_i64, 1, 2, 3], vec![0_i64; 4]);
    for (index, candidate) in candidates.iter().enumerate() {
        ids.extend(candidate);
        positions.extend(4..4 + candidate.len() as i64);
        branch.extend(vec![index as i64 + 1; candidate.len()]);
    }
    let row = |values: &[i64]| Tensor::from_slice(values).unsqueeze(0);
    let (positions, branch) = (row(&positions), row(&branch));
    let layout = Layout { positions: Some(&positions), branch: Some(&branch) };
    let together = model.forward(None, &row(&ids), layout, None).unwrap();
    let mut first = history.len() as i64;
    let mut worst_error = 0.0_f64;
    for candidate in &candidates {
        let alone = [history.as_slice(), candidate].concat();
        let alone = model.forward(None, &row(&alone), Layout::default(), None).unwrap();
        let count = candidate.len() as i64;
        let (head, tail) = (alone.narrow(0, 0, 4), alone.narrow(0, 4, count));
        worst_error = worst_error.max(worst(&together.narrow(0, 0, 4), &head));
        worst_error = worst_error.max(worst(&together.narrow(0, first, count), &tail));
        first += count;
    }
    println!("worst absolute error of branches against separate passes: {worst_error:.2e}");
    assert!(worst_error < 1e-10, "{worst_error}");
}
