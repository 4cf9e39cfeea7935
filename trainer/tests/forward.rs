//! The forward pass against transformers, against itself with a cache, and against separate passes.

#![allow(clippy::unwrap_used, clippy::panic)] // Clippy knows tests, but not their helpers.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use marionette_dialogues::Ranking;
use marionette_models::ModelConfig;
use marionette_models::checkpoint::read_base;
use marionette_models::safetensors_file::FileMetadata;
use marionette_models::{params, safetensors_file};
use marionette_trainer::decoder::{Cache, Decoder, Layout, Parts};
use marionette_trainer::inner;
use marionette_trainer::method::Method;
use marionette_trainer::tensors::{self, Choices, TokenBatch};
use support::{ADAPTER, decoder, learner, random, small_config, small_configs, small_tensors, tensors_of, worst};
use tch::{Device, Kind, Tensor, no_grad};

const ADAPTERS: Parts = Parts { adapters: true, classifier: false };

/// A small model without adapters.
fn bare(config: &ModelConfig, kind: Kind) -> Decoder {
    decoder(config, &tensors_of(config), Parts::default(), kind)
}

/// A small model with adapters that are not zero.
fn adapted(config: &ModelConfig, kind: Kind) -> Decoder {
    decoder(config, &tensors_of(config), ADAPTERS, kind)
}

fn ids(rows: i64, length: i64, vocabulary: i64) -> Tensor {
    // 31 and 50 have no common divisor, so the rows are far from periodic in the context.
    ((Tensor::arange(rows * length, (Kind::Int64, Device::Cpu)) * 31 + 7).remainder(vocabulary)).reshape([rows, length])
}

#[test]
fn logits_are_those_of_transformers() {
    for family in ["gpt2", "llama", "llama-untied"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
        let base = read_base(&folder).unwrap();
        let (expected, _) = safetensors_file::read(&folder.join("expected.safetensors")).unwrap();
        let ids = Tensor::from_slice(&expected["input_ids"].to_i64().unwrap()).reshape([2, 40]);
        let expected = tensors::to_torch(&expected["logits"].to_f32().unwrap(), Kind::Float, Device::Cpu).unwrap();
        let model = decoder(&base.config, &base.tensors, Parts::default(), Kind::Float);
        let logits = no_grad(|| model.forward(&ids, Layout::default(), None)).unwrap();
        let error = worst(&logits.reshape([2, 40, 96]), &expected);
        println!("{family}: worst absolute error of the logits against transformers {error:.2e}");
        assert!(error <= 1e-4, "{family}: {error}");
        if family != "gpt2" {
            assert_eq!(base.config.n_head, 3 * base.config.n_kv_head);
        }
    }
}

#[test]
fn a_llama_in_shards_is_the_same_tensors() {
    for family in ["llama", "llama-untied"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
        let apart = tempfile::tempdir().unwrap();
        std::fs::copy(folder.join("config.json"), apart.path().join("config.json")).unwrap();
        let (raw, _) = safetensors_file::read(&folder.join("model.safetensors")).unwrap();
        // Every second tensor, so that those that are stored apart and used as one, a layer's queries, keys and values and its gate and
        // up-projection, come out of both.
        let mut shards = [BTreeMap::new(), BTreeMap::new()];
        let mut map = serde_json::Map::new();
        let name = |shard: usize| format!("model-0000{}-of-00002.safetensors", shard + 1);
        for (index, (tensor, values)) in raw.into_iter().enumerate() {
            map.insert(tensor.clone(), name(index % 2).into());
            shards[index % 2].insert(tensor, values);
        }
        let of = |part: &str| &map[&format!("model.layers.0.{part}.weight")];
        assert_ne!(of("self_attn.k_proj"), of("self_attn.v_proj"));
        assert_ne!(of("mlp.gate_proj"), of("mlp.up_proj"));
        for (shard, tensors) in shards.iter().enumerate() {
            safetensors_file::write(&apart.path().join(name(shard)), tensors, FileMetadata::HuggingFace).unwrap();
        }
        let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        std::fs::write(apart.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        assert!(read_base(apart.path()).unwrap() == read_base(&folder).unwrap(), "{family}");
    }
}

#[test]
fn zero_adapters_are_the_bare_model_exactly() {
    for config in small_configs() {
        let table = params::adapter_table(&config, &ADAPTER);
        // As a run begins: the down-projections random, the up-projections zero.
        let mut start = random(&table, 1.0, 2);
        for (name, tensor) in &mut start {
            if name.contains(".up.") {
                tensor.values.fill(0.0);
            }
        }
        let mut zero = tensors_of(&config);
        zero.extend(start);
        let ids = ids(3, 20, 50);
        let logits = |model: &Decoder| model.forward(&ids, Layout::default(), None).unwrap();
        let bare = logits(&bare(&config, Kind::Float));
        assert!(logits(&decoder(&config, &zero, ADAPTERS, Kind::Float)).equal(&bare));
        // And an adapter that is not zero is not without effect.
        assert!(worst(&logits(&adapted(&config, Kind::Float)), &bare) > 0.1);
    }
}

#[test]
fn the_head_is_the_same_where_only_some_rows_are_asked_for() {
    for config in small_configs() {
        let model = bare(&config, Kind::Float);
        let ids = ids(2, 10, 50);
        let rows = Tensor::from_slice(&[3_i64, 19, 0]);
        let some = model.forward(&ids, Layout::default(), Some(&rows)).unwrap();
        let all = model.forward(&ids, Layout::default(), None).unwrap();
        assert!(worst(&some, &all.index_select(0, &rows)) < 1e-5);
    }
}

#[test]
fn decoding_with_a_cache_is_the_full_forward() {
    for config in small_configs() {
        let model = adapted(&config, Kind::Float);
        let mut tokens: Vec<i64> = vec![5, 17, 40, 8];
        let mut cache = Cache::default();
        let mut input = tokens.clone();
        let mut worst_error = 0.0_f64;
        for _ in 0..64 {
            let row = |ids: &[i64]| Tensor::from_slice(ids).unsqueeze(0);
            let step = no_grad(|| model.step(&row(&input), Layout::default(), &mut cache)).unwrap();
            let whole = no_grad(|| model.forward(&row(&tokens), Layout::default(), None)).unwrap();
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
        let _ = no_grad(|| model.step(&row(&tokens[..10]), Layout::default(), &mut cache)).unwrap();
        let step = no_grad(|| model.step(&row(&tokens[10..15]), Layout::default(), &mut cache)).unwrap();
        let whole = no_grad(|| model.forward(&row(&tokens[..15]), Layout::default(), None)).unwrap();
        assert!(worst(&step, &whole.narrow(0, 14, 1)) <= 1e-4);
        assert_eq!(cache.length(), 15);
    }
}

#[test]
fn branches_are_separate_passes() {
    for config in small_configs() {
        let model = bare(&config, Kind::Double);
        let (history, candidates) = (vec![3_i64, 44, 12, 9], [vec![7_i64, 30], vec![21_i64, 2, 16], vec![5_i64]]);
        let (mut ids, mut positions, mut branch) = (history.clone(), vec![0_i64, 1, 2, 3], vec![0_i64; 4]);
        for (index, candidate) in candidates.iter().enumerate() {
            ids.extend(candidate);
            positions.extend(4..4 + candidate.len() as i64);
            branch.extend(vec![index as i64 + 1; candidate.len()]);
        }
        let row = |values: &[i64]| Tensor::from_slice(values).unsqueeze(0);
        let (positions, branch) = (row(&positions), row(&branch));
        let layout = Layout { positions: Some(&positions), branch: Some(&branch), sees: None };
        let together = model.forward(&row(&ids), layout, None).unwrap();
        let mut first = history.len() as i64;
        let mut worst_error = 0.0_f64;
        for candidate in &candidates {
            let alone = [history.as_slice(), candidate].concat();
            let alone = model.forward(&row(&alone), Layout::default(), None).unwrap();
            let count = candidate.len() as i64;
            let (head, tail) = (alone.narrow(0, 0, 4), alone.narrow(0, 4, count));
            worst_error = worst_error.max(worst(&together.narrow(0, 0, 4), &head));
            worst_error = worst_error.max(worst(&together.narrow(0, first, count), &tail));
            first += count;
        }
        println!("worst absolute error of branches against separate passes: {worst_error:.2e}");
        assert!(worst_error < 1e-10, "{worst_error}");
    }
}

/// A history and candidates after it, each with its closing token, as an encoder with choices gives them.
fn ranking(history: &[u32], candidates: &[Vec<u32>]) -> Ranking {
    let length = history.len() as u32;
    let mut ranking = Ranking {
        ids: history.to_vec(),
        positions: (0..length).collect(),
        branch: vec![0; history.len()],
        candidates: candidates.len(),
        ..Ranking::default()
    };
    for (branch, candidate) in (1..).zip(candidates) {
        ranking.ids.extend_from_slice(candidate);
        ranking.positions.extend((length..).take(candidate.len()));
        ranking.branch.extend(vec![branch; candidate.len()]);
        ranking.ends.push(ranking.ids.len() as u32 - 1);
    }
    ranking
}

/// Two choices: rows of different lengths, and the second without a third candidate.
fn choices() -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    vec![
        (vec![4, 18, 49, 7, 31], vec![vec![12, 40, 49], vec![3, 49], vec![22, 9, 30, 49]]),
        (vec![35, 2, 49], vec![vec![11, 49], vec![8, 27, 49]]),
    ]
}

fn rankings() -> Vec<Ranking> {
    choices().iter().map(|(history, candidates)| ranking(history, candidates)).collect()
}

/// The classifier's scores by a pass of their own for each history and candidate.
fn scores_apart() -> Vec<Vec<f64>> {
    let all = tensors::all_to_torch(small_tensors(), Kind::Double, Device::Cpu).unwrap();
    let model = bare(&small_config(), Kind::Double);
    // The logits are the embedding times the state after the last normalisation; there are more of them than it has
    // numbers, so they tell what it is.
    let inverse = all["wte.weight"].pinverse(1e-12);
    let score = |history: &[u32], candidate: &[u32]| {
        let ids: Vec<i64> = history.iter().chain(candidate).map(|&id| i64::from(id)).collect();
        let logits = model.forward(&Tensor::from_slice(&ids).unsqueeze(0), Layout::default(), None).unwrap();
        let state = inverse.matmul(&logits.get(ids.len() as i64 - 1));
        let score = all["classifier.weight"].squeeze().dot(&state) + &all["classifier.bias"];
        score.double_value(&[0])
    };
    let row = |(history, candidates): &(Vec<u32>, Vec<Vec<u32>>)| {
        candidates.iter().map(|candidate| score(history, candidate)).collect()
    };
    choices().iter().map(row).collect()
}

#[test]
fn candidates_are_classified_as_in_a_pass_of_their_own() {
    let parts = Parts { adapters: false, classifier: true };
    let model = decoder(&small_config(), &small_tensors(), parts, Kind::Double);
    let together = model.classify(&Choices::new(&rankings(), Device::Cpu).unwrap()).unwrap();
    assert_eq!(together.size(), [2, 3]);
    let apart = scores_apart();
    let mut worst_error = 0.0_f64;
    for (row, scores) in apart.iter().enumerate() {
        for (candidate, score) in scores.iter().enumerate() {
            let found = together.double_value(&[row as i64, candidate as i64]);
            worst_error = worst_error.max((found - score).abs());
        }
    }
    println!("worst absolute error of the classifier against separate passes: {worst_error:.2e}");
    assert!(worst_error < 1e-9, "{worst_error}");
    // The scores differ, so that a mixed-up candidate would show, and the missing one can never be chosen.
    assert!((apart[0][0] - apart[0][1]).abs() > 1e-3 && (apart[0][1] - apart[0][2]).abs() > 1e-3);
    assert_eq!(together.double_value(&[1, 2]), f64::NEG_INFINITY);
    // Without a classifier the error names what is missing.
    let error = bare(&small_config(), Kind::Double)
        .classify(&Choices::new(&rankings(), Device::Cpu).unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("classifier.weight"), "{error}");
}

fn batch_with_choices() -> TokenBatch {
    TokenBatch {
        ids: ids(2, 9, 50),
        positions: None,
        rows: Tensor::from_slice(&[2_i64, 3, 7, 12]),
        targets: Tensor::from_slice(&[45_i64, 6, 30, 21]),
        choices: Some(Choices::new(&rankings(), Device::Cpu).unwrap()),
    }
}

#[test]
fn the_loss_is_the_language_models_and_half_the_classifications() {
    let (model, start) = learner(Method::Transfertransfo, Kind::Double, Kind::Double);
    let batch = batch_with_choices();
    let at = model.at(&start).unwrap();
    let log_probs = at.forward(&batch.ids, Layout::default(), None).unwrap().log_softmax(-1, Kind::Double);
    let pairs = [(2, 45), (3, 6), (7, 30), (12, 21)];
    let language = -pairs.iter().map(|&(row, target)| log_probs.double_value(&[row, target])).sum::<f64>() / 4.0;
    // The gold reply is candidate 0.
    let surprise = |scores: &Vec<f64>| scores.iter().map(|score| score.exp()).sum::<f64>().ln() - scores[0];
    let apart = scores_apart();
    let expected = language + 0.5 * apart.iter().map(surprise).sum::<f64>() / apart.len() as f64;
    let found = at.loss(&batch).unwrap().double_value(&[]);
    assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    assert!((at.language_loss(&batch).unwrap().double_value(&[]) - language).abs() < 1e-12);
}

#[test]
fn the_gradient_of_the_classification_is_the_slope_that_central_differences_measure() {
    const WIDTH: f64 = 1e-5;
    let (model, start) = learner(Method::Transfertransfo, Kind::Double, Kind::Double);
    let batch = batch_with_choices();
    let (_, gradient) = inner::loss_and_gradient(&model, &start, &batch).unwrap();
    let mut worst_error = 0.0_f64;
    for (index, (spec, gradient)) in model.table().iter().zip(&gradient).enumerate() {
        let scale = gradient.abs().max().double_value(&[]);
        // Softmax does not hear a shift of all scores.
        if spec.name == "classifier.bias" {
            assert!(scale < 1e-12, "{scale}");
            continue;
        }
        let direction = Tensor::arange(gradient.numel() as i64, (Kind::Double, Device::Cpu)).cos();
        let direction = direction.reshape(gradient.size());
        let loss = |by: f64| {
            let moved: Vec<Tensor> = start
                .iter()
                .enumerate()
                .map(|(at, tensor)| if at == index { tensor + by * &direction } else { tensor.shallow_clone() })
                .collect();
            no_grad(|| model.at(&moved).unwrap().loss(&batch).unwrap()).double_value(&[])
        };
        let slope = (loss(WIDTH) - loss(-WIDTH)) / (2.0 * WIDTH);
        let found = (gradient * &direction).sum(Kind::Double).double_value(&[]);
        worst_error = worst_error.max((found - slope).abs() / (scale * direction.norm().double_value(&[])));
    }
    println!("worst relative error of the gradient with choices against central differences: {worst_error:.2e}");
    assert!(worst_error < 1e-7, "{worst_error}");
}

/// The norm of the difference over the norm.
fn relative(found: &[Tensor], expected: &[Tensor]) -> f64 {
    let norm = |tensors: &mut dyn Iterator<Item = Tensor>| {
        tensors.map(|tensor| tensor.square().sum(Kind::Double).double_value(&[])).sum::<f64>().sqrt()
    };
    let difference = norm(&mut found.iter().zip(expected).map(|(one, other)| one - other));
    difference / norm(&mut expected.iter().map(Tensor::shallow_clone))
}

fn batch_for(method: Method) -> TokenBatch {
    let mut batch = batch_with_choices();
    if !method.classifies() {
        batch.choices = None;
    }
    batch
}

#[test]
fn bfloat16_products_stay_close_and_leave_the_parameters_in_32_bits() {
    for method in [Method::ExtraPlace, Method::ExtraPlaceUnfixed, Method::Transfertransfo] {
        let batch = batch_for(method);
        let (whole, start) = learner(method, Kind::Float, Kind::Float);
        let (rounded, _) = learner(method, Kind::Float, Kind::BFloat16);
        let (expected_loss, expected) = inner::loss_and_gradient(&whole, &start, &batch).unwrap();
        let (loss, gradient) = inner::loss_and_gradient(&rounded, &start, &batch).unwrap();
        let (loss_error, error) = ((loss / expected_loss - 1.0).abs(), relative(&gradient, &expected));
        println!("{}: relative error of bfloat16: loss {loss_error:.1e}, gradient {error:.1e}", method.name());
        // A number of 8 significant bits is off by up to 2⁻⁹ = 0.2 %. The loss is a mean over independent roundings; in the
        // gradient they add up over some twenty products one after the other, as a root: about 1 %, and thrice that is
        // allowed.
        assert!(loss_error < 0.01 && error < 0.03, "{loss_error} {error}");
        // It really is computed in fewer bits.
        assert!(error > 1e-4, "{error}");
        let floats = |tensors: &[Tensor]| tensors.iter().all(|tensor| tensor.kind() == Kind::Float);
        assert!(floats(&start) && floats(&gradient));
        assert_eq!(rounded.at(&start).unwrap().loss(&batch).unwrap().kind(), Kind::Float);
        let moved =
            inner::adapt(&rounded, &start, &inner::Support::repeat(batch, 2), &vec![0.01; start.len()]).unwrap();
        assert!(floats(&moved.parameters));
        // Where the device compares, nothing is rounded.
        let (unrounded, _) = inner::loss_and_gradient(&rounded.unrounded(), &start, &batch_for(method)).unwrap();
        assert!((unrounded / expected_loss - 1.0).abs() < 1e-6, "{unrounded}, {expected_loss}");
    }
}
