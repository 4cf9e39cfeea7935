//! A decoder with adapters: the one forward pass that all graphs are made of (Radford et al. 2019; Houlsby et al. 2019,
//! figure 2). Activations are \[positions, D\], positions = batch · tokens; the graphs differ only in how attention sees
//! other positions, and in which positions they want the next token's logits of.

use std::collections::BTreeMap;
use std::ops::Range;

use marionette_models::params::names::{self, Block};
use marionette_models::{AdapterConfig, Mlp, ModelConfig, Norm, Positions, params};

use crate::error::GraphError;
use crate::graph::{Attribute, Graph, Value};
use crate::ops::{DecoderBlock, Heads, Transposed};
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
    /// Attention of the next block over queries, keys and values side by side \[B, T, (H + 2 G) dh\], to \[B, T, H dh\].
    ///
    /// # Errors
    /// The shapes do not fit.
    fn attend(&mut self, graph: &mut Graph, qkv: Value) -> Result<Value, GraphError>;
}

/// A decoder in a graph: frozen weights by name, adapters as inputs.
#[derive(Debug)]
pub struct Decoder<'a> {
    /// The hyper-parameters.
    pub config: &'a ModelConfig,
    weights: &'a Weights,
    rows: Rows,
    /// The first block that has adapters.
    first_block: usize,
    /// Whether each row of the batch has adapters of its own.
    of_each_row: bool,
    /// In the order of the adapter table.
    adapters: Vec<(String, Value)>,
    by_name: BTreeMap<String, Value>,
}

impl<'a> Decoder<'a> {
    /// Adds the adapters to the graph's inputs, in the order of the adapter table: one set for all rows of the batch, or, where these are
    /// few, as those of several conversations are, one for each, \[B, ..\].
    pub fn new(
        graph: &mut Graph,
        config: &'a ModelConfig,
        adapter: &AdapterConfig,
        weights: &'a Weights,
        rows: Rows,
    ) -> Self {
        let of_each_row = rows == Rows::Few;
        let adapters: Vec<(String, Value)> = params::adapter_table(config, adapter)
            .into_iter()
            .map(|spec| {
                let of_each = of_each_row.then_some(BATCH);
                let shape: Vec<Dim> = of_each.into_iter().chain(spec.shape.iter().map(|&dim| dim.into())).collect();
                let value = graph.input(&spec.name, TensorType::f32(shape));
                (spec.name, value)
            })
            .collect();
        let by_name = adapters.iter().cloned().collect();
        Self { config, weights, rows, first_block: adapter.first_block, of_each_row, adapters, by_name }
    }

    /// Without adapters, for [`Decoder::below`] alone.
    pub fn bare(config: &'a ModelConfig, adapter: &AdapterConfig, weights: &'a Weights) -> Self {
        let (adapters, by_name) = (Vec::new(), BTreeMap::new());
        let (rows, of_each_row, first_block) = (Rows::Many, false, adapter.first_block);
        Self { config, weights, rows, first_block, of_each_row, adapters, by_name }
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
        let embedded = self.embedding(graph, input_ids, positions)?;
        let (x, blocks) = self.blocks(graph, embedded, 0..self.config.n_layer, Some(rows), attention)?;
        Ok((self.head(graph, x)?, blocks))
    }

    /// The same from what the first block with adapters takes, \[B, T, D\], as [`Decoder::below`] gives it.
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub fn logits_above(
        &self,
        graph: &mut Graph,
        hidden: Value,
        positions: Value,
        rows: Value,
        attention: &mut dyn Attention,
    ) -> Result<(Value, Vec<Value>), GraphError> {
        graph.set_scope("angles");
        let angles = self.angles(graph, positions)?;
        let above = self.first_block..self.config.n_layer;
        let (x, blocks) = self.blocks(graph, (hidden, angles), above, Some(rows), attention)?;
        Ok((self.head(graph, x)?, blocks))
    }

    /// What the first block with adapters takes, \[positions, D\], on which no adapter has an influence.
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub fn below(
        &self,
        graph: &mut Graph,
        input_ids: Value,
        positions: Value,
        attention: &mut dyn Attention,
    ) -> Result<Value, GraphError> {
        let embedded = self.embedding(graph, input_ids, positions)?;
        Ok(self.blocks(graph, embedded, 0..self.first_block, None, attention)?.0)
    }

    /// Some blocks, from what the first of them takes, \[B, T, D\], to what the last one gives, \[positions, D\], or of the model's last one of
    /// `rows` alone; and what each takes.
    fn blocks(
        &self,
        graph: &mut Graph,
        (x, angles): (Value, Option<[Value; 2]>),
        layers: Range<usize>,
        rows: Option<Value>,
        attention: &mut dyn Attention,
    ) -> Result<(Value, Vec<Value>), GraphError> {
        let mut x = graph.reshape(x, &[POSITIONS, self.config.n_embd.into()])?;
        let mut blocks = Vec::with_capacity(layers.len());
        for layer in layers {
            blocks.push(x);
            let rows = rows.filter(|_| layer + 1 == self.config.n_layer);
            x = self.block(graph, layer, x, angles, rows, attention)?;
        }
        Ok((x, blocks))
    }

    /// What the first block takes, \[B, T, D\], and the cosines and sines of the positions' angles where they are rotary,
    /// \[.., T, dh / 2\].
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub(crate) fn embedding(
        &self,
        graph: &mut Graph,
        input_ids: Value,
        positions: Value,
    ) -> Result<(Value, Option<[Value; 2]>), GraphError> {
        graph.set_scope("embedding");
        let tokens = self.weights.embedding(graph, input_ids)?;
        match self.config.positions {
            Positions::Learned => {
                let table = self.weights.tensor(graph, names::WPE)?;
                let places = graph.gather(table, positions)?;
                Ok((graph.add(tokens, places)?, None))
            }
            Positions::Rotary { .. } => Ok((tokens, self.angles(graph, positions)?)),
        }
    }

    /// The cosines and sines of the positions' angles where they are rotary, \[.., T, dh / 2\].
    fn angles(&self, graph: &mut Graph, positions: Value) -> Result<Option<[Value; 2]>, GraphError> {
        let mut at = |table: &str| {
            let table = self.weights.tensor(graph, table)?;
            graph.gather(table, positions)
        };
        match self.config.positions {
            Positions::Learned => Ok(None),
            Positions::Rotary { .. } => Ok(Some([at(ANGLES[0])?, at(ANGLES[1])?])),
        }
    }

    /// A block: x \[positions, D\] to the same, or of some positions alone, \[N, D\]: those of `rows`.
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub(crate) fn block(
        &self,
        graph: &mut Graph,
        layer: usize,
        mut x: Value,
        angles: Option<[Value; 2]>,
        rows: Option<Value>,
        attention: &mut dyn Attention,
    ) -> Result<Value, GraphError> {
        let block = Block::new(layer);
        graph.set_scope(format!("h.{layer}.attn"));
        let normal = self.norm(graph, x, &block.ln_1)?;
        let qkv = self.weights.linear(graph, normal, &block.attn_qkv, self.rows)?;
        let mut qkv = graph.reshape(qkv, &[BATCH, TOKENS, self.config.qkv_width().into()])?;
        if let Some(angles) = angles {
            qkv = graph.rotary(qkv, self.config.n_head + self.config.n_kv_head, angles)?;
        }
        let attended = attention.attend(graph, qkv)?;
        let mut attended = graph.reshape(attended, &[POSITIONS, self.config.query_width().into()])?;
        if let Some(rows) = rows {
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
        self.adapter(graph, projected, x, &block.mlp_adapter)
    }

    /// A block that attends to a cache, as one operator ([`DecoderBlock`]): x, each row's last position and the number of positions, the
    /// past keys and values, angles, and rows, to x and the present keys and values.
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub(crate) fn whole_block(
        &self,
        graph: &mut Graph,
        layer: usize,
        [x, last, total]: [Value; 3],
        past: [Value; 2],
        angles: Option<[Value; 2]>,
        rows: Option<Value>,
    ) -> Result<[Value; 3], GraphError> {
        // The same inputs in a graph of their own.
        let inner = &mut Graph::new();
        let mut outside = vec![x, past[0], past[1], last, total];
        outside.extend(angles.into_iter().flatten().chain(rows));
        let mut inside = Vec::with_capacity(outside.len());
        for (number, &value) in outside.iter().enumerate() {
            inside.push(inner.input(&format!("input_{number}"), graph.tensor(value).clone()));
        }
        let mut others = inside[5..].iter().copied();
        let angles = angles.and_then(|_| Some([others.next()?, others.next()?]));
        let rows = others.next();
        let parts = self.block_parts(&Block::new(layer))?;
        let mut by_name = BTreeMap::new();
        for (name, &value) in parts.iter().filter_map(|name| self.by_name.get_key_value(name)) {
            by_name.insert(name.clone(), inner.input(name, graph.tensor(value).clone()));
        }
        let block = Decoder { adapters: Vec::new(), by_name, ..*self };
        let mut attention = Cached::new(self.config, inside[3], inside[4], vec![[inside[1], inside[2]]]);
        let flat = inner.reshape(inside[0], &[POSITIONS, self.config.n_embd.into()])?;
        let mut after = block.block(inner, layer, flat, angles, rows, &mut attention)?;
        if rows.is_none() {
            after = inner.reshape(after, &[BATCH, TOKENS, self.config.n_embd.into()])?;
        }
        let present = attention.present.into_iter().flatten();
        for (value, name) in [after].into_iter().chain(present).zip(["x", "present.key", "present.value"]) {
            inner.output(value, name)?;
        }
        // Then the block's tensors.
        for name in &parts {
            let (here, there) = match (block.by_name.get(name), self.by_name.get(name)) {
                (Some(&here), Some(&there)) => (here, there),
                _ => {
                    let here = inner.weight_named(name)?;
                    (here, graph.weight(name, inner.tensor(here).clone()))
                }
            };
            inside.push(here);
            outside.push(there);
        }
        let kind = [self.has_adapters(&Block::new(layer)), rows.is_some()];
        let op = DecoderBlock::new(std::mem::take(inner), inside, self.block_attributes(), kind);
        graph.set_scope(format!("h.{layer}"));
        let outputs = graph.apply(op, &outside)?;
        Ok([outputs[0], outputs[1], outputs[2]])
    }

    /// The tensors of a block in their order, of matrices the parts.
    fn block_parts(&self, names: &Block) -> Result<Vec<String>, GraphError> {
        let norm = |pair: &names::Pair| match self.config.norm {
            Norm::Layer => vec![pair.weight.clone(), pair.bias.clone()],
            Norm::Rms => vec![pair.weight.clone()],
        };
        let has_adapters = self.has_adapters(names);
        let adapter = |adapter: &names::Adapter| {
            let pairs = [&adapter.down, &adapter.up].into_iter().filter(|_| has_adapters);
            pairs.flat_map(|pair| [pair.weight.clone(), pair.bias.clone()]).collect()
        };
        let parts: [Vec<String>; 8] = [
            norm(&names.ln_1),
            self.weights.parts(&names.attn_qkv)?,
            self.weights.parts(&names.attn_proj)?,
            adapter(&names.attn_adapter),
            norm(&names.ln_2),
            self.weights.parts(&names.mlp_fc)?,
            self.weights.parts(&names.mlp_proj)?,
            adapter(&names.mlp_adapter),
        ];
        Ok(parts.into_iter().flatten().collect())
    }

    /// What an executor of [`DecoderBlock`] is told of its parts.
    fn block_attributes(&self) -> Vec<(&'static str, Attribute)> {
        let ModelConfig { norm, norm_epsilon, mlp, positions, n_head, n_kv_head, bias, .. } = *self.config;
        let is_rotary = matches!(positions, Positions::Rotary { .. });
        vec![
            ("num_heads", Attribute::Int(n_head as i64)),
            ("kv_num_heads", Attribute::Int(n_kv_head as i64)),
            ("epsilon", Attribute::Float(norm_epsilon)),
            ("norm", Attribute::Text(if norm == Norm::Layer { "layer" } else { "rms" })),
            ("mlp", Attribute::Text(if mlp == Mlp::SwiGlu { "swiglu" } else { "gelu" })),
            ("rotary", Attribute::Int(is_rotary.into())),
            ("bias", Attribute::Int(bias.into())),
        ]
    }

    /// The logits \[N, V\] after the last block's x \[N, D\].
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub(crate) fn head(&self, graph: &mut Graph, x: Value) -> Result<Value, GraphError> {
        graph.set_scope("head");
        let normal = self.norm(graph, x, &names::last_norm())?;
        self.weights.head(graph, normal, self.rows)
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

    /// Whether a block has adapters.
    fn has_adapters(&self, names: &Block) -> bool {
        self.by_name.contains_key(&names.attn_adapter.down.weight)
    }

    /// x + up(gelu(down(x))), x \[N, D\], where there is an adapter, and what goes past the layer before.
    fn adapter(
        &self,
        graph: &mut Graph,
        x: Value,
        residual: Value,
        adapter: &names::Adapter,
    ) -> Result<Value, GraphError> {
        if !self.by_name.contains_key(&adapter.down.weight) {
            return graph.add(x, residual);
        }
        let down = [self.trained(&adapter.down.weight)?, self.trained(&adapter.down.bias)?];
        let up = [self.trained(&adapter.up.weight)?, self.trained(&adapter.up.bias)?];
        if self.of_each_row {
            return graph.row_adapters(x, residual, [down[0], down[1], up[0], up[1]]);
        }
        let hidden = graph.gemm(x, down[0], Some(down[1]), Transposed::default())?;
        let hidden = graph.gelu(hidden)?;
        graph.adapter_up(hidden, up, x, residual)
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
    fn attend(&mut self, graph: &mut Graph, qkv: Value) -> Result<Value, GraphError> {
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
    fn attend(&mut self, graph: &mut Graph, qkv: Value) -> Result<Value, GraphError> {
        let past = self.past[self.present.len()];
        let cached = graph.group_query_attention(self.heads, qkv, past, self.lengths)?;
        self.present.push([cached.present_key, cached.present_value]);
        Ok(cached.output)
    }
}
