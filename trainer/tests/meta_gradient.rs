//! The outer gradients against one graph through the whole inner loop, against central differences, and against their
//! definitions, in f64: of the adapters, of the whole model, and of both together.

#![allow(clippy::unwrap_used, clippy::panic)] // Clippy knows tests, but not their helpers.

mod support;

use marionette_dialogues::{Example, Sequence};
use marionette_models::{InnerLoop, LearningRate, ModelConfig, digest};
use marionette_trainer::inner::{self, Support};
use marionette_trainer::meta::{self, MetaGradient, meta_gradient};
use marionette_trainer::method::Method;
use marionette_trainer::model::Model;
use marionette_trainer::tensors::{self, TokenBatch};
use support::{learner_of, small_config, small_configs, small_tensors};
use tch::{Device, Kind, Tensor};

/// The adapters; every tensor of the base; both.
const LEARNERS: [Method; 3] = [Method::ExtraPlace, Method::InPlace, Method::ExtraPlaceUnfixed];

struct Task {
    model: Model,
    start: Vec<Tensor>,
    support: Support,
    query: TokenBatch,
    rates: Vec<f32>,
}

fn example(seed: u32, length: u32) -> Example {
    let sequence = Sequence {
        ids: (0..length).map(|place| (seed * 13 + place * (7 + seed)) % 50).collect(),
        target: (0..length).map(|place| place > 2 && place % 3 != 0).collect(),
        ..Sequence::default()
    };
    Example { sequence, choices: Vec::new() }
}

/// GPT-2's, where what is tested does not depend on the family.
fn task(method: Method, steps: usize) -> Task {
    task_of(&small_config(), method, steps)
}

fn task_of(config: &ModelConfig, method: Method, steps: usize) -> Task {
    let (model, start) = learner_of(config, method, Kind::Double, Kind::Double);
    // A whole model is more curved than its adapters.
    let scale = if method == Method::ExtraPlace { 0.01 } else { 0.002 };
    let rates: Vec<f32> = (0..start.len()).map(|index| scale * (2 + index % 5) as f32).collect();
    let recipe = InnerLoop { steps, dialogues_per_step: 2, learning_rate: LearningRate::PerTensor(rates.clone()) };
    let dialogues = [example(1, 9), example(2, 12), example(3, 7)];
    let support = Support::new(&recipe, &dialogues.iter().collect::<Vec<_>>(), 0, Device::Cpu).unwrap();
    let query = TokenBatch::of(&[&example(4, 11), &example(5, 8)], 0, Device::Cpu).unwrap();
    Task { model, start, support, query, rates }
}

/// What one graph gives: the derivative by θ_0, and that by log α.
struct OneGraph {
    gradient: Vec<Tensor>,
    rates: Vec<f64>,
}

impl Task {
    fn meta(&self, exact: bool) -> MetaGradient {
        let Self { model, start, support, query, rates } = self;
        meta_gradient(model, start, support, query, rates, exact, true).unwrap()
    }

    /// L_query(θ_S) from a start, with some α.
    fn outer_loss(&self, start: &[Tensor], rates: &[f32]) -> f64 {
        let adapted = inner::adapt(&self.model, start, &self.support, rates).unwrap();
        inner::loss(&self.model, &adapted.parameters, &self.query).unwrap()
    }

    fn slope(&self, index: usize, direction: &Tensor) -> f64 {
        const WIDTH: f64 = 1e-5;
        let moved = |by: f64| {
            let mut start: Vec<Tensor> = self.start.iter().map(Tensor::shallow_clone).collect();
            start[index] = &start[index] + by * direction;
            self.outer_loss(&start, &self.rates)
        };
        (moved(WIDTH) - moved(-WIDTH)) / (2.0 * WIDTH)
    }

    /// The whole inner loop as one graph, differentiated once more; with `exact` through the inner gradients.
    fn one_graph(&self, exact: bool) -> OneGraph {
        let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
        let start: Vec<Tensor> = self.start.iter().map(leaf).collect();
        let logs: Vec<Tensor> = self.rates.iter().map(|&rate| leaf(&Tensor::from(f64::from(rate).ln()))).collect();
        let mut state: Vec<Tensor> = start.iter().map(Tensor::shallow_clone).collect();
        for batch in self.support.steps() {
            let loss = self.model.at(&state).unwrap().loss(batch).unwrap();
            let gradient = Tensor::run_backward(&[&loss], &state, true, true);
            let moved = state.iter().zip(gradient).zip(&logs).map(|((parameter, gradient), log)| {
                let gradient = if exact { gradient } else { gradient.detach() };
                parameter - gradient * log.exp()
            });
            state = moved.collect();
        }
        let loss = self.model.at(&state).unwrap().loss(&self.query).unwrap();
        let mut gradient = Tensor::run_backward(&[&loss], &start.iter().chain(&logs).collect::<Vec<_>>(), false, false);
        let rates = gradient.split_off(start.len()).iter().map(|rate| rate.double_value(&[])).collect();
        OneGraph { gradient, rates }
    }
}

/// The largest difference of two gradients in one tensor, over the largest value in it.
fn relative(one: &[Tensor], other: &[Tensor]) -> f64 {
    assert_eq!(one.len(), other.len());
    let pairs = one.iter().zip(other);
    let errors = pairs.map(|(one, other)| support::worst(one, other) / other.abs().max().double_value(&[]));
    errors.fold(0.0, f64::max)
}

/// The largest difference over the largest value.
fn relative_numbers(one: &[f64], other: &[f64]) -> f64 {
    assert_eq!(one.len(), other.len());
    let largest = other.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    one.iter().zip(other).fold(0.0_f64, |most, (one, other)| most.max((one - other).abs())) / largest
}

/// The derivative by log α, from f32 as the outer loop gets it.
fn rates_of(found: &MetaGradient) -> Vec<f64> {
    let rates = found.rates.as_ref().unwrap();
    assert_eq!(rates.kind(), Kind::Float);
    (0..rates.numel() as i64).map(|index| rates.double_value(&[index])).collect()
}

#[test]
fn one_step_at_a_time_is_the_one_graph() {
    for config in small_configs() {
        let (family, mut worst, mut worst_rate) = (config.family, 0.0_f64, 0.0_f64);
        for method in LEARNERS {
            for steps in [1, 2, 3] {
                let task = task_of(&config, method, steps);
                let (found, expected) = (task.meta(true), task.one_graph(true));
                let error = relative(&found.gradient, &expected.gradient);
                let rate_error = relative_numbers(&rates_of(&found), &expected.rates);
                assert!(error < 1e-10, "{family} {} S = {steps}: {error}", method.name());
                assert!(rate_error < 1e-6, "{family} {} S = {steps}, log α: {rate_error}", method.name());
                (worst, worst_rate) = (worst.max(error), worst_rate.max(rate_error));
            }
        }
        println!(
            "{family}: worst relative error of the meta-gradient against one graph: {worst:.2e}, by log α {worst_rate:.2e}"
        );
    }
}

#[test]
fn it_is_the_slope_that_central_differences_measure() {
    for config in small_configs() {
        let (family, mut worst) = (config.family, 0.0_f64);
        for method in LEARNERS {
            for steps in [1, 2, 3] {
                let task = task_of(&config, method, steps);
                let found = task.meta(true).gradient;
                for (gradient, (spec, index)) in found.iter().zip(task.model.table().iter().zip(0..)) {
                    // A direction in which every value takes part.
                    let direction =
                        (Tensor::arange(gradient.numel() as i64, (Kind::Double, Device::Cpu)) + index as f64).cos();
                    let direction = direction.reshape(gradient.size());
                    let expected = task.slope(index, &direction);
                    let length = gradient.norm().double_value(&[]) * direction.norm().double_value(&[]);
                    let error = ((gradient * &direction).sum(Kind::Double).double_value(&[]) - expected).abs() / length;
                    assert!(error < 1e-7, "{family} {} S = {steps}, {}: {error}", method.name(), spec.name);
                    worst = worst.max(error);
                }
            }
        }
        println!("{family}: worst relative error of the meta-gradient against central differences: {worst:.2e}");
    }
}

#[test]
fn each_value_has_the_slope_that_central_differences_measure() {
    let task = task(Method::ExtraPlace, 3);
    let found = task.meta(true).gradient;
    let mut worst = 0.0_f64;
    for (index, gradient) in found.iter().enumerate() {
        let count = gradient.numel();
        let scale = gradient.abs().max().double_value(&[]);
        for place in [0, count / 3, count - 1] {
            let direction = gradient.zeros_like();
            let _ = direction.view(-1).get(place as i64).fill_(1.0);
            let error = (gradient.reshape(-1).double_value(&[place as i64]) - task.slope(index, &direction)).abs();
            worst = worst.max(error / scale);
        }
    }
    println!("worst relative error of single values against central differences: {worst:.2e}");
    assert!(worst < 1e-7, "{worst}");
}

#[test]
fn the_derivative_by_log_alpha_is_the_slope_that_central_differences_measure() {
    for (method, steps) in [(Method::ExtraPlace, 1), (Method::ExtraPlace, 3), (Method::InPlace, 2)] {
        let task = task(method, steps);
        let slope = |index: usize| {
            // α itself is an f32, so the width is measured.
            let moved = |factor: f32| {
                let mut rates = task.rates.clone();
                rates[index] *= factor;
                (task.outer_loss(&task.start, &rates), f64::from(rates[index]).ln())
            };
            let ((above, log_above), (below, log_below)) = (moved(1.001), moved(1.0 / 1.001));
            (above - below) / (log_above - log_below)
        };
        let expected: Vec<f64> = (0..task.rates.len()).map(slope).collect();
        let error = relative_numbers(&rates_of(&task.meta(true)), &expected);
        println!("{} S = {steps}: relative error by log α against central differences: {error:.2e}", method.name());
        assert!(error < 1e-5, "{error}");
        // With one step nothing of the inner loop depends on α twice, so first order is exact.
        if steps == 1 {
            assert!(relative_numbers(&rates_of(&task.meta(false)), &expected) < 1e-5);
        }
    }
}

#[test]
fn first_order_leaves_the_curvature_out() {
    for method in LEARNERS {
        let task = task(method, 3);
        let adapted = inner::adapt(&task.model, &task.start, &task.support, &task.rates).unwrap();
        let (_, expected) = inner::loss_and_gradient(&task.model, &adapted.parameters, &task.query).unwrap();
        let first = task.meta(false);
        assert!(relative(&first.gradient, &expected) < 1e-12);
        let error = relative_numbers(&rates_of(&first), &task.one_graph(false).rates);
        assert!(error < 1e-6, "{error}");
        // The task is curved enough that the other tests can tell.
        let exact = task.one_graph(true);
        assert!(relative(&first.gradient, &exact.gradient) > 0.03);
        assert!(relative_numbers(&rates_of(&first), &exact.rates) > 1e-3);
        // Without learned rates there is no derivative by them, and the gradient is the same.
        let Task { model, start, support, query, rates } = &task;
        let fixed = meta_gradient(model, start, support, query, rates, false, false).unwrap();
        assert!(fixed.rates.is_none());
        assert!(relative(&fixed.gradient, &first.gradient) < 1e-12 && (fixed.loss / first.loss - 1.0).abs() < 1e-12);
    }
}

#[test]
fn reptile_is_the_way_that_the_inner_loop_goes() {
    for method in LEARNERS {
        let task = task(method, 3);
        // (θ_0 − θ_S) / α, by hand; with one α a tensor that is the sum of the gradients on the way.
        let mut state: Vec<Tensor> = task.start.iter().map(Tensor::copy).collect();
        let (mut sum, mut last) = (Vec::new(), 0.0);
        for batch in task.support.steps() {
            let at: Vec<Tensor> = state.iter().map(|tensor| tensor.detach().set_requires_grad(true)).collect();
            let loss = task.model.at(&at).unwrap().loss(batch).unwrap();
            let gradient = Tensor::run_backward(&[&loss], &at, false, false);
            last = loss.double_value(&[]);
            state = at
                .iter()
                .zip(&gradient)
                .zip(&task.rates)
                .map(|((p, g), &rate)| p.detach() - g * f64::from(rate))
                .collect();
            sum = match sum.is_empty() {
                true => gradient,
                false => sum.iter().zip(&gradient).map(|(sum, g): (&Tensor, _)| sum + g).collect(),
            };
        }
        let found = meta::reptile(&task.model, &task.start, &task.support, &task.rates).unwrap();
        let way =
            task.start.iter().zip(&state).zip(&task.rates).map(|((from, to), &rate)| (from - to) / f64::from(rate));
        assert!(relative(&found.gradient, &way.collect::<Vec<_>>()) < 1e-12);
        assert!(relative(&found.gradient, &sum) < 1e-8);
        // Sums of one value may be formed in another order where its memory lies otherwise.
        assert!((found.loss / last - 1.0).abs() < 1e-12 && found.rates.is_none());
    }
}

#[test]
fn inner_steps_go_down_and_are_recorded() {
    let task = task(Method::ExtraPlace, 3);
    let adapted = inner::adapt(&task.model, &task.start, &task.support, &task.rates).unwrap();
    assert_eq!((adapted.parameters.len(), adapted.losses.len()), (task.start.len(), 3));
    // Steps 1 and 3 see the same batch.
    assert!(adapted.losses[2] < adapted.losses[0], "{:?}", adapted.losses);
}

#[test]
fn nothing_moves_what_is_frozen_nor_the_start() {
    let (config, all) = (small_config(), small_tensors());
    let task = task(Method::ExtraPlace, 2);
    let frozen = tensors::all_to_torch(all.clone(), Kind::Float, Device::Cpu).unwrap();
    let handles: tensors::NamedTensors =
        frozen.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    let table = task.model.table().to_vec();
    let model = Model::new(&config, Method::ExtraPlace.parts(), handles, table, Kind::Float, Device::Cpu).unwrap();
    let start: Vec<Tensor> = task.start.iter().map(|tensor| tensor.to_kind(Kind::Float)).collect();
    let before: Vec<Tensor> = start.iter().map(Tensor::copy).collect();
    for exact in [true, false] {
        meta_gradient(&model, &start, &task.support, &task.query, &task.rates, exact, true).unwrap();
    }
    meta::reptile(&model, &start, &task.support, &task.rates).unwrap();
    let after = frozen.iter().map(|(name, tensor)| (name.clone(), tensors::to_host(tensor).unwrap())).collect();
    assert_eq!(digest::base_sha256(&config, &after), digest::base_sha256(&config, &all));
    assert!(start.iter().zip(&before).all(|(start, before)| start.equal(before)));
}
