//! Bundles of format 1, which knew GPT-2 alone: what its manifest says is given the names of today. It had no digest of its own, and
//! its attention had one number of heads, for queries, keys and values alike ([`super::operators::function`]).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::manifest::{FileEntry, GraphInterface, Manifest, Operators, Precision};
use crate::config::{AdapterConfig, ModelConfig};
use crate::families::Gpt2Shape;
use crate::inner_loop::InnerLoop;
use crate::prompt_form::PromptForm;

/// Its number.
pub(super) const VERSION: u32 = 1;

/// What to do about a bundle that cannot be read: there were older ones of this number, of other graphs and operators.
pub(super) const REMEDY: &str = "export the model, or the run, again";

/// Its `manifest.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Former {
    format_version: u32,
    producer: String,
    model: Gpt2,
    adapter: AdapterConfig,
    base_sha256: String,
    precision: Precision,
    operators: Operators,
    inner_loop: InnerLoop,
    persona_text: bool,
    files: BTreeMap<String, FileEntry>,
    graphs: BTreeMap<String, GraphInterface>,
}

/// GPT-2's hyper-parameters, under the names of Hugging Face's `config.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gpt2 {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: usize,
    #[serde(rename = "activation_function")]
    _activation: Activation,
    layer_norm_epsilon: f32,
    eos_token_id: u32,
}

#[derive(Deserialize)]
enum Activation {
    #[serde(rename = "gelu_new")]
    GeluNew,
}

impl From<Gpt2> for ModelConfig {
    fn from(former: Gpt2) -> Self {
        let Gpt2 { vocab_size, n_positions, n_embd, n_layer, n_head, .. } = former;
        Self {
            n_inner: former.n_inner,
            norm_epsilon: former.layer_norm_epsilon,
            eos_token_id: former.eos_token_id,
            ..Gpt2Shape { vocab_size, n_positions, n_embd, n_layer, n_head }.into()
        }
    }
}

impl From<Former> for Manifest {
    fn from(former: Former) -> Self {
        Self {
            format_version: former.format_version,
            producer: former.producer,
            // Every utterance ended with the token that ends a text.
            prompt: PromptForm::plain(former.model.eos_token_id),
            model: former.model.into(),
            adapter: former.adapter,
            base_sha256: former.base_sha256,
            precision: former.precision,
            operators: former.operators,
            inner_loop: former.inner_loop,
            persona_text: former.persona_text,
            files: former.files,
            graphs: former.graphs,
        }
    }
}
