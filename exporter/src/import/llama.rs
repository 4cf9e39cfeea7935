//! What a GGUF file calls the tensors of a Llama, and how it stores them.

use marionette_models::{FileError, HostTensor, LLAMA_BASE, LlamaShape, ModelConfig, Positions};

use super::fields::Fields;

/// The name in `general.architecture`.
pub(super) const ARCHITECTURE: &str = "llama";

/// The configuration, from the metadata.
pub(super) fn config(fields: &Fields<'_>) -> Result<ModelConfig, FileError> {
    if fields.count_or("llama.expert_count", 0)? > 0 {
        return Err(fields.refuse("llama.expert_count", "is of a mixture of experts, which is not supported"));
    }
    if fields.text_or("llama.rope.scaling.type", "none")? != "none" || fields.has_tensor("rope_freqs.weight") {
        return Err(fields.refuse("llama.rope.scaling.type", "scales positions, which is not supported"));
    }
    let (n_embd, n_head) = (fields.count("llama.embedding_length")?, fields.count("llama.attention.head_count")?);
    let head_dim = fields.count_or("llama.attention.key_length", n_embd / n_head.max(1))?;
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if fields.count_or(key, head_dim)? != head_dim {
            return Err(fields.refuse(key, &format!("is not the width of a head, {head_dim}, which is not supported")));
        }
    }
    let config = ModelConfig::from(LlamaShape {
        vocab_size: fields.rows("token_embd.weight")?,
        n_positions: fields.count("llama.context_length")?,
        n_embd,
        n_layer: fields.count("llama.block_count")?,
        n_head,
        n_kv_head: fields.count_or("llama.attention.head_count_kv", n_head)?,
        head_dim,
        n_inner: fields.count("llama.feed_forward_length")?,
    });
    Ok(ModelConfig {
        norm_epsilon: fields.number("llama.attention.layer_norm_rms_epsilon")?,
        positions: Positions::Rotary { base: fields.number_or("llama.rope.freq_base", LLAMA_BASE)? },
        tied: !fields.has_tensor("output.weight"),
        eos_token_id: u32::try_from(fields.count("tokenizer.ggml.eos_token_id")?).unwrap_or(u32::MAX),
        ..config
    })
}

/// What Hugging Face calls a tensor.
pub(super) fn name(gguf: &str) -> Option<String> {
    let whole = match gguf {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(name) = whole {
        return Some(name.to_owned());
    }
    let (layer, part) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let part = match part.strip_suffix(".weight")? {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.weight"))
}

/// The rows of queries and keys as Hugging Face has them: the pairs that rotary positions turn lie half a head apart, in the file
/// one after the other.
pub(super) fn in_order(gguf: &str, tensor: HostTensor, config: &ModelConfig) -> HostTensor {
    if !gguf.ends_with("attn_q.weight") && !gguf.ends_with("attn_k.weight") {
        return tensor;
    }
    let (half, width) = (config.head_dim / 2, tensor.shape.get(1).copied().unwrap_or(1));
    let mut values = vec![0.0; tensor.values.len()];
    for (row, from) in tensor.values.chunks(width.max(1)).enumerate() {
        let (head, place) = (row / config.head_dim, row % config.head_dim);
        let to = head * config.head_dim + place % 2 * half + place / 2;
        if let Some(to) = values.get_mut(to * width..(to + 1) * width) {
            to.copy_from_slice(from);
        }
    }
    HostTensor { values, ..tensor }
}
