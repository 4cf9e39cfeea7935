//! The meta-gradient against one graph through the whole inner loop, and against central differences, in f64.

#![allow(clippy::unwrap_used, clippy::panic)] // Clippy knows tests, but not their helpers.

mod support;

use marionette_dialogues::Sequence;
use marionette_models::{InnerLoop, LearningRate, params};
use marionette_trainer::gpt2::{Adapters, Gpt2};
use marionette_trainer::inner::{self, Support};
use marionette_trainer::meta::{Order, meta_gradient};
use marionette_trainer::tensors::TokenBatch;
use support::{ADAPTER, adapters, model, random, small_config};
use tch::{Device, Kind, Tensor};

const STEPS: usize = 3;

struct Task {
    model: Gpt2,
    start: Vec<Tensor>,
    support: Support,
    query: TokenBatch,
    rates: Vec<f32>,
}

fn sequence(seed: u32, length: u32) -> Sequence {
    Sequence {
        ids: (0..length).map(|place| (seed * 13 + place * (7 + seed)) % 50).collect(),
        target: (0..length).map(|place| place > 2 && place % 3 != 0).collect(),
        ..Sequence::default()
    }
}

fn task() -> Task {
    let config = small_config();
    let table = params::adapter_table(&config, &ADAPTER);
    let rates: Vec<f32> = (0..table.len()).map(|index| 0.02 + 0.01 * (index % 5) as f32).collect();
    let learning_rate = LearningRate::PerTensor(rates.clone());
    let recipe = InnerLoop { steps: STEPS, dialogues_per_step: 2, learning_rate };
    let dialogues = [sequence(1, 9), sequence(2, 12), sequence(3, 7)];
    let query = marionette_dialogues::Batch::new([&sequence(4, 11), &sequence(5, 8)]).unwrap();
    Task {
        model: model(&config, &random(&params::base_table(&config), 0.3, 1), Kind::Double),
        start: adapters(&config, &random(&table, 0.3, 2), Kind::Double).tensors,
        support: Support::new(&recipe, &dialogues.iter().collect::<Vec<_>>(), Device::Cpu).unwrap(),
        query: TokenBatch::new(&query, Device::Cpu).unwrap(),
        rates,
    }
}

impl Task {
    fn meta(&self, order: Order) -> Vec<Tensor> {
        meta_gradient(&self.model, &self.start, &self.support, &self.query, &self.rates, order).unwrap().gradient
    }

    /// L_query(θ_S) from a start.
    fn outer_loss(&self, start: &[Tensor]) -> f64 {
        let trajectory = inner::adapt(&self.model, start, &self.support, &self.rates).unwrap();
        inner::loss(&self.model, trajectory.last(), &self.query).unwrap()
    }

    /// The whole inner loop as one graph, differentiated once more.
    fn one_graph(&self) -> Vec<Tensor> {
        let start: Vec<Tensor> = self.start.iter().map(|tensor| tensor.detach().set_requires_grad(true)).collect();
        let mut state: Vec<Tensor> = start.iter().map(Tensor::shallow_clone).collect();
        for batch in self.support.steps() {
            let at = Adapters { tensors: state };
            let loss = self.model.loss(Some(&at), batch).unwrap();
            let gradient = Tensor::run_backward(&[&loss], &at.tensors, true, true);
            let moved = at.tensors.iter().zip(&gradient).zip(&self.rates);
            state = moved.map(|((parameter, gradient), &rate)| parameter - gradient * f64::from(rate)).collect();
        }
        let loss = self.model.loss(Some(&Adapters { tensors: state }), &self.query).unwrap();
        Tensor::run_backward(&[&loss], &start, false, false)
    }
}

/// The largest difference of two gradients in one tensor, over the largest value in it.
fn relative(one: &[Tensor], other: &[Tensor]) -> f64 {
    let pairs = one.iter().zip(other);
    let errors = pairs.map(|(one, other)| support::worst(one, other) / other.abs().max().double_value(&[]));
    errors.fold(0.0, f64::max)
}

#[test]
fn one_step_at_a_time_is_the_one_graph() {
    let task = task();
    let error = relative(&task.meta(Order::Second), &task.one_graph());
    println!("worst relative error of the meta-gradient against one graph: {error:.2e}");
    assert!(error < 1e-9, "{error}");
}

#[test]
fn it_is_the_slope_that_central_differences_measure() {
    const WIDTH: f64 = 1e-5;
    let task = task();
    let gradient = task.meta(Order::Second);
    let mut worst = 0.0_f64;
    for (index, gradient) in gradient.iter().enumerate() {
        let count = gradient.numel();
        let scale = gradient.abs().max().double_value(&[]);
        for place in [0, count / 3, count - 1] {
            let moved = |by: f64| {
                let start: Vec<Tensor> = task.start.iter().map(|tensor| tensor.detach().copy()).collect();
                let _ = start[index].view(-1).get(place as i64).g_add_scalar_(by);
                task.outer_loss(&start)
            };
            let slope = (moved(WIDTH) - moved(-WIDTH)) / (2.0 * WIDTH);
            let found = gradient.reshape(-1).double_value(&[place as i64]);
            worst = worst.max((found - slope).abs() / scale);
        }
    }
    println!("worst relative error of the meta-gradient against central differences: {worst:.2e}");
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn first_order_leaves_the_curvature_out() {
    let task = task();
    let trajectory = inner::adapt(&task.model, &task.start, &task.support, &task.rates).unwrap();
    let (_, expected) = inner::loss_and_gradient(&task.model, trajectory.last(), &task.query).unwrap();
    let first = task.meta(Order::First);
    assert_eq!(relative(&first, &expected), 0.0);
    // The task is curved enough that the other tests can tell.
    assert!(relative(&first, &task.one_graph()) > 0.05);
}

#[test]
fn inner_steps_go_down_and_are_recorded() {
    let task = task();
    let trajectory = inner::adapt(&task.model, &task.start, &task.support, &task.rates).unwrap();
    assert_eq!((trajectory.states.len(), trajectory.losses.len()), (STEPS + 1, STEPS));
    // Steps 1 and 3 see the same batch.
    assert!(trajectory.losses[2] < trajectory.losses[0], "{:?}", trajectory.losses);
}
