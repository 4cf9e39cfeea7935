//! Which nodes and values of a graph its outputs need.

use super::{Graph, Node, Value};

/// What the outputs need.
pub(crate) struct Used<'a> {
    pub nodes: Vec<&'a Node>,
    /// By the value's index: whether a node or the graph's outputs read it.
    read: Vec<bool>,
    /// By the value's index: whether it is in the model at all.
    present: Vec<bool>,
    handles: Vec<Value>,
}

impl<'a> Used<'a> {
    pub fn of(graph: &'a Graph) -> Self {
        let mut read = vec![false; graph.values.len()];
        for output in &graph.outputs {
            read[output.index()] = true;
        }
        let mut nodes = Vec::new();
        for node in graph.nodes.iter().rev() {
            if node.outputs.iter().any(|output| read[output.index()]) {
                for input in &node.inputs {
                    read[input.index()] = true;
                }
                nodes.push(node);
            }
        }
        nodes.reverse();
        let mut present = read.clone();
        for node in &nodes {
            for output in named(node, &read) {
                present[output.index()] = true;
            }
        }
        Self { nodes, read, present, handles: graph.handles().collect() }
    }

    pub fn values(&self) -> impl Iterator<Item = Value> {
        self.handles.iter().copied().filter(|value| self.present[value.index()])
    }

    /// A node's outputs without the last ones that nothing reads and that may be left out.
    pub fn named_outputs<'n>(&self, node: &'n Node) -> &'n [Value] {
        named(node, &self.read)
    }
}

fn named<'n>(node: &'n Node, read: &[bool]) -> &'n [Value] {
    let last_read = node.outputs.iter().rposition(|output| read[output.index()]).map_or(0, |index| index + 1);
    let count = last_read.max(node.op.required_outputs().min(node.outputs.len()));
    &node.outputs[..count]
}
