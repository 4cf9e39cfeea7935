//! GPT-2 with adapters once more, written token by token from the papers and without any of the code under test.

use std::collections::BTreeMap;

use marionette_models::{AdapterConfig, Gpt2Config, params};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::{Array, random};

/// A model small enough for differences of every adapter's value.
pub fn config() -> (Gpt2Config, AdapterConfig) {
    let config = Gpt2Config {
        vocab_size: 11,
        n_positions: 12,
        n_embd: 16,
        n_layer: 2,
        n_head: 2,
        n_inner: 32,
        activation_function: marionette_models::Activation::GeluNew,
        layer_norm_epsilon: 1e-5,
        eos_token_id: 10,
    };
    (config, AdapterConfig { bottleneck: 3 })
}

/// Random values for every tensor of the model; with `bare`, adapters whose up-projections are zero.
pub fn tensors(bare: bool) -> BTreeMap<String, Array> {
    let (config, adapter) = config();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut all: BTreeMap<String, Array> = params::base_table(&config)
        .into_iter()
        .chain(params::adapter_table(&config, &adapter))
        .map(|spec| (spec.name, random(&spec.shape, &mut rng) * 0.5))
        .collect();
    if bare {
        for (name, tensor) in &mut all {
            if name.contains("adapter.up") {
                tensor.fill(0.0);
            }
        }
    }
    all
}

/// The log-probabilities of the token after `tokens`, of which `adapters` says whether they pass through adapters.
pub fn next_log_probs(all: &BTreeMap<String, Array>, tokens: &[usize], adapters: bool) -> Vec<f64> {
    let logits = next_logits(all, tokens, adapters);
    let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.into_iter().map(|logit| logit - total.ln()).collect()
}

/// The logits of the token after `tokens`.
pub fn next_logits(all: &BTreeMap<String, Array>, tokens: &[usize], adapters: bool) -> Vec<f64> {
    let (config, _) = config();
    let row = |name: &str, index: usize| -> Vec<f64> {
        all[name].index_axis(ndarray::Axis(0), index).iter().copied().collect()
    };
    let mut stream: Vec<Vec<f64>> = tokens
        .iter()
        .enumerate()
        .map(|(place, &token)| add(&row("wte.weight", token), &row("wpe.weight", place)))
        .collect();
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
            .map(|x| linear(all, &normalise(all, x, &format!("{h}.ln_1")), &format!("{h}.attn.c_attn")))
            .collect();
        let d = config.n_embd;
        let mixed: Vec<Vec<f64>> = (0..tokens.len())
            .map(|t| (0..config.n_head).flat_map(|head| attend(&qkv, t, head, d, config.head_dim())).collect())
            .collect();
        for (x, mixed) in stream.iter_mut().zip(mixed) {
            *x = add(x, &adapt(linear(all, &mixed, &format!("{h}.attn.c_proj")), "attn_adapter"));
            let inner = linear(all, &normalise(all, x, &format!("{h}.ln_2")), &format!("{h}.mlp.c_fc"));
            let inner: Vec<f64> = inner.into_iter().map(gelu).collect();
            *x = add(x, &adapt(linear(all, &inner, &format!("{h}.mlp.c_proj")), "mlp_adapter"));
        }
    }
    let last = normalise(all, stream.last().unwrap(), "ln_f");
    all["wte.weight"].outer_iter().map(|token| token.iter().zip(&last).map(|(a, b)| a * b).sum()).collect()
}

/// One head's share of position t's attention.
fn attend(qkv: &[Vec<f64>], t: usize, head: usize, d: usize, dh: usize) -> Vec<f64> {
    let part = |s: usize, which: usize| &qkv[s][which * d + head * dh..which * d + (head + 1) * dh];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let weights: Vec<f64> = (0..=t).map(|s| (dot(part(t, 0), part(s, 1)) / (dh as f64).sqrt()).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..dh).map(|i| weights.iter().enumerate().map(|(s, w)| w / total * part(s, 2)[i]).sum()).collect()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn linear(all: &BTreeMap<String, Array>, x: &[f64], name: &str) -> Vec<f64> {
    let (weight, bias) = (&all[&format!("{name}.weight")], &all[&format!("{name}.bias")]);
    (0..bias.len()).map(|j| bias[[j]] + x.iter().enumerate().map(|(i, x)| x * weight[[i, j]]).sum::<f64>()).collect()
}

fn normalise(all: &BTreeMap<String, Array>, x: &[f64], name: &str) -> Vec<f64> {
    let (weight, bias) = (&all[&format!("{name}.weight")], &all[&format!("{name}.bias")]);
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    let deviation = (variance + f64::from(1e-5f32)).sqrt();
    x.iter().enumerate().map(|(i, x)| (x - mean) / deviation * weight[[i]] + bias[[i]]).collect()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}
