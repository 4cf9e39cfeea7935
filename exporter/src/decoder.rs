//! A decoder with adapters: the one forward pass that all graphs are made of (Radford et al. 2019; Houlsby et al. 2019,
//! figure 2). Activations are \[positions, D\], positions = batch · tokens; the graphs differ only in how attention sees
//! other positions, and in which positions they want the next token's logits of.

use std::collections::BTreeMap;

use marionette_models::params::names::{self, Block};
use marionette_models::{AdapterConfig, Mlp, ModelConfig, Norm, Positions, params};

use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::ops::{Heads, Transposed};
use crate::shape::{Dim, TensorType};
use crate::weights::{ANGLES, Rows, Weights};

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
    /// Attention of block `layer` over queries, keys and values side by side \[B, T, (H + 2 G) dh\], to \[B, T, H dh\].
    ///
    /// # Errors
    /// The shapes do not fit.
    fn attend(&mut self, graph: &mut Graph, layer: usize, qkv: Value) -> Result<Value, GraphError>;
}

/// A decoder in a graph: frozen weights by name, adapters as inputs.
#[derive(Debug)]
pub struct Decoder<'a> {
    /// The hyper-parameters.
    pub config: &'a ModelConfig,
    weights: &'a Weights,
    rows: Rows,
    /// In the order of the adapter table.
    adapters: Vec<(String, Value)>,
    by_name: BTreeMap<String, Value>,
}

impl<'a> Decoder<'a> {
    /// Adds the adapters to the graph's inputs, in the order of the adapter table.
    pub fn new(
        graph: &mut Graph,
        config: &'a ModelConfig,
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
        let at = |graph: &mut Graph, table: &str| {
            let table = self.weights.tensor(graph, table)?;
            graph.gather(table, positions)
        };
        let (embedded, angles) = match self.config.positions {
            Positions::Learned => {
                let places = at(graph, names::WPE)?;
                (graph.add(tokens, places)?, None)
            }
            Positions::Rotary { .. } => (tokens, Some([at(graph, ANGLES[0])?, at(graph, ANGLES[1])?])),
        };
        let mut x = graph.reshape(embedded, &[POSITIONS, self.config.n_embd.into()])?;
        let turned = self.config.n_head + self.config.n_kv_head;

        let mut blocks = Vec::with_capacity(self.config.n_layer);
        for layer in 0..self.config.n_layer {
            blocks.push(x);
            let block = Block::new(layer);
            graph.set_scope(format!("h.{layer}.attn"));
            let normal = self.norm(graph, x, &block.ln_1)?;
            let qkv = self.weights.linear(graph, normal, &block.attn_qkv, self.rows)?;
            let mut qkv = graph.reshape(qkv, &[BATCH, TOKENS, self.config.qkv_width().into()])?;
            if let Some(angles) = angles {
                qkv = graph.rotary(qkv, turned, angles)?;
            }
            let attended = attention.attend(graph, layer, qkv)?;
            let mut attended = graph.reshape(attended, &[POSITIONS, self.config.query_width().into()])?;
            if layer + 1 == self.config.n_layer {
                attended = graph.gather(attended, rows)?;
                x = graph.gather(x, rows)?;
            }
            let projected = self.weights.linear(graph, attended, &block.attn_proj, self.rows)?;
            x = self.adapter(graph, projected, x, &block.attn_adapter)?;

            graph.set_scope(format!("h.{layer}.mlp"));
            let normal = self.norm(graph, x, &block.ln_2)?;
            let hidden = self.weights.linear(graph, normal, &block.mlp_fc, self.rows)?;
            let hidden = match self.config.mlp {
                Mlp::GeluNew => graph.gelu(hidden)?,
                Mlp::SwiGlu => graph.swi_glu(hidden)?,
            };
            let projected = self.weights.linear(graph, hidden, &block.mlp_proj, self.rows)?;
            x = self.adapter(graph, projected, x, &block.mlp_adapter)?;
        }

        graph.set_scope("head");
        let normal = self.norm(graph, x, &names::last_norm())?;
        Ok((self.weights.head(graph, normal, self.rows)?, blocks))
    }

    fn norm(&self, graph: &mut Graph, x: Value, layer: &names::Pair) -> Result<Value, GraphError> {
        let scale = self.weights.tensor(graph, &layer.weight)?;
        match self.config.norm {
            Norm::Layer => {
                let shift = self.weights.tensor(graph, &layer.bias)?;
                graph.layer_normalization(x, scale, shift, self.config.norm_epsilon)
            }
            Norm::Rms => graph.rms_normalization(x, scale, self.config.norm_epsilon),
        }
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

/// How many heads a model's attention has.
fn heads(config: &ModelConfig) -> Heads {
    Heads { queries: config.n_head, shared: config.n_kv_head }
}

/// Attention over the positions of one call.
#[derive(Debug)]
pub struct Within {
    heads: Heads,
    branch: Option<Value>,
}

impl Within {
    /// A position sees itself and those before it.
    pub fn causal(config: &ModelConfig) -> Self {
        Self { heads: heads(config), branch: None }
    }

    /// A position sees itself and those before it that are of its own branch or of branch 0; `branch` is i64\[B, T\].
    pub fn branched(config: &ModelConfig, branch: Value) -> Self {
        Self { heads: heads(config), branch: Some(branch) }
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

impl Attention for Within {
    fn attend(&mut self, graph: &mut Graph, _: usize, qkv: Value) -> Result<Value, GraphError> {
        graph.causal_attention(self.heads, qkv, self.branch)
    }
}

/// Attention over a cache of all positions so far, which it extends.
#[derive(Debug)]
pub struct Cached {
    heads: Heads,
    lengths: [Value; 2],
    /// Each block's cached keys and values, \[B, G, C, dh\].
    past: Vec<[Value; 2]>,
    /// The same after this call.
    pub present: Vec<[Value; 2]>,
}

impl Cached {
    /// Attention over what `past` holds of each block, \[B, G, C, dh\]; `last` is each row's last position, i32\[B\], and
    /// `total` the number of positions after this call, i32\[1\].
    pub fn new(config: &ModelConfig, last: Value, total: Value, past: Vec<[Value; 2]>) -> Self {
        Self { heads: heads(config), lengths: [last, total], past, present: Vec::new() }
    }
}

impl Attention for Cached {
    fn attend(&mut self, graph: &mut Graph, layer: usize, qkv: Value) -> Result<Value, GraphError> {
        let cached = graph.group_query_attention(self.heads, qkv, self.past[layer], self.lengths)?;
        self.present.push([cached.present_key, cached.present_value]);
        Ok(cached.output)
    }
}
