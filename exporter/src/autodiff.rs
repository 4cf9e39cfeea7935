//! Reverse-mode differentiation over a graph (Griewank & Walther 2008, chapter 3): the gradient is more nodes of the same
//! graph.

use marionette_models::bundle::DataType;

use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, axis};

/// A node as its gradient sees it.
#[derive(Debug)]
pub struct Backward<'a> {
    /// What it took.
    pub inputs: &'a [Value],
    /// What it gave.
    pub outputs: &'a [Value],
    /// The gradient of the loss with respect to each output; `None` where the loss does not depend on it.
    pub output_gradients: &'a [Option<Value>],
    /// Which inputs' gradients are asked for. The others need no nodes.
    pub wanted: &'a [bool],
}

impl Backward<'_> {
    /// The gradient with respect to an output: zeros where the loss does not depend on it.
    ///
    /// # Errors
    /// A dimension is not known.
    pub fn gradient(&self, graph: &mut Graph, output: usize) -> Result<Value, GraphError> {
        match self.output_gradients[output] {
            Some(gradient) => Ok(gradient),
            None => {
                let shape = graph.shape(self.outputs[output]).to_vec();
                graph.zeros(&shape)
            }
        }
    }
}

/// Adds the nodes that compute ∂ loss / ∂ w for each w of `wrt`, and gives their results, of the same shapes. Only values
/// on a path from a w to the loss get a gradient: none is computed for a frozen weight, nor for anything below the first w.
///
/// # Errors
/// The loss is no scalar of f32, does not depend on a w, or depends on it through an operator without gradient.
pub fn gradients(graph: &mut Graph, loss: Value, wrt: &[Value]) -> Result<Vec<Value>, GraphError> {
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
    let mut gradients: Vec<Option<Value>> = vec![None; depends.len()];
    gradients[loss.index()] = Some(graph.scalar(1.0));
    for index in (0..forward).rev() {
        let node = graph.nodes[index].clone();
        let output_gradients: Vec<_> = node.outputs.iter().map(|output| gradients[output.index()]).collect();
        let wanted: Vec<bool> = node.inputs.iter().map(|input| depends[input.index()]).collect();
        if output_gradients.iter().all(Option::is_none) || !wanted.contains(&true) {
            continue;
        }
        graph.set_scope(format!("gradient/{}", node.scope));
        let backward = Backward {
            inputs: &node.inputs,
            outputs: &node.outputs,
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

impl Graph {
    /// Undoes a broadcast: sums `gradient` over the axes along which a value of `shape` was repeated.
    ///
    /// # Errors
    /// `shape` does not broadcast to the gradient's.
    pub fn sum_to(&mut self, gradient: Value, shape: &[Dim]) -> Result<Value, GraphError> {
        let from = self.shape(gradient).to_vec();
        let missing = from.len().saturating_sub(shape.len());
        let axes: Vec<i64> = (0..from.len())
            .filter(|&i| i < missing || (shape[i - missing] == Dim::Fixed(1) && from[i] != Dim::Fixed(1)))
            .map(|i| i as i64)
            .collect();
        if axes.is_empty() {
            return Ok(gradient);
        }
        let sum = self.reduce_sum(gradient, &axes, false)?;
        if self.shape(sum) == shape { Ok(sum) } else { self.reshape(sum, shape) }
    }

    /// x with its last two dimensions exchanged; of a matrix that is a transposed one already, that one.
    ///
    /// # Errors
    /// x has fewer than two.
    pub fn matrix_transpose(&mut self, x: Value) -> Result<Value, GraphError> {
        let made_by = self.nodes.iter().rev().find(|node| node.outputs == [x]);
        if let Some(node) = made_by.filter(|node| node.op.name() == "Transpose" && self.shape(x).len() == 2) {
            return Ok(node.inputs[0]);
        }
        let rank = self.shape(x).len();
        let mut permutation: Vec<usize> = (0..rank).collect();
        if let (Ok(row), Ok(column)) = (axis(-2, rank), axis(-1, rank)) {
            permutation.swap(row, column);
        }
        self.transpose(x, &permutation)
    }
}

#[cfg(test)]
mod tests;
