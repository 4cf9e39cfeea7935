//! A graph in ONNX's own operators alone, for runtimes and execution providers that know no others.

use crate::error::GraphError;
use crate::graph::{Domain, Graph, Origin};

/// The same graph, with every operator of another domain replaced by its body ([`crate::graph::Op::body`]).
///
/// # Errors
/// An operator has none.
pub fn standard(graph: &Graph) -> Result<Graph, GraphError> {
    let mut result = Graph::new();
    let new = result.repeat(graph, &[Domain::Onnx], |result, value| {
        let data = graph.data(value);
        Some(match &data.origin {
            Origin::Weight(part) => result.weight(part, data.tensor.clone()),
            _ => result.input(&data.name, data.tensor.clone()),
        })
    })?;
    for &output in &graph.outputs {
        result.output(new[&output], graph.name(output))?;
    }
    Ok(result)
}
