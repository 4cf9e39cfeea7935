//! Attention in which a token sees itself and what is before it (Vaswani et al. 2017, equation 1): one operator for all heads of a
//! block, from queries, keys and values as the layer before gives them, to what the layer after takes.

use marionette_models::bundle::DataType;
use ndarray::{Array2, ArrayView2, Axis, Ix3, s};

use super::causal_attention_gradient::CausalAttentionGradient;
use super::{Attribute, Domain, Op, no_gradient};
use crate::array::Array;
use crate::error::GraphError;
use crate::graph::{Backward, Graph, Value};
use crate::shape::{Dim, TensorType};

/// What a masked score becomes: softmax makes exactly 0 of it, and no infinity takes part in any arithmetic.
pub(crate) const MASKED: f32 = -1e30;

/// For each of H heads, softmax(q Kᵀ / √dh) V over what a token sees; H / G heads share keys and values (Ainslie et al. 2023). Takes
/// queries, keys and values side by side \[B, T, (H + 2 G) dh\], and where it is branched each token's branch, i64\[B, T\]: token j sees token i iff i <= j and i is of branch 0
/// or of j's branch. Gives the heads' outputs side by side \[B, T, H dh\] and the logarithm of each token's sum of exponentials,
/// \[B, H, T\], with which the gradient computes the shares again (Dao 2023, section 3.1).
#[derive(Debug, Clone, Copy)]
pub(super) struct CausalAttention {
    pub heads: Heads,
    pub branched: bool,
}

/// How many heads there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// H, of queries.
    pub queries: usize,
    /// G, of keys and of values; H is a multiple of it.
    pub shared: usize,
}

impl Heads {
    /// Of all three side by side.
    pub fn all(self) -> usize {
        self.queries + 2 * self.shared
    }

    /// B, T and dh of queries, keys and values side by side.
    pub(super) fn dimensions(self, qkv: &TensorType) -> Result<(Dim, Dim, usize), String> {
        match &qkv.shape[..] {
            [batch, tokens, Dim::Fixed(width)]
                if qkv.dtype == DataType::F32
                    && self.shared > 0
                    && self.queries.is_multiple_of(self.shared)
                    && width.is_multiple_of(self.all())
                    && *width > 0 =>
            {
                Ok((*batch, *tokens, width / self.all()))
            }
            _ => Err(format!("expected queries, keys and values of {} and twice {} heads", self.queries, self.shared)),
        }
    }

    pub(super) fn attributes(self) -> Vec<(&'static str, Attribute)> {
        vec![("num_heads", Attribute::Int(self.queries as i64)), ("kv_num_heads", Attribute::Int(self.shared as i64))]
    }

    /// Queries \[B, H, T, dh\], keys and values \[B, G, T, dh\].
    pub(super) fn apart(self, graph: &mut Graph, qkv: Value) -> Result<[Value; 3], GraphError> {
        let (.., head_dim) = self.dimensions(graph.tensor(qkv)).map_err(GraphError::UnknownDimension)?;
        let parts = match self.queries == self.shared {
            true => graph.split(qkv, -1, 3)?,
            false => {
                graph.split_at(qkv, -1, &[self.queries, self.shared, self.shared].map(|heads| heads * head_dim))?
            }
        };
        let mut part = |index: usize, heads: usize| heads_apart(graph, parts[index], heads);
        Ok([part(0, self.queries)?, part(1, self.shared)?, part(2, self.shared)?])
    }

    /// Keys or values \[B, G, …, dh\] as the heads see them, \[B, H, …, dh\].
    pub(super) fn repeated(self, graph: &mut Graph, x: Value) -> Result<Value, GraphError> {
        if self.queries == self.shared {
            return Ok(x);
        }
        let shape = graph.shape(x).to_vec();
        let with = |heads: &[Dim]| [&shape[..1], heads, &shape[2..]].concat();
        let apart = graph.reshape(x, &with(&[self.shared.into(), 1.into()]))?;
        let repeated = graph.expand(apart, &with(&[self.shared.into(), (self.queries / self.shared).into()]))?;
        graph.reshape(repeated, &with(&[self.queries.into()]))
    }

    /// The gradient of [`Heads::repeated`]: sums over the heads that share.
    pub(super) fn summed(self, graph: &mut Graph, dx: Value) -> Result<Value, GraphError> {
        if self.queries == self.shared {
            return Ok(dx);
        }
        let shape = graph.shape(dx).to_vec();
        let groups = [self.shared.into(), (self.queries / self.shared).into()];
        let apart = graph.reshape(dx, &[&shape[..1], &groups, &shape[2..]].concat())?;
        graph.reduce_sum(apart, &[2], false)
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
        self.heads.attributes()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let (qkv, branch) = match inputs {
            [qkv] if !self.branched => (qkv, None),
            [qkv, branch] if self.branched => (qkv, Some(branch)),
            _ => return Err(format!("{} inputs, expected one, and the branches where there are any", inputs.len())),
        };
        let (batch, tokens, head_dim) = self.heads.dimensions(qkv)?;
        if branch.is_some_and(|branch| branch.dtype != DataType::I64 || branch.shape != [batch, tokens]) {
            return Err("expected branches i64[B, T]".into());
        }
        Ok(vec![
            TensorType::f32([batch, tokens, (self.heads.queries * head_dim).into()]),
            TensorType::f32([batch, self.heads.queries.into(), tokens]),
        ])
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let qkv = inputs[0];
        let [query, key, value] = self.heads.apart(graph, qkv)?;
        let (key, value) = (self.heads.repeated(graph, key)?, self.heads.repeated(graph, value)?);
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
        let mut y = Array::zeros(vec![batch, tokens, width / self.heads.all() * self.heads.queries])
            .into_dimensionality::<Ix3>()
            .unwrap();
        let mut log_sum = Array::zeros(vec![batch, self.heads.queries, tokens]).into_dimensionality::<Ix3>().unwrap();
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
pub(super) fn each_head(qkv: &Array, heads: Heads, mut f: impl FnMut(usize, usize, [ArrayView2<'_, f64>; 3])) {
    let qkv = qkv.view().into_dimensionality::<Ix3>().unwrap();
    let head_dim = qkv.shape()[2] / heads.all();
    for (index, row) in qkv.outer_iter().enumerate() {
        for head in 0..heads.queries {
            let at = |place: usize| row.slice_move(s![.., place * head_dim..(place + 1) * head_dim]);
            let key = heads.queries + head * heads.shared / heads.queries;
            f(index, head, [at(head), at(key), at(key + heads.shared)]);
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
    /// Attention over queries, keys and values side by side, f32\[B, T, (H + 2 G) dh\], to \[B, T, H dh\]: a token sees itself and those
    /// before it, of branch 0 or its own where `branch`, i64\[B, T\], is given.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn causal_attention(&mut self, heads: Heads, qkv: Value, branch: Option<Value>) -> Result<Value, GraphError> {
        let inputs: Vec<Value> = [qkv].into_iter().chain(branch).collect();
        Ok(self.apply(CausalAttention { heads, branched: branch.is_some() }, &inputs)?[0])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{CausalAttention, Heads};
    use crate::testing::{check_body, check_gradient_of, float, indices_of, refused};

    pub fn heads(queries: usize, shared: usize) -> Heads {
        Heads { queries, shared }
    }

    fn causal(queries: usize, shared: usize) -> CausalAttention {
        CausalAttention { heads: heads(queries, shared), branched: false }
    }

    #[test]
    fn gradient_is_that_of_central_differences() {
        check_gradient_of(causal(1, 1), &[float(&[1, 3, 6])], 1);
        check_gradient_of(causal(2, 2), &[float(&[2, 4, 18])], 1);
        check_gradient_of(causal(4, 2), &[float(&[2, 4, 24])], 1);
    }

    #[test]
    fn the_body_is_what_the_operator_is() {
        check_body(causal(2, 2), &[float(&[2, 5, 24])], 1e-6);
        check_body(causal(6, 2), &[float(&[2, 5, 20])], 1e-6);
        let branches = indices_of(&[2, 5], &[0, 0, 1, 2, 1, 0, 3, 3, 4, 4]);
        check_body(CausalAttention { branched: true, ..causal(3, 3) }, &[float(&[2, 5, 18]), branches], 1e-6);
    }

    #[test]
    fn other_shapes_are_refused() {
        let op = |branched| CausalAttention { branched, ..causal(2, 2) };
        assert!(refused(op(false), &[float(&[2, 5, 8])]).contains("2 heads"));
        assert!(refused(causal(3, 2), &[float(&[2, 5, 14])]).contains("twice 2 heads"));
        assert!(refused(op(true), &[float(&[2, 5, 12])]).contains("branches"));
        assert!(refused(op(true), &[float(&[2, 5, 12]), indices_of(&[1, 5], &[0; 5])]).contains("i64[B, T]"));
    }
}
