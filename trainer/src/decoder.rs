//! The forward pass of a decoder with adapters, as a function of the tensors. Everything in it can be differentiated twice.

use std::sync::Arc;

use marionette_models::params::names;
use marionette_models::{self as models, FileError, Mlp, ModelConfig, Positions};
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::frozen::{Integers, Weight};
use crate::rotary::Rotary;
use crate::tensors::{self, Choices, TokenBatch};

/// The part of the next-utterance classification's loss beside the language model's (Wolf et al. 2019: 2 to 1).
const CLASSIFICATION: f64 = 0.5;

/// y = x W + b, with W [inputs, outputs]; without b where there is none.
struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

/// The matrix of that name, of integers where there are such.
fn weight(tensors: &impl Tensors, name: &str) -> Result<Weight> {
    match tensors.integers(name) {
        Some(integers) => Ok(Weight::Integers(integers)),
        None => Ok(Weight::Floats(tensors.matrix(name)?)),
    }
}

impl Linear {
    fn new(tensors: &impl Tensors, pair: &names::Pair, bias: bool) -> Result<Self> {
        let bias = bias.then(|| tensors.matrix(&pair.bias)).transpose()?;
        Ok(Self { weight: weight(tensors, &pair.weight)?, bias })
    }

    /// [N, inputs] to [N, outputs], in the kind of the weight.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.f_to_kind(self.weight.kind())?;
        Ok(match (&self.weight, &self.bias) {
            (Weight::Floats(weight), Some(bias)) => bias.f_addmm(&x, weight)?,
            (Weight::Floats(weight), None) => x.f_mm(weight)?,
            (Weight::Integers(weight), Some(bias)) => weight.forward(&x)?.f_add_(bias)?,
            (Weight::Integers(weight), None) => weight.forward(&x)?,
        })
    }
}

/// A normalisation over the last dimension ([`models::Norm`]).
struct Norm {
    scale: Tensor,
    /// Of layer normalisation.
    shift: Option<Tensor>,
    epsilon: f64,
}

impl Norm {
    fn new(tensors: &impl Tensors, names: &names::Pair, config: &ModelConfig) -> Result<Self> {
        Ok(Self {
            scale: tensors.vector(&names.weight)?,
            shift: match config.norm {
                models::Norm::Layer => Some(tensors.vector(&names.bias)?),
                models::Norm::Rms => None,
            },
            epsilon: f64::from(config.norm_epsilon),
        })
    }

    /// [N, D] to [N, D].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.shift {
            Some(shift) => {
                Ok(x.f_layer_norm(self.scale.size(), Some(&self.scale), Some(shift), self.epsilon, false)?)
            }
            None => {
                let square = x.f_square()?.f_mean_dim(-1, true, None)?;
                Ok(x.f_mul(&square.f_add_scalar(self.epsilon)?.f_rsqrt()?)?.f_mul(&self.scale)?)
            }
        }
    }
}

/// y = x + up(gelu(down(x))) (Houlsby et al. 2019, figure 2).
struct Adapter {
    down: Linear,
    up: Linear,
}

impl Adapter {
    fn new(tensors: &impl Tensors, names: &names::Adapter) -> Result<Self> {
        Ok(Self { down: Linear::new(tensors, &names.down, true)?, up: Linear::new(tensors, &names.up, true)? })
    }

    /// [N, D] to [N, D].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_add(&self.up.forward(&gelu(&self.down.forward(x)?)?)?)?)
    }
}

/// What the adapter makes of x; x itself where there is none.
fn adapt(x: Tensor, adapter: Option<&Adapter>) -> Result<Tensor> {
    adapter.map_or(Ok(x.shallow_clone()), |adapter| adapter.forward(&x))
}

struct Block {
    ln_1: Norm,
    attn_qkv: Linear,
    attn_proj: Linear,
    attn_adapter: Option<Adapter>,
    ln_2: Norm,
    mlp_fc: Linear,
    mlp_proj: Linear,
    mlp_adapter: Option<Adapter>,
}

/// Where the tensors of a model come from, by the names of [`marionette_models::params`].
pub trait Tensors {
    /// Whether there is a tensor of that name.
    fn holds(&self, name: &str) -> bool;

    /// The tensor of that name, in the kind in which products are computed.
    ///
    /// # Errors
    /// It is missing; what libtorch says.
    fn matrix(&self, name: &str) -> Result<Tensor>;

    /// The matrix of that name where it is of integers, with which nothing is differentiated.
    fn integers(&self, _: &str) -> Option<Arc<Integers>> {
        None
    }

    /// The tensor of that name, in the kind in which sums are computed.
    ///
    /// # Errors
    /// As [`Tensors::matrix`].
    fn vector(&self, name: &str) -> Result<Tensor>;
}

impl Tensors for crate::tensors::NamedTensors {
    fn holds(&self, name: &str) -> bool {
        self.contains_key(name)
    }

    fn matrix(&self, name: &str) -> Result<Tensor> {
        self.vector(name)
    }

    fn vector(&self, name: &str) -> Result<Tensor> {
        tensors::named(self, name)
    }
}

/// What a model has beside the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// Houlsby adapters ([`marionette_models::params::adapter_table`]), in the blocks whose tensors there are.
    pub adapters: bool,
    /// The next-utterance classifier ([`marionette_models::params::classifier_table`]).
    pub classifier: bool,
}

/// The tanh approximation of GELU ([`Mlp::GeluNew`]).
fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_gelu("tanh")?)
}

/// What the MLP's first projection, [N, F] or [N, 2 F], becomes before the second: [N, F].
fn activate(mlp: Mlp, x: &Tensor) -> Result<Tensor> {
    match mlp {
        Mlp::GeluNew => gelu(x),
        Mlp::SwiGlu => {
            let width = x.size2()?.1 / 2;
            Ok(x.f_narrow(1, 0, width)?.f_silu()?.f_mul(&x.f_narrow(1, width, width)?)?)
        }
    }
}

/// Who sees whom, [T, past + T] or [B, 1, T, past + T]: 0 where the token of the row sees the one of the column, −∞ elsewhere. A token
/// sees of the past what its row does, and the new tokens of branch 0 or of its own branch up to itself.
fn mask(layout: Layout, past: i64, length: i64, kind: Kind, device: Device) -> Result<Tensor> {
    let mut sees = Tensor::f_ones([length, past + length], (Kind::Bool, device))?.f_tril(past)?;
    if let Some(branch) = layout.branch {
        let column = branch.f_constant_pad_nd([past, 0])?.f_unsqueeze(1)?;
        let same = column.f_eq_tensor(&branch.f_unsqueeze(2)?)?;
        sees = column.f_eq(0)?.f_logical_or(&same)?.f_logical_and(&sees)?.f_unsqueeze(1)?;
    }
    if let Some(of_past) = layout.sees {
        let others = past + length - of_past.size2()?.1;
        let row = of_past.f_logical_not()?.f_constant_pad_nd([0, others])?.f_logical_not()?;
        sees = row.f_unsqueeze(1)?.f_unsqueeze(1)?.f_logical_and(&sees)?;
    }
    let zeros = Tensor::f_zeros(sees.size(), (kind, device))?;
    Ok(zeros.f_masked_fill(&sees.f_logical_not()?, f64::NEG_INFINITY)?)
}

/// Keys and values of the tokens so far, [B, G, S, dh] each, one pair a block.
#[derive(Debug, Default)]
pub struct Cache {
    blocks: Vec<(Tensor, Tensor)>,
}

impl Cache {
    /// S, the number of tokens so far.
    pub fn length(&self) -> i64 {
        self.blocks.first().and_then(|(keys, _)| keys.size().get(2).copied()).unwrap_or(0)
    }

    /// The cache of the first `tokens` tokens, a view.
    ///
    /// # Errors
    /// What libtorch says, for more tokens than there are too.
    pub fn first(&self, tokens: i64) -> Result<Self> {
        let first = |(keys, values): &(Tensor, Tensor)| -> Result<_> {
            Ok((keys.f_narrow(2, 0, tokens)?, values.f_narrow(2, 0, tokens)?))
        };
        Ok(Self { blocks: self.blocks.iter().map(first).collect::<Result<_>>()? })
    }

    /// The same for B rows, a view of the one that there is.
    ///
    /// # Errors
    /// What libtorch says, for more rows than one too.
    pub fn for_rows(&self, rows: i64) -> Result<Self> {
        let expand = |tensor: &Tensor| tensor.f_expand([rows, -1, -1, -1], true);
        let all = |(keys, values): &(Tensor, Tensor)| -> Result<_> { Ok((expand(keys)?, expand(values)?)) };
        Ok(Self { blocks: self.blocks.iter().map(all).collect::<Result<_>>()? })
    }
}

/// What a sequence is beside its tokens.
#[derive(Debug, Default, Clone, Copy)]
pub struct Layout<'a> {
    /// Positions, i64 [B, T]; counted on from the cache (from 0 without one) where there are none.
    pub positions: Option<&'a Tensor>,
    /// Branches, i64 [B, T]: token j sees token i where i ≤ j and i is of branch 0 or of j's branch. Ordinary text,
    /// branch 0 everywhere, where there are none.
    pub branch: Option<&'a Tensor>,
    /// Which of the first tokens in the cache a row sees, bool [B, S]; it sees all others.
    pub sees: Option<&'a Tensor>,
}

/// A decoder ([`ModelConfig`]). It holds handles to its tensors, so that gradients reach the caller's.
pub struct Decoder {
    config: ModelConfig,
    wte: Weight,
    /// The head in the kind of products, [V, D].
    head: Weight,
    /// Where positions are learned.
    wpe: Option<Tensor>,
    blocks: Vec<Block>,
    ln_f: Norm,
    classifier: Option<Linear>,
}

impl Decoder {
    /// A model over the tensors of [`marionette_models::params::base_table`] and those of `parts`.
    ///
    /// # Errors
    /// A tensor is missing.
    pub fn new(config: &ModelConfig, parts: Parts, tensors: &impl Tensors) -> Result<Self> {
        let adapter = |names: &names::Adapter| {
            let there = parts.adapters && tensors.holds(&names.down.weight);
            there.then(|| Adapter::new(tensors, names)).transpose()
        };
        let linear = |names: &names::Pair| Linear::new(tensors, names, config.bias);
        let block = |layer| {
            let names = names::Block::new(layer);
            Ok(Block {
                ln_1: Norm::new(tensors, &names.ln_1, config)?,
                attn_qkv: linear(&names.attn_qkv)?,
                attn_proj: linear(&names.attn_proj)?,
                attn_adapter: adapter(&names.attn_adapter)?,
                ln_2: Norm::new(tensors, &names.ln_2, config)?,
                mlp_fc: linear(&names.mlp_fc)?,
                mlp_proj: linear(&names.mlp_proj)?,
                mlp_adapter: adapter(&names.mlp_adapter)?,
            })
        };
        Ok(Self {
            config: config.clone(),
            wte: match tensors.integers(names::WTE) {
                Some(integers) => Weight::Integers(integers),
                None => Weight::Floats(tensors.vector(names::WTE)?),
            },
            head: weight(tensors, if config.tied { names::WTE } else { names::HEAD })?,
            wpe: match config.positions {
                Positions::Learned => Some(tensors.vector(names::WPE)?),
                Positions::Rotary { .. } => None,
            },
            blocks: (0..config.n_layer).map(block).collect::<Result<_>>()?,
            ln_f: Norm::new(tensors, &names::last_norm(), config)?,
            classifier: parts.classifier.then(|| Linear::new(tensors, &names::classifier(), true)).transpose()?,
        })
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device of the tensors.
    pub fn device(&self) -> Device {
        self.wte.device()
    }

    /// Logits [N, V] at the tokens `rows` (i64 `[N]`, indices into the flattened [B · T] tokens) of ids (i64 [B, T]), or
    /// at all of them. The language-model head is computed nowhere else.
    ///
    /// # Errors
    /// What libtorch says, for a token or position beyond the embedding too.
    pub fn forward(&self, ids: &Tensor, layout: Layout, rows: Option<&Tensor>) -> Result<Tensor> {
        let hidden = self.hidden(ids, layout, None)?;
        self.logits(&match rows {
            Some(rows) => hidden.f_index_select(0, rows)?,
            None => hidden,
        })
    }

    /// [`Decoder::forward`] after the tokens in the cache, all of which are of branch 0, with `rows` counted from the first
    /// new token.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn forward_after(&self, cache: &mut Cache, ids: &Tensor, layout: Layout, rows: &Tensor) -> Result<Tensor> {
        self.logits(&self.hidden(ids, layout, Some(cache))?.f_index_select(0, rows)?)
    }

    /// Feeds tokens (i64 [B, T]) after those in the cache, and gives the logits [B, V] after the last one.
    ///
    /// # Errors
    /// What libtorch says, for a position beyond the context too.
    pub fn step(&self, ids: &Tensor, layout: Layout, cache: &mut Cache) -> Result<Tensor> {
        let (batch, length) = ids.size2()?;
        let hidden = self.hidden(ids, layout, Some(cache))?;
        self.logits(&hidden.f_reshape([batch, length, -1])?.f_select(1, length - 1)?)
    }

    /// The loss of a batch, a scalar: the mean negative log-likelihood of its targets, and half the mean cross-entropy of
    /// its choices where it has any (Wolf et al. 2019, the two losses 2 to 1).
    ///
    /// # Errors
    /// What libtorch says; choices without a classifier.
    pub fn loss(&self, batch: &TokenBatch) -> Result<Tensor> {
        let language = self.language_loss(batch)?;
        let Some(choices) = &batch.choices else { return Ok(language) };
        let scores = self.classify(choices)?;
        let gold = Tensor::f_zeros([scores.size2()?.0], (Kind::Int64, self.device()))?;
        let classification = scores.f_cross_entropy_loss::<Tensor>(&gold, None, tch::Reduction::Mean, -100, 0.0)?;
        Ok(language.f_add(&classification.f_mul_scalar(CLASSIFICATION)?)?)
    }

    /// The mean negative log-likelihood of the targets, a scalar.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn language_loss(&self, batch: &TokenBatch) -> Result<Tensor> {
        let layout = Layout { positions: batch.positions.as_ref(), ..Layout::default() };
        let logits = self.forward(&batch.ids, layout, Some(&batch.rows))?;
        Ok(logits.f_cross_entropy_loss::<Tensor>(&batch.targets, None, tch::Reduction::Mean, -100, 0.0)?)
    }

    /// The score of each candidate of each choice, [B, C]; −∞ where a choice has fewer candidates.
    ///
    /// # Errors
    /// What libtorch says; there is no classifier.
    pub fn classify(&self, choices: &Choices) -> Result<Tensor> {
        let Some(classifier) = &self.classifier else {
            return Err(FileError::new("the model".as_ref(), "is missing").at(names::classifier().weight).into());
        };
        let layout = Layout { positions: Some(&choices.positions), branch: Some(&choices.branch), ..Layout::default() };
        let hidden = self.hidden(&choices.ids, layout, None)?.f_index_select(0, &choices.ends)?;
        let scores = classifier.forward(&self.ln_f.forward(&hidden)?)?.f_reshape(choices.missing.size())?;
        Ok(scores.f_to_kind(self.ln_f.scale.kind())?.f_masked_fill(&choices.missing, f64::NEG_INFINITY)?)
    }

    /// [N, D] to logits [N, V], in the kind of sums.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let normed = self.ln_f.forward(hidden)?;
        let rows = normed.f_to_kind(self.head.kind())?;
        let logits = match &self.head {
            Weight::Floats(head) => rows.f_matmul(&head.f_transpose(0, 1)?)?,
            Weight::Integers(head) => head.forward(&rows)?,
        };
        Ok(logits.f_to_kind(normed.kind())?)
    }

    /// The residual stream after the last block, [B · T, D].
    fn hidden(&self, ids: &Tensor, layout: Layout, mut cache: Option<&mut Cache>) -> Result<Tensor> {
        let (batch, length) = ids.size2()?;
        let (kind, device) = (self.head.kind(), self.device());
        let past = cache.as_ref().map_or(0, |cache| cache.length());
        let mask = mask(layout, past, length, kind, device)?;
        let positions = match layout.positions {
            Some(positions) => positions.shallow_clone(),
            None => Tensor::f_arange_start(past, past + length, (Kind::Int64, device))?,
        };
        let mut x = self.wte.rows(ids)?;
        if let Some(wpe) = &self.wpe {
            x = x.f_add(&Tensor::f_embedding(wpe, &positions, -1, false, false)?)?;
        }
        let mut x = x.f_reshape([batch * length, -1])?;
        let rotary = match self.config.positions {
            Positions::Learned => None,
            // One for all heads.
            Positions::Rotary { base } => {
                Some(Rotary::new(&positions, self.config.head_dim, base, kind)?.unsqueeze(-3)?)
            }
        };
        for (layer, block) in self.blocks.iter().enumerate() {
            let [query, key, value] =
                self.split_heads(&block.attn_qkv.forward(&block.ln_1.forward(&x)?)?, batch, length)?;
            let (query, key) = match &rotary {
                Some(rotary) => (rotary.forward(&query)?, rotary.forward(&key)?),
                None => (query, key),
            };
            let (key, value) = match cache.as_deref_mut() {
                None => (key, value),
                Some(cache) => {
                    let so_far = match cache.blocks.get(layer) {
                        None => (key, value),
                        Some((keys, values)) => {
                            (Tensor::f_cat(&[keys, &key], 2)?, Tensor::f_cat(&[values, &value], 2)?)
                        }
                    };
                    let handles = (so_far.0.shallow_clone(), so_far.1.shallow_clone());
                    match cache.blocks.get_mut(layer) {
                        None => cache.blocks.push(handles),
                        Some(old) => *old = handles,
                    }
                    so_far
                }
            };
            let attended = match cache {
                Some(_) => fused_attention(&query, &key, &value, &mask)?,
                None => attention(&query, &self.for_each_head(&key)?, &self.for_each_head(&value)?, &mask)?,
            };
            let attended = attended.f_transpose(1, 2)?.f_reshape([batch * length, -1])?;
            let attended = block.attn_proj.forward(&attended)?;
            x = x.f_add(&adapt(attended, block.attn_adapter.as_ref())?)?;
            let inner = activate(self.config.mlp, &block.mlp_fc.forward(&block.ln_2.forward(&x)?)?)?;
            let mlp = block.mlp_proj.forward(&inner)?;
            x = x.f_add(&adapt(mlp, block.mlp_adapter.as_ref())?)?;
        }
        Ok(x)
    }

    /// [B · T, (H + 2 G) dh] to queries [B, H, T, dh], keys and values [B, G, T, dh].
    fn split_heads(&self, qkv: &Tensor, batch: i64, length: i64) -> Result<[Tensor; 3]> {
        let (heads, shared) = (self.config.n_head as i64, self.config.n_kv_head as i64);
        let all = qkv.f_reshape([batch, length, heads + 2 * shared, -1])?.f_transpose(1, 2)?;
        Ok([all.f_narrow(1, 0, heads)?, all.f_narrow(1, heads, shared)?, all.f_narrow(1, heads + shared, shared)?])
    }

    /// Keys or values [B, G, S, dh] as the heads see them, [B, H, S, dh].
    fn for_each_head(&self, shared: &Tensor) -> Result<Tensor> {
        let times = self.config.n_head / self.config.n_kv_head;
        if times == 1 {
            return Ok(shared.shallow_clone());
        }
        Ok(shared.f_repeat_interleave_self_int(times as i64, 1, None)?)
    }
}

/// The same by the kernel of libtorch, which never holds the [T, S] scores, with k and v [B, G, S, dh]. It cannot be differentiated
/// twice, and what is read with a cache is never differentiated.
fn fused_attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_scaled_dot_product_attention(query, key, value, Some(mask), 0.0, false, None, true)?)
}

/// softmax(q kᵀ / √dh + mask) v (Vaswani et al. 2017, section 3.2.1): q [B, H, T, dh], k and v [B, H, S, dh], to
/// [B, H, T, dh], product by product.
fn attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let width = query.size().last().copied().unwrap_or(1) as f64;
    let scores = query.f_mul_scalar(1.0 / width.sqrt())?.f_matmul(&key.f_transpose(-2, -1)?)?.f_add(mask)?;
    // Sums of 16-bit numbers are formed in 32 bits.
    let wide = (scores.kind() == Kind::BFloat16).then_some(Kind::Float);
    Ok(scores.f_softmax(-1, wide)?.f_to_kind(value.kind())?.f_matmul(value)?)
}
