//! Families of models: what their files look like. All else in the toolkit works from [`ModelConfig`] and the table of
//! [`crate::params`], whichever family they come from.

mod gpt2;
mod llama;

pub use gpt2::Shape as Gpt2Shape;
pub use llama::{BASE as LLAMA_BASE, Shape as LlamaShape};

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::ModelConfig;

/// Whose files a model comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// GPT-2 (Radford et al. 2019).
    Gpt2,
    /// Llama (Touvron et al. 2023), and what has its architecture: SmolLM2, TinyLlama.
    Llama,
}

/// As people call it.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpt2 => "GPT-2",
            Self::Llama => "Llama",
        })
    }
}

/// A field of a file, and what is wrong with it.
pub(crate) type Problem = (&'static str, String);

impl Family {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Gpt2, Self::Llama];

    /// What this family's files look like.
    pub(crate) fn plug(self) -> &'static dyn Plug {
        match self {
            Self::Gpt2 => &gpt2::Gpt2,
            Self::Llama => &llama::Llama,
        }
    }

    /// The name in `config.json`'s `model_type`.
    pub fn model_type(self) -> &'static str {
        self.plug().model_type()
    }

    /// The family that a `config.json` names.
    pub(crate) fn of(value: &Value) -> Result<Self, Problem> {
        let known: Vec<String> = Self::ALL.iter().map(|family| format!("\"{}\"", family.model_type())).collect();
        let expected = format!("expected {}", known.join(" or "));
        let Some(name) = value.get("model_type").filter(|value| !value.is_null()) else {
            return Err(("model_type", format!("is missing, {expected}")));
        };
        let family = Self::ALL.into_iter().find(|family| *name == family.model_type());
        family.ok_or_else(|| ("model_type", format!("is {name}, {expected}")))
    }
}

/// What differs from family to family: one file each.
pub(crate) trait Plug {
    /// The name in `config.json`'s `model_type`.
    fn model_type(&self) -> &'static str;

    /// The configuration from the fields of `config.json`, which need not be possible together yet.
    ///
    /// # Errors
    /// A field is missing, is no number, or asks for a variant that is not supported.
    fn read(&self, fields: &Fields) -> Result<ModelConfig, Problem>;

    /// Checks what only this family asks of a configuration.
    ///
    /// # Errors
    /// The field, by the name it has in [`ModelConfig`], and what is wrong with it.
    fn check(&self, config: &ModelConfig) -> Result<(), Problem> {
        let _ = config;
        Ok(())
    }

    /// The `config.json` that Hugging Face transformers reads.
    fn write(&self, config: &ModelConfig) -> Value;

    /// The bytes by which [`crate::digest::base_sha256`] knows a configuration. A family keeps them from version to version: by that
    /// digest runs, bundles and personas know their base.
    fn identity(&self, config: &ModelConfig) -> Vec<u8> {
        // A configuration is numbers and names, which JSON can always hold.
        serde_json::to_vec(config).unwrap_or_default()
    }

    /// What `config.json` calls a field of [`ModelConfig`].
    fn field(&self, name: &'static str) -> &'static str {
        name
    }

    /// What stands before the names of tensors in some files.
    fn prefix(&self) -> &'static str;

    /// Whether a tensor, named without the prefix, is a constant that some files hold.
    fn is_constant(&self, name: &str) -> bool;

    /// Whether a head of its own is supported. Where it is not, a `config.json` that speaks of one is taken at its word only until
    /// the weights are read: [`crate::checkpoint::read_base`] wants a head equal to the embedding then.
    fn can_be_untied(&self) -> bool {
        true
    }

    /// How the tensors of [`crate::params::base_table`] are stored, in its order.
    fn stored(&self, config: &ModelConfig) -> Vec<Stored>;
}

/// How one tensor of the table is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The stored tensors that lie side by side in it, with the columns that each takes.
    pub(crate) parts: Vec<(String, usize)>,
    /// Whether they are stored transposed, \[outputs, inputs\].
    pub(crate) transposed: bool,
}

impl Stored {
    /// The same under other names.
    pub(crate) fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        for (name, _) in &mut self.parts {
            *name = rename(name);
        }
        self
    }

    /// As it is.
    fn plain(name: &str, columns: usize) -> Self {
        Self { parts: vec![(name.to_owned(), columns)], transposed: false }
    }
}

/// The fields of a `config.json`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a Value);

impl<'a> Fields<'a> {
    /// A field that is there and not null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A number of things.
    fn count(&self, name: &'static str) -> Result<usize, Problem> {
        match self.get(name) {
            None => Err((name, "is missing, expected a positive integer".to_owned())),
            Some(v) => v
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| (name, format!("is {v}, expected a positive integer"))),
        }
    }

    /// A number of things, or how many there are where the field is missing.
    fn count_or(&self, name: &'static str, missing: usize) -> Result<usize, Problem> {
        if self.get(name).is_some() { self.count(name) } else { Ok(missing) }
    }

    fn number_or(&self, name: &'static str, missing: f32) -> Result<f32, Problem> {
        match self.get(name) {
            None => Ok(missing),
            Some(v) => Ok(v.as_f64().ok_or_else(|| (name, format!("is {v}, expected a number")))? as f32),
        }
    }

    fn truth_or(&self, name: &'static str, missing: bool) -> Result<bool, Problem> {
        match self.get(name) {
            None => Ok(missing),
            Some(v) => v.as_bool().ok_or_else(|| (name, format!("is {v}, expected true or false"))),
        }
    }

    /// Refuses a variant that changes the arithmetic: a model that uses it would load and be wrong.
    fn expect(&self, name: &'static str, expected: &Value) -> Result<(), Problem> {
        match self.get(name) {
            Some(v) if v != expected => {
                Err((name, format!("is {v}, expected {expected}: this variant is not supported")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what changes the arithmetic in any family, each field with the values that change nothing.
    pub(crate) fn expect_plain(&self) -> Result<(), Problem> {
        let full =
            |value: &Value| value.as_array().is_some_and(|types| types.iter().all(|kind| *kind == "full_attention"));
        let is_off = |value: &Value| *value == false || value.as_f64() == Some(0.0);
        let is_one = |value: &Value| value.as_f64() == Some(1.0);
        let never = |_: &Value| false;
        let window_is_off = self.get("use_sliding_window").is_some_and(is_off);
        type Test<'t> = &'t dyn Fn(&Value) -> bool;
        let plain: [(&'static str, Test); 17] = [
            ("quantization_config", &never),
            ("sliding_window", &|_| window_is_off),
            ("layer_types", &full),
            ("partial_rotary_factor", &is_one),
            ("rope_interleaved", &is_off),
            ("qk_layernorm", &is_off),
            ("use_qk_norm", &is_off),
            ("attn_logit_softcapping", &never),
            ("final_logit_softcapping", &never),
            ("embedding_multiplier", &is_one),
            ("residual_multiplier", &is_one),
            ("attention_multiplier", &never),
            ("logits_scaling", &is_one),
            ("logit_scale", &is_one),
            ("num_experts", &is_off),
            ("num_local_experts", &is_off),
            ("n_routed_experts", &is_off),
        ];
        for (name, changes_nothing) in plain {
            if let Some(value) = self.get(name).filter(|value| !changes_nothing(value)) {
                return Err((name, format!("is {value}: this variant is not supported")));
            }
        }
        Ok(())
    }

    /// The token that ends a text; the first where there are several.
    fn end_of_text(&self, missing: u32) -> Result<u32, Problem> {
        let name = "eos_token_id";
        let Some(value) = self.get(name) else { return Ok(missing) };
        let first = value.as_array().and_then(|ids| ids.first()).unwrap_or(value);
        let id = first.as_u64().and_then(|n| u32::try_from(n).ok());
        id.ok_or_else(|| (name, format!("is {value}, expected a token id")))
    }
}

/// The id of the last token, which ends a text where nothing else is said.
fn last_token(vocab_size: usize) -> u32 {
    u32::try_from(vocab_size.saturating_sub(1)).unwrap_or(u32::MAX)
}

/// The shortest decimal of an f32, not the f64 nearest to it.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use crate::config::ModelConfig;

    pub(super) fn parse(json: &str) -> crate::error::Result<ModelConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        ModelConfig::from_file(&path)
    }

    #[test]
    fn what_changes_the_arithmetic_is_refused_by_name_in_each_family() {
        let files = [
            r#"{"model_type":"gpt2","vocab_size":9,"n_positions":8,"n_embd":8,"n_layer":1,"n_head":2"#,
            r#"{"model_type":"llama","vocab_size":9,"max_position_embeddings":8,"hidden_size":8,"num_hidden_layers":1,
                "num_attention_heads":2,"intermediate_size":8"#,
        ];
        for file in files {
            for (more, field) in [
                (r#""quantization_config":{"bits":4}"#, "quantization_config"),
                (r#""sliding_window":4096"#, "sliding_window"),
                (r#""layer_types":["full_attention","sliding_attention"]"#, "layer_types"),
                (r#""partial_rotary_factor":0.5"#, "partial_rotary_factor"),
                (r#""rope_interleaved":true"#, "rope_interleaved"),
                (r#""final_logit_softcapping":30.0"#, "final_logit_softcapping"),
                (r#""attention_multiplier":0.0625"#, "attention_multiplier"),
                (r#""logits_scaling":8"#, "logits_scaling"),
                (r#""num_local_experts":8"#, "num_local_experts"),
            ] {
                let error = parse(&format!("{file},{more}}}")).unwrap_err();
                assert_eq!(error.place.as_deref(), Some(field), "{error}");
            }
            for more in [
                r#""quantization_config":null"#,
                r#""sliding_window":null"#,
                r#""sliding_window":4096,"use_sliding_window":false"#,
                r#""layer_types":["full_attention"]"#,
                r#""partial_rotary_factor":1"#,
                r#""rope_interleaved":false"#,
                r#""logits_scaling":1.0"#,
                r#""num_local_experts":0"#,
                r#""torch_dtype":"bfloat16","use_cache":true,"pretraining_tp":1,"transformers.js_config":{"x":1}"#,
            ] {
                assert!(parse(&format!("{file},{more}}}")).is_ok(), "{more}");
            }
        }
    }
}
