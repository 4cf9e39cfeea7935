//! Llama (Touvron et al. 2023), in Hugging Face's layout: linear layers stored transposed, with queries, keys and values apart,
//! and the MLP's gate and up-projection apart.

use serde_json::{Value, json};

use super::{Family, Fields, Plug, Problem, Stored, decimal, last_token};
use crate::config::{Mlp, ModelConfig, Norm, Positions};

pub(super) struct Llama;

/// The base of rotary positions where a file names none.
pub const BASE: f32 = 10_000.0;

/// The sizes of a Llama.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// V.
    pub vocab_size: usize,
    /// P.
    pub n_positions: usize,
    /// D.
    pub n_embd: usize,
    /// L.
    pub n_layer: usize,
    /// H.
    pub n_head: usize,
    /// G, which divides H.
    pub n_kv_head: usize,
    /// dh, an even number.
    pub head_dim: usize,
    /// F.
    pub n_inner: usize,
}

impl From<Shape> for ModelConfig {
    /// A Llama of these sizes with the head and the positions that most have, whose last token ends a text.
    fn from(shape: Shape) -> Self {
        let Shape { vocab_size, n_positions, n_embd, n_layer, n_head, n_kv_head, head_dim, n_inner } = shape;
        Self {
            family: Family::Llama,
            vocab_size,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_kv_head,
            head_dim,
            n_inner,
            norm: Norm::Rms,
            norm_epsilon: 1e-6,
            mlp: Mlp::SwiGlu,
            positions: Positions::Rotary { base: BASE },
            bias: false,
            tied: false,
            eos_token_id: last_token(vocab_size),
        }
    }
}

impl Plug for Llama {
    fn model_type(&self) -> &'static str {
        "llama"
    }

    fn read(&self, fields: &Fields) -> Result<ModelConfig, Problem> {
        for name in ["attention_bias", "mlp_bias"] {
            fields.expect(name, &false.into())?;
        }
        fields.expect("hidden_act", &"silu".into())?;
        // Newer files say in one object what older ones say in two fields.
        let rope = fields.get("rope_parameters").map_or(*fields, Fields);
        for (name, scaling) in
            [("rope_parameters", Some(rope)), ("rope_scaling", fields.get("rope_scaling").map(Fields))]
        {
            let Some(scaling) = scaling else { continue };
            match scaling.get("rope_type").or_else(|| scaling.get("type")) {
                Some(kind) if *kind != "default" => {
                    return Err((name, format!("is of the type {kind}, which is not supported, expected none")));
                }
                None if name == "rope_scaling" => {
                    return Err((name, format!("is {}, which is not supported, expected none", scaling.0)));
                }
                _ => {}
            }
        }
        let (n_embd, n_head) = (fields.count("hidden_size")?, fields.count("num_attention_heads")?);
        let config = ModelConfig::from(Shape {
            vocab_size: fields.count("vocab_size")?,
            n_positions: fields.count("max_position_embeddings")?,
            n_embd,
            n_layer: fields.count("num_hidden_layers")?,
            n_head,
            n_kv_head: fields.count_or("num_key_value_heads", n_head)?,
            head_dim: fields.count_or("head_dim", n_embd / n_head.max(1))?,
            n_inner: fields.count("intermediate_size")?,
        });
        Ok(ModelConfig {
            norm_epsilon: fields.number_or("rms_norm_eps", config.norm_epsilon)?,
            positions: Positions::Rotary { base: rope.number_or("rope_theta", BASE)? },
            tied: fields.truth_or("tie_word_embeddings", config.tied)?,
            eos_token_id: fields.end_of_text(config.eos_token_id.min(2))?,
            ..config
        })
    }

    fn write(&self, config: &ModelConfig) -> Value {
        let Positions::Rotary { base } = config.positions else { return Value::Null };
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": self.model_type(),
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.n_positions,
            "hidden_size": config.n_embd,
            "num_hidden_layers": config.n_layer,
            "num_attention_heads": config.n_head,
            "num_key_value_heads": config.n_kv_head,
            "head_dim": config.head_dim,
            "intermediate_size": config.n_inner,
            "hidden_act": "silu",
            "rms_norm_eps": decimal(config.norm_epsilon),
            "rope_theta": decimal(base),
            "attention_bias": false,
            "mlp_bias": false,
            "eos_token_id": config.eos_token_id,
            "tie_word_embeddings": config.tied,
        })
    }

    fn field(&self, name: &'static str) -> &'static str {
        match name {
            "n_positions" => "max_position_embeddings",
            "n_embd" => "hidden_size",
            "n_layer" => "num_hidden_layers",
            "n_head" => "num_attention_heads",
            "n_kv_head" => "num_key_value_heads",
            "n_inner" => "intermediate_size",
            "norm_epsilon" => "rms_norm_eps",
            "positions" => "rope_theta",
            name => name,
        }
    }

    fn prefix(&self) -> &'static str {
        "model."
    }

    /// `layers.3.self_attn.rotary_emb.inv_freq`: the angles of old files.
    fn is_constant(&self, name: &str) -> bool {
        name.ends_with(".rotary_emb.inv_freq")
    }

    fn stored(&self, config: &ModelConfig) -> Vec<Stored> {
        let (d, f) = (config.n_embd, config.n_inner);
        let (query, key) = (config.query_width(), config.n_kv_head * config.head_dim);
        let mut stored = vec![Stored::plain("model.embed_tokens.weight", d)];
        for layer in 0..config.n_layer {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let linear = |parts: &[(&str, usize)]| Stored {
                parts: parts.iter().map(|&(part, columns)| (name(part), columns)).collect(),
                transposed: true,
            };
            stored.push(Stored::plain(&name("input_layernorm"), d));
            stored.push(linear(&[("self_attn.q_proj", query), ("self_attn.k_proj", key), ("self_attn.v_proj", key)]));
            stored.push(linear(&[("self_attn.o_proj", d)]));
            stored.push(Stored::plain(&name("post_attention_layernorm"), d));
            stored.push(linear(&[("mlp.gate_proj", f), ("mlp.up_proj", f)]));
            stored.push(linear(&[("mlp.down_proj", d)]));
        }
        stored.push(Stored::plain("model.norm.weight", d));
        if !config.tied {
            stored.push(Stored::plain("lm_head.weight", d));
        }
        stored
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Positions;
    use crate::families::tests::parse;
    use crate::params::base_table;

    /// SmolLM2-135M's.
    const SMOLLM2: &str = r#"{"model_type":"llama","vocab_size":49152,"max_position_embeddings":8192,"hidden_size":576,
        "num_hidden_layers":30,"num_attention_heads":9,"num_key_value_heads":3,"intermediate_size":1536,"hidden_act":"silu",
        "rms_norm_eps":1e-05,"rope_theta":100000,"rope_scaling":null,"tie_word_embeddings":true,"eos_token_id":2,
        "attention_bias":false,"initializer_range":0.04}"#;

    #[test]
    fn reads_smollm2_and_round_trips() {
        let config = parse(SMOLLM2).unwrap();
        assert_eq!((config.head_dim, config.qkv_width(), config.tied), (64, 960, true));
        assert_eq!(config.positions, Positions::Rotary { base: 100_000.0 });
        assert_eq!(parse(&config.to_hugging_face().to_string()).unwrap(), config);
        // The published number of parameters.
        let count: usize = base_table(&config).iter().map(|spec| spec.len()).sum();
        assert_eq!(count, 134_515_008);
        let newer = SMOLLM2.replace(
            "\"rope_theta\":100000,\"rope_scaling\":null",
            "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":100000.0}",
        );
        assert_eq!(parse(&newer).unwrap(), config);
    }

    #[test]
    fn the_layout_follows_the_table() {
        for json in
            [SMOLLM2.to_owned(), SMOLLM2.replace("\"tie_word_embeddings\":true", "\"tie_word_embeddings\":false")]
        {
            let config = parse(&json).unwrap();
            let (table, stored) = (base_table(&config), config.family.plug().stored(&config));
            assert_eq!(table.len(), stored.len());
            for (spec, stored) in table.iter().zip(&stored) {
                let columns: usize = stored.parts.iter().map(|(_, columns)| columns).sum();
                assert_eq!(spec.shape.last(), Some(&columns), "{}", spec.name);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, field) in [
            ("\"num_key_value_heads\":3", "\"num_key_value_heads\":2", "num_key_value_heads"),
            ("\"num_key_value_heads\":3", "\"head_dim\":63", "head_dim"),
            ("\"hidden_size\":576", "\"hidden_size\":0", "hidden_size"),
            ("\"hidden_act\":\"silu\"", "\"hidden_act\":\"gelu\"", "hidden_act"),
            ("\"attention_bias\":false", "\"attention_bias\":true", "attention_bias"),
            ("\"rope_scaling\":null", "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":32.0}", "rope_scaling"),
            ("\"rope_scaling\":null", "\"rope_scaling\":{\"factor\":8.0}", "rope_scaling"),
            ("\"rope_scaling\":null", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":8.0}", "rope_scaling"),
            (
                "\"rope_scaling\":null",
                "\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":10000.0,\"factor\":4.0}",
                "rope_parameters",
            ),
            ("\"attention_bias\":false", "\"mlp_bias\":true", "mlp_bias"),
            ("\"attention_bias\":false", "\"sliding_window\":4096", "sliding_window"),
            ("\"rope_theta\":100000", "\"rope_theta\":-1", "rope_theta"),
            ("\"rms_norm_eps\":1e-05", "\"rms_norm_eps\":0", "rms_norm_eps"),
        ] {
            assert!(SMOLLM2.contains(from));
            let error = parse(&SMOLLM2.replace(from, to)).unwrap_err();
            assert_eq!(error.place.as_deref(), Some(field), "{error}");
        }
    }
}
