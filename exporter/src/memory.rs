//! How much memory a run of a graph takes: which values live at one time, if its nodes are computed in their order and each value is
//! forgotten after its last use.

use std::collections::BTreeMap;

use marionette_models::bundle::{DataType, RunMemory};

use crate::graph::{Graph, Origin, Used, Value};
use crate::graphs::TARGETS;
use crate::shape::{Dim, TensorType};

/// A bound of the memory that the values of a run take: the largest number of bytes a token, a pair and so on, each wherever it is
/// largest. What depends on weights alone is computed when a graph is opened, and belongs to no run.
pub fn of_a_run(graph: &Graph) -> RunMemory {
    let nodes = Used::of(graph).nodes;
    let mut is_constant: Vec<bool> = graph
        .handles()
        .map(|value| matches!(graph.data(value).origin, Origin::Weight(_) | Origin::Constant(_)))
        .collect();
    // A reshaped value is the same bytes.
    let mut holder: Vec<Value> = graph.handles().collect();
    let mut last_use: BTreeMap<Value, usize> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        if node.inputs.iter().all(|input| is_constant[input.index()]) {
            node.outputs.iter().for_each(|output| is_constant[output.index()] = true);
            continue;
        }
        if node.op.name() == "Reshape" {
            holder[node.outputs[0].index()] = holder[node.inputs[0].index()];
        }
        for value in node.inputs.iter().chain(&node.outputs) {
            last_use.insert(holder[value.index()], index);
        }
    }
    for output in &graph.outputs {
        last_use.insert(holder[output.index()], usize::MAX);
    }
    let (mut now, mut most) = (RunMemory::default(), RunMemory::default());
    let mut ends: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for &output in &node.outputs {
            let value = holder[output.index()];
            if value == output && !is_constant[output.index()] {
                now = each(now, bytes(graph.tensor(output)), |now, new| now + new);
                ends.entry(last_use.get(&value).copied().unwrap_or(index)).or_default().push(value);
            }
        }
        most = each(most, now, u64::max);
        for value in ends.remove(&index).unwrap_or_default() {
            now = each(now, bytes(graph.tensor(value)), u64::saturating_sub);
        }
    }
    most
}

fn each(a: RunMemory, b: RunMemory, f: impl Fn(u64, u64) -> u64) -> RunMemory {
    RunMemory {
        constant: f(a.constant, b.constant),
        token: f(a.token, b.token),
        pair: f(a.pair, b.pair),
        target: f(a.target, b.target),
    }
}

/// The bytes of one value, by what they depend on.
fn bytes(tensor: &TensorType) -> RunMemory {
    let mut size = match tensor.dtype {
        DataType::Bool | DataType::U8 | DataType::U4 => 1,
        DataType::F16 => 2,
        DataType::F32 | DataType::I32 => 4,
        DataType::F64 | DataType::I64 => 8,
    };
    let (mut rows, mut tokens, mut targets) = (0, 0, 0);
    for dim in &tensor.shape {
        match dim {
            Dim::Fixed(fixed) => size *= *fixed as u64,
            Dim::Product(..) => (rows, tokens) = (rows + 1, tokens + 1),
            Dim::Symbol(name) if *name == TARGETS => targets += 1,
            Dim::Symbol("batch") => rows += 1,
            Dim::Symbol(_) => tokens += 1,
        }
    }
    let none = RunMemory::default();
    match (rows.max(tokens), tokens, targets) {
        (_, _, 1..) => RunMemory { target: size, ..none },
        (0, ..) => RunMemory { constant: size, ..none },
        (_, 2.., _) => RunMemory { pair: size, ..none },
        _ => RunMemory { token: size, ..none },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::{BATCH, TOKENS};

    #[test]
    fn a_value_counts_from_its_node_to_its_last_use() {
        let graph = &mut Graph::new();
        let x = graph.input("x", TensorType::f32([BATCH, TOKENS, 3.into()]));
        // Two live at a time, 12 bytes a token each; the reshaped one is no third.
        let a = graph.add(x, x).unwrap();
        let b = graph.reshape(a, &[BATCH, TOKENS, 1.into(), 3.into()]).unwrap();
        let c = graph.mul(b, b).unwrap();
        let d = graph.mul(c, c).unwrap();
        // As many as a row has pairs of tokens, and the other two are still needed.
        let d = graph.reshape(d, &[BATCH, TOKENS, 3.into()]).unwrap();
        let turned = graph.transpose(d, &[0, 2, 1]).unwrap();
        let pairs = graph.mat_mul(d, turned).unwrap();
        graph.output(pairs, "pairs").unwrap();
        let memory = of_a_run(graph);
        assert_eq!((memory.token, memory.pair, memory.target), (24, 4, 0));
        // 2 rows of 5 tokens: 10 tokens, and twice 25 pairs.
        assert_eq!(RunMemory { constant: 0, ..memory }.of(2, 5, 7), 240 + 200);
    }
}
