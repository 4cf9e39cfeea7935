//! An adapter for each row of a batch (Houlsby et al. 2019, figure 2): personas side by side.

use marionette_models::bundle::DataType;
use ndarray::{Axis, Ix2, s};

use super::{Domain, Op, arity};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// y = r + x + gelu(x D + d) U + u: x and r \[M, D\], of a batch's rows one after the other, as many of each; D \[B, D, R\], d \[B, R\],
/// U \[B, R, D\] and u \[B, D\], one for each row of the batch. (Steps and scores have one persona, whose adapters are products of all
/// rows at once.)
#[derive(Debug, Clone, Copy)]
struct RowAdapters;

/// M / B.
fn rows_of_each(all: Dim, batch: Dim) -> Option<Dim> {
    match (all, batch) {
        (Dim::Fixed(all), Dim::Fixed(batch)) => {
            (batch > 0 && all.is_multiple_of(batch)).then(|| Dim::Fixed(all / batch))
        }
        (all, batch) if all == batch => Some(Dim::Fixed(1)),
        (Dim::Product(first, each), Dim::Symbol(batch)) if first == batch => Some(Dim::Symbol(each)),
        _ => None,
    }
}

impl Op for RowAdapters {
    fn name(&self) -> &'static str {
        "RowAdapters"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let all: [&TensorType; 6] = arity(inputs)?;
        let fits = match all.map(|input| &input.shape[..]) {
            [[m, width], residual, [batch, d, r], d_bias, up, u_bias] => {
                residual == [*m, *width]
                    && d == width
                    && d_bias == [*batch, *r]
                    && up == [*batch, *r, *width]
                    && u_bias == [*batch, *width]
                    && rows_of_each(*m, *batch).is_some()
            }
            _ => false,
        };
        if !fits || inputs.iter().any(|input| input.dtype != DataType::F32) {
            return Err("expected f32 of fitting shapes".into());
        }
        Ok(vec![all[0].clone()])
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [x, residual, down, down_bias, up, up_bias] = [0, 1, 2, 3, 4, 5].map(|input| inputs[input]);
        let flat = graph.shape(x).to_vec();
        let (batch, width, bottleneck) = (graph.shape(down)[0], flat[1], graph.shape(down)[2]);
        let each = rows_of_each(flat[0], batch).unwrap_or(flat[0]);
        // Of D, since x has the batch's rows as a dimension of its own where one position of each is left, and no other body is the same.
        let of_each = [graph.length(down, 0)?, graph.integers(&[-1]), graph.size(width)?];
        let of_each = graph.concat(&of_each, 0)?;
        let rows = graph.reshape_to(x, &[batch, each, width], of_each)?;
        let mut bias = |bias: Value, width: Dim| {
            let of_each = [graph.integers(&[-1, 1]), graph.size(width)?];
            let of_each = graph.concat(&of_each, 0)?;
            graph.reshape_to(bias, &[batch, 1.into(), width], of_each)
        };
        let (down_bias, up_bias) = (bias(down_bias, bottleneck)?, bias(up_bias, width)?);
        let hidden = graph.mat_mul(rows, down)?;
        let hidden = graph.add(hidden, down_bias)?;
        let hidden = graph.gelu(hidden)?;
        let product = graph.mat_mul(hidden, up)?;
        let product = graph.add(product, up_bias)?;
        let together = [graph.integers(&[-1]), graph.size(width)?];
        let together = graph.concat(&together, 0)?;
        let product = graph.reshape_to(product, &flat, together)?;
        let sum = graph.add(x, product)?;
        Ok(vec![graph.add(residual, sum)?])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let mut y = inputs[0] + inputs[1];
        let batch = inputs[2].shape()[0];
        let each = y.shape()[0] / batch;
        for row in 0..batch {
            let of_row = |input: usize| inputs[input].index_axis(Axis(0), row);
            let matrix = |input: usize| of_row(input).into_dimensionality::<Ix2>().unwrap();
            let x = inputs[0].view().into_dimensionality::<Ix2>().unwrap();
            let x = x.slice(s![row * each..(row + 1) * each, ..]);
            let hidden = (x.dot(&matrix(2)).into_dyn() + of_row(3)).mapv(super::gelu::gelu);
            let product = hidden.into_dimensionality::<Ix2>().unwrap().dot(&matrix(4)).into_dyn() + of_row(5);
            let mut part = y.slice_axis_mut(Axis(0), (row * each..(row + 1) * each).into());
            part += &product;
        }
        vec![y]
    }
}

impl Graph {
    /// What goes past an adapter, `residual` \[M, D\], `x` \[M, D\], and what the adapter of each row of the batch adds: its D, d, U and u,
    /// with the rows of the batch before their own dimensions.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn row_adapters(&mut self, x: Value, residual: Value, adapters: [Value; 4]) -> Result<Value, GraphError> {
        let [down, down_bias, up, up_bias] = adapters;
        self.apply_one(RowAdapters, &[x, residual, down, down_bias, up, up_bias])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_body, float, refused};

    #[test]
    fn the_body_is_what_the_operator_is() {
        for (rows, batch) in [(3, 3), (6, 3), (4, 1)] {
            let adapters = [float(&[batch, 4, 2]), float(&[batch, 2]), float(&[batch, 2, 4]), float(&[batch, 4])];
            let inputs = [vec![float(&[rows, 4]), float(&[rows, 4])], adapters.into()].concat();
            check_body(RowAdapters, &inputs, 1e-12);
        }
    }

    /// One row of one value: y = 0.5 + 2 + gelu(2 · 3 − 5) · 4 + 1, and gelu(1) = 0.841192.
    #[test]
    fn a_row_is_what_its_own_adapter_makes_of_it() {
        let one = |values: &[f64], shape: &[usize]| Array::from_shape_vec(shape.to_vec(), values.to_vec()).unwrap();
        let (x, residual) = (one(&[2.0, 2.0], &[2, 1]), one(&[0.5, 0.5], &[2, 1]));
        let (down, down_bias) = (one(&[3.0, 0.0], &[2, 1, 1]), one(&[-5.0, 0.0], &[2, 1]));
        let (up, up_bias) = (one(&[4.0, 9.0], &[2, 1, 1]), one(&[1.0, 0.25], &[2, 1]));
        let y = RowAdapters.evaluate(&[&x, &residual, &down, &down_bias, &up, &up_bias]).remove(0);
        assert!((y[[0, 0]] - (3.5 + 4.0 * 0.841_192)).abs() < 1e-5, "{y}");
        assert!((y[[1, 0]] - 2.75).abs() < 1e-12, "{y}");
    }

    #[test]
    fn other_shapes_are_refused() {
        let inputs = |rows: usize| {
            [float(&[rows, 4]), float(&[rows, 4]), float(&[2, 4, 3]), float(&[2, 3]), float(&[2, 3, 4]), float(&[2, 4])]
        };
        assert!(refused(RowAdapters, &inputs(5)).contains("fitting shapes"));
        let mut inputs = inputs(4);
        inputs[5] = float(&[4]);
        assert!(refused(RowAdapters, &inputs).contains("fitting shapes"));
    }
}
