//! Causal attention over a cache of keys and values that it extends itself, in place where past and present are one buffer.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention>

use marionette_models::bundle::DataType;

use super::{Attribute, Domain, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// What cached attention gives.
#[derive(Debug, Clone, Copy)]
pub struct Cached {
    /// \[B, T, D\].
    pub output: Value,
    /// \[B, H, C, dh\].
    pub present_key: Value,
    /// \[B, H, C, dh\].
    pub present_value: Value,
}

/// softmax(q Kᵀ / √dh) V for each of `heads` heads, K and V being the cache with this call's keys and values put in at
/// their positions. Inputs: queries, keys and values side by side \[B, T, 3 D\]; past key and value \[B, H, C, dh\]; for each row its
/// number of tokens after this call, less 1, i32\[B\]; the largest of these numbers, i32\[1\].
#[derive(Debug, Clone, Copy)]
struct GroupQueryAttention {
    heads: usize,
}

impl Op for GroupQueryAttention {
    fn name(&self) -> &'static str {
        "GroupQueryAttention"
    }

    fn domain(&self) -> Domain {
        Domain::Microsoft
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        let heads = Attribute::Int(self.heads as i64);
        vec![("num_heads", heads.clone()), ("kv_num_heads", heads)]
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
            return Err("expected queries, keys and values [B, T, 3 D] and a cache [B, H, C, dh]".into());
        };
        if past_key != past_value {
            return Err("the caches differ".into());
        }
        if batch != past_batch || *heads != Dim::Fixed(self.heads) || 3 * head * self.heads != *width {
            return Err(format!("the cache does not fit {} heads of {packed}", self.heads));
        }
        if head % 8 != 0 {
            return Err(format!("heads are {head} wide: ONNX Runtime wants a multiple of 8"));
        }
        if lengths.dtype != DataType::I32 || longest.dtype != DataType::I32 || lengths.shape != [*batch] {
            return Err("expected numbers of tokens i32[B] and i32[1]".into());
        }
        let output = packed.reshaped([*batch, *tokens, Dim::Fixed(width / 3)]);
        Ok(vec![output, past_key.clone(), past_value.clone()])
    }

    #[cfg(test)]
    fn evaluate(&self, inputs: &[&crate::testing::Array]) -> Vec<crate::testing::Array> {
        let (mut keys, mut values) = (inputs[1].clone(), inputs[2].clone());
        let (batch, tokens, width) = (inputs[0].shape()[0], inputs[0].shape()[1], inputs[0].shape()[2] / 3);
        let head = width / self.heads;
        let part = |i: usize| inputs[0].slice_axis(ndarray::Axis(2), (i * width..(i + 1) * width).into());
        let [query, key, value] = [part(0), part(1), part(2)];
        let mut output = query.to_owned();
        for b in 0..batch {
            let first = inputs[3][[b]] as usize + 1 - tokens;
            for h in 0..self.heads {
                for t in 0..tokens {
                    for i in 0..head {
                        keys[[b, h, first + t, i]] = key[[b, t, h * head + i]];
                        values[[b, h, first + t, i]] = value[[b, t, h * head + i]];
                    }
                }
                for t in 0..tokens {
                    let seen = 0..=first + t;
                    let score = |s: usize| (0..head).map(|i| query[[b, t, h * head + i]] * keys[[b, h, s, i]]).sum();
                    let shares: Vec<f64> =
                        seen.clone().map(|s| -> f64 { score(s) }).map(|s| (s / (head as f64).sqrt()).exp()).collect();
                    let total: f64 = shares.iter().sum();
                    for i in 0..head {
                        output[[b, t, h * head + i]] =
                            seen.clone().map(|s| shares[s] / total * values[[b, h, s, i]]).sum();
                    }
                }
            }
        }
        vec![output, keys, values]
    }
}

impl Graph {
    /// Causal attention of `heads` heads over `past` (key, value) and this call's queries, keys and values, `packed` side by side;
    /// `last` is each row's last position, i32\[B\].
    ///
    /// # Errors
    /// The shapes do not fit, or a head's width is not a multiple of 8.
    pub fn group_query_attention(
        &mut self,
        heads: usize,
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
    use super::GroupQueryAttention;
    use crate::testing::{float, indices, refused};

    #[test]
    fn heads_that_onnx_runtime_refuses_are_refused_here() {
        let packed = || float(&[1, 2, 72]);
        let cache = |heads: usize, head: usize| float(&[1, heads, 5, head]);
        let attention = |heads: usize, cache: crate::testing::Sample| {
            let op = GroupQueryAttention { heads };
            refused(op, &[packed(), cache.clone(), cache, indices(&[1]), indices(&[2])])
        };
        assert!(attention(2, cache(2, 12)).contains("multiple of 8"));
        assert!(attention(3, cache(2, 12)).contains("does not fit 3 heads"));
    }
}
