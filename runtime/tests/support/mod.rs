//! What tests of personas share: the manifest of a bundle that is not there, and adapters for it.

use std::collections::BTreeMap;

use marionette_models::bundle::{Manifest, Operators, Precision};
use marionette_models::{AdapterConfig, Gpt2Shape, HostTensor, InnerLoop, LearningRate, PromptForm, Tensors, params};

/// The manifest of a GPT-2 of `n_layer` blocks, 10 tokens and a context of 8.
pub fn manifest(n_embd: usize, n_layer: usize, n_head: usize, bottleneck: usize) -> Manifest {
    Manifest {
        format_version: 2,
        producer: "test".into(),
        model: Gpt2Shape { vocab_size: 10, n_positions: 8, n_embd, n_layer, n_head }.into(),
        prompt: PromptForm::plain(9),
        adapter: AdapterConfig::in_all_blocks(bottleneck),
        base_sha256: "ab".repeat(32),
        precision: Precision::Fp32,
        operators: Operators::Ort,
        inner_loop: InnerLoop { steps: 1, dialogues_per_step: 1, learning_rate: LearningRate::Shared(0.1) },
        persona_text: false,
        files: BTreeMap::new(),
        graphs: BTreeMap::new(),
    }
}

/// Adapters whose values are given by the number of their tensor and their place in it.
pub fn adapters(manifest: &Manifest, value: impl Fn(usize, usize) -> f32) -> Tensors {
    let table = params::adapter_table(&manifest.model, &manifest.adapter).into_iter().enumerate();
    table
        .map(|(number, spec)| {
            let values = (0..spec.len()).map(|place| value(number, place)).collect();
            (spec.name.clone(), HostTensor { values, shape: spec.shape })
        })
        .collect()
}
