//! The graphs, computed in f64, against a forward pass written independently of them and against central differences.

use std::collections::BTreeMap;

use marionette_models::bundle::Precision;
use marionette_models::params;
use prost::Message as _;

use super::{adapt, generate, score};
use crate::graph::{Graph, Value};
use crate::onnx;
use crate::shape::Dim;
use crate::testing::naive::{config, next_log_probs, next_logits, tensors};
use crate::testing::{Array, TOLERANCE, evaluate, integers, worst_error};
use crate::weights::Weights;

type Build =
    fn(&marionette_models::Gpt2Config, &marionette_models::AdapterConfig, &Weights) -> Result<Graph, crate::GraphError>;

fn build(graph: Build) -> Graph {
    let (config, adapter) = config();
    graph(&config, &adapter, &Weights::new(&config, Precision::Fp32)).unwrap()
}

fn output(graph: &Graph, name: &str) -> Value {
    *graph.outputs.iter().find(|value| graph.name(**value) == name).unwrap()
}

/// The graphs' constants, 1/√dh for one, are f32; all else is computed in f64.
const CLOSE: f64 = 1e-7;

const ROWS: [[i64; 6]; 2] = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]];
/// The first token of a row has nothing before it and does not count; the second row is padded.
const MASK: [[i64; 6]; 2] = [[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 0]];

fn adapt_feeds(mask: &[i64]) -> BTreeMap<String, Array> {
    let (config, adapter) = config();
    let mut feeds = tensors(false);
    feeds.insert("input_ids".into(), integers(&[2, 6], ROWS.as_flattened()));
    feeds.insert("loss_mask".into(), integers(&[2, 6], mask));
    let count = params::adapter_table(&config, &adapter).len();
    let rates: Vec<f64> = (0..count).map(|i| 0.01 * (1 + i) as f64).collect();
    feeds.insert("learning_rate".into(), ndarray::arr1(&rates).into_dyn());
    feeds
}

#[test]
fn the_loss_is_the_mean_over_all_targets() {
    let graph = build(adapt);
    let feeds = adapt_feeds(MASK.as_flattened());
    let found = evaluate(&graph, &feeds, &[output(&graph, "loss")])[0].sum();
    let mut losses = Vec::new();
    for (row, mask) in ROWS.iter().zip(MASK) {
        let row: Vec<usize> = row.iter().map(|&id| id as usize).collect();
        for t in (1..6).filter(|&t| mask[t] == 1) {
            losses.push(-next_log_probs(&feeds, &row[..t], true)[row[t]]);
        }
    }
    let expected = losses.iter().sum::<f64>() / losses.len() as f64;
    assert_eq!(losses.len(), 5);
    assert!((found - expected).abs() < CLOSE, "{found}, expected {expected}");
}

#[test]
fn updates_and_norm_are_those_of_central_differences() {
    let (config, adapter) = config();
    let graph = build(adapt);
    let feeds = adapt_feeds(MASK.as_flattened());
    let loss = output(&graph, "loss");
    let (mut worst, mut squares): (f64, f64) = (0.0, 0.0);
    for (i, spec) in params::adapter_table(&config, &adapter).into_iter().enumerate() {
        let updated = output(&graph, &format!("updated.{}", spec.name));
        let updated = &evaluate(&graph, &feeds, &[updated])[0];
        let gradient = (&feeds[&spec.name] - updated) / feeds["learning_rate"][[i]];
        squares += gradient.iter().map(|value| value * value).sum::<f64>();
        worst = worst.max(worst_error(&feeds[&spec.name], &gradient, |at| {
            let mut feeds = feeds.clone();
            feeds.insert(spec.name.clone(), at.clone());
            evaluate(&graph, &feeds, &[loss])[0].sum()
        }));
    }
    println!("whole loss by every adapter tensor: worst relative error {worst:.1e}");
    assert!(worst <= TOLERANCE, "{worst:e}");
    let norm = evaluate(&graph, &feeds, &[output(&graph, "gradient_norm")])[0].sum();
    assert!((norm - squares.sqrt()).abs() < CLOSE * norm, "{norm}, expected {}", squares.sqrt());
}

#[test]
fn without_targets_the_adapters_stay() {
    let graph = build(adapt);
    // The first tokens alone are set: there is nothing to predict them from.
    let feeds = adapt_feeds(&[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    let wanted = ["loss", "gradient_norm", "updated.h.0.attn_adapter.down.weight"].map(|name| output(&graph, name));
    let found = evaluate(&graph, &feeds, &wanted);
    assert!(found[0].sum().is_nan());
    assert_eq!(found[1].sum(), 0.0);
    assert_eq!(found[2], feeds["h.0.attn_adapter.down.weight"]);
}

#[test]
fn nothing_is_computed_for_frozen_weights_or_unasked_positions() {
    let (config, adapter) = config();
    let graph = build(adapt);
    let scopes = |wanted: &str| graph.nodes.iter().filter(|node| node.scope.starts_with(wanted)).count();
    assert!(scopes("gradient/h.0.attn") > 0);
    assert_eq!(scopes("gradient/embedding") + scopes("gradient/mask"), 0);
    // Below the first adapter there is nothing to train: no attention is differentiated in the first block.
    let softmax_gradients = |layer: usize| {
        let scope = format!("gradient/h.{layer}.attn");
        graph.nodes.iter().filter(|node| node.scope == scope && node.op.name() == "MatMul").count()
    };
    assert_eq!((softmax_gradients(0), softmax_gradients(1)), (0, 4));
    // A matrix of the shape of a frozen weight would be its gradient.
    let frozen: Vec<Vec<Dim>> = params::base_table(&config)
        .into_iter()
        .filter(|spec| spec.shape.len() == 2)
        .map(|spec| spec.shape.into_iter().map(Dim::Fixed).collect())
        .collect();
    let trained: Vec<Vec<Dim>> = params::adapter_table(&config, &adapter)
        .into_iter()
        .map(|spec| spec.shape.into_iter().map(Dim::Fixed).collect())
        .collect();
    for node in graph.nodes.iter().filter(|node| node.scope.starts_with("gradient")) {
        let shape = graph.shape(node.outputs[0]).to_vec();
        assert!(trained.contains(&shape) || !frozen.contains(&shape), "{} is {shape:?}", node.name);
    }
    // The head gives logits for the targets alone.
    let logits: Vec<&[Dim]> = graph
        .nodes
        .iter()
        .map(|node| graph.shape(node.outputs[0]))
        .filter(|shape| shape.last() == Some(&Dim::Fixed(config.vocab_size)))
        .collect();
    assert!(!logits.is_empty() && logits.iter().all(|shape| shape[0] == Dim::Symbol("targets")));
}

#[test]
fn a_branch_sees_the_trunk_and_itself() {
    let graph = build(score);
    let mut feeds = tensors(false);
    // History 3 1 4, then the candidates 1 5 and 9 2.
    feeds.insert("input_ids".into(), integers(&[1, 7], &[3, 1, 4, 1, 5, 9, 2]));
    feeds.insert("positions".into(), integers(&[1, 7], &[0, 1, 2, 3, 4, 3, 4]));
    feeds.insert("branch".into(), integers(&[1, 7], &[0, 0, 0, 1, 1, 2, 2]));
    feeds.insert("rows".into(), integers(&[4], &[2, 3, 2, 5]));
    feeds.insert("targets".into(), integers(&[4], &[1, 5, 9, 2]));
    let found = evaluate(&graph, &feeds, &[output(&graph, "log_probs")]).remove(0);
    let next = |prefix: &[usize], token: usize| next_log_probs(&feeds, prefix, true)[token];
    let expected = [next(&[3, 1, 4], 1), next(&[3, 1, 4, 1], 5), next(&[3, 1, 4], 9), next(&[3, 1, 4, 9], 2)];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < CLOSE, "{found}, expected {expected}");
    }
}

#[test]
fn cached_decoding_is_the_full_forward_pass() {
    let (config, _) = config();
    let graph = build(generate);
    let mut feeds = tensors(false);
    let cache = Array::zeros(vec![1, config.n_head, 9, config.head_dim()]);
    let parts: Vec<String> =
        (0..config.n_layer).flat_map(|l| ["key", "value"].map(|part| format!("{l}.{part}"))).collect();
    for part in &parts {
        feeds.insert(format!("past.{part}"), cache.clone());
    }
    let tokens = [7, 2, 7, 1, 8, 2, 8];
    let mut done = 0;
    for count in [3, 1, 2, 1] {
        let ids: Vec<i64> = tokens[done..done + count].iter().map(|&id| id as i64).collect();
        let places: Vec<i64> = (done..done + count).map(|place| place as i64).collect();
        feeds.insert("input_ids".into(), integers(&[1, count], &ids));
        feeds.insert("positions".into(), integers(&[1, count], &places));
        done += count;
        let found = evaluate(&graph, &feeds, &graph.outputs);
        let expected = next_logits(&feeds, &tokens[..done], true);
        for (found, expected) in found[0].iter().zip(expected) {
            assert!((found - expected).abs() < CLOSE, "after {done} tokens: {found}, expected {expected}");
        }
        for (part, present) in parts.iter().zip(&found[1..]) {
            feeds.insert(format!("past.{part}"), present.clone());
        }
    }
}

/// MAMLviaPP, equation 2: f[φ, Φ] = f[φ].
#[test]
fn zero_adapters_are_the_bare_model() {
    let graph = build(score);
    let mut feeds = tensors(true);
    feeds.insert("input_ids".into(), integers(&[1, 4], &[3, 1, 4, 1]));
    feeds.insert("positions".into(), integers(&[1, 4], &[0, 1, 2, 3]));
    feeds.insert("branch".into(), integers(&[1, 4], &[0; 4]));
    feeds.insert("rows".into(), integers(&[1], &[3]));
    feeds.insert("targets".into(), integers(&[1], &[5]));
    let log_prob = |feeds: &BTreeMap<String, Array>| evaluate(&graph, feeds, &[output(&graph, "log_probs")])[0].sum();
    let found = log_prob(&feeds);
    assert!((found - next_log_probs(&feeds, &[3, 1, 4, 1], false)[5]).abs() < CLOSE);
    // Whatever the down-projections are, not a bit changes.
    for (name, tensor) in &mut feeds {
        if name.contains("adapter.down") {
            *tensor *= -7.0;
        }
    }
    assert_eq!(log_prob(&feeds).to_bits(), found.to_bits());
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let (config, _) = config();
    let weights = Weights::new(&config, Precision::Fp32);
    for graph in [generate as Build, score, adapt] {
        let encode = || onnx::model(&build(graph), "name", "doc", &weights).unwrap().encode_to_vec();
        assert_eq!(encode(), encode());
    }
}

#[test]
fn only_generation_needs_more_than_standard_operators() {
    let (config, _) = config();
    let weights = Weights::new(&config, Precision::Fp32);
    let domains = |graph: Build| -> Vec<String> {
        let model = onnx::model(&build(graph), "name", "doc", &weights).unwrap();
        model.opset_import.into_iter().map(|set| set.domain).collect()
    };
    assert_eq!(domains(generate), ["", "com.microsoft"]);
    assert_eq!(domains(score), [""]);
    assert_eq!(domains(adapt), [""]);
}
