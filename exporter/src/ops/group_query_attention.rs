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
/// their positions. Inputs: query, key, value \[B, T, D\]; past key and value \[B, H, C, dh\]; for each row its number of tokens
/// after this call, less 1, i32\[B\]; the largest of these numbers, i32\[1\].
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

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [query, key, value, past_key, past_value, lengths, longest] = arity(inputs)?;
        let ([batch, _, Dim::Fixed(width)], [past_batch, heads, _, Dim::Fixed(head)]) =
            (&query.shape[..], &past_key.shape[..])
        else {
            return Err("expected a query [B, T, D] and a cache [B, H, C, dh]".into());
        };
        if query != key || query != value || past_key != past_value {
            return Err("query, key and value differ, or the caches do".into());
        }
        if batch != past_batch || *heads != Dim::Fixed(self.heads) || head * self.heads != *width {
            return Err(format!("the cache does not fit {} heads of a query {query}", self.heads));
        }
        if head % 8 != 0 {
            return Err(format!("heads are {head} wide: ONNX Runtime wants a multiple of 8"));
        }
        if lengths.dtype != DataType::I32 || longest.dtype != DataType::I32 || lengths.shape != [*batch] {
            return Err("expected numbers of tokens i32[B] and i32[1]".into());
        }
        Ok(vec![query.clone(), past_key.clone(), past_value.clone()])
    }

    #[cfg(test)]
    fn evaluate(&self, _: &[&crate::testing::Array]) -> Vec<crate::testing::Array> {
        unimplemented!("checked against the full forward pass by the runtime's tests")
    }
}

impl Graph {
    /// Causal attention of `heads` heads over `past` (key, value) and this call's `query`, `key`, `value`; `last` is each
    /// row's last position, i32\[B\].
    ///
    /// # Errors
    /// The shapes do not fit, or a head's width is not a multiple of 8.
    pub fn group_query_attention(
        &mut self,
        heads: usize,
        [query, key, value]: [Value; 3],
        [past_key, past_value]: [Value; 2],
        [last, longest]: [Value; 2],
    ) -> Result<Cached, GraphError> {
        let inputs = [query, key, value, past_key, past_value, last, longest];
        let outputs = self.apply(GroupQueryAttention { heads }, &inputs)?;
        Ok(Cached { output: outputs[0], present_key: outputs[1], present_value: outputs[2] })
    }
}
