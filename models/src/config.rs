//! Hyper-parameters: GPT-2's, under the names of Hugging Face's `config.json`, the adapters' and the inner loop's.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{FileError, Result};
use crate::{files, json};

/// The activation of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// The tanh approximation of GELU, 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks & Gimpel 2016, section 2).
    #[serde(rename = "gelu_new")]
    GeluNew,
}

/// The hyper-parameters of GPT-2 (Radford et al. 2019), under the names of Hugging Face's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpt2Config {
    /// V, the number of tokens in the embedding.
    pub vocab_size: usize,
    /// P, the context: the largest number of tokens of a sequence.
    pub n_positions: usize,
    /// D, the width of the residual stream.
    pub n_embd: usize,
    /// L, the number of blocks.
    pub n_layer: usize,
    /// H, the number of attention heads; D is a multiple of it.
    pub n_head: usize,
    /// F, the width of the MLP: 4 D unless the file says otherwise.
    pub n_inner: usize,
    /// The activation of the MLP.
    pub activation_function: Activation,
    /// ε of every layer normalisation.
    pub layer_norm_epsilon: f32,
    /// The id of `<|endoftext|>`, which ends every utterance.
    pub eos_token_id: u32,
}

impl Gpt2Config {
    /// The width of one attention head, D / H.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// Reads the `config.json` of a Hugging Face model folder.
    ///
    /// # Errors
    /// A field is missing, has an impossible value, or asks for a variant of GPT-2 that is not supported.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = files::read_limited(path, 1 << 20)?;
        let value: Value =
            json::from_slice(&bytes).map_err(|error| FileError::new(path, format!("is not a JSON object: {error}")))?;
        Self::from_hugging_face(&value).map_err(|(field, problem)| FileError::new(path, problem).at(field))
    }

    fn from_hugging_face(value: &Value) -> Result<Self, (&'static str, String)> {
        let field = |name: &'static str| value.get(name).filter(|value| !value.is_null());
        match field("model_type").map(|v| v.as_str()) {
            Some(Some("gpt2")) | None => {}
            other => {
                return Err(("model_type", format!("is {}, expected \"gpt2\"", other.flatten().unwrap_or("no text"))));
            }
        }
        let count = |name: &'static str| match field(name) {
            None => Err((name, "is missing, expected a positive integer".to_owned())),
            Some(v) => v
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| (name, format!("is {v}, expected a positive integer"))),
        };
        // Variants that change the arithmetic; a model that uses one would load and be wrong.
        for (name, expected) in [
            ("scale_attn_weights", true),
            ("scale_attn_by_inverse_layer_idx", false),
            ("add_cross_attention", false),
            ("tie_word_embeddings", true),
        ] {
            if field(name).is_some_and(|v| v.as_bool() != Some(expected)) {
                return Err((name, format!("is not {expected}: this variant of GPT-2 is not supported")));
            }
        }
        let activation_function = match field("activation_function").map(|v| v.as_str()) {
            None | Some(Some("gelu_new" | "gelu_pytorch_tanh")) => Activation::GeluNew,
            _ => {
                return Err((
                    "activation_function",
                    format!("is {}, expected \"gelu_new\"", value["activation_function"]),
                ));
            }
        };
        let layer_norm_epsilon = match field("layer_norm_epsilon") {
            None => 1e-5,
            Some(v) => v.as_f64().ok_or_else(|| ("layer_norm_epsilon", format!("is {v}, expected a number")))? as f32,
        };
        let n_embd = count("n_embd")?;
        let vocab_size = count("vocab_size")?;
        let config = Self {
            vocab_size,
            n_positions: if field("n_positions").is_some() { count("n_positions")? } else { count("n_ctx")? },
            n_embd,
            n_layer: count("n_layer")?,
            n_head: count("n_head")?,
            n_inner: if field("n_inner").is_some() { count("n_inner")? } else { n_embd.saturating_mul(4) },
            activation_function,
            layer_norm_epsilon,
            eos_token_id: match field("eos_token_id") {
                None => u32::try_from(vocab_size.saturating_sub(1)).unwrap_or(u32::MAX),
                Some(v) => v
                    .as_u64()
                    .and_then(|n| u32::try_from(n).ok())
                    .ok_or_else(|| ("eos_token_id", format!("is {v}, expected a token id")))?,
            },
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that the values are possible together.
    ///
    /// # Errors
    /// The field, and what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        // Far above every GPT-2; below, no product of two of them overflows and no table is absurd.
        for (name, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("n_positions", self.n_positions, 1 << 20),
            ("n_embd", self.n_embd, 1 << 16),
            ("n_layer", self.n_layer, 1 << 10),
            ("n_head", self.n_head, 1 << 10),
            ("n_inner", self.n_inner, 1 << 18),
        ] {
            if value == 0 || value > most {
                return Err((name, format!("is {value}, expected 1 to {most}")));
            }
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            return Err(("n_head", format!("is {}, which does not divide n_embd = {}", self.n_head, self.n_embd)));
        }
        if self.eos_token_id as usize >= self.vocab_size {
            return Err(("eos_token_id", format!("is {}, beyond vocab_size = {}", self.eos_token_id, self.vocab_size)));
        }
        if !(self.layer_norm_epsilon > 0.0 && self.layer_norm_epsilon < 1.0) {
            return Err((
                "layer_norm_epsilon",
                format!("is {}, expected a small positive number", self.layer_norm_epsilon),
            ));
        }
        Ok(())
    }

    /// The `config.json` that Hugging Face transformers reads.
    pub fn to_hugging_face(&self) -> Value {
        serde_json::json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "activation_function": self.activation_function,
            // As the shortest decimal, not as the f64 nearest to an f32.
            "layer_norm_epsilon": self.layer_norm_epsilon.to_string().parse::<f64>().unwrap_or(1e-5),
            "bos_token_id": self.eos_token_id,
            "eos_token_id": self.eos_token_id,
            "tie_word_embeddings": true,
        })
    }
}

/// The shape of the adapters: Houlsby et al. 2019, figure 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// R, the width of the bottleneck.
    pub bottleneck: usize,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self { bottleneck: 64 }
    }
}

/// The inner loop's recipe, written by the trainer and followed by the device: plain SGD on the mean negative
/// log-likelihood over all reply tokens of a step's batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerLoop {
    /// S, the number of SGD steps.
    pub steps: usize,
    /// The number of dialogues in the batch of one step. The steps go through the support dialogues in order and begin
    /// again at the end; a batch never holds a dialogue twice, so fewer dialogues make a smaller batch.
    pub dialogues_per_step: usize,
    /// α.
    pub learning_rate: LearningRate,
}

impl InnerLoop {
    /// The batches of the inner loop, as indices of support dialogues, one entry a step. `support` dialogues are cut into
    /// consecutive batches of `dialogues_per_step`, the last one possibly smaller, and `steps` walks through them cyclically.
    pub fn batches(&self, support: usize) -> Vec<Vec<usize>> {
        let size = self.dialogues_per_step.max(1);
        let one_pass: Vec<Vec<usize>> =
            (0..support).step_by(size).map(|first| (first..(first + size).min(support)).collect()).collect();
        one_pass.iter().cycle().take(if support == 0 { 0 } else { self.steps }).cloned().collect()
    }

    /// The recipe for `support` dialogues: S steps, or as many as one pass takes where that is more. Somebody who gives ten
    /// dialogues expects all ten to be learned from, also where S was meta-learned with five.
    #[must_use]
    pub fn for_support(&self, support: usize) -> Self {
        Self { steps: self.steps.max(self.steps_per_epoch(support)), ..self.clone() }
    }

    /// The number of steps that make one epoch: one pass over the support dialogues.
    pub fn steps_per_epoch(&self, support: usize) -> usize {
        support.div_ceil(self.dialogues_per_step.max(1))
    }
}

/// α, the inner loop's learning rate: one for all adapter tensors, or one a tensor in the order of the adapter table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LearningRate {
    /// The same for every tensor.
    Shared(f32),
    /// One a tensor.
    PerTensor(Vec<f32>),
}

impl LearningRate {
    /// One value a tensor.
    ///
    /// # Errors
    /// There are not as many values as tensors, or one is not a finite number.
    pub fn per_tensor(&self, tensors: usize) -> Result<Vec<f32>, String> {
        let rates = match self {
            Self::Shared(rate) => vec![*rate; tensors],
            Self::PerTensor(rates) if rates.len() == tensors => rates.clone(),
            Self::PerTensor(rates) => return Err(format!("has {} values, expected one or {tensors}", rates.len())),
        };
        match rates.iter().find(|rate| !rate.is_finite()) {
            Some(rate) => Err(format!("is {rate}, expected a finite number")),
            None => Ok(rates),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Gpt2Config> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        Gpt2Config::from_file(&path)
    }

    const GPT2: &str = r#"{"model_type":"gpt2","vocab_size":50257,"n_positions":1024,"n_ctx":1024,"n_embd":768,"n_layer":12,
        "n_head":12,"n_inner":null,"activation_function":"gelu_new","layer_norm_epsilon":1e-05,"eos_token_id":50256,
        "resid_pdrop":0.1,"summary_type":"cls_index"}"#;

    #[test]
    fn reads_gpt2_and_round_trips() {
        let config = parse(GPT2).unwrap();
        assert_eq!((config.n_inner, config.head_dim(), config.eos_token_id), (3072, 64, 50256));
        assert_eq!(parse(&config.to_hugging_face().to_string()).unwrap(), config);
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
            ("\"model_type\":\"gpt2\"", "\"model_type\":\"llama\"", "model_type"),
            ("\"n_inner\":null", "\"tie_word_embeddings\":false", "tie_word_embeddings"),
        ] {
            assert!(GPT2.contains(from));
            let error = parse(&GPT2.replace(from, to)).unwrap_err();
            assert_eq!(error.place.as_deref(), Some(field), "{error}");
            assert!(error.to_string().contains("config.json"));
        }
        assert!(parse("").is_err());
        assert!(parse("[1]").is_err());
    }

    #[test]
    fn batches_cycle_through_the_support_dialogues() {
        let recipe = InnerLoop { steps: 4, dialogues_per_step: 2, learning_rate: LearningRate::Shared(0.1) };
        assert_eq!(recipe.batches(5), vec![vec![0, 1], vec![2, 3], vec![4], vec![0, 1]]);
        assert_eq!(recipe.batches(1), vec![vec![0]; 4]);
        assert!(recipe.batches(0).is_empty());
        assert_eq!(recipe.steps_per_epoch(5), 3);
        assert_eq!((recipe.for_support(5).steps, recipe.for_support(11).steps), (4, 6));
    }

    #[test]
    fn learning_rates_are_counted() {
        assert_eq!(LearningRate::Shared(0.5).per_tensor(2), Ok(vec![0.5, 0.5]));
        assert!(LearningRate::PerTensor(vec![0.5]).per_tensor(2).unwrap_err().contains("expected one or 2"));
        assert!(LearningRate::Shared(f32::NAN).per_tensor(2).is_err());
    }
}
