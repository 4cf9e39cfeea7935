//! What a bundle may hold, and what the exporter writes: the same.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use marionette_dialogues::{save_tokenizer, train_bpe};
use marionette_exporter::{FreshAdapters, Source, export};
use marionette_models::bundle::operators::{FUNCTIONS, OPERATORS};
use marionette_models::bundle::{Bundle, Operators, Precision, graphs};
use marionette_models::checkpoint::{Storage, write_base};
use marionette_models::onnx::{ModelProto, NodeProto};
use marionette_models::{Gpt2Shape, LlamaShape, ModelConfig, init, params};
use prost::Message as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// One of each family; that of Llama with a head of its own.
fn models() -> [ModelConfig; 2] {
    let shape = Gpt2Shape { vocab_size: 300, n_positions: 16, n_embd: 16, n_layer: 2, n_head: 2 };
    let gpt2 = ModelConfig { n_inner: 32, eos_token_id: 256, ..shape.into() };
    let shape = LlamaShape {
        vocab_size: 300,
        n_positions: 16,
        n_embd: 16,
        n_layer: 2,
        n_head: 6,
        n_kv_head: 2,
        head_dim: 8,
        n_inner: 32,
    };
    let llama = ModelConfig { eos_token_id: 256, ..shape.into() };
    [gpt2, llama]
}

#[test]
fn every_export_passes_the_audit_and_every_operator_of_the_audit_is_exported() {
    let folder = tempfile::tempdir().unwrap();
    let mut found = BTreeSet::new();
    let mut functions = BTreeSet::new();
    for (number, config) in models().into_iter().enumerate() {
        let model = folder.path().join(format!("model-{number}"));
        std::fs::create_dir(&model).unwrap();
        let tensors = init::initialise(&params::base_table(&config), &mut ChaCha8Rng::seed_from_u64(3));
        write_base(&model, &config, &tensors, Storage::F32).unwrap();
        save_tokenizer(&train_bpe(["a"], 300).unwrap(), model.join("tokenizer.json")).unwrap();
        let mut source = Source::read(&model, FreshAdapters { bottleneck: Some(3), seed: None }, None).unwrap();
        for (first_block, precision) in [0, 1].into_iter().flat_map(|first| Precision::ALL.map(|p| (first, p))) {
            source.adapter.first_block = first_block;
            let table = params::adapter_table(&source.base.config, &source.adapter);
            source.adapters = init::initialise(&table, &mut ChaCha8Rng::seed_from_u64(3));
            for operators in Operators::ALL {
                let out = folder.path().join(format!("{number}-{first_block}-{precision}-{operators}"));
                export(&source, precision, operators, &out, &AtomicBool::new(false)).unwrap();
                Bundle::open(&out).unwrap_or_else(|error| panic!("{precision}, {operators}: {error}"));
                for (_, file) in graphs(&source.adapter) {
                    let graph = ModelProto::decode(&std::fs::read(out.join(file)).unwrap()[..]).unwrap();
                    let mut see = |node: &NodeProto| {
                        found.insert((node.domain.clone(), node.op_type.clone(), String::new()));
                        for attribute in &node.attribute {
                            found.insert((node.domain.clone(), node.op_type.clone(), attribute.name.clone()));
                        }
                    };
                    graph.graph.unwrap().node.iter().for_each(&mut see);
                    graph.functions.iter().flat_map(|function| &function.node).for_each(&mut see);
                    functions.extend(graph.functions.into_iter().map(|function| function.name));
                }
            }
        }
    }
    let known = OPERATORS.into_iter().chain(FUNCTIONS.map(|function| function.operator));
    for operator in known {
        for attribute in [""].into_iter().chain(operator.attributes.iter().map(|(name, _)| *name)) {
            let key = (operator.domain.to_owned(), operator.name.to_owned(), attribute.to_owned());
            assert!(found.contains(&key), "{key:?} is in no graph");
        }
    }
    assert!(FUNCTIONS.iter().all(|function| functions.contains(function.operator.name)));
}
