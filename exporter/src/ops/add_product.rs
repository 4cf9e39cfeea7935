//! A product added to what goes past it: how an adapter ends, forward and back (Houlsby et al. 2019, figure 2).

use marionette_models::bundle::DataType;
use ndarray::Ix2;

use super::{Domain, Op, Transposed};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::TensorType;

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddProduct {
    /// y = A B + b + x + r: A \[M, K\], B \[K, N\], b \[N\], x and r \[M, N\].
    AdapterUp,
    /// y = A Bᵀ + x: A \[M, K\], B \[N, K\], x \[M, N\].
    AdapterDownGradient,
}

impl Op for AddProduct {
    fn name(&self) -> &'static str {
        match self {
            Self::AdapterUp => "AdapterUp",
            Self::AdapterDownGradient => "AdapterDownGradient",
        }
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let shapes: Vec<_> = inputs.iter().map(|input| &input.shape[..]).collect();
        let fits = match (self, &shapes[..]) {
            (Self::AdapterUp, [[m, k], [l, n], [o], x, r]) => k == l && n == o && *x == [*m, *n] && r == x,
            (Self::AdapterDownGradient, [[m, k], [n, l], x]) => k == l && *x == [*m, *n],
            _ => false,
        };
        if !fits || inputs.iter().any(|input| input.dtype != DataType::F32) {
            return Err("expected f32 of fitting shapes".into());
        }
        Ok(inputs.last().map(|last| (*last).clone()).into_iter().collect())
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        match *inputs {
            [a, b, bias, x, residual] => {
                let product = graph.gemm(a, b, Some(bias), Transposed::default())?;
                let sum = graph.add(x, product)?;
                Ok(vec![graph.add(residual, sum)?])
            }
            _ => {
                let product = graph.gemm(inputs[0], inputs[1], None, Transposed { a: false, b: true })?;
                Ok(vec![graph.add(inputs[2], product)?])
            }
        }
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let [a, b, bias, ..] = *node.inputs else {
            return Err(super::no_gradient(self.name(), "it is part of one"));
        };
        if *self == Self::AdapterDownGradient {
            return Err(super::no_gradient(self.name(), "it is part of one"));
        }
        let dy = node.gradient(graph, 0)?;
        let mut gradients = vec![None, None, None, Some(dy), Some(dy)];
        if node.wanted[0] {
            gradients[0] = Some(graph.gemm(dy, b, None, Transposed { a: false, b: true })?);
        }
        if node.wanted[1] {
            gradients[1] = Some(graph.gemm(a, dy, None, Transposed { a: true, b: false })?);
        }
        if node.wanted[2] {
            let shape = graph.shape(bias).to_vec();
            gradients[2] = Some(graph.sum_to(dy, &shape)?);
        }
        Ok(gradients)
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let [a, b] = [inputs[0], inputs[1]].map(|input| input.view().into_dimensionality::<Ix2>().unwrap());
        let product = if *self == Self::AdapterUp { a.dot(&b) } else { a.dot(&b.t()) };
        vec![inputs[2..].iter().fold(product.into_dyn(), |sum, input| sum + *input)]
    }
}

impl Graph {
    /// The end of an adapter: `hidden` \[M, K\] times `weight` \[K, N\], plus `bias` \[N\], `x` and `residual` \[M, N\].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn adapter_up(
        &mut self,
        hidden: Value,
        [weight, bias]: [Value; 2],
        x: Value,
        residual: Value,
    ) -> Result<Value, GraphError> {
        self.apply_one(AddProduct::AdapterUp, &[hidden, weight, bias, x, residual])
    }
}

#[cfg(test)]
mod tests {
    use super::AddProduct;
    use crate::testing::{check_body, check_gradient, float, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient(
            AddProduct::AdapterUp,
            &[float(&[3, 2]), float(&[2, 4]), float(&[4]), float(&[3, 4]), float(&[3, 4])],
        );
    }

    #[test]
    fn the_body_is_what_the_operator_is() {
        let inputs = [float(&[3, 2]), float(&[2, 4]), float(&[4]), float(&[3, 4]), float(&[3, 4])];
        check_body(AddProduct::AdapterUp, &inputs, 1e-12);
        check_body(AddProduct::AdapterDownGradient, &[float(&[3, 2]), float(&[4, 2]), float(&[3, 4])], 1e-12);
    }

    #[test]
    fn other_shapes_are_refused() {
        let inputs = [float(&[3, 2]), float(&[2, 4]), float(&[4]), float(&[3, 4]), float(&[1, 4])];
        assert!(refused(AddProduct::AdapterUp, &inputs).contains("fitting shapes"));
        let inputs = [float(&[3, 2]), float(&[2, 4]), float(&[3, 4])];
        assert!(refused(AddProduct::AdapterDownGradient, &inputs).contains("fitting shapes"));
    }
}
