//! The graphs, computed in f64, against a forward pass written independently of them and against central differences.

use std::collections::BTreeMap;

use marionette_models::bundle::{DataType, Operators, Precision};
use marionette_models::params;
use prost::Message as _;

use super::{adapt, adapt_recomputed, generate, score};
use crate::graph::{Graph, Value};
use crate::memory;
use crate::onnx;
use crate::shape::Dim;
use crate::standard::standard;
use crate::testing::naive::Case;
use crate::testing::{Array, TOLERANCE, evaluate, integers, worst_error};
use crate::weights::Weights;

type Build = fn(
    &marionette_models::ModelConfig,
    &marionette_models::AdapterConfig,
    &Weights,
) -> Result<Graph, crate::GraphError>;

fn build(case: &Case, graph: Build) -> Graph {
    let Case { config, adapter } = case;
    graph(config, adapter, &Weights::new(config, Precision::Fp32, Operators::Ort).unwrap()).unwrap()
}

fn output(graph: &Graph, name: &str) -> Value {
    *graph.outputs.iter().find(|value| graph.name(**value) == name).unwrap()
}

/// The graphs' constants, 1/√dh for one, are f32; all else is computed in f64.
const CLOSE: f64 = 1e-7;

const ROWS: [[i64; 6]; 2] = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]];
/// The first token of a row has nothing before it and does not count; the second row is padded.
const MASK: [[i64; 6]; 2] = [[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 0]];

fn adapt_feeds(case: &Case, mask: &[i64]) -> BTreeMap<String, Array> {
    let Case { config, adapter } = case;
    let mut feeds = case.tensors(false);
    feeds.insert("input_ids".into(), integers(&[2, 6], ROWS.as_flattened()));
    feeds.insert("loss_mask".into(), integers(&[2, 6], mask));
    let count = params::adapter_table(config, adapter).len();
    for spec in params::adapter_table(config, adapter) {
        let start = feeds[&spec.name].clone();
        feeds.insert(format!("start.{}", spec.name), start);
    }
    let rates: Vec<f64> = (0..count).map(|i| 0.01 * (1 + i) as f64).collect();
    feeds.insert("learning_rate".into(), ndarray::arr1(&rates).into_dyn());
    feeds
}

fn the_loss_is_the_mean_over_all_targets(case: &Case) {
    let graph = build(case, adapt);
    let feeds = adapt_feeds(case, MASK.as_flattened());
    let found = evaluate(&graph, &feeds, &[output(&graph, "loss")])[0].sum();
    let mut losses = Vec::new();
    for (row, mask) in ROWS.iter().zip(MASK) {
        let row: Vec<usize> = row.iter().map(|&id| id as usize).collect();
        for t in (1..6).filter(|&t| mask[t] == 1) {
            losses.push(-case.next_log_probs(&feeds, &row[..t], true)[row[t]]);
        }
    }
    let expected = losses.iter().sum::<f64>() / losses.len() as f64;
    assert_eq!(losses.len(), 5);
    assert!((found - expected).abs() < CLOSE, "{found}, expected {expected}");
}

fn updates_and_norm_are_those_of_central_differences(case: &Case) {
    let Case { config, adapter } = case;
    let graph = build(case, adapt);
    let feeds = adapt_feeds(case, MASK.as_flattened());
    let loss = output(&graph, "loss");
    let (mut worst, mut squares): (f64, f64) = (0.0, 0.0);
    for (i, spec) in params::adapter_table(config, adapter).into_iter().enumerate() {
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

fn without_targets_the_adapters_stay(case: &Case) {
    let graph = build(case, adapt);
    // The first tokens alone are set: there is nothing to predict them from.
    let feeds = adapt_feeds(case, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    let wanted = ["loss", "gradient_norm", "updated.h.0.attn_adapter.down.weight"].map(|name| output(&graph, name));
    let found = evaluate(&graph, &feeds, &wanted);
    assert!(found[0].sum().is_nan());
    assert_eq!(found[1].sum(), 0.0);
    assert_eq!(found[2], feeds["h.0.attn_adapter.down.weight"]);
}

fn nothing_is_computed_for_frozen_weights_or_unasked_positions(case: &Case) {
    let Case { config, adapter } = case;
    let graph = build(case, adapt);
    let scopes = |wanted: &str| graph.nodes.iter().filter(|node| node.scope.starts_with(wanted)).count();
    assert!(scopes("gradient/h.0.attn") > 0);
    assert_eq!(scopes("gradient/embedding") + scopes("gradient/mask"), 0);
    // Below the first adapter there is nothing to train: no attention is differentiated in the first block.
    let attention_gradients = |layer: usize| {
        let scope = format!("gradient/h.{layer}.attn");
        graph.nodes.iter().filter(|node| node.scope == scope && node.op.name() == "CausalAttentionGradient").count()
    };
    assert_eq!((attention_gradients(0), attention_gradients(1)), (0, 1));
    // A matrix of the shape of a frozen weight would be its gradient.
    let frozen: Vec<Vec<Dim>> = params::base_table(config)
        .into_iter()
        .filter(|spec| spec.shape.len() == 2)
        .map(|spec| spec.shape.into_iter().map(Dim::Fixed).collect())
        .collect();
    let trained: Vec<Vec<Dim>> = params::adapter_table(config, adapter)
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

fn a_branch_sees_the_trunk_and_itself(case: &Case) {
    let graph = build(case, score);
    let mut feeds = case.tensors(false);
    // History 3 1 4, then the candidates 1 5 and 9 2.
    feeds.insert("input_ids".into(), integers(&[1, 7], &[3, 1, 4, 1, 5, 9, 2]));
    feeds.insert("positions".into(), integers(&[1, 7], &[0, 1, 2, 3, 4, 3, 4]));
    feeds.insert("branch".into(), integers(&[1, 7], &[0, 0, 0, 1, 1, 2, 2]));
    feeds.insert("rows".into(), integers(&[4], &[2, 3, 2, 5]));
    feeds.insert("targets".into(), integers(&[4], &[1, 5, 9, 2]));
    let found = evaluate(&graph, &feeds, &[output(&graph, "log_probs")]).remove(0);
    let next = |prefix: &[usize], token: usize| case.next_log_probs(&feeds, prefix, true)[token];
    let expected = [next(&[3, 1, 4], 1), next(&[3, 1, 4, 1], 5), next(&[3, 1, 4], 9), next(&[3, 1, 4, 9], 2)];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < CLOSE, "{found}, expected {expected}");
    }
}

/// Tensors of which the adapters are those of several rows, as `generate` takes them.
fn of_rows(case: &Case, rows: &[BTreeMap<String, Array>]) -> BTreeMap<String, Array> {
    let mut all = rows[0].clone();
    for spec in params::adapter_table(&case.config, &case.adapter) {
        let of_each: Vec<_> = rows.iter().map(|row| row[&spec.name].view()).collect();
        all.insert(spec.name, ndarray::stack(ndarray::Axis(0), &of_each).unwrap());
    }
    all
}

/// Of two rows, whose adapters differ.
fn cached_decoding_is_the_full_forward_pass(case: &Case) {
    let config = &case.config;
    let graph = build(case, generate);
    let mut rows = [case.tensors(false), case.tensors(false)];
    for spec in params::adapter_table(config, &case.adapter) {
        rows[1].get_mut(&spec.name).unwrap().mapv_inplace(|value| 0.3 - value);
    }
    let mut feeds = of_rows(case, &rows);
    let cache = Array::zeros(vec![2, config.n_kv_head, 9, config.head_dim]);
    let parts: Vec<String> =
        (0..config.n_layer).flat_map(|l| ["key", "value"].map(|part| format!("{l}.{part}"))).collect();
    for part in &parts {
        feeds.insert(format!("past.{part}"), cache.clone());
    }
    let tokens = [[7, 2, 7, 1, 8, 2, 8], [3, 1, 4, 1, 5, 9, 2]];
    let mut done = 0;
    for count in [3, 1, 2, 1] {
        let ids: Vec<i64> = tokens.iter().flat_map(|row| &row[done..done + count]).map(|&id| id as i64).collect();
        let places: Vec<i64> = [(); 2].iter().flat_map(|()| done..done + count).map(|place| place as i64).collect();
        feeds.insert("input_ids".into(), integers(&[2, count], &ids));
        feeds.insert("positions".into(), integers(&[2, count], &places));
        done += count;
        let found = evaluate(&graph, &feeds, &graph.outputs);
        for (row, (feeds, tokens)) in rows.iter().zip(tokens).enumerate() {
            let expected = case.next_logits(feeds, &tokens[..done], true);
            for (found, expected) in found[0].index_axis(ndarray::Axis(0), row).iter().zip(expected) {
                assert!((found - expected).abs() < CLOSE, "after {done} of row {row}: {found}, expected {expected}");
            }
        }
        for (part, present) in parts.iter().zip(&found[1..]) {
            feeds.insert(format!("past.{part}"), present.clone());
        }
    }
}

/// MAMLviaPP, equation 2: f[φ, Φ] = f[φ].
fn zero_adapters_are_the_bare_model(case: &Case) {
    let graph = build(case, score);
    let mut feeds = case.tensors(true);
    feeds.insert("input_ids".into(), integers(&[1, 4], &[3, 1, 4, 1]));
    feeds.insert("positions".into(), integers(&[1, 4], &[0, 1, 2, 3]));
    feeds.insert("branch".into(), integers(&[1, 4], &[0; 4]));
    feeds.insert("rows".into(), integers(&[1], &[3]));
    feeds.insert("targets".into(), integers(&[1], &[5]));
    let log_prob = |feeds: &BTreeMap<String, Array>| evaluate(&graph, feeds, &[output(&graph, "log_probs")])[0].sum();
    let found = log_prob(&feeds);
    assert!((found - case.next_log_probs(&feeds, &[3, 1, 4, 1], false)[5]).abs() < CLOSE);
    // Whatever the down-projections are, not a bit changes.
    for (name, tensor) in &mut feeds {
        if name.contains("adapter.down") {
            *tensor *= -7.0;
        }
    }
    assert_eq!(log_prob(&feeds).to_bits(), found.to_bits());
}

fn the_same_model_gives_the_same_bytes(case: &Case) {
    let config = &case.config;
    let weights = Weights::new(config, Precision::Fp32, Operators::Ort).unwrap();
    for graph in [generate as Build, score, adapt, adapt_recomputed] {
        let encode = || onnx::model(&build(case, graph), "name", "doc", &weights).unwrap().encode_to_vec();
        assert_eq!(encode(), encode());
    }
}

fn only_generation_needs_operators_of_onnx_runtime(case: &Case) {
    let config = &case.config;
    let weights = Weights::new(config, Precision::Fp32, Operators::Ort).unwrap();
    let domains = |graph: Build| -> Vec<String> {
        let model = onnx::model(&build(case, graph), "name", "doc", &weights).unwrap();
        model.opset_import.into_iter().map(|set| set.domain).collect()
    };
    assert_eq!(domains(generate), ["", "com.microsoft", "marionette"]);
    assert_eq!(domains(score), ["", "marionette"]);
    assert_eq!(domains(adapt), ["", "marionette"]);
}

fn standard_operators_are_enough_for_every_graph(case: &Case) {
    let Case { config, adapter } = case;
    for precision in Precision::ALL {
        let weights = Weights::new(config, precision, Operators::Standard).unwrap();
        for build in [generate as Build, score, adapt, adapt_recomputed] {
            let graph = standard(&build(config, adapter, &weights).unwrap()).unwrap();
            let model = onnx::model(&graph, "name", "doc", &weights).unwrap();
            let domains: Vec<String> = model.opset_import.into_iter().map(|set| set.domain).collect();
            assert_eq!(domains, [""]);
            assert!(model.functions.is_empty());
        }
    }
}

fn a_step_in_standard_operators_is_the_same_step(case: &Case) {
    let graph = build(case, adapt);
    assert!(graph.nodes.iter().any(|node| node.op.name() == "GeluGradient"));
    the_same_step_of(case, &graph, &standard(&graph).unwrap());
}

fn a_recomputed_step_is_the_same_step_in_less_memory(case: &Case) {
    let [graph, recomputed] = [adapt as Build, adapt_recomputed].map(|graph| build(case, graph));
    the_same_step_of(case, &graph, &recomputed);
    the_same_step_of(case, &graph, &standard(&recomputed).unwrap());
    let [kept, recomputed] = [&graph, &recomputed].map(memory::of_a_run);
    assert!(recomputed.token < kept.token, "{recomputed:?}, kept: {kept:?}");
    assert_eq!((recomputed.pair, recomputed.target), (kept.pair, kept.target));
}

fn the_same_step_of(case: &Case, graph: &Graph, other: &Graph) {
    let feeds = adapt_feeds(case, MASK.as_flattened());
    let names: Vec<&str> = graph.outputs.iter().map(|&value| graph.name(value)).collect();
    let found = evaluate(other, &feeds, &names.iter().map(|name| output(other, name)).collect::<Vec<_>>());
    let expected = evaluate(graph, &feeds, &graph.outputs);
    for ((name, found), expected) in names.iter().zip(&found).zip(&expected) {
        let worst = (found - expected).iter().fold(0.0_f64, |worst, error| worst.max(error.abs()));
        assert!(worst < CLOSE, "{name}: {worst:e}");
    }
}

/// What the graphs read of `weights.bin`, as they read it, beside the other feeds.
fn stored(case: &Case, graph: &Graph, weights: &Weights, feeds: &BTreeMap<String, Array>) -> BTreeMap<String, Array> {
    let config = &case.config;
    let host = |spec: params::TensorSpec| {
        let values = feeds[&spec.name].iter().map(|&value| value as f32).collect();
        (spec.name, marionette_models::HostTensor { shape: spec.shape, values })
    };
    let mut file = Vec::new();
    let base = params::base_table(config).into_iter().map(host).collect();
    weights.write(&base, &crate::calibration::Calibration::default(), &mut file).unwrap();
    let mut all = feeds.clone();
    for value in graph.handles() {
        let Some(part) = graph.part(value) else { continue };
        let shape: Vec<usize> = graph.shape(value).iter().map(|dim| dim.to_string().parse().unwrap()).collect();
        let count: usize = shape.iter().product();
        let bytes = &file[weights.entry(part).unwrap().offset as usize..];
        let four = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
        let values: Vec<f64> = match graph.tensor(value).dtype {
            DataType::F32 => bytes.chunks(4).take(count).map(four).collect(),
            DataType::F16 => {
                bytes.chunks(2).take(count).map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect()
            }
            DataType::U8 => bytes[..count].iter().map(|&byte| f64::from(byte)).collect(),
            _ => bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).take(count).map(f64::from).collect(),
        };
        all.insert(graph.name(value).to_owned(), Array::from_shape_vec(shape, values).unwrap());
    }
    all
}

/// The tensors that a precision makes of others: each value rounded to its nearest neighbour, worked out apart from
/// the code under test where it is 8 bits, and by reading what was stored where it is 4.
fn rounded(
    case: &Case,
    precision: Precision,
    weights: &Weights,
    feeds: &BTreeMap<String, Array>,
) -> BTreeMap<String, Array> {
    let config = &case.config;
    let mut all = feeds.clone();
    let is_matrix = |spec: &params::TensorSpec| spec.shape.len() == 2 && spec.name != params::names::WPE;
    let apart = |spec: &params::TensorSpec| ![params::names::WTE, params::names::HEAD].contains(&spec.name.as_str());
    let matrices = || params::base_table(config).into_iter().filter(is_matrix);
    // The largest power of two, up to 32, that divides all columns.
    let block =
        matrices().map(|spec| 1_usize << spec.shape[usize::from(!apart(&spec))].trailing_zeros().min(5)).min().unwrap();
    for spec in matrices() {
        let columns_apart = apart(&spec);
        let tensor = all.get_mut(&spec.name).unwrap();
        match precision {
            Precision::Fp32 => {}
            Precision::Fp16 => tensor.mapv_inplace(|value| half::f16::from_f64(value).to_f64()),
            Precision::Int8 => {
                let axis = ndarray::Axis(usize::from(columns_apart));
                for mut column in tensor.axis_iter_mut(axis) {
                    let scale = column.iter().fold(0.0_f64, |most, value| most.max(value.abs())) / 127.0;
                    column.mapv_inplace(|value| (value / scale).round() * scale);
                }
            }
            Precision::Int4 => {
                let mut graph = Graph::new();
                let [columns, inner] = if columns_apart { [1, 0] } else { [0, 1] }.map(|axis| spec.shape[axis]);
                let typed =
                    |dtype, width: usize| crate::shape::TensorType { dtype, shape: vec![columns.into(), width.into()] };
                let mut part = |name: &str, tensor| graph.weight(&format!("{}.{name}", spec.name), tensor);
                let integers = part("integers", typed(DataType::U4, inner));
                let [scales, minima] = ["scales", "minima"].map(|name| part(name, typed(DataType::F16, inner / block)));
                let read = stored(case, &graph, weights, feeds);
                let [q, s, m] = [integers, scales, minima].map(|value| &read[graph.name(value)]);
                tensor.indexed_iter_mut().for_each(|(at, value)| {
                    let (n, k) = if columns_apart { (at[1], at[0]) } else { (at[0], at[1]) };
                    let (s, m) = (s[[n, k / block]], m[[n, k / block]]);
                    let dequantised = q[[n, k]] * s + m;
                    // Half a step, but for values beyond ends that were moved inwards.
                    assert!((dequantised - *value).abs() <= 1.5 * s.abs(), "{dequantised} {value} {s}");
                    *value = dequantised;
                });
            }
        }
    }
    all
}

/// The graphs of every precision compute, but for the rounding of activations, what the model of its rounded weights does.
fn every_precision_is_the_model_of_its_weights(case: &Case) {
    let Case { config, adapter } = case;
    for precision in Precision::ALL {
        let weights = Weights::new(config, precision, Operators::Ort).unwrap();
        let build = |graph: Build| graph(config, adapter, &weights).unwrap();

        let (graph, mut feeds) = (build(generate), case.tensors(false));
        let cache = Array::zeros(vec![1, config.n_kv_head, 9, config.head_dim]);
        for part in (0..config.n_layer).flat_map(|l| ["key", "value"].map(|part| format!("past.{l}.{part}"))) {
            feeds.insert(part, cache.clone());
        }
        feeds.insert("input_ids".into(), integers(&[1, 4], &[7, 2, 7, 1]));
        feeds.insert("positions".into(), integers(&[1, 4], &[0, 1, 2, 3]));
        let given = of_rows(case, std::slice::from_ref(&feeds));
        let found = evaluate(&graph, &stored(case, &graph, &weights, &given), &graph.outputs[..1]).remove(0);
        let expected = case.next_logits(&rounded(case, precision, &weights, &feeds), &[7, 2, 7, 1], true);
        // Scales are f32.
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{precision}: {found}, expected {expected}");
        }

        let (graph, feeds) = (build(adapt), adapt_feeds(case, MASK.as_flattened()));
        let all = stored(case, &graph, &weights, &feeds);
        let loss = output(&graph, "loss");
        for (i, spec) in params::adapter_table(config, adapter).into_iter().enumerate().step_by(3) {
            let updated = &evaluate(&graph, &all, &[output(&graph, &format!("updated.{}", spec.name))])[0];
            let gradient = (&all[&spec.name] - updated) / all["learning_rate"][[i]];
            let worst = worst_error(&all[&spec.name], &gradient, |at| {
                let mut all = all.clone();
                all.insert(spec.name.clone(), at.clone());
                evaluate(&graph, &all, &[loss])[0].sum()
            });
            assert!(worst <= TOLERANCE, "{precision}, {}: {worst:e}", spec.name);
        }
    }
}

fn widths_that_have_no_blocks_are_refused(case: &Case) {
    let config = &case.config;
    let config = &marionette_models::ModelConfig { n_inner: 24, ..config.clone() };
    for precision in [Precision::Int8, Precision::Int4] {
        let problem = Weights::new(config, precision, Operators::Ort).unwrap_err().to_string();
        assert!(problem.contains("multiples of 16") && problem.contains("has 24"), "{problem}");
    }
    assert!(Weights::new(config, Precision::Fp16, Operators::Ort).is_ok());
}

/// Every test, for each family.
macro_rules! for_each_family {
    ($($test:ident),* $(,)?) => {
        mod gpt2 {
            $(#[test] fn $test() { super::$test(&super::Case::gpt2()); })*
        }
        mod llama {
            $(#[test] fn $test() { super::$test(&super::Case::llama()); })*
        }
    };
}

for_each_family!(
    the_loss_is_the_mean_over_all_targets,
    updates_and_norm_are_those_of_central_differences,
    without_targets_the_adapters_stay,
    nothing_is_computed_for_frozen_weights_or_unasked_positions,
    a_branch_sees_the_trunk_and_itself,
    cached_decoding_is_the_full_forward_pass,
    zero_adapters_are_the_bare_model,
    the_same_model_gives_the_same_bytes,
    only_generation_needs_operators_of_onnx_runtime,
    standard_operators_are_enough_for_every_graph,
    a_step_in_standard_operators_is_the_same_step,
    a_recomputed_step_is_the_same_step_in_less_memory,
    every_precision_is_the_model_of_its_weights,
    widths_that_have_no_blocks_are_refused,
);
