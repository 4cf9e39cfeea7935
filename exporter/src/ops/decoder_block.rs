//! A whole block of a decoder as one operator, for decoding, where a token's time is that of reading the weights, and every node, and
//! every thread that is woken for one, costs as much as reading some ten thousand of them.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Attribute, Domain, Op};
use crate::array::{Array, decode};
use crate::error::GraphError;
use crate::graph::{Graph, Origin, Value};
use crate::interpreter;
use crate::shape::TensorType;

/// What the nodes of a graph compute, of values of it that the inputs stand for. Its body is those nodes, the ones of our own domain
/// as their bodies.
///
/// Its inputs are x \[B, T, D\]; past keys and values \[B, G, C, dh\]; each row's last position i32\[B\] and the number of positions
/// after this call i32\[1\]; the positions' cosines and sines, where they are rotary; of the last block, which of all positions it
/// gives, i64\[N\]; then the block's tensors in their order ([`marionette_models::params::names::Block`]), a matrix's parts one after
/// the other, without adapters where it has none. It gives x \[B, T, D\], or \[N, D\], and the present keys and values.
#[derive(Debug)]
pub(crate) struct DecoderBlock {
    graph: Graph,
    inputs: Vec<Value>,
    attributes: Vec<(&'static str, Attribute)>,
    name: &'static str,
}

impl DecoderBlock {
    /// Of a graph, its `inputs` (inputs and weights of it) in their order, and its outputs; whether it has `adapters`, and is the last, which has.
    pub(crate) fn new(
        mut graph: Graph,
        inputs: Vec<Value>,
        attributes: Vec<(&'static str, Attribute)>,
        [adapters, is_last]: [bool; 2],
    ) -> Self {
        let name = match (adapters, is_last) {
            (false, _) => "BareDecoderBlock",
            (true, false) => "DecoderBlock",
            (true, true) => "LastDecoderBlock",
        };
        // Bodies of all blocks have the same names.
        graph.nodes.iter_mut().for_each(|node| node.scope.clear());
        Self { graph, inputs, attributes, name }
    }
}

impl Op for DecoderBlock {
    fn name(&self) -> &'static str {
        self.name
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.attributes.clone()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if inputs.len() != self.inputs.len() {
            return Err(format!("{} inputs, expected {}", inputs.len(), self.inputs.len()));
        }
        for (input, &expected) in inputs.iter().zip(&self.inputs) {
            if *input != self.graph.tensor(expected) {
                return Err(format!(
                    "{input}, expected {} for {}",
                    self.graph.tensor(expected),
                    self.graph.name(expected)
                ));
            }
        }
        Ok(self.graph.outputs.iter().map(|&output| self.graph.tensor(output).clone()).collect())
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let given: BTreeMap<Value, Value> = self.inputs.iter().copied().zip(inputs.iter().copied()).collect();
        let domains = [Domain::Onnx, Domain::Microsoft];
        let new = graph.repeat(&self.graph, &domains, |_, value| given.get(&value).copied())?;
        Ok(self.graph.outputs.iter().map(|output| new[output]).collect())
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let constant = |value: Value| match &self.graph.data(value).origin {
            Origin::Constant(bytes) => Some(Rc::new(decode(self.graph.tensor(value), bytes))),
            _ => None,
        };
        let mut arrays: Vec<Option<Rc<Array>>> = self.graph.handles().map(constant).collect();
        for (value, &array) in self.inputs.iter().zip(inputs) {
            arrays[value.index()] = Some(Rc::new(array.clone()));
        }
        interpreter::compute(&self.graph, arrays, &self.graph.outputs)
    }
}
