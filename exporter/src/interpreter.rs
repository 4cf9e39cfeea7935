//! Graphs computed here, in f64: what the exporter measures a precision's error with, and what tests check graphs with.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::array::{Array, decode};
use crate::graph::{Graph, Node, Origin, Value};
use crate::shape::{Dim, TensorType};

/// A graph with its weights, of which all that depends on weights alone is computed once.
#[derive(Debug)]
pub struct Interpreter<'a> {
    graph: &'a Graph,
    constants: Vec<Option<Rc<Array>>>,
}

impl<'a> Interpreter<'a> {
    /// Reads the weights: `weight` gives those of a part of `weights.bin`, read as a type.
    ///
    /// # Errors
    /// `weight`'s.
    pub fn new<E>(graph: &'a Graph, mut weight: impl FnMut(&str, &TensorType) -> Result<Array, E>) -> Result<Self, E> {
        let mut constants: Vec<Option<Rc<Array>>> = Vec::new();
        for value in graph.handles() {
            let data = graph.data(value);
            constants.push(match &data.origin {
                Origin::Constant(bytes) => Some(Rc::new(decode(&data.tensor, bytes))),
                Origin::Weight(part) => Some(Rc::new(weight(part, &data.tensor)?)),
                Origin::Input | Origin::Node => None,
            });
        }
        let mut is_constant: Vec<bool> = constants.iter().map(Option::is_some).collect();
        let mut remaining = vec![0_usize; constants.len()];
        for node in &graph.nodes {
            let all = node.inputs.iter().all(|input| is_constant[input.index()]);
            node.outputs.iter().for_each(|output| is_constant[output.index()] = all);
            node.inputs.iter().for_each(|input| remaining[input.index()] += 1);
        }
        for node in graph.nodes.iter().filter(|node| node.inputs.iter().all(|input| is_constant[input.index()])) {
            let computed = apply(graph, node, &constants);
            for (output, array) in node.outputs.iter().zip(computed) {
                constants[output.index()] = Some(Rc::new(array));
            }
            for input in &node.inputs {
                remaining[input.index()] -= 1;
                if remaining[input.index()] == 0 {
                    constants[input.index()] = None;
                }
            }
        }
        Ok(Self { graph, constants })
    }

    /// The graph's outputs, by name, of inputs by name.
    pub fn run(&self, inputs: &BTreeMap<String, Array>) -> BTreeMap<String, Array> {
        let outputs = self.values(inputs, &self.graph.outputs);
        self.graph.outputs.iter().map(|&output| self.graph.name(output).to_owned()).zip(outputs).collect()
    }

    /// Any of the graph's values, of inputs by name.
    pub(crate) fn values(&self, inputs: &BTreeMap<String, Array>, wanted: &[Value]) -> Vec<Array> {
        let mut arrays = self.constants.clone();
        for &input in &self.graph.inputs {
            arrays[input.index()] = inputs.get(self.graph.name(input)).cloned().map(Rc::new);
        }
        compute(self.graph, arrays, wanted)
    }
}

/// Computes the wanted values of a graph from those that are there, and forgets each after its last use.
pub(crate) fn compute(graph: &Graph, mut arrays: Vec<Option<Rc<Array>>>, wanted: &[Value]) -> Vec<Array> {
    let mut remaining = vec![0_usize; arrays.len()];
    wanted.iter().for_each(|value| remaining[value.index()] += 1);
    let mut nodes = Vec::new();
    for node in graph.nodes.iter().rev() {
        let is_needed = |output: &Value| remaining[output.index()] > 0 && arrays[output.index()].is_none();
        if node.outputs.iter().any(is_needed) {
            node.inputs.iter().for_each(|input| remaining[input.index()] += 1);
            nodes.push(node);
        }
    }
    for node in nodes.into_iter().rev() {
        let computed = apply(graph, node, &arrays);
        for (output, array) in node.outputs.iter().zip(computed) {
            arrays[output.index()] = (remaining[output.index()] > 0).then(|| Rc::new(array));
        }
        for input in &node.inputs {
            remaining[input.index()] -= 1;
            if remaining[input.index()] == 0 {
                arrays[input.index()] = None;
            }
        }
    }
    wanted.iter().map(|value| array(&arrays, *value).clone()).collect()
}

/// A value that is there: nodes stand after those whose outputs they take.
#[allow(clippy::expect_used)]
fn array(arrays: &[Option<Rc<Array>>], value: Value) -> &Array {
    arrays[value.index()].as_deref().expect("the graph's inputs are all given")
}

fn apply(graph: &Graph, node: &Node, arrays: &[Option<Rc<Array>>]) -> Vec<Array> {
    let inputs: Vec<&Array> = node.inputs.iter().map(|input| array(arrays, *input)).collect();
    let outputs = node.op.evaluate(&inputs);
    for (array, &output) in outputs.iter().zip(&node.outputs) {
        // What runs must be of the shape that was inferred.
        let shape = graph.shape(output);
        let fits = |(found, dim): (&usize, &Dim)| !matches!(dim, Dim::Fixed(expected) if expected != found);
        assert!(
            array.ndim() == shape.len() && array.shape().iter().zip(shape).all(fits),
            "{}: {:?} is not {}",
            node.name,
            array.shape(),
            graph.tensor(output)
        );
    }
    outputs
}
