//! Reverse-mode differentiation over a graph (Griewank & Walther 2008, chapter 3): the gradient is more nodes of the same
//! graph. What the forward pass computes is kept for it, or computed a second time from checkpoints (Chen et al. 2016, section 3).

use std::collections::BTreeMap;
use std::ops::Range;

use marionette_models::bundle::DataType;

use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};

/// Adds the nodes that compute ∂ loss / ∂ w for each w of `wrt`, and gives their results, of the same shapes. Only values
/// on a path from a w to the loss get a gradient: none is computed for a frozen weight, nor for anything below the first w.
///
/// # Errors
/// The loss is no scalar of f32, does not depend on a w, or depends on it through an operator without gradient.
pub fn gradients(graph: &mut Graph, loss: Value, wrt: &[Value]) -> Result<Vec<Value>, GraphError> {
    gradients_from_checkpoints(graph, loss, wrt, &[])
}

/// As [`gradients`], with less memory and more arithmetic: of what was computed between one of the `checkpoints` and the next, nothing is
/// kept. The nodes between the two are there a second time, and wait for the gradient of the second. All that lies between must
/// depend on the first alone, on weights and on inputs; what comes after the last checkpoint is kept.
///
/// # Errors
/// As [`gradients`]; two checkpoints differ in shape.
pub fn gradients_from_checkpoints(
    graph: &mut Graph,
    loss: Value,
    wrt: &[Value],
    checkpoints: &[Value],
) -> Result<Vec<Value>, GraphError> {
    let is_scalar = graph.shape(loss).is_empty() && graph.tensor(loss).dtype == DataType::F32;
    if !is_scalar {
        return Err(GraphError::NotALoss(graph.tensor(loss).to_string()));
    }
    let forward = graph.nodes.len();
    let mut depends = vec![false; graph.values.len()];
    for &value in wrt {
        depends[value.index()] = true;
    }
    for node in &graph.nodes {
        if node.inputs.iter().any(|input| depends[input.index()]) {
            for &output in &node.outputs {
                // Integers and truth values do not change with small changes of anything.
                depends[output.index()] = graph.tensor(output).dtype == DataType::F32;
            }
        }
    }
    let segments = Segment::between(graph, checkpoints);
    // What stands for a value that was not kept.
    let mut again: BTreeMap<Value, Value> = BTreeMap::new();
    let mut gradients: Vec<Option<Value>> = vec![None; depends.len()];
    gradients[loss.index()] = Some(graph.scalar(1.0));
    for index in (0..forward).rev() {
        if let Some(segment) = segments.iter().find(|segment| segment.nodes.end == index + 1) {
            let gradient = gradients[segment.to.index()];
            again = gradient.map_or_else(|| Ok(BTreeMap::new()), |gradient| segment.again(graph, gradient))?;
        }
        let node = graph.nodes[index].clone();
        let output_gradients: Vec<_> = node.outputs.iter().map(|output| gradients[output.index()]).collect();
        let wanted: Vec<bool> = node.inputs.iter().map(|input| depends[input.index()]).collect();
        if output_gradients.iter().all(Option::is_none) || !wanted.contains(&true) {
            continue;
        }
        graph.set_scope(format!("gradient/{}", node.scope));
        let present = |values: &[Value]| -> Vec<Value> {
            values.iter().map(|value| again.get(value).copied().unwrap_or(*value)).collect()
        };
        let backward = Backward {
            inputs: &present(&node.inputs),
            outputs: &present(&node.outputs),
            output_gradients: &output_gradients,
            wanted: &wanted,
        };
        let input_gradients = node.op.gradient(graph, &backward).map_err(|error| match error {
            // The operator does not know where it is.
            GraphError::NoGradient { operator, problem, .. } => {
                GraphError::NoGradient { operator, scope: node.scope.clone(), problem }
            }
            other => other,
        })?;
        for ((&input, gradient), wanted) in node.inputs.iter().zip(input_gradients).zip(wanted) {
            let Some(gradient) = gradient.filter(|_| wanted) else { continue };
            let sum = match gradients[input.index()] {
                Some(before) => graph.add(before, gradient)?,
                None => gradient,
            };
            gradients[input.index()] = Some(sum);
        }
    }
    wrt.iter()
        .map(|&value| gradients[value.index()].ok_or_else(|| GraphError::Unreached(graph.name(value).to_owned())))
        .collect()
}

/// What is computed from one checkpoint to the next.
struct Segment {
    from: Value,
    to: Value,
    nodes: Range<usize>,
}

impl Segment {
    fn between(graph: &Graph, checkpoints: &[Value]) -> Vec<Self> {
        let made_by = |value: Value| graph.nodes.iter().position(|node| node.outputs.contains(&value));
        let end = |value| made_by(value).map_or(0, |index| index + 1);
        let pairs = checkpoints.iter().zip(checkpoints.iter().skip(1));
        pairs.map(|(&from, &to)| Self { from, to, nodes: end(from)..end(to) }).collect()
    }

    /// Adds the segment's nodes once more, to be computed once `gradient`, that of the segment's end, is there; gives what stands
    /// for each value now.
    fn again(&self, graph: &mut Graph, gradient: Value) -> Result<BTreeMap<Value, Value>, GraphError> {
        graph.set_scope("recomputed");
        let mut again = BTreeMap::from([(self.from, graph.once(self.from, gradient)?)]);
        for index in self.nodes.clone() {
            let node = graph.nodes[index].clone();
            if !node.inputs.iter().any(|input| again.contains_key(input)) {
                continue;
            }
            graph.set_scope(format!("recomputed/{}", node.scope));
            let inputs: Vec<Value> =
                node.inputs.iter().map(|input| again.get(input).copied().unwrap_or(*input)).collect();
            let outputs = graph.apply_shared(node.op.clone(), &inputs)?;
            again.extend(node.outputs.iter().copied().zip(outputs));
        }
        Ok(again)
    }
}

impl Graph {
    /// x \[N, D\], for what shall not be computed before `other`, of the same shape: nothing but a shape is taken from that.
    fn once(&mut self, x: Value, other: Value) -> Result<Value, GraphError> {
        let (shape, found) = (self.shape(x).to_vec(), self.shape(other).to_vec());
        if shape.len() != 2 || shape != found {
            return Err(GraphError::Checkpoint(self.tensor(x).to_string(), self.tensor(other).to_string()));
        }
        let rows = self.length(other, 0)?;
        let rest = self.integers(&[-1]);
        let target = self.concat(&[rows, rest], 0)?;
        self.reshape_to(x, &shape, target)
    }
}

#[cfg(test)]
mod tests;
