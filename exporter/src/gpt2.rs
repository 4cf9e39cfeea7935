//! GPT-2 with adapters: the one forward pass that all three graphs are made of (Radford et al. 2019; Houlsby et al. 2019,
//! figure 2). Activations are \[positions, D\], positions = batch · tokens; the graphs differ only in how attention sees
//! other positions, and in which positions they want the next token's logits of.

use std::collections::BTreeMap;

use marionette_models::params::names::{self, Block};
use marionette_models::{AdapterConfig, Gpt2Config, params};

use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::ops::Transposed;
use crate::shape::{Dim, TensorType};
use crate::weights::{Rows, Weights};

/// B.
pub const BATCH: Dim = Dim::Symbol("batch");
/// T.
pub const TOKENS: Dim = Dim::Symbol("tokens");
/// B · T.
pub const POSITIONS: Dim = Dim::Product("batch", "tokens");
/// C, how many positions the key-value cache has room for.
pub const CAPACITY: Dim = Dim::Symbol("capacity");

/// How positions see each other.
pub trait Attention {
    /// Attention of block `layer` over queries, keys and values side by side \[positions, 3 D\], to \[positions, D\].
    ///
    /// # Errors
    /// The shapes do not fit.
    fn attend(&mut self, graph: &mut Graph, layer: usize, qkv: Value) -> Result<Value, GraphError>;
}

/// GPT-2 in a graph: frozen weights by name, adapters as inputs.
#[derive(Debug)]
pub struct Gpt2<'a> {
    /// The hyper-parameters.
    pub config: &'a Gpt2Config,
    weights: &'a Weights,
    rows: Rows,
    /// In the order of the adapter table.
    adapters: Vec<(String, Value)>,
    by_name: BTreeMap<String, Value>,
}

impl<'a> Gpt2<'a> {
    /// Adds the adapters to the graph's inputs, in the order of the adapter table.
    pub fn new(
        graph: &mut Graph,
        config: &'a Gpt2Config,
        adapter: &AdapterConfig,
        weights: &'a Weights,
        rows: Rows,
    ) -> Self {
        let adapters: Vec<(String, Value)> = params::adapter_table(config, adapter)
            .into_iter()
            .map(|spec| {
                let shape: Vec<Dim> = spec.shape.iter().map(|&dim| dim.into()).collect();
                let value = graph.input(&spec.name, TensorType::f32(shape));
                (spec.name, value)
            })
            .collect();
        let by_name = adapters.iter().cloned().collect();
        Self { config, weights, rows, adapters, by_name }
    }

    /// The adapters, in the order of the adapter table.
    pub fn adapters(&self) -> &[(String, Value)] {
        &self.adapters
    }

    /// The logits of the token after each of `rows` (i64\[N\], indices of positions): \[N, V\], and what each block takes, \[positions, D\].
    /// `input_ids` is i64\[B, T\], `positions` i64\[B, T\] or i64\[T\].
    ///
    /// All that comes after the last block's attention works on each position alone, so it is computed for `rows` only.
    ///
    /// # Errors
    /// The graph does not fit together.
    pub fn logits(
        &self,
        graph: &mut Graph,
        input_ids: Value,
        positions: Value,
        rows: Value,
        attention: &mut dyn Attention,
    ) -> Result<(Value, Vec<Value>), GraphError> {
        graph.set_scope("embedding");
        let tokens = self.weights.embedding(graph, input_ids)?;
        let places = self.weights.tensor(graph, names::WPE)?;
        let places = graph.gather(places, positions)?;
        let embedded = graph.add(tokens, places)?;
        let mut x = graph.reshape(embedded, &[POSITIONS, self.config.n_embd.into()])?;

        let mut blocks = Vec::with_capacity(self.config.n_layer);
        for layer in 0..self.config.n_layer {
            blocks.push(x);
            let block = Block::new(layer);
            graph.set_scope(format!("h.{layer}.attn"));
            let normal = self.layer_norm(graph, x, &block.ln_1)?;
            let qkv = self.weights.linear(graph, normal, &block.attn_qkv, self.rows)?;
            let mut attended = attention.attend(graph, layer, qkv)?;
            if layer + 1 == self.config.n_layer {
                attended = graph.gather(attended, rows)?;
                x = graph.gather(x, rows)?;
            }
            let projected = self.weights.linear(graph, attended, &block.attn_proj, self.rows)?;
            x = self.adapter(graph, projected, x, &block.attn_adapter)?;

            graph.set_scope(format!("h.{layer}.mlp"));
            let normal = self.layer_norm(graph, x, &block.ln_2)?;
            let hidden = self.weights.linear(graph, normal, &block.mlp_fc, self.rows)?;
            let hidden = graph.gelu(hidden)?;
            let projected = self.weights.linear(graph, hidden, &block.mlp_proj, self.rows)?;
            x = self.adapter(graph, projected, x, &block.mlp_adapter)?;
        }

        graph.set_scope("head");
        let ln_f = names::Pair { weight: names::LN_F_WEIGHT.into(), bias: names::LN_F_BIAS.into() };
        let normal = self.layer_norm(graph, x, &ln_f)?;
        Ok((self.weights.head(graph, normal, self.rows)?, blocks))
    }

    fn layer_norm(&self, graph: &mut Graph, x: Value, layer: &names::Pair) -> Result<Value, GraphError> {
        let (scale, shift) = (self.weights.tensor(graph, &layer.weight)?, self.weights.tensor(graph, &layer.bias)?);
        graph.layer_normalization(x, scale, shift, self.config.layer_norm_epsilon)
    }

    /// x + up(gelu(down(x))), x \[N, D\], and what goes past the layer before.
    fn adapter(
        &self,
        graph: &mut Graph,
        x: Value,
        residual: Value,
        adapter: &names::Adapter,
    ) -> Result<Value, GraphError> {
        let down = graph.gemm(
            x,
            self.trained(&adapter.down.weight)?,
            Some(self.trained(&adapter.down.bias)?),
            Transposed::default(),
        )?;
        let hidden = graph.gelu(down)?;
        graph.adapter_up(hidden, [self.trained(&adapter.up.weight)?, self.trained(&adapter.up.bias)?], x, residual)
    }

    fn trained(&self, name: &str) -> Result<Value, GraphError> {
        self.by_name.get(name).copied().ok_or_else(|| GraphError::UnknownWeight(name.to_owned()))
    }
}

/// Attention over the positions of one call.
#[derive(Debug)]
pub struct Within<'a> {
    config: &'a Gpt2Config,
    branch: Option<Value>,
}

impl<'a> Within<'a> {
    /// A position sees itself and those before it.
    pub fn causal(config: &'a Gpt2Config) -> Self {
        Self { config, branch: None }
    }

    /// A position sees itself and those before it that are of its own branch or of branch 0; `branch` is i64\[B, T\].
    pub fn branched(config: &'a Gpt2Config, branch: Value) -> Self {
        Self { config, branch: Some(branch) }
    }
}

/// 0, 1, … T − 1.
///
/// # Errors
/// The graph has no tokens yet.
pub fn token_index(graph: &mut Graph) -> Result<Value, GraphError> {
    let tokens = graph.size(TOKENS)?;
    let (zero, one, limit) = (graph.integer(0), graph.integer(1), graph.reshape(tokens, &[])?);
    graph.range(zero, limit, one, TOKENS)
}

impl Attention for Within<'_> {
    fn attend(&mut self, graph: &mut Graph, _: usize, qkv: Value) -> Result<Value, GraphError> {
        let width = self.config.n_embd;
        let qkv = graph.reshape(qkv, &[BATCH, TOKENS, (3 * width).into()])?;
        let mixed = graph.causal_attention(self.config.n_head, qkv, self.branch)?;
        graph.reshape(mixed, &[POSITIONS, width.into()])
    }
}

/// Attention over a cache of all positions so far, which it extends.
#[derive(Debug)]
pub struct Cached<'a> {
    config: &'a Gpt2Config,
    lengths: [Value; 2],
    /// Each block's cached keys and values, \[B, H, C, dh\].
    past: Vec<[Value; 2]>,
    /// The same after this call.
    pub present: Vec<[Value; 2]>,
}

impl<'a> Cached<'a> {
    /// Attention over what `past` holds of each block, \[B, H, C, dh\]; `last` is each row's last position, i32\[B\], and
    /// `total` the number of positions after this call, i32\[1\].
    pub fn new(config: &'a Gpt2Config, last: Value, total: Value, past: Vec<[Value; 2]>) -> Self {
        Self { config, lengths: [last, total], past, present: Vec::new() }
    }
}

impl Attention for Cached<'_> {
    fn attend(&mut self, graph: &mut Graph, layer: usize, qkv: Value) -> Result<Value, GraphError> {
        let width = self.config.n_embd;
        let qkv = graph.reshape(qkv, &[BATCH, TOKENS, (3 * width).into()])?;
        let cached = graph.group_query_attention(self.config.n_head, qkv, self.past[layer], self.lengths)?;
        self.present.push([cached.present_key, cached.present_value]);
        graph.reshape(cached.output, &[POSITIONS, width.into()])
    }
}
