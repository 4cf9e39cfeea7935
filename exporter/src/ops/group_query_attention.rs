//! Causal attention over a cache of keys and values that it extends itself, in place where past and present are one buffer.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention>

use marionette_models::bundle::DataType;

use super::causal_attention::{Heads, MASKED};
use super::{Attribute, Domain, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// How much of the cache is in use, where attention is made of other operators.
const CACHED: Dim = Dim::Symbol("cached");

/// What cached attention gives.
#[derive(Debug, Clone, Copy)]
pub struct Cached {
    /// \[B, T, H dh\].
    pub output: Value,
    /// \[B, G, C, dh\].
    pub present_key: Value,
    /// \[B, G, C, dh\].
    pub present_value: Value,
}

/// softmax(q Kᵀ / √dh) V for each of H heads, of which H / G share keys and values, K and V being the cache with this call's keys and values put in at
/// their positions. Inputs: queries, keys and values side by side \[B, T, (H + 2 G) dh\]; past key and value \[B, G, C, dh\]; for each row its
/// number of tokens after this call, less 1, i32\[B\]; the largest of these numbers, i32\[1\].
#[derive(Debug, Clone, Copy)]
struct GroupQueryAttention {
    heads: Heads,
}

impl Op for GroupQueryAttention {
    fn name(&self) -> &'static str {
        "GroupQueryAttention"
    }

    fn domain(&self) -> Domain {
        Domain::Microsoft
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.heads.attributes()
    }

    fn empty_inputs(&self) -> &'static [usize] {
        // Keys and values, which lie beside the queries.
        &[1, 2]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [packed, past_key, past_value, lengths, longest] = arity(inputs)?;
        let ([batch, tokens, Dim::Fixed(width)], [past_batch, heads, _, Dim::Fixed(head)]) =
            (&packed.shape[..], &past_key.shape[..])
        else {
            return Err("expected queries, keys and values [B, T, (H + 2 G) dh] and a cache [B, G, C, dh]".into());
        };
        if past_key != past_value {
            return Err("the caches differ".into());
        }
        if batch != past_batch || *heads != Dim::Fixed(self.heads.shared) || head * self.heads.all() != *width {
            return Err(format!("the cache does not fit {} heads of {packed}", self.heads.shared));
        }
        if head % 8 != 0 {
            return Err(format!("heads are {head} wide: ONNX Runtime wants a multiple of 8"));
        }
        if lengths.dtype != DataType::I32 || longest.dtype != DataType::I32 || lengths.shape != [*batch] {
            return Err("expected numbers of tokens i32[B] and i32[1]".into());
        }
        let output = packed.reshaped([*batch, *tokens, (self.heads.queries * head).into()]);
        Ok(vec![output, past_key.clone(), past_value.clone()])
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [packed, last, longest] = [inputs[0], inputs[3], inputs[4]];
        let [batch, tokens] = [graph.shape(packed)[0], graph.shape(packed)[1]];
        let (heads, head) = (Dim::Fixed(self.heads.shared), graph.shape(inputs[1])[3]);
        // Where this call's tokens are: last − T + 1, … last.
        let last = graph.cast(last, DataType::I64)?;
        let last = graph.reshape(last, &[batch, 1.into()])?;
        let (zero, one, count) = (graph.integer(0), graph.integer(1), graph.size(tokens)?);
        let count = graph.reshape(count, &[])?;
        let index = graph.range(zero, count, one, tokens)?;
        let before_first = graph.sub(last, count)?;
        let first = graph.add(before_first, one)?;
        let positions = graph.add(first, index)?;
        let places = graph.reshape(positions, &[batch, 1.into(), tokens, 1.into()])?;
        let places = graph.expand(places, &[batch, heads, tokens, head])?;
        // Which of the cache they see: as much as there is, up to themselves.
        let longest = graph.cast(longest, DataType::I64)?;
        let end = graph.reshape(longest, &[])?;
        let cached = graph.range(zero, end, one, CACHED)?;
        let seeing = graph.reshape(positions, &[batch, 1.into(), tokens, 1.into()])?;
        let visible = graph.less_or_equal(cached, seeing)?;
        let (open, closed) = (graph.scalar(0.0), graph.scalar(MASKED));
        let mask = graph.choose(visible, open, closed)?;

        let by_heads = self.heads.apart(graph, packed)?;
        let mut present = Vec::with_capacity(2);
        let mut seen = Vec::with_capacity(2);
        for (past, new) in inputs[1..3].iter().zip(&by_heads[1..]) {
            let extended = graph.scatter_elements(*past, places, *new)?;
            let cached = graph.first(extended, 2, longest, CACHED)?;
            seen.push(self.heads.repeated(graph, cached)?);
            present.push(extended);
        }
        let width = match head {
            Dim::Fixed(head) => head,
            _ => 1,
        };
        let scale = graph.scalar(1.0 / (width as f32).sqrt());
        let query = graph.mul(by_heads[0], scale)?;
        let keys = graph.matrix_transpose(seen[0])?;
        let scores = graph.mat_mul(query, keys)?;
        let scores = graph.add(scores, mask)?;
        let shares = graph.softmax(scores)?;
        let mixed = graph.mat_mul(shares, seen[1])?;
        let mixed = graph.transpose(mixed, &[0, 2, 1, 3])?;
        let output = graph.reshape(mixed, &[batch, tokens, (self.heads.queries * width).into()])?;
        Ok(vec![output, present[0], present[1]])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let (mut keys, mut values) = (inputs[1].clone(), inputs[2].clone());
        let (batch, tokens) = (inputs[0].shape()[0], inputs[0].shape()[1]);
        let head = inputs[0].shape()[2] / self.heads.all();
        let part = |first: usize, heads: usize| {
            inputs[0].slice_axis(ndarray::Axis(2), (first * head..(first + heads) * head).into())
        };
        let Heads { queries, shared } = self.heads;
        let [query, key, value] = [part(0, queries), part(queries, shared), part(queries + shared, shared)];
        let mut output = query.to_owned();
        for b in 0..batch {
            let first = inputs[3][[b]] as usize + 1 - tokens;
            for (g, t, i) in (0..shared).flat_map(|g| (0..tokens * head).map(move |at| (g, at / head, at % head))) {
                keys[[b, g, first + t, i]] = key[[b, t, g * head + i]];
                values[[b, g, first + t, i]] = value[[b, t, g * head + i]];
            }
            for h in 0..queries {
                let g = h * shared / queries;
                for t in 0..tokens {
                    let seen = 0..=first + t;
                    let score = |s: usize| (0..head).map(|i| query[[b, t, h * head + i]] * keys[[b, g, s, i]]).sum();
                    let shares: Vec<f64> =
                        seen.clone().map(|s| -> f64 { score(s) }).map(|s| (s / (head as f64).sqrt()).exp()).collect();
                    let total: f64 = shares.iter().sum();
                    for i in 0..head {
                        output[[b, t, h * head + i]] =
                            seen.clone().map(|s| shares[s] / total * values[[b, g, s, i]]).sum();
                    }
                }
            }
        }
        vec![output, keys, values]
    }
}

impl Graph {
    /// Causal attention over `past` (key, value) and this call's queries, keys and values, `packed` side by side;
    /// `last` is each row's last position, i32\[B\].
    ///
    /// # Errors
    /// The shapes do not fit, or a head's width is not a multiple of 8.
    pub fn group_query_attention(
        &mut self,
        heads: Heads,
        packed: Value,
        [past_key, past_value]: [Value; 2],
        [last, longest]: [Value; 2],
    ) -> Result<Cached, GraphError> {
        let inputs = [packed, past_key, past_value, last, longest];
        let outputs = self.apply(GroupQueryAttention { heads }, &inputs)?;
        Ok(Cached { output: outputs[0], present_key: outputs[1], present_value: outputs[2] })
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::bundle::DataType;

    use super::GroupQueryAttention;
    use crate::ops::causal_attention::tests::heads;
    use crate::testing::{Sample, check_body, float, indices, integers, refused};

    #[test]
    fn the_body_is_what_the_operator_is() {
        // Two rows of different lengths, each with three new tokens in a cache for seven.
        let lengths = |shape: &[usize], values: &[i64]| Sample::Given(DataType::I32, integers(shape, values));
        for heads in [heads(2, 2), heads(4, 2)] {
            let (packed, cache) = (float(&[2, 3, 8 * heads.all()]), || float(&[2, 2, 7, 8]));
            let samples = [packed, cache(), cache(), lengths(&[2], &[5, 2]), lengths(&[1], &[6])];
            check_body(GroupQueryAttention { heads }, &samples, 1e-6);
        }
    }

    #[test]
    fn heads_that_onnx_runtime_refuses_are_refused_here() {
        let packed = || float(&[1, 2, 72]);
        let cache = |heads: usize, head: usize| float(&[1, heads, 5, head]);
        let attention = |number: usize, cache: crate::testing::Sample| {
            let op = GroupQueryAttention { heads: heads(number, number) };
            refused(op, &[packed(), cache.clone(), cache, indices(&[1]), indices(&[2])])
        };
        assert!(attention(2, cache(2, 12)).contains("multiple of 8"));
        assert!(attention(3, cache(2, 12)).contains("does not fit 3 heads"));
    }
}
