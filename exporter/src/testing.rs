//! What tests of operators and graphs share: evaluation, and gradients against central differences.

use std::collections::BTreeMap;
use std::rc::Rc;

use marionette_models::bundle::DataType;
use ndarray::IxDyn;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

pub use crate::array::Array;
use crate::array::decode;
use crate::autodiff::gradients;
use crate::graph::{Graph, Op, Origin, Value};
use crate::interpreter;
use crate::shape::TensorType;

pub mod naive;

/// An input of an operator under test.
#[derive(Debug, Clone)]
pub enum Sample {
    /// Random values of a shape, other ones for each input.
    Random(Vec<usize>),
    /// Given values.
    Given(DataType, Array),
}

impl Sample {
    fn dtype(&self) -> DataType {
        match self {
            Self::Random(_) => DataType::F32,
            Self::Given(dtype, _) => *dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Random(shape) => shape,
            Self::Given(_, array) => array.shape(),
        }
    }

    /// Its type.
    pub fn tensor_type(&self) -> TensorType {
        TensorType { dtype: self.dtype(), shape: self.shape().iter().map(|&dim| dim.into()).collect() }
    }
}

/// Random values, uniform in ±1.5.
pub fn float(shape: &[usize]) -> Sample {
    Sample::Random(shape.to_vec())
}

/// A list of given values.
pub fn values(values: &[f64]) -> Sample {
    Sample::Given(DataType::F32, ndarray::arr1(values).into_dyn())
}

/// A list of integers.
pub fn indices(values: &[i64]) -> Sample {
    indices_of(&[values.len()], values)
}

/// Integers of a shape.
pub fn indices_of(shape: &[usize], values: &[i64]) -> Sample {
    Sample::Given(DataType::I64, integers(shape, values))
}

/// Integers of a shape, as an array.
pub fn integers(shape: &[usize], values: &[i64]) -> Array {
    Array::from_shape_vec(IxDyn(shape), values.iter().map(|&value| value as f64).collect()).unwrap()
}

/// Values uniform in ±1.5.
pub fn random(shape: &[usize], rng: &mut ChaCha8Rng) -> Array {
    Array::from_shape_simple_fn(IxDyn(shape), || rng.random_range(-1.5..1.5))
}

/// Computes a graph. `feeds` holds its inputs and weights by name; gives the values asked for.
pub fn evaluate(graph: &Graph, feeds: &BTreeMap<String, Array>, wanted: &[Value]) -> Vec<Array> {
    let read = |value: Value| {
        let data = graph.data(value);
        match &data.origin {
            Origin::Input | Origin::Weight(_) => feeds.get(&data.name).cloned().map(Rc::new),
            Origin::Constant(bytes) => Some(Rc::new(decode(&data.tensor, bytes))),
            Origin::Node => None,
        }
    };
    interpreter::compute(graph, graph.handles().map(read).collect(), wanted)
}

/// The worst relative error of a gradient: the largest absolute difference from central differences of `loss` around each
/// element of `at`, over the largest element of either.
pub fn worst_error(at: &Array, gradient: &Array, loss: impl Fn(&Array) -> f64) -> f64 {
    // Truncation is of the order h², rounding of ε/h: both are below 1e-9 here.
    const H: f64 = 1e-5;
    let mut difference: f64 = 0.0;
    let mut scale = gradient.iter().fold(1e-12, |most: f64, value| most.max(value.abs()));
    let mut point = at.clone();
    for (index, &computed) in gradient.indexed_iter() {
        let middle = point[&index];
        point[&index] = middle + H;
        let above = loss(&point);
        point[&index] = middle - H;
        let below = loss(&point);
        point[&index] = middle;
        let central = (above - below) / (2.0 * H);
        difference = difference.max((central - computed).abs());
        scale = scale.max(central.abs());
    }
    difference / scale
}

/// The most that a gradient may be off, relative.
pub const TOLERANCE: f64 = 1e-4;

/// Checks the gradient of a random weighted sum of all outputs, with respect to every input of f32.
pub fn check_gradient(op: impl Op + Clone + 'static, inputs: &[Sample]) {
    check_gradient_of(op, inputs, usize::MAX);
}

/// As [`check_gradient`], with only the first `outputs` outputs in the loss.
pub fn check_gradient_of(op: impl Op + Clone + 'static, inputs: &[Sample], outputs: usize) {
    let all: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].dtype() == DataType::F32).collect();
    check_gradient_by(op, inputs, &all, outputs);
}

/// As [`check_gradient_of`], with respect to the inputs `by` alone.
pub fn check_gradient_by(op: impl Op + Clone + 'static, inputs: &[Sample], by: &[usize], outputs: usize) {
    let name = op.name();
    let mut graph = Graph::new();
    let mut feeds = BTreeMap::new();
    let mut handles = Vec::new();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (i, sample) in inputs.iter().enumerate() {
        handles.push(graph.input(&format!("input{i}"), sample.tensor_type()));
        let array = match sample {
            Sample::Random(shape) => random(shape, &mut rng),
            Sample::Given(_, array) => array.clone(),
        };
        feeds.insert(format!("input{i}"), array);
    }
    let results = graph.apply(op, &handles).unwrap();
    let mut loss = graph.scalar(0.0);
    for (i, &result) in results.iter().take(outputs).enumerate() {
        let weight = graph.input(&format!("weight{i}"), graph.tensor(result).clone());
        let shape: Vec<usize> = graph.shape(result).iter().map(|dim| dim.to_string().parse().unwrap()).collect();
        feeds.insert(format!("weight{i}"), random(&shape, &mut rng));
        let product = graph.mul(result, weight).unwrap();
        let axes: Vec<i64> = (0..shape.len() as i64).collect();
        let sum = if axes.is_empty() { product } else { graph.reduce_sum(product, &axes, false).unwrap() };
        loss = graph.add(loss, sum).unwrap();
    }
    let values: Vec<Value> = by.iter().map(|&i| handles[i]).collect();
    let found = gradients(&mut graph, loss, &values).unwrap();
    let found = evaluate(&graph, &feeds, &found);
    let mut worst: f64 = 0.0;
    for (&i, gradient) in by.iter().zip(&found) {
        let middle = &feeds[&format!("input{i}")];
        assert_eq!(gradient.shape(), middle.shape(), "{name}: gradient of input {i}");
        worst = worst.max(worst_error(middle, gradient, |at| {
            let mut feeds = feeds.clone();
            feeds.insert(format!("input{i}"), at.clone());
            evaluate(&graph, &feeds, &[loss])[0].sum()
        }));
    }
    let shapes: Vec<&[usize]> = inputs.iter().map(Sample::shape).collect();
    println!("{name} {shapes:?}: worst relative error {worst:.1e}");
    assert!(worst <= TOLERANCE, "{name} {shapes:?}: {worst:e}");
}

/// Checks an operator of several against its body: the largest difference of their outputs.
pub fn check_body(op: impl Op + 'static, inputs: &[Sample], tolerance: f64) {
    let mut graph = Graph::new();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut feeds = BTreeMap::new();
    let mut handles = Vec::new();
    for (i, sample) in inputs.iter().enumerate() {
        handles.push(graph.input(&format!("input{i}"), sample.tensor_type()));
        let array = match sample {
            Sample::Random(shape) => random(shape, &mut rng),
            Sample::Given(_, array) => array.clone(),
        };
        feeds.insert(format!("input{i}"), array);
    }
    let arrays: Vec<&Array> = (0..inputs.len()).map(|i| &feeds[&format!("input{i}")]).collect();
    let expected = op.evaluate(&arrays);
    let outputs = op.body(&mut graph, &handles).unwrap();
    let found = evaluate(&graph, &feeds, &outputs);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.shape(), expected.shape());
        let worst = (found - expected).iter().fold(0.0_f64, |worst, error| worst.max(error.abs()));
        assert!(worst <= tolerance, "{}: {worst:e}", op.name());
    }
}

/// The message with which an operator refuses inputs.
pub fn refused(op: impl Op + 'static, inputs: &[Sample]) -> String {
    let mut graph = Graph::new();
    let inputs: Vec<Value> = inputs.iter().map(|sample| graph.input("x", sample.tensor_type())).collect();
    graph.apply(op, &inputs).unwrap_err().to_string()
}
