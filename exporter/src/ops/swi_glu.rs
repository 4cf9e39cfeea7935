//! The gated activation of Shazeer 2020, "GLU Variants Improve Transformer", equation 6.

use marionette_models::bundle::DataType;

use super::swi_glu_gradient::SwiGluGradient;
use super::{Domain, Op, arity};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType};

/// y = silu(u) ⊙ v with u and v the halves of each row of x \[N, 2 F\], silu(u) = u σ(u). ∂x is [`super::swi_glu_gradient`].
#[derive(Debug, Clone, Copy)]
struct SwiGlu;

/// The halves of rows.
pub(super) fn halves(x: &Array) -> [Array; 2] {
    let width = x.shape()[1] / 2;
    [(0..width), (width..2 * width)].map(|range| x.slice_axis(ndarray::Axis(1), range.into()).to_owned())
}

/// N and F.
pub(super) fn dimensions(x: &TensorType) -> Result<[Dim; 2], String> {
    match x.shape[..] {
        [rows, Dim::Fixed(both)] if x.dtype == DataType::F32 && both % 2 == 0 => Ok([rows, Dim::Fixed(both / 2)]),
        _ => Err("expected f32[N, 2 F]".into()),
    }
}

impl Op for SwiGlu {
    fn name(&self) -> &'static str {
        "SwiGlu"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = arity(inputs)?;
        Ok(vec![TensorType::f32(dimensions(x)?)])
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let parts = graph.split(inputs[0], -1, 2)?;
        let sigma = graph.sigmoid(parts[0])?;
        let gate = graph.mul(parts[0], sigma)?;
        Ok(vec![graph.mul(gate, parts[1])?])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dy = node.gradient(graph, 0)?;
        Ok(vec![Some(graph.apply_one(SwiGluGradient, &[dy, node.inputs[0]])?)])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let [u, v] = halves(inputs[0]);
        vec![u.mapv(|u| u / (1.0 + (-u).exp())) * v]
    }
}

impl Graph {
    /// silu of the first half of each row times the second: f32\[N, 2 F\] to \[N, F\].
    ///
    /// # Errors
    /// The rows are not of an even fixed length.
    pub fn swi_glu(&mut self, x: Value) -> Result<Value, GraphError> {
        self.apply_one(SwiGlu, &[x])
    }
}

#[cfg(test)]
mod tests {
    use super::SwiGlu;
    use crate::testing::{check_body, check_gradient, float, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(SwiGlu, &[float(&[3, 8])]);
    }

    #[test]
    fn the_body_is_what_the_operator_is() {
        check_body(SwiGlu, &[float(&[3, 8])], 1e-12);
        assert!(refused(SwiGlu, &[float(&[3, 7])]).contains("2 F"));
    }
}
