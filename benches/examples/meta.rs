//! One meta-gradient of one persona on a frozen GPT-2 with adapters, in the words of the PyTorch program that it is measured
//! beside: S inner steps on a support batch, the outer loss on a query batch, both B rows of T tokens, a loss on each token.
//!
//!     cargo run --release -p marionette-benches --example meta -- [MODEL_DIR] [B T S REPEATS] [--first-order]
//!
//! Without a model it takes random weights of GPT-2 small's shapes: the time does not depend on them.

#![allow(clippy::unwrap_used)] // What fails here is for its reader.

use std::time::Instant;

use marionette_models::checkpoint::{self, Base};
use marionette_models::{Activation, AdapterConfig, Gpt2Config, init, params};
use marionette_trainer::gpt2::Parts;
use marionette_trainer::inner::Support;
use marionette_trainer::memory;
use marionette_trainer::meta::meta_gradient;
use marionette_trainer::model::Model;
use marionette_trainer::tensors::{self, TokenBatch};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// The most memory that this process has held, in MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN) / 1024.0
}

/// GPT-2 small's shapes (Radford et al. 2019).
fn random_base() -> Base {
    let config = Gpt2Config {
        vocab_size: 50257,
        n_positions: 1024,
        n_embd: 768,
        n_layer: 12,
        n_head: 12,
        n_inner: 3072,
        activation_function: Activation::GeluNew,
        layer_norm_epsilon: 1e-5,
        eos_token_id: 50256,
    };
    let tensors = init::initialise(&params::base_table(&config), &mut ChaCha8Rng::seed_from_u64(1));
    Base { config, tensors }
}

fn main() {
    memory::keep_freed();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let first_order = arguments.iter().any(|argument| argument == "--first-order");
    let words: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let numbers: Vec<i64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let folder = words.first().filter(|word| word.parse::<i64>().is_err());
    let [rows, length, steps, repeats] = <[i64; 4]>::try_from(numbers).unwrap_or([2, 128, 2, 3]);
    tch::set_num_threads(2);
    tch::manual_seed(0);

    let base = folder.map_or_else(random_base, |folder| checkpoint::read_base(folder.as_ref()).unwrap());
    let config = base.config;
    let frozen = tensors::all_to_torch(base.tensors, Kind::Float, Device::Cpu).unwrap();
    let table = params::adapter_table(&config, &AdapterConfig::default());
    let fresh = init::initialise(&table, &mut ChaCha8Rng::seed_from_u64(0));
    let start: Vec<Tensor> =
        table.iter().map(|spec| tensors::to_torch(&fresh[&spec.name], Kind::Float, Device::Cpu).unwrap()).collect();
    let parts = Parts { adapters: true, classifier: false };
    let model = Model::new(&config, parts, frozen, table, Kind::Float, Device::Cpu).unwrap();
    let rates = vec![0.01; start.len()];
    // As the peer's `labels`: every token but the first of a row is a target.
    let batch = || {
        let ids = Tensor::randint(config.vocab_size as i64 - 1, [rows, length], (Kind::Int64, Device::Cpu));
        let targets = ids.narrow(1, 1, length - 1).reshape(-1);
        let first = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).unsqueeze(1) * length;
        let places = (first + Tensor::arange(length - 1, (Kind::Int64, Device::Cpu))).reshape(-1);
        TokenBatch { ids, positions: None, rows: places, targets, choices: None }
    };
    let task = || {
        let support = Support::repeat(batch(), steps as usize);
        meta_gradient(&model, &start, &support, &batch(), &rates, !first_order, false).unwrap()
    };
    let _ = task();
    let mut seconds: Vec<f64> = (0..repeats)
        .map(|_| {
            let started = Instant::now();
            let _ = task();
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let tokens = ((steps + 1) * rows * length) as f64;
    println!(
        "marionette MAML {}-order B={rows} T={length} S={steps}: {:.0} ms a task, {:.0} tok/s, peak {:.0} MiB",
        if first_order { "first" } else { "second" },
        median * 1e3,
        tokens / median,
        peak()
    );
}
