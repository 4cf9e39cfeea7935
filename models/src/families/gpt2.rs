//! GPT-2 (Radford et al. 2019). Its files give the tensors the names of the table.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Family, Fields, Plug, Problem, Stored, decimal, last_token};
use crate::config::{Mlp, ModelConfig, Norm, Positions};
use crate::params;

pub(super) struct Gpt2;

/// The sizes of a GPT-2.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// V.
    pub vocab_size: usize,
    /// P.
    pub n_positions: usize,
    /// D, a multiple of H.
    pub n_embd: usize,
    /// L.
    pub n_layer: usize,
    /// H.
    pub n_head: usize,
}

impl From<Shape> for ModelConfig {
    /// A GPT-2 of these sizes whose MLP is four times as wide as the residual stream and whose last token ends a text.
    fn from(shape: Shape) -> Self {
        let Shape { vocab_size, n_positions, n_embd, n_layer, n_head } = shape;
        Self {
            family: Family::Gpt2,
            vocab_size,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_kv_head: n_head,
            // As near as it comes: where H does not divide D, `check` says so.
            head_dim: n_embd / n_head.max(1),
            n_inner: n_embd.saturating_mul(4),
            norm: Norm::Layer,
            norm_epsilon: 1e-5,
            mlp: Mlp::GeluNew,
            positions: Positions::Learned,
            bias: true,
            tied: true,
            eos_token_id: last_token(vocab_size),
        }
    }
}

impl Plug for Gpt2 {
    fn model_type(&self) -> &'static str {
        "gpt2"
    }

    fn read(&self, fields: &Fields) -> Result<ModelConfig, Problem> {
        for (name, expected) in
            [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
        {
            fields.expect(name, &expected.into())?;
        }
        // The same function, written in three ways: gelu_fast is 0.5 x (1 + tanh(0.7978845608 x (1 + 0.044715 x²))).
        let is_tanh = |name: &Value| *name == "gelu_pytorch_tanh" || *name == "gelu_fast";
        if !fields.get("activation_function").is_some_and(is_tanh) {
            fields.expect("activation_function", &"gelu_new".into())?;
        }
        let context = if fields.get("n_positions").is_some() { "n_positions" } else { "n_ctx" };
        let config = ModelConfig::from(Shape {
            vocab_size: fields.count("vocab_size")?,
            n_positions: fields.count(context)?,
            n_embd: fields.count("n_embd")?,
            n_layer: fields.count("n_layer")?,
            n_head: fields.count("n_head")?,
        });
        Ok(ModelConfig {
            n_inner: fields.count_or("n_inner", config.n_inner)?,
            norm_epsilon: fields.number_or("layer_norm_epsilon", config.norm_epsilon)?,
            tied: fields.truth_or("tie_word_embeddings", true)?,
            eos_token_id: fields.end_of_text(config.eos_token_id)?,
            ..config
        })
    }

    fn check(&self, config: &ModelConfig) -> Result<(), Problem> {
        match config.query_width() == config.n_embd {
            true => Ok(()),
            false => Err(("n_head", format!("is {}, which does not divide n_embd = {}", config.n_head, config.n_embd))),
        }
    }

    fn write(&self, config: &ModelConfig) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": self.model_type(),
            "vocab_size": config.vocab_size,
            "n_positions": config.n_positions,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.n_inner,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": decimal(config.norm_epsilon),
            "bos_token_id": config.eos_token_id,
            "eos_token_id": config.eos_token_id,
            "tie_word_embeddings": true,
        })
    }

    fn identity(&self, config: &ModelConfig) -> Vec<u8> {
        #[derive(Serialize)]
        struct Identity {
            vocab_size: usize,
            n_positions: usize,
            n_embd: usize,
            n_layer: usize,
            n_head: usize,
            n_inner: usize,
            activation_function: &'static str,
            layer_norm_epsilon: f32,
            eos_token_id: u32,
        }
        let &ModelConfig { vocab_size, n_positions, n_embd, n_layer, n_head, n_inner, .. } = config;
        let identity = Identity {
            vocab_size,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_inner,
            activation_function: "gelu_new",
            layer_norm_epsilon: config.norm_epsilon,
            eos_token_id: config.eos_token_id,
        };
        serde_json::to_vec(&identity).unwrap_or_default()
    }

    fn field(&self, name: &'static str) -> &'static str {
        match name {
            "norm_epsilon" => "layer_norm_epsilon",
            // Derived from it.
            "head_dim" | "n_kv_head" => "n_head",
            name => name,
        }
    }

    fn prefix(&self) -> &'static str {
        "transformer."
    }

    /// `h.3.attn.bias` and `h.3.attn.masked_bias`: the causal mask of old files.
    fn is_constant(&self, name: &str) -> bool {
        let mut parts = name.split('.');
        parts.next() == Some("h")
            && parts.next().is_some_and(|layer| !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit()))
            && parts.next() == Some("attn")
            && matches!(parts.next(), Some("bias" | "masked_bias"))
            && parts.next().is_none()
    }

    fn can_be_untied(&self) -> bool {
        false
    }

    fn stored(&self, config: &ModelConfig) -> Vec<Stored> {
        let last = |shape: &[usize]| shape.last().copied().unwrap_or(0);
        params::base_table(config).iter().map(|spec| Stored::plain(&spec.name, last(&spec.shape))).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::ModelConfig;
    use crate::families::tests::parse;
    use crate::params::{TensorSpec, adapter_table, base_table};

    const GPT2: &str = r#"{"model_type":"gpt2","vocab_size":50257,"n_positions":1024,"n_ctx":1024,"n_embd":768,"n_layer":12,
        "n_head":12,"n_inner":null,"activation_function":"gelu_new","layer_norm_epsilon":1e-05,"eos_token_id":50256,
        "resid_pdrop":0.1,"summary_type":"cls_index"}"#;

    #[test]
    fn reads_gpt2_and_round_trips() {
        let config = parse(GPT2).unwrap();
        assert_eq!((config.n_inner, config.head_dim, config.eos_token_id), (3072, 64, 50256));
        assert_eq!(parse(&config.to_hugging_face().to_string()).unwrap(), config);
    }

    #[test]
    fn one_function_has_three_names() {
        for name in ["gelu_fast", "gelu_pytorch_tanh"] {
            assert_eq!(parse(&GPT2.replace("gelu_new", name)).unwrap(), parse(GPT2).unwrap());
        }
        assert!(parse(&GPT2.replace("gelu_new", "gelu")).is_err());
    }

    #[test]
    fn gpt2_small_has_its_published_number_of_parameters() {
        let config: ModelConfig = parse(GPT2).unwrap();
        let count = |table: &[TensorSpec]| table.iter().map(TensorSpec::len).sum::<usize>();
        assert_eq!(count(&base_table(&config)), 124_439_808);
        // 24 adapters of 2 · 768 · 64 weights and 64 + 768 biases.
        assert_eq!(count(&adapter_table(&config, &Default::default())), 24 * (2 * 768 * 64 + 64 + 768));
        assert_eq!(base_table(&config).len(), 148);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, field) in [
            ("\"n_head\":12", "\"n_head\":7", "n_head"),
            ("\"n_head\":12", "\"n_head\":0", "n_head"),
            ("\"n_layer\":12", "\"n_layer\":-1", "n_layer"),
            ("\"n_embd\":768", "\"n_embd\":4611686018427387904", "n_embd"),
            ("\"n_embd\":768,", "", "n_embd"),
            ("\"gelu_new\"", "\"relu\"", "activation_function"),
            ("50256", "50257", "eos_token_id"),
            ("\"model_type\":\"gpt2\"", "\"model_type\":\"bloom\"", "model_type"),
            ("\"model_type\":\"gpt2\",", "", "model_type"),
            ("\"n_inner\":null", "\"tie_word_embeddings\":0", "tie_word_embeddings"),
        ] {
            assert!(GPT2.contains(from));
            let error = parse(&GPT2.replace(from, to)).unwrap_err();
            assert_eq!(error.place.as_deref(), Some(field), "{error}");
            assert!(error.to_string().contains("config.json"));
        }
        assert!(parse("").is_err());
        assert!(parse("[1]").is_err());
    }
}
