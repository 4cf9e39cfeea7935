//! The derivatives that are written by hand against libtorch's, in f64: the loss, its gradient, the exact meta-gradient
//! (Hessian products) and the derivative by α; and against central differences.

#![allow(clippy::unwrap_used, clippy::panic)] // Clippy knows tests, but not their helpers.

use marionette_kernels::quantise;
use marionette_models::params::{self, Init, Order, TensorSpec};
use marionette_models::{AdapterConfig, Family, Gpt2Shape, LlamaShape, ModelConfig, Positions, init};
use marionette_trainer::decoder::Parts;
use marionette_trainer::inner::{self, Support};
use marionette_trainer::meta::meta_gradient;
use marionette_trainer::model::Model;
use marionette_trainer::tensors::{self, TokenBatch};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// The largest relative difference that rounding in f64 explains.
const ROUNDING: f64 = 1e-10;

fn config(family: Family, layers: usize) -> ModelConfig {
    match family {
        Family::Gpt2 => ModelConfig {
            n_inner: 40,
            ..Gpt2Shape { vocab_size: 50, n_positions: 32, n_embd: 16, n_layer: layers, n_head: 4 }.into()
        },
        Family::Llama => {
            let shape = LlamaShape {
                vocab_size: 50,
                n_positions: 32,
                n_embd: 16,
                n_layer: layers,
                n_head: 6,
                n_kv_head: 2,
                head_dim: 6,
                n_inner: 40,
            };
            ModelConfig { positions: Positions::Rotary { base: 100.0 }, ..shape.into() }
        }
    }
}

/// Every tensor random, so large that nothing is nearly linear.
fn random(table: &[TensorSpec], seed: u64, kind: Kind) -> tensors::NamedTensors {
    let spread: Vec<TensorSpec> =
        table.iter().map(|spec| TensorSpec { init: Init::Normal { std: 0.3 }, ..spec.clone() }).collect();
    tensors::all_to_torch(init::initialise(&spread, &mut ChaCha8Rng::seed_from_u64(seed)), kind, Device::Cpu).unwrap()
}

struct Task {
    model: Model,
    start: Vec<Tensor>,
    rates: Vec<f32>,
}

impl Task {
    fn new(family: Family, layers: usize, kind: Kind) -> Self {
        Self::above(family, layers, 0, kind)
    }

    /// With adapters from a block on.
    fn above(family: Family, layers: usize, first: usize, kind: Kind) -> Self {
        // The tests run side by side, and their matrices are too small to share out among threads.
        tch::set_num_threads(1);
        let config = config(family, layers);
        let base = random(&params::base_table(&config), 1, kind);
        Self::on(&config, base, first, kind)
    }

    /// The same on a base whose matrices are what integers of 8 bits store of them.
    fn rounded(family: Family, layers: usize, kind: Kind) -> Self {
        let config = config(family, layers);
        let mut base = random(&params::base_table(&config), 1, kind);
        for spec in params::base_table(&config) {
            let Some((order, [columns, _])) = Order::of(&spec.name, &spec.shape) else { continue };
            let tensor = &base[&spec.name];
            let values = Vec::<f32>::try_from(tensor.reshape(-1).to_kind(Kind::Float)).unwrap();
            let stored = quantise::to_int8(&values, order, columns, None).values(order);
            let rounded = Tensor::from_slice(&stored).reshape(tensor.size()).to_kind(kind);
            assert!((&rounded - tensor).abs().max().double_value(&[]) > 1e-4, "{}", spec.name);
            base.insert(spec.name, rounded);
        }
        Self::on(&config, base, 0, kind)
    }

    fn on(config: &ModelConfig, base: tensors::NamedTensors, first_block: usize, kind: Kind) -> Self {
        let table = params::adapter_table(config, &AdapterConfig { bottleneck: 6, first_block });
        let learned = random(&table, 2, kind);
        let start = table.iter().map(|spec| learned[&spec.name].shallow_clone()).collect();
        let rates = (0..table.len()).map(|index| 0.1 + 0.05 * (index % 5) as f32).collect();
        let parts = Parts { adapters: true, classifier: false };
        Self { model: Model::new(config, parts, base, table, kind, Device::Cpu).unwrap(), start, rates }
    }

    /// By libtorch: the loss of a batch, and its gradient, which can be differentiated again.
    fn graph(&self, at: &[Tensor], batch: &TokenBatch) -> (Tensor, Vec<Tensor>) {
        let loss = self.model.at(at).unwrap().loss(batch).unwrap();
        let gradient = Tensor::run_backward(&[&loss], at, true, true);
        (loss, gradient)
    }

    /// By libtorch, the whole inner loop as one graph: L_query(θ_S) and its derivatives by θ_0 and by log α.
    fn one_graph(&self, support: &Support, query: &TokenBatch) -> (f64, Vec<Tensor>, Tensor) {
        let start = leaves(&self.start);
        let rates: Vec<f64> = self.rates.iter().map(|&rate| f64::from(rate)).collect();
        let rates = Tensor::from_slice(&rates).set_requires_grad(true);
        let mut state: Vec<Tensor> = start.iter().map(|tensor| tensor * 1.0).collect();
        for batch in support.steps() {
            let (_, gradient) = self.graph(&state, batch);
            let moved = state.iter().zip(&gradient).enumerate();
            state = moved.map(|(row, (tensor, gradient))| tensor - gradient * rates.get(row as i64)).collect();
        }
        let loss = self.model.at(&state).unwrap().loss(query).unwrap();
        let leaves: Vec<Tensor> = start.into_iter().chain([rates.shallow_clone()]).collect();
        let mut by = Tensor::run_backward(&[&loss], &leaves, false, false);
        let by_rates = by.pop().unwrap() * rates.detach();
        (loss.double_value(&[]), by, by_rates)
    }
}

fn leaves(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|tensor| tensor.detach().set_requires_grad(true)).collect()
}

/// Rows of different lengths, padded, with a loss on some of their tokens; `shift` makes batches differ.
fn batch(lengths: &[i64], shift: i64, positions: bool) -> TokenBatch {
    let (count, longest) = (lengths.len() as i64, lengths.iter().copied().max().unwrap());
    let (mut rows, mut targets, mut ids, mut places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (row, &length) in lengths.iter().enumerate() {
        for token in 0..longest {
            let id = if token < length { (row as i64 * 17 + token * (7 + shift) + shift * shift) % 50 } else { 0 };
            if token > 0 && token < length && token % 3 != 1 {
                rows.push(row as i64 * longest + token - 1);
                targets.push(id);
            }
            ids.push(id);
            places.push((token * 2 + row as i64) % 32);
        }
    }
    TokenBatch {
        ids: Tensor::from_slice(&ids).reshape([count, longest]),
        positions: positions.then(|| Tensor::from_slice(&places).reshape([count, longest])),
        rows: Tensor::from_slice(&rows),
        targets: Tensor::from_slice(&targets),
        choices: None,
    }
}

/// The largest difference in one tensor over the largest value in it.
fn relative(found: &[Tensor], expected: &[Tensor]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected).map(|(found, expected)| {
        assert_eq!(found.size(), expected.size());
        (found - expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
    });
    pairs.fold(0.0, f64::max)
}

fn loss_and_gradient_are_libtorchs(family: Family) {
    for (layers, first, positions) in [(1, 0, false), (2, 0, true), (3, 0, false), (3, 1, true), (3, 2, false)] {
        let task = Task::above(family, layers, first, Kind::Double);
        let batch = batch(&[9, 12, 4], 1, positions);
        let (loss, gradient) = inner::loss_and_gradient(&task.model, &task.start, &batch).unwrap();
        let (expected_loss, expected) = task.graph(&leaves(&task.start), &batch);
        let worst = relative(&gradient, &expected);
        let loss_error = (loss / expected_loss.double_value(&[]) - 1.0).abs();
        println!(
            "{layers} blocks, from {first}: worst relative error of the gradient {worst:.2e}, of the loss {loss_error:.2e}"
        );
        assert!(worst < ROUNDING && loss_error < ROUNDING, "{worst} {loss_error}");
        assert!(gradient.iter().all(|gradient| !gradient.requires_grad()));
        let alone = inner::loss(&task.model, &task.start, &batch).unwrap();
        assert!((alone / loss - 1.0).abs() < ROUNDING, "{alone}, expected {loss}");
    }
}

fn the_exact_meta_gradient_is_libtorchs(family: Family) {
    let all =
        [(1, 0, 1, false), (2, 0, 1, false), (2, 0, 2, true), (3, 0, 3, false), (3, 1, 2, true), (3, 2, 2, false)];
    for (layers, first, steps, positions) in all {
        let task = Task::above(family, layers, first, Kind::Double);
        let support = Support::repeat(batch(&[9, 12, 4], 1, positions), steps);
        let query = batch(&[7, 11], 2, positions);
        let found = meta_gradient(&task.model, &task.start, &support, &query, &task.rates, true, true).unwrap();
        let (loss, expected, by_rates) = task.one_graph(&support, &query);
        let worst = relative(&found.gradient, &expected);
        // These are handed on in f32.
        let rates = relative(&[found.rates.unwrap().to_kind(Kind::Double)], &[by_rates]);
        println!("{layers} blocks, from {first}, S = {steps}: worst relative error {worst:.2e}, by log α {rates:.2e}");
        assert!(worst < ROUNDING && rates < 1e-6, "{worst} {rates}");
        assert!((found.loss / loss - 1.0).abs() < ROUNDING);
        // It is curved enough to tell it from first order.
        let first = meta_gradient(&task.model, &task.start, &support, &query, &task.rates, false, false).unwrap();
        let curvature = relative(&first.gradient, &expected);
        assert!(curvature > 0.02, "{curvature}");
    }
}

fn more_targets_than_one_piece_of_the_head_has_rows(family: Family) {
    let task = Task::new(family, 2, Kind::Double);
    // 12 · 31 tokens, of which two thirds are targets in one and all in the other.
    let mut query = batch(&[31; 12], 2, false);
    query.rows = Tensor::arange(12 * 31, (Kind::Int64, Device::Cpu));
    query.targets = query.ids.reshape(-1).roll(-1, 0);
    let support = Support::repeat(query, 2);
    let query = batch(&[31, 30, 29, 31, 28], 3, false);
    let found = meta_gradient(&task.model, &task.start, &support, &query, &task.rates, true, false).unwrap();
    let (_, expected, _) = task.one_graph(&support, &query);
    let worst = relative(&found.gradient, &expected);
    println!("372 targets: worst relative error {worst:.2e}");
    assert!(worst < ROUNDING, "{worst}");
}

fn the_meta_gradient_is_the_slope_that_central_differences_measure(family: Family) {
    slopes(&Task::new(family, 2, Kind::Double));
}

/// The derivative beside integers is that of the matrices that they store: rounding of rows is taken for the identity.
fn beside_rounded_matrices_it_is_their_slope(family: Family) {
    slopes(&Task::rounded(family, 2, Kind::Double));
}

fn slopes(task: &Task) {
    const WIDTH: f64 = 1e-5;
    let support = Support::repeat(batch(&[9, 12, 4], 1, false), 2);
    let query = batch(&[7, 11], 2, false);
    let found = meta_gradient(&task.model, &task.start, &support, &query, &task.rates, true, false).unwrap().gradient;
    let mut worst = 0.0_f64;
    for (index, gradient) in found.iter().enumerate() {
        let place = (gradient.numel() / 3) as i64;
        let moved = |by: f64| {
            let start: Vec<Tensor> = task.start.iter().map(|tensor| tensor.detach().copy()).collect();
            let _ = start[index].view(-1).get(place).g_add_scalar_(by);
            let adapted = inner::adapt(&task.model, &start, &support, &task.rates).unwrap();
            inner::loss(&task.model, &adapted.parameters, &query).unwrap()
        };
        let slope = (moved(WIDTH) - moved(-WIDTH)) / (2.0 * WIDTH);
        let error = (gradient.reshape(-1).double_value(&[place]) - slope).abs();
        worst = worst.max(error / gradient.abs().max().double_value(&[]));
    }
    println!("worst relative error against central differences: {worst:.2e}");
    assert!(worst < 1e-6, "{worst}");
}

fn in_single_precision_it_is_as_near_as_rounding_lets_it(family: Family) {
    // In f32 the device's kernels compute most of it, in f64 libtorch's operators.
    for first in [0, 1] {
        let task = |kind| Task::above(family, 3, first, kind);
        as_near_as_rounding_lets_it(&task(Kind::Float), &task(Kind::Double));
    }
}

fn as_near_as_rounding_lets_it(single: &Task, double: &Task) {
    let support = Support::repeat(batch(&[9, 12, 4], 1, false), 2);
    let query = batch(&[7, 11], 2, false);
    let found = meta_gradient(&single.model, &single.start, &support, &query, &single.rates, true, false).unwrap();
    let found: Vec<Tensor> = found.gradient.iter().map(|tensor| tensor.to_kind(Kind::Double)).collect();
    let (_, expected, _) = double.one_graph(&support, &query);
    let worst = relative(&found, &expected);
    println!("worst relative error in f32: {worst:.2e}");
    assert!(worst < 5e-6, "{worst}");
}

fn a_token_beyond_the_embedding_is_an_error(family: Family) {
    let task = Task::new(family, 1, Kind::Double);
    let mut bad = batch(&[5], 1, false);
    bad.ids = Tensor::from_slice(&[1_i64, 2, 50, 3, 4]).reshape([1, 5]);
    assert!(inner::loss_and_gradient(&task.model, &task.start, &bad).is_err());
}

/// Every test, for each family.
macro_rules! for_each_family {
    ($($test:ident),* $(,)?) => {
        mod gpt2 {
            $(#[test] fn $test() { super::$test(super::Family::Gpt2); })*
        }
        mod llama {
            $(#[test] fn $test() { super::$test(super::Family::Llama); })*
        }
    };
}

for_each_family!(
    loss_and_gradient_are_libtorchs,
    the_exact_meta_gradient_is_libtorchs,
    more_targets_than_one_piece_of_the_head_has_rows,
    the_meta_gradient_is_the_slope_that_central_differences_measure,
    beside_rounded_matrices_it_is_their_slope,
    in_single_precision_it_is_as_near_as_rounding_lets_it,
    a_token_beyond_the_embedding_is_an_error,
);
