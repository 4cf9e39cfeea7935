//! The gradient of [`super::causal_attention`] with respect to queries, keys and values.

use ndarray::{Axis, Ix3, s};

use super::causal_attention::{Heads, each_head, heads_apart, scale, scores, shares, side_by_side, visible};
use super::{Attribute, Domain, Op, arity};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// With the shares P = exp(q Kᵀ / √dh − l): ∂V = Pᵀ ∂y, ∂S = P ⊙ (∂y Vᵀ − ∂y · y), ∂q = ∂S K / √dh, ∂K = ∂Sᵀ q / √dh (Dao 2023,
/// algorithm 2). ∂K and ∂V are summed over the heads that share them. Takes ∂y and y \[B, T, H dh\], queries, keys and values side by
/// side \[B, T, (H + 2 G) dh\], and l, the logarithm of each
/// token's sum of exponentials, \[B, H, T\]; gives the gradients side by side.
#[derive(Debug, Clone, Copy)]
pub(super) struct CausalAttentionGradient {
    pub heads: Heads,
}

impl Op for CausalAttentionGradient {
    fn name(&self) -> &'static str {
        "CausalAttentionGradient"
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.heads.attributes()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [dy, y, qkv, log_sum] = arity(inputs)?;
        let (batch, tokens, head_dim) = self.heads.dimensions(qkv)?;
        let output = TensorType::f32([batch, tokens, (self.heads.queries * head_dim).into()]);
        let sums = TensorType::f32([batch, self.heads.queries.into(), tokens]);
        if [dy, y] != [&output; 2] || *log_sum != sums {
            return Err(format!("expected twice {output}, {qkv} and {sums}"));
        }
        Ok(vec![qkv.clone()])
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [dy, y, qkv, log_sum] = [inputs[0], inputs[1], inputs[2], inputs[3]];
        let [query, key, value] = self.heads.apart(graph, qkv)?;
        let (key, value) = (self.heads.repeated(graph, key)?, self.heads.repeated(graph, value)?);
        let visible = visible(graph, qkv, None)?;
        let scores = scores(graph, [query, key], visible)?;
        let column = [graph.shape(log_sum), &[Dim::Fixed(1)]].concat();
        let log_sum = graph.reshape(log_sum, &column)?;
        let logarithms = graph.sub(scores, log_sum)?;
        let shares = graph.exp(logarithms)?;

        let d_mixed = heads_apart(graph, dy, self.heads.queries)?;
        let mixed = heads_apart(graph, y, self.heads.queries)?;
        let turned = graph.matrix_transpose(shares)?;
        let d_value = graph.mat_mul(turned, d_mixed)?;
        let value = graph.matrix_transpose(value)?;
        let d_shares = graph.mat_mul(d_mixed, value)?;
        let along = graph.mul(d_mixed, mixed)?;
        let along = graph.reduce_sum(along, &[-1], true)?;
        let d_scores = graph.sub(d_shares, along)?;
        let d_scores = graph.mul(shares, d_scores)?;
        let scale = scale(graph, key);
        let d_query = graph.mat_mul(d_scores, key)?;
        let d_query = graph.mul(d_query, scale)?;
        let turned = graph.matrix_transpose(d_scores)?;
        let d_key = graph.mat_mul(turned, query)?;
        let d_key = graph.mul(d_key, scale)?;
        let (d_key, d_value) = (self.heads.summed(graph, d_key)?, self.heads.summed(graph, d_value)?);
        let mut parts = Vec::with_capacity(3);
        for part in [d_query, d_key, d_value] {
            parts.push(side_by_side(graph, part)?);
        }
        Ok(vec![graph.concat(&parts, -1)?])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let [dy, y] = [inputs[0], inputs[1]].map(|x| x.view().into_dimensionality::<Ix3>().unwrap());
        let mut gradient = Array::zeros(inputs[2].raw_dim()).into_dimensionality::<Ix3>().unwrap();
        each_head(inputs[2], self.heads, |row, head, [query, key, value]| {
            let head_dim = key.ncols();
            let columns = head * head_dim..(head + 1) * head_dim;
            let [dy, y] = [&dy, &y].map(|x| x.slice(s![row, .., columns.clone()]));
            // The sums that are given are those that the shares bring with them.
            let (shares, _) = shares(query, key, |j, i| i <= j);
            let along = (&dy * &y).sum_axis(Axis(1)).insert_axis(Axis(1));
            let d_scores = (dy.dot(&value.t()) - along) * &shares / (head_dim as f64).sqrt();
            let key_place = self.heads.queries + head * self.heads.shared / self.heads.queries;
            let places = [head, key_place, key_place + self.heads.shared];
            for (place, values) in
                places.into_iter().zip([d_scores.dot(&key), d_scores.t().dot(&query), shares.t().dot(&dy)])
            {
                let mut part = gradient.slice_mut(s![row, .., place * head_dim..(place + 1) * head_dim]);
                part += &values;
            }
        });
        vec![gradient.into_dyn()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::CausalAttentionGradient;
    use crate::graph::Graph;
    use crate::graph::Op as _;
    use crate::ops::causal_attention::CausalAttention;
    use crate::ops::causal_attention::tests::heads;
    use crate::shape::TensorType;
    use crate::testing::{evaluate, float, random, refused};

    #[test]
    fn the_body_is_what_the_operator_is() {
        for heads in [heads(2, 2), heads(4, 2)] {
            check(heads, 2 * heads.queries);
        }
    }

    fn check(heads: crate::ops::Heads, outputs: usize) {
        use rand::SeedableRng as _;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let (qkv, dy) = (random(&[2, 5, 2 * heads.all()], &mut rng), random(&[2, 5, outputs], &mut rng));
        // What attention gave must belong to what it took.
        let given = CausalAttention { heads, branched: false }.evaluate(&[&qkv]);
        let arrays = [&dy, &given[0], &qkv, &given[1]];
        let expected = CausalAttentionGradient { heads }.evaluate(&arrays);
        let (mut graph, mut feeds, mut inputs) = (Graph::new(), BTreeMap::new(), Vec::new());
        for (i, array) in arrays.into_iter().enumerate() {
            let shape: Vec<crate::shape::Dim> = array.shape().iter().map(|&dim| dim.into()).collect();
            inputs.push(graph.input(&format!("input{i}"), TensorType::f32(shape)));
            feeds.insert(format!("input{i}"), array.clone());
        }
        let outputs = CausalAttentionGradient { heads }.body(&mut graph, &inputs).unwrap();
        let found = evaluate(&graph, &feeds, &outputs);
        let worst = (&found[0] - &expected[0]).iter().fold(0.0_f64, |worst, error| worst.max(error.abs()));
        assert!(worst < 1e-6, "{worst:e}");
    }

    #[test]
    fn other_shapes_are_refused() {
        let samples = [float(&[2, 5, 8]), float(&[2, 5, 8]), float(&[2, 5, 24]), float(&[2, 5, 2])];
        assert!(refused(CausalAttentionGradient { heads: heads(2, 2) }, &samples).contains("[2, 2, 5]"));
    }
}
