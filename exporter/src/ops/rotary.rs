//! Rotary position embedding (Su et al. 2021, equation 34), with the halves of a head for its pairs, as in Hugging Face transformers.

use marionette_models::bundle::DataType;

use super::{Attribute, Domain, Op, arity, no_gradient};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType};

/// Of each token's heads side by side, x \[B, T, heads · dh\], turns the first `turned`: values i and i + dh / 2 of a head become
/// x_i cos_i − x_j sin_i and x_j cos_i + x_i sin_i. Takes x, and cosines and sines \[T, dh / 2\] or \[B, T, dh / 2\].
///
/// ∂x turns ∂y back, which is the same with the sines' signs changed.
#[derive(Debug, Clone, Copy)]
struct Rotary {
    turned: usize,
}

/// The number of heads, and dh / 2.
fn dimensions(x: &TensorType, cosines: &TensorType, turned: usize) -> Result<[usize; 2], String> {
    match (&x.shape[..], &cosines.shape[..]) {
        ([batch, tokens, Dim::Fixed(width)], [rest @ .., same, Dim::Fixed(half)])
            if x.dtype == DataType::F32
                && same == tokens
                && (rest.is_empty() || rest == [*batch])
                && *half > 0
                && width % (2 * half) == 0
                && width / (2 * half) >= turned =>
        {
            Ok([width / (2 * half), *half])
        }
        _ => Err(format!("expected f32[B, T, heads · dh] of {turned} heads or more, and angles f32[T, dh / 2]")),
    }
}

impl Op for Rotary {
    fn name(&self) -> &'static str {
        "Rotary"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("num_heads", Attribute::Int(self.turned as i64))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, cosines, sines] = arity(inputs)?;
        dimensions(x, cosines, self.turned)?;
        match cosines == sines && cosines.dtype == DataType::F32 {
            true => Ok(vec![x.clone()]),
            false => Err("cosines and sines differ".into()),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [x, cosines, sines] = [inputs[0], inputs[1], inputs[2]];
        let [heads, half] =
            dimensions(graph.tensor(x), graph.tensor(cosines), self.turned).map_err(GraphError::UnknownDimension)?;
        let shape = graph.shape(x).to_vec();
        let apart = graph.reshape(x, &[shape[0], shape[1], heads.into(), (2 * half).into()])?;
        let parts = graph.split_at(apart, 2, &[self.turned, heads - self.turned])?;
        let halves = graph.split(parts[0], -1, 2)?;
        let mut column = graph.shape(cosines).to_vec();
        column.insert(column.len() - 1, 1.into());
        let (cosines, sines) = (graph.reshape(cosines, &column)?, graph.reshape(sines, &column)?);
        let mut product = |half: usize, by: Value| graph.mul(halves[half], by);
        let products = [product(0, cosines)?, product(1, sines)?, product(1, cosines)?, product(0, sines)?];
        let first = graph.sub(products[0], products[1])?;
        let second = graph.add(products[2], products[3])?;
        let turned = graph.concat(&[first, second], -1)?;
        let mut all = vec![turned];
        all.extend(parts.get(1));
        let whole = if all.len() > 1 { graph.concat(&all, 2)? } else { turned };
        Ok(vec![graph.reshape(whole, &shape)?])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        if node.wanted[1] || node.wanted[2] {
            return Err(no_gradient(self.name(), "its angles are constants"));
        }
        let dy = node.gradient(graph, 0)?;
        let minus_one = graph.scalar(-1.0);
        let back = graph.mul(node.inputs[2], minus_one)?;
        Ok(vec![Some(graph.apply_one(*self, &[dy, node.inputs[1], back])?), None, None])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let half = inputs[1].shape()[inputs[1].ndim() - 1];
        let mut y = inputs[0].clone();
        let angle = |angles: &Array, b: usize, t: usize, i: usize| match angles.ndim() {
            2 => angles[[t, i]],
            _ => angles[[b, t, i]],
        };
        for b in 0..y.shape()[0] {
            for t in 0..y.shape()[1] {
                for (head, i) in (0..self.turned).flat_map(|head| (0..half).map(move |i| (head, i))) {
                    let (one, other) = ([b, t, 2 * half * head + i], [b, t, 2 * half * head + half + i]);
                    let (cosine, sine) = (angle(inputs[1], b, t, i), angle(inputs[2], b, t, i));
                    y[one] = inputs[0][one] * cosine - inputs[0][other] * sine;
                    y[other] = inputs[0][other] * cosine + inputs[0][one] * sine;
                }
            }
        }
        vec![y]
    }
}

impl Graph {
    /// x f32\[B, T, heads · dh\] with its first `turned` heads turned by angles whose cosines and sines, \[T, dh / 2\] or
    /// \[B, T, dh / 2\], are given.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn rotary(&mut self, x: Value, turned: usize, [cosines, sines]: [Value; 2]) -> Result<Value, GraphError> {
        self.apply_one(Rotary { turned }, &[x, cosines, sines])
    }
}

#[cfg(test)]
mod tests {
    use super::Rotary;
    use crate::testing::{check_body, check_gradient_by, float, refused};

    #[test]
    fn the_body_is_what_the_operator_is() {
        for angles in [&[3, 4][..], &[2, 3, 4]] {
            check_body(Rotary { turned: 2 }, &[float(&[2, 3, 24]), float(angles), float(angles)], 1e-12);
            check_body(Rotary { turned: 3 }, &[float(&[2, 3, 24]), float(angles), float(angles)], 1e-12);
        }
    }

    #[test]
    fn gradient_is_that_of_central_differences() {
        for angles in [&[3, 2][..], &[2, 3, 2]] {
            check_gradient_by(Rotary { turned: 2 }, &[float(&[2, 3, 12]), float(angles), float(angles)], &[0], 1);
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let op = || Rotary { turned: 3 };
        assert!(refused(op(), &[float(&[2, 3, 16]), float(&[3, 4]), float(&[3, 4])]).contains("3 heads"));
        assert!(refused(op(), &[float(&[2, 3, 24]), float(&[2, 4]), float(&[2, 4])]).contains("angles"));
        assert!(refused(op(), &[float(&[2, 3, 24]), float(&[3, 4]), float(&[2, 3, 4])]).contains("differ"));
    }
}
