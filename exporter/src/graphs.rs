//! The graphs of a bundle. Names, types and shapes of what they take and give are the bundle's contract with the
//! runtime.

use marionette_models::bundle::DataType;
use marionette_models::{AdapterConfig, ModelConfig};

use crate::autodiff::{gradients, gradients_from_checkpoints};
use crate::decoder::{BATCH, CAPACITY, Cached, Decoder, POSITIONS, TOKENS, Within, token_index};
use crate::error::GraphError;
use crate::fusion;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};
use crate::weights::{Rows, Weights};

/// Which positions are asked for, in `score`.
const ROWS: &str = "rows";
/// How many positions have a target, in `adapt`.
pub(crate) const TARGETS: &str = "targets";

/// Generation, with G heads of keys and values, each dh wide, C the capacity of the cache.
///
/// - takes `input_ids` and `positions` i64\[B, T\], `past.{l}.key` and `past.{l}.value` f32\[B, G, C, dh\] a block, the
///   adapters of each row, f32\[B, ..\]: rows may be different personas';
/// - gives `logits` f32\[B, V\] after each row's last token, `present.{l}.key` and `present.{l}.value` f32\[B, G, C, dh\], which
///   may be the very buffers of `past`.
///
/// A call either begins (positions from 0, rows of one length) or continues what the cache holds; a call that continues
/// with more than one token has one row (ONNX Runtime's limit).
///
/// # Errors
/// The model is of a shape that ONNX Runtime's attention does not take: a head's width is not a multiple of 8.
pub fn generate(config: &ModelConfig, adapter: &AdapterConfig, weights: &Weights) -> Result<Graph, GraphError> {
    let graph = &mut Graph::new();
    let input_ids = graph.input("input_ids", TensorType::i64([BATCH, TOKENS]));
    let positions = graph.input("positions", TensorType::i64([BATCH, TOKENS]));
    let cache = TensorType::f32([BATCH, config.n_kv_head.into(), CAPACITY, config.head_dim.into()]);
    let past: Vec<[Value; 2]> = (0..config.n_layer)
        .map(|layer| ["key", "value"].map(|part| graph.input(&format!("past.{layer}.{part}"), cache.clone())))
        .collect();
    let model = Decoder::new(graph, config, adapter, weights, Rows::Few);

    graph.set_scope("last");
    let flat = graph.reshape(positions, &[POSITIONS])?;
    let rows = last_of_each_row(graph)?;
    let last = graph.gather(flat, rows)?;
    let last = graph.cast(last, DataType::I32)?;
    let longest = graph.reduce_max(last, &[0], true)?;
    let one = graph.integers(&[1]);
    let one = graph.cast(one, DataType::I32)?;
    let total = graph.add(longest, one)?;

    let (logits, present) = if weights.has_whole_blocks() {
        let (mut x, angles) = model.embedding(graph, input_ids, positions)?;
        let mut all_present = Vec::with_capacity(config.n_layer);
        for (layer, past) in past.into_iter().enumerate() {
            let rows = (layer + 1 == config.n_layer).then_some(rows);
            let [after, present @ ..] = model.whole_block(graph, layer, [x, last, total], past, angles, rows)?;
            x = after;
            all_present.push(present);
        }
        (model.head(graph, x)?, all_present)
    } else {
        let mut attention = Cached::new(config, last, total, past);
        let (logits, _) = model.logits(graph, input_ids, positions, rows, &mut attention)?;
        (logits, attention.present)
    };
    graph.output(logits, "logits")?;
    for (layer, present) in present.into_iter().enumerate() {
        for (part, value) in ["key", "value"].into_iter().zip(present) {
            graph.output(value, &format!("present.{layer}.{part}"))?;
        }
    }
    Ok(std::mem::take(graph))
}

/// The index of each row's last position among all: T − 1, 2 T − 1, …, i64\[B\].
fn last_of_each_row(graph: &mut Graph) -> Result<Value, GraphError> {
    let (tokens, positions, one) = (graph.size(TOKENS)?, graph.size(POSITIONS)?, graph.integers(&[1]));
    let first = graph.sub(tokens, one)?;
    let [first, limit, step] = [first, positions, tokens].map(|size| graph.reshape(size, &[]));
    graph.range(first?, limit?, step?, BATCH)
}

/// Scoring.
///
/// - takes `input_ids`, `positions` and `branch` i64\[B, T\], `rows` and `targets` i64\[N\], the adapters;
/// - gives `log_probs` f32\[N\]: the log-probability that `targets[n]` follows what position `rows[n]` (of the B · T) sees,
///   which is itself and what is before it in its row, of its own branch or of branch 0.
///
/// # Errors
/// The graph does not fit together.
pub fn score(config: &ModelConfig, adapter: &AdapterConfig, weights: &Weights) -> Result<Graph, GraphError> {
    let graph = &mut Graph::new();
    let [input_ids, positions, branch] =
        ["input_ids", "positions", "branch"].map(|name| graph.input(name, TensorType::i64([BATCH, TOKENS])));
    let [rows, targets] = ["rows", "targets"].map(|name| graph.input(name, TensorType::i64([Dim::Symbol(ROWS)])));
    let model = Decoder::new(graph, config, adapter, weights, Rows::Many);
    let mut attention = Within::branched(config, branch);
    let (logits, _) = model.logits(graph, input_ids, positions, rows, &mut attention)?;
    graph.set_scope("log_probs");
    let log_probs = graph.target_log_prob(logits, targets)?;
    graph.output(log_probs, "log_probs")?;
    Ok(std::mem::take(graph))
}

/// What no bundle holds, and the error of a precision is measured with: takes `input_ids` i64\[B, T\], `rows` i64\[N\] and the adapters,
/// gives `logits` f32\[N, V\] of the token after each of the rows.
///
/// # Errors
/// The graph does not fit together.
pub fn logits(config: &ModelConfig, adapter: &AdapterConfig, weights: &Weights) -> Result<Graph, GraphError> {
    let graph = &mut Graph::new();
    let input_ids = graph.input("input_ids", TensorType::i64([BATCH, TOKENS]));
    let rows = graph.input("rows", TensorType::i64([Dim::Symbol(ROWS)]));
    let model = Decoder::new(graph, config, adapter, weights, Rows::Many);
    graph.set_scope("positions");
    let index = token_index(graph)?;
    let mut attention = Within::causal(config);
    let (logits, _) = model.logits(graph, input_ids, index, rows, &mut attention)?;
    graph.output(logits, "logits")?;
    Ok(std::mem::take(graph))
}

/// What lies below the first block with adapters, which is the same in every step of an adaptation.
///
/// - takes `input_ids` i64\[B, T\];
/// - gives `hidden` f32\[B, T, D\], what that block takes.
///
/// # Errors
/// The graph does not fit together.
pub fn below(config: &ModelConfig, adapter: &AdapterConfig, weights: &Weights) -> Result<Graph, GraphError> {
    let graph = &mut Graph::new();
    let input_ids = graph.input("input_ids", TensorType::i64([BATCH, TOKENS]));
    let model = Decoder::bare(config, adapter, weights);
    graph.set_scope("positions");
    let index = token_index(graph)?;
    let hidden = model.below(graph, input_ids, index, &mut Within::causal(config))?;
    let hidden = graph.reshape(hidden, &[BATCH, TOKENS, config.n_embd.into()])?;
    graph.output(hidden, "hidden")?;
    Ok(std::mem::take(graph))
}

/// One step of adaptation: plain gradient descent on the adapters.
///
/// - takes `input_ids` i64\[B, T\], `loss_mask` bool\[B, T\], `learning_rate` f32\[A\] (one a tensor, in the order of the adapter
///   table), the adapters, and `start.{name}`, where each adapter's step starts: the adapters, or what earlier parts of the same step
///   have made of them, for a batch that is given in parts; where not all blocks have adapters, `hidden` f32\[B, T, D\] too, as
///   [`below`] gives it;
/// - gives `loss` f32\[\], the mean of −log p(token | those before it) over the tokens where the mask is set (a row's first
///   token has none before it and does not count), `gradient_norm` f32\[\], the Euclidean norm of the loss's gradient with
///   respect to all adapters, and `updated.{name}`, each start less its learning rate times the gradient.
///
/// Without any token to predict the loss is NaN, a mean of nothing, and the starts stay.
///
/// # Errors
/// The graph does not fit together.
pub fn adapt(config: &ModelConfig, adapter: &AdapterConfig, weights: &Weights) -> Result<Graph, GraphError> {
    step(config, adapter, weights, |graph, loss, adapters, _| gradients(graph, loss, adapters))
}

/// [`adapt`] in less memory: of each block but the last only what it takes is kept, and the rest computed once more when the gradient
/// gets there.
///
/// # Errors
/// The graph does not fit together.
pub fn adapt_recomputed(config: &ModelConfig, adapter: &AdapterConfig, weights: &Weights) -> Result<Graph, GraphError> {
    step(config, adapter, weights, gradients_from_checkpoints)
}

/// [`adapt`] with the gradients of its loss as `differentiate` makes them, given the adapters and what each block takes.
fn step(
    config: &ModelConfig,
    adapter: &AdapterConfig,
    weights: &Weights,
    differentiate: impl FnOnce(&mut Graph, Value, &[Value], &[Value]) -> Result<Vec<Value>, GraphError>,
) -> Result<Graph, GraphError> {
    let graph = &mut Graph::new();
    let input_ids = graph.input("input_ids", TensorType::i64([BATCH, TOKENS]));
    let loss_mask = graph.input("loss_mask", TensorType { dtype: DataType::Bool, shape: vec![BATCH, TOKENS] });
    let tensors = marionette_models::params::adapter_table(config, adapter).len();
    let learning_rate = graph.input("learning_rate", TensorType::f32([tensors.into()]));
    let model = Decoder::new(graph, config, adapter, weights, Rows::Many);
    let mut starts = Vec::with_capacity(tensors);
    for (name, value) in model.adapters() {
        let tensor = graph.tensor(*value).clone();
        starts.push(graph.input(&format!("start.{name}"), tensor));
    }
    let hidden = TensorType::f32([BATCH, TOKENS, config.n_embd.into()]);
    let hidden = (adapter.first_block > 0).then(|| graph.input("hidden", hidden));
    let (loss, blocks) = loss(graph, &model, input_ids, loss_mask, hidden)?;
    graph.output(loss, "loss")?;

    let adapters: Vec<Value> = model.adapters().iter().map(|(_, value)| *value).collect();
    let gradients = differentiate(graph, loss, &adapters, &blocks)?;
    fusion::adapter_gradients(graph)?;
    graph.set_scope("gradient_norm");
    let mut squares = Vec::with_capacity(gradients.len());
    for &gradient in &gradients {
        let axes: Vec<i64> = (0..graph.shape(gradient).len() as i64).collect();
        let square = graph.reduce_sum_square(gradient, &axes, false)?;
        squares.push(graph.reshape(square, &[1.into()])?);
    }
    let squares = graph.concat(&squares, 0)?;
    let sum = graph.reduce_sum(squares, &[0], false)?;
    let norm = graph.sqrt(sum)?;
    graph.output(norm, "gradient_norm")?;

    graph.set_scope("update");
    let rates = graph.split(learning_rate, 0, tensors)?;
    for ((((name, _), start), gradient), rate) in model.adapters().iter().zip(starts).zip(gradients).zip(rates) {
        let step = graph.mul(gradient, rate)?;
        let updated = graph.sub(start, step)?;
        graph.output(updated, &format!("updated.{name}"))?;
    }
    Ok(std::mem::take(graph))
}

/// The loss that [`adapt`] describes, and what each block takes. Only the positions before a target are given to the head.
fn loss(
    graph: &mut Graph,
    model: &Decoder<'_>,
    input_ids: Value,
    loss_mask: Value,
    hidden: Option<Value>,
) -> Result<(Value, Vec<Value>), GraphError> {
    graph.set_scope("targets");
    let index = token_index(graph)?;
    let one = graph.integer(1);
    let has_prefix = graph.less_or_equal(one, index)?;
    let is_target = graph.and(loss_mask, has_prefix)?;
    let is_target = graph.reshape(is_target, &[POSITIONS])?;
    let places = graph.non_zero(is_target, TARGETS)?;
    let ids = graph.reshape(input_ids, &[POSITIONS])?;
    let targets = graph.gather(ids, places)?;
    let rows = graph.sub(places, one)?;

    let mut attention = Within::causal(model.config);
    let (logits, blocks) = match hidden {
        Some(hidden) => model.logits_above(graph, hidden, index, rows, &mut attention)?,
        None => model.logits(graph, input_ids, index, rows, &mut attention)?,
    };
    graph.set_scope("loss");
    let log_probs = graph.target_log_prob(logits, targets)?;
    let sum = graph.reduce_sum(log_probs, &[0], false)?;
    let count = graph.size(Dim::Symbol(TARGETS))?;
    let count = graph.reshape(count, &[])?;
    let count = graph.cast(count, DataType::F32)?;
    let minus_one = graph.scalar(-1.0);
    let scale = graph.div(minus_one, count)?;
    Ok((graph.mul(sum, scale)?, blocks))
}

#[cfg(test)]
mod tests;
