//! Attention in which a token sees itself and what is before it (Vaswani et al. 2017, equation 1): one operator for all heads of a
//! block, from queries, keys and values as the layer before gives them, to what the layer after takes.

use marionette_models::bundle::DataType;
use ndarray::{Array2, ArrayView2, Axis, Ix3, s};

use super::causal_attention_gradient::CausalAttentionGradient;
use super::{Attribute, Domain, Op, no_gradient};
use crate::autodiff::Backward;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::interpreter::Array;
use crate::shape::{Dim, TensorType};

/// What a masked score becomes: softmax makes exactly 0 of it, and no infinity takes part in any arithmetic.
pub(crate) const MASKED: f32 = -1e30;

/// For each of H heads, softmax(q Kᵀ / √dh) V over what a token sees. Takes queries, keys and values side by side
/// \[B, T, 3 D\], and where it is branched each token's branch, i64\[B, T\]: token j sees token i iff i <= j and i is of branch 0
/// or of j's branch. Gives the heads' outputs side by side \[B, T, D\] and the logarithm of each token's sum of exponentials,
/// \[B, H, T\], with which the gradient computes the shares again (Dao 2023, section 3.1).
#[derive(Debug, Clone, Copy)]
pub(super) struct CausalAttention {
    pub heads: usize,
    pub branched: bool,
}

/// B, T and dh of queries, keys and values side by side.
pub(super) fn dimensions(qkv: &TensorType, heads: usize) -> Result<[Dim; 3], String> {
    match &qkv.shape[..] {
        [batch, tokens, Dim::Fixed(width)]
            if qkv.dtype == DataType::F32 && heads > 0 && width % (3 * heads) == 0 && *width > 0 =>
        {
            Ok([*batch, *tokens, Dim::Fixed(width / 3 / heads)])
        }
        _ => Err(format!("expected queries, keys and values of {heads} heads, f32[B, T, 3 D]")),
    }
}

impl Op for CausalAttention {
    fn name(&self) -> &'static str {
        if self.branched { "BranchedAttention" } else { "CausalAttention" }
    }

    fn domain(&self) -> Domain {
        Domain::Marionette
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("num_heads", Attribute::Int(self.heads as i64))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (qkv, branch) = match inputs {
            [qkv] if !self.branched => (qkv, None),
            [qkv, branch] if self.branched => (qkv, Some(branch)),
            _ => return Err(format!("{} inputs, expected one, and the branches where there are any", inputs.len())),
        };
        let [batch, tokens, head_dim] = dimensions(qkv, self.heads)?;
        if branch.is_some_and(|branch| branch.dtype != DataType::I64 || branch.shape != [batch, tokens]) {
            return Err("expected branches i64[B, T]".into());
        }
        let Dim::Fixed(head_dim) = head_dim else { return Err("expected heads of a fixed width".into()) };
        Ok(vec![
            TensorType::f32([batch, tokens, Dim::Fixed(self.heads * head_dim)]),
            TensorType::f32([batch, self.heads.into(), tokens]),
        ])
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let qkv = inputs[0];
        let [query, key, value] = by_heads(graph, qkv, self.heads)?;
        let visible = visible(graph, qkv, inputs.get(1).copied())?;
        let scores = scores(graph, [query, key], visible)?;
        let log_sum = graph.log_sum_exp(scores)?;
        let shares = graph.softmax(scores)?;
        let mixed = graph.mat_mul(shares, value)?;
        Ok(vec![side_by_side(graph, mixed)?, log_sum])
    }

    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        if self.branched || node.output_gradients[1].is_some() {
            return Err(no_gradient(self.name(), "there are branches, or the loss depends on its sums"));
        }
        let dy = node.gradient(graph, 0)?;
        let inputs = [dy, node.outputs[0], node.inputs[0], node.outputs[1]];
        Ok(vec![Some(graph.apply_one(CausalAttentionGradient { heads: self.heads }, &inputs)?)])
    }

    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
        let [batch, tokens, width] = [0, 1, 2].map(|axis| inputs[0].shape()[axis]);
        let mut y = Array::zeros(vec![batch, tokens, width / 3]).into_dimensionality::<Ix3>().unwrap();
        let mut log_sum = Array::zeros(vec![batch, self.heads, tokens]).into_dimensionality::<Ix3>().unwrap();
        each_head(inputs[0], self.heads, |row, head, [query, key, value]| {
            let branch = inputs.get(1).map(|branch| branch.index_axis(Axis(0), row));
            let sees = |j: usize, i: usize| {
                let related = branch.as_ref().is_none_or(|branch| branch[i] == 0.0 || branch[i] == branch[j]);
                i <= j && related
            };
            let (shares, sums) = shares(query, key, sees);
            let columns = head * key.ncols()..(head + 1) * key.ncols();
            y.slice_mut(s![row, .., columns]).assign(&shares.dot(&value));
            log_sum.slice_mut(s![row, head, ..]).assign(&ndarray::Array1::from(sums));
        });
        vec![y.into_dyn(), log_sum.into_dyn()]
    }
}

/// Calls `f` with each row of a batch, each head, and its queries, keys and values \[T, dh\].
pub(super) fn each_head(qkv: &Array, heads: usize, mut f: impl FnMut(usize, usize, [ArrayView2<'_, f64>; 3])) {
    let qkv = qkv.view().into_dimensionality::<Ix3>().unwrap();
    let width = qkv.shape()[2] / 3;
    let head_dim = width / heads;
    for (index, row) in qkv.outer_iter().enumerate() {
        for head in 0..heads {
            let part = |part: usize| {
                let first = part * width + head * head_dim;
                row.slice_move(s![.., first..first + head_dim])
            };
            f(index, head, [part(0), part(1), part(2)]);
        }
    }
}

/// One head's shares \[T, T\], and the logarithm of each token's sum.
pub(super) fn shares(
    query: ArrayView2<'_, f64>,
    key: ArrayView2<'_, f64>,
    sees: impl Fn(usize, usize) -> bool,
) -> (Array2<f64>, Vec<f64>) {
    let mut scores = query.dot(&key.t()) / (key.ncols() as f64).sqrt();
    let mut sums = Vec::with_capacity(scores.nrows());
    for (j, mut row) in scores.outer_iter_mut().enumerate() {
        row.indexed_iter_mut().filter(|(i, _)| !sees(j, *i)).for_each(|(_, score)| *score = f64::NEG_INFINITY);
        let greatest = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        row.mapv_inplace(|score| (score - greatest).exp());
        let sum = row.sum();
        row /= sum;
        sums.push(greatest + sum.ln());
    }
    (scores, sums)
}

/// Queries, keys and values \[B, H, T, dh\].
pub(super) fn by_heads(graph: &mut Graph, qkv: Value, heads: usize) -> Result<[Value; 3], GraphError> {
    let parts = graph.split(qkv, -1, 3)?;
    let mut split = |index: usize| heads_apart(graph, parts[index], heads);
    Ok([split(0)?, split(1)?, split(2)?])
}

/// \[B, T, D\] to \[B, H, T, dh\].
pub(super) fn heads_apart(graph: &mut Graph, x: Value, heads: usize) -> Result<Value, GraphError> {
    let [batch, tokens, width] = [0, 1, 2].map(|axis| graph.shape(x)[axis]);
    let Dim::Fixed(width) = width else { return Err(GraphError::UnknownDimension(width.to_string())) };
    let x = graph.reshape(x, &[batch, tokens, heads.into(), (width / heads).into()])?;
    graph.transpose(x, &[0, 2, 1, 3])
}

/// \[B, H, T, dh\] to \[B, T, D\].
pub(super) fn side_by_side(graph: &mut Graph, x: Value) -> Result<Value, GraphError> {
    let x = graph.transpose(x, &[0, 2, 1, 3])?;
    let shape = graph.shape(x).to_vec();
    match shape[..] {
        [batch, tokens, Dim::Fixed(heads), Dim::Fixed(head_dim)] => {
            graph.reshape(x, &[batch, tokens, (heads * head_dim).into()])
        }
        _ => Err(GraphError::UnknownDimension(graph.tensor(x).to_string())),
    }
}

/// Whether a token (second last dimension) sees another one (last): bool\[T, T\], or \[B, 1, T, T\] where there are branches.
pub(super) fn visible(graph: &mut Graph, qkv: Value, branch: Option<Value>) -> Result<Value, GraphError> {
    let [batch, tokens] = [graph.shape(qkv)[0], graph.shape(qkv)[1]];
    let (zero, one, count) = (graph.integer(0), graph.integer(1), graph.size(tokens)?);
    let count = graph.reshape(count, &[])?;
    let index = graph.range(zero, count, one, tokens)?;
    let row = graph.reshape(index, &[tokens, 1.into()])?;
    let before = graph.less_or_equal(index, row)?;
    let Some(branch) = branch else { return Ok(before) };
    let seeing = graph.reshape(branch, &[batch, tokens, 1.into()])?;
    let seen = graph.reshape(branch, &[batch, 1.into(), tokens])?;
    let (same, common) = (graph.equal(seeing, seen)?, graph.equal(seen, zero)?);
    let related = graph.or(same, common)?;
    let visible = graph.and(related, before)?;
    graph.reshape(visible, &[batch, 1.into(), tokens, tokens])
}

/// q Kᵀ / √dh, masked, \[B, H, T, T\].
pub(super) fn scores(graph: &mut Graph, [query, key]: [Value; 2], visible: Value) -> Result<Value, GraphError> {
    let scale = scale(graph, key);
    let query = graph.mul(query, scale)?;
    let key = graph.matrix_transpose(key)?;
    let scores = graph.mat_mul(query, key)?;
    let masked = graph.scalar(MASKED);
    graph.choose(visible, scores, masked)
}

/// 1 / √dh, of keys \[B, H, T, dh\].
pub(super) fn scale(graph: &mut Graph, key: Value) -> Value {
    let head_dim = match graph.shape(key).last() {
        Some(Dim::Fixed(head_dim)) => *head_dim,
        _ => 1,
    };
    graph.scalar(1.0 / (head_dim as f32).sqrt())
}

impl Graph {
    /// Attention of `heads` heads over queries, keys and values side by side, f32\[B, T, 3 D\], to \[B, T, D\]: a token sees itself and
    /// those before it, of branch 0 or its own where `branch`, i64\[B, T\], is given.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn causal_attention(&mut self, heads: usize, qkv: Value, branch: Option<Value>) -> Result<Value, GraphError> {
        let inputs: Vec<Value> = [qkv].into_iter().chain(branch).collect();
        Ok(self.apply(CausalAttention { heads, branched: branch.is_some() }, &inputs)?[0])
    }
}

#[cfg(test)]
mod tests {
    use super::CausalAttention;
    use crate::testing::{check_body, check_gradient_of, float, indices_of, refused};

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient_of(CausalAttention { heads: 1, branched: false }, &[float(&[1, 3, 6])], 1);
        check_gradient_of(CausalAttention { heads: 2, branched: false }, &[float(&[2, 4, 18])], 1);
    }

    #[test]
    fn the_body_is_what_the_operator_is() {
        check_body(CausalAttention { heads: 2, branched: false }, &[float(&[2, 5, 24])], 1e-6);
        let branches = indices_of(&[2, 5], &[0, 0, 1, 2, 1, 0, 3, 3, 4, 4]);
        check_body(CausalAttention { heads: 3, branched: true }, &[float(&[2, 5, 18]), branches], 1e-6);
    }

    #[test]
    fn other_shapes_are_refused() {
        let op = |branched| CausalAttention { heads: 2, branched };
        assert!(refused(op(false), &[float(&[2, 5, 8])]).contains("2 heads"));
        assert!(refused(op(true), &[float(&[2, 5, 12])]).contains("branches"));
        assert!(refused(op(true), &[float(&[2, 5, 12]), indices_of(&[1, 5], &[0; 5])]).contains("i64[B, T]"));
    }
}
