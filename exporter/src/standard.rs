//! A graph in ONNX's own operators alone, for runtimes and execution providers that know no others.

use std::collections::BTreeMap;

use crate::error::GraphError;
use crate::graph::{Domain, Graph, Origin, Value};
use crate::shape::Dim;

/// The same graph, with every operator of another domain replaced by its body ([`crate::graph::Op::body`]).
///
/// # Errors
/// An operator has none.
pub fn standard(graph: &Graph) -> Result<Graph, GraphError> {
    let mut result = Graph::new();
    let mut new: BTreeMap<Value, Value> = BTreeMap::new();
    for value in graph.handles() {
        let data = graph.data(value);
        let made = match &data.origin {
            Origin::Input => result.input(&data.name, data.tensor.clone()),
            Origin::Weight(part) => result.weight(part, data.tensor.clone()),
            Origin::Constant(bytes) => {
                let fixed = |dim: &Dim| if let Dim::Fixed(size) = dim { *size } else { 0 };
                let shape: Vec<usize> = data.tensor.shape.iter().map(fixed).collect();
                result.constant(data.tensor.dtype, &shape, bytes.clone())
            }
            Origin::Node => continue,
        };
        new.insert(value, made);
    }
    for node in &graph.nodes {
        result.set_scope(node.scope.clone());
        let inputs: Vec<Value> = node.inputs.iter().map(|input| new[input]).collect();
        let outputs = match node.op.domain() {
            Domain::Onnx => result.apply_shared(node.op.clone(), &inputs)?,
            Domain::Microsoft | Domain::Marionette => node.op.body(&mut result, &inputs)?,
        };
        new.extend(node.outputs.iter().copied().zip(outputs));
    }
    for &output in &graph.outputs {
        result.output(new[&output], graph.name(output))?;
    }
    Ok(result)
}
