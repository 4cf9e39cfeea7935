//! Decoders with adapters once more, written token by token from the papers and without any of the code under test.

use std::collections::BTreeMap;

use marionette_models::{AdapterConfig, Gpt2Shape, LlamaShape, Mlp, ModelConfig, Norm, Positions, params};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::{Array, random};

/// A model small enough for differences of every adapter's value.
#[derive(Debug, Clone)]
pub struct Case {
    pub config: ModelConfig,
    pub adapter: AdapterConfig,
}

impl Case {
    pub fn gpt2() -> Self {
        let shape = Gpt2Shape { vocab_size: 11, n_positions: 12, n_embd: 16, n_layer: 2, n_head: 2 };
        let config = ModelConfig { n_inner: 32, ..shape.into() };
        Self { config, adapter: AdapterConfig::in_all_blocks(3) }
    }

    /// With everything that Llama has and GPT-2 has not, heads whose widths do not add up to the model's, and a head of its own.
    pub fn llama() -> Self {
        let adapter = Self::gpt2().adapter;
        let shape = LlamaShape {
            vocab_size: 11,
            n_positions: 12,
            n_embd: 16,
            n_layer: 2,
            n_head: 6,
            n_kv_head: 2,
            head_dim: 8,
            n_inner: 32,
        };
        let config = ModelConfig { positions: Positions::Rotary { base: 100.0 }, ..shape.into() };
        Self { config, adapter }
    }

    /// Random values for every tensor of the model; with `bare`, adapters whose up-projections are zero.
    pub fn tensors(&self, bare: bool) -> BTreeMap<String, Array> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut all: BTreeMap<String, Array> = params::base_table(&self.config)
            .into_iter()
            .chain(params::adapter_table(&self.config, &self.adapter))
            .map(|spec| (spec.name, random(&spec.shape, &mut rng) * 0.5))
            .collect();
        if bare {
            for (name, tensor) in &mut all {
                if name.contains("adapter.up") {
                    tensor.fill(0.0);
                }
            }
        }
        for (name, of) in [("rotary.cos", f64::cos as fn(f64) -> f64), ("rotary.sin", f64::sin)] {
            let (positions, half) = (self.config.n_positions, self.config.head_dim / 2);
            let table = ndarray::Array2::from_shape_fn((positions, half), |(p, i)| of(self.angle(p, i)));
            all.insert(name.to_owned(), table.into_dyn());
        }
        all
    }

    /// By what pair i of a head is turned at a position; 0 where positions are learned.
    fn angle(&self, position: usize, i: usize) -> f64 {
        match self.config.positions {
            Positions::Learned => 0.0,
            Positions::Rotary { base } => {
                position as f64 / f64::from(base).powf(2.0 * i as f64 / self.config.head_dim as f64)
            }
        }
    }

    /// The log-probabilities of the token after `tokens`, of which `adapters` says whether they pass through adapters.
    pub fn next_log_probs(&self, all: &BTreeMap<String, Array>, tokens: &[usize], adapters: bool) -> Vec<f64> {
        let logits = self.next_logits(all, tokens, adapters);
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        logits.into_iter().map(|logit| logit - total.ln()).collect()
    }

    /// The logits of the token after `tokens`.
    pub fn next_logits(&self, all: &BTreeMap<String, Array>, tokens: &[usize], adapters: bool) -> Vec<f64> {
        let config = &self.config;
        let row = |name: &str, index: usize| -> Vec<f64> {
            all[name].index_axis(ndarray::Axis(0), index).iter().copied().collect()
        };
        let embed = |(place, &token): (usize, &usize)| match config.positions {
            Positions::Learned => add(&row("wte.weight", token), &row("wpe.weight", place)),
            Positions::Rotary { .. } => row("wte.weight", token),
        };
        let mut stream: Vec<Vec<f64>> = tokens.iter().enumerate().map(embed).collect();
        for layer in 0..config.n_layer {
            let h = format!("h.{layer}");
            let adapt = |x: Vec<f64>, name: &str| {
                if !adapters {
                    return x;
                }
                let hidden = linear(all, &x, &format!("{h}.{name}.down")).into_iter().map(gelu).collect::<Vec<_>>();
                add(&x, &linear(all, &hidden, &format!("{h}.{name}.up")))
            };
            let qkv: Vec<Vec<f64>> = stream
                .iter()
                .map(|x| linear(all, &self.normalise(all, x, &format!("{h}.ln_1")), &format!("{h}.attn.c_attn")))
                .collect();
            let mixed: Vec<Vec<f64>> = (0..tokens.len())
                .map(|t| (0..config.n_head).flat_map(|head| self.attend(&qkv, t, head)).collect())
                .collect();
            for (x, mixed) in stream.iter_mut().zip(mixed) {
                *x = add(x, &adapt(linear(all, &mixed, &format!("{h}.attn.c_proj")), "attn_adapter"));
                let inner = linear(all, &self.normalise(all, x, &format!("{h}.ln_2")), &format!("{h}.mlp.c_fc"));
                let inner: Vec<f64> = match config.mlp {
                    Mlp::GeluNew => inner.into_iter().map(gelu).collect(),
                    Mlp::SwiGlu => {
                        let (gate, up) = inner.split_at(config.n_inner);
                        gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
                    }
                };
                *x = add(x, &adapt(linear(all, &inner, &format!("{h}.mlp.c_proj")), "mlp_adapter"));
            }
        }
        let last = self.normalise(all, stream.last().unwrap(), "ln_f");
        let head = if config.tied { "wte.weight" } else { "lm_head.weight" };
        all[head].outer_iter().map(|token| token.iter().zip(&last).map(|(a, b)| a * b).sum()).collect()
    }

    /// One head's share of position t's attention.
    fn attend(&self, qkv: &[Vec<f64>], t: usize, head: usize) -> Vec<f64> {
        let ModelConfig { n_head, n_kv_head, head_dim, .. } = self.config;
        let shared = n_head + head / (n_head / n_kv_head);
        let part = |s: usize, place: usize| &qkv[s][place * head_dim..(place + 1) * head_dim];
        // As complex numbers, whose halves lie apart.
        let turn = |x: &[f64], position: usize| -> Vec<f64> {
            let half = head_dim / 2;
            let (sine, cosine): (Vec<f64>, Vec<f64>) = (0..half).map(|i| self.angle(position, i).sin_cos()).unzip();
            (0..head_dim)
                .map(|i| match i < half {
                    true => x[i] * cosine[i] - x[i + half] * sine[i],
                    false => x[i] * cosine[i - half] + x[i - half] * sine[i - half],
                })
                .collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let query = turn(part(t, head), t);
        let score = |s: usize| dot(&query, &turn(part(s, shared), s)) / (head_dim as f64).sqrt();
        let weights: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
        let total: f64 = weights.iter().sum();
        let value = |s: usize| part(s, shared + n_kv_head);
        (0..head_dim).map(|i| weights.iter().enumerate().map(|(s, w)| w / total * value(s)[i]).sum()).collect()
    }

    fn normalise(&self, all: &BTreeMap<String, Array>, x: &[f64], name: &str) -> Vec<f64> {
        let weight = &all[&format!("{name}.weight")];
        let bias = all.get(&format!("{name}.bias"));
        let mean = match self.config.norm {
            Norm::Layer => x.iter().sum::<f64>() / x.len() as f64,
            Norm::Rms => 0.0,
        };
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let deviation = (variance + f64::from(self.config.norm_epsilon)).sqrt();
        let shift = |i: usize| bias.map_or(0.0, |bias| bias[[i]]);
        x.iter().enumerate().map(|(i, x)| (x - mean) / deviation * weight[[i]] + shift(i)).collect()
    }
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn linear(all: &BTreeMap<String, Array>, x: &[f64], name: &str) -> Vec<f64> {
    let (weight, bias) = (&all[&format!("{name}.weight")], all.get(&format!("{name}.bias")));
    let product = |j: usize| x.iter().enumerate().map(|(i, x)| x * weight[[i, j]]).sum::<f64>();
    (0..weight.shape()[1]).map(|j| bias.map_or(0.0, |bias| bias[[j]]) + product(j)).collect()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}
