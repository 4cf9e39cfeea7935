//! A small random model, a folder that holds it, and dialogues.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)] // Each test file uses a part; what fails here fails a test.

pub mod events;
pub mod program;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use marionette_dialogues::{save_tokenizer, train_bpe};
use marionette_models::checkpoint::{Storage, write_base};
use marionette_models::init;
use marionette_models::params::{self, Init, TensorSpec};
use marionette_models::{AdapterConfig, Gpt2Shape, LlamaShape, ModelConfig, Positions, Tensors};
use marionette_trainer::decoder::{Decoder, Parts};
use marionette_trainer::method::Method;
use marionette_trainer::model::Model;
use marionette_trainer::tensors;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// A configuration that computes in no time.
pub fn small_config() -> ModelConfig {
    ModelConfig {
        n_inner: 32,
        ..Gpt2Shape { vocab_size: 50, n_positions: 96, n_embd: 16, n_layer: 2, n_head: 4 }.into()
    }
}

/// One of each family; Llama's with three query heads on each head of keys and values, whose widths do not add up to the model's, and a
/// head of its own.
pub fn small_configs() -> [ModelConfig; 2] {
    let shape = LlamaShape {
        vocab_size: 50,
        n_positions: 96,
        n_embd: 16,
        n_layer: 2,
        n_head: 6,
        n_kv_head: 2,
        head_dim: 6,
        n_inner: 32,
    };
    [small_config(), ModelConfig { positions: Positions::Rotary { base: 100.0 }, ..shape.into() }]
}

pub const ADAPTER: AdapterConfig = AdapterConfig::in_all_blocks(6);

/// Every tensor random, large enough that nothing is nearly linear or nearly zero.
pub fn random(table: &[TensorSpec], std: f32, seed: u64) -> Tensors {
    let spread: Vec<TensorSpec> =
        table.iter().map(|spec| TensorSpec { init: Init::Normal { std }, ..spec.clone() }).collect();
    let mut tensors = init::initialise(&spread, &mut ChaCha8Rng::seed_from_u64(seed));
    for spec in table.iter().filter(|spec| spec.init == Init::Ones) {
        tensors.get_mut(&spec.name).unwrap().values.iter_mut().for_each(|value| *value += 1.0);
    }
    tensors
}

/// All tensors of the small model, its adapters and its classifier, random.
pub fn small_tensors() -> Tensors {
    tensors_of(&small_config())
}

/// The same of another model.
pub fn tensors_of(config: &ModelConfig) -> Tensors {
    let mut all = random(&params::base_table(config), 0.3, 1);
    all.extend(random(&params::adapter_table(config, &ADAPTER), 0.3, 2));
    all.extend(random(&params::classifier_table(config), 0.3, 3));
    all
}

/// A model over tensors by name.
pub fn decoder(config: &ModelConfig, host: &Tensors, parts: Parts, kind: Kind) -> Decoder {
    // The tests run side by side, and their matrices are too small to share out among threads.
    tch::set_num_threads(1);
    Decoder::new(config, parts, &tensors::all_to_torch(host.clone(), kind, Device::Cpu).unwrap()).unwrap()
}

/// The small model as a method learns it, and θ_0; its tensors in `kind`, its products in `products`.
pub fn learner(method: Method, kind: Kind, products: Kind) -> (Model, Vec<Tensor>) {
    learner_of(&small_config(), method, kind, products)
}

/// The same of another model.
pub fn learner_of(config: &ModelConfig, method: Method, kind: Kind, products: Kind) -> (Model, Vec<Tensor>) {
    tch::set_num_threads(1);
    let all = tensors_of(config);
    let table = method.table(config, &ADAPTER);
    let start = table.iter().map(|spec| tensors::to_torch(&all[&spec.name], kind, Device::Cpu).unwrap()).collect();
    let mut frozen = tensors::all_to_torch(all, kind, Device::Cpu).unwrap();
    frozen.retain(|name, _| table.iter().all(|spec| &spec.name != name));
    (Model::new(config, method.parts(), frozen, table, products, Device::Cpu).unwrap(), start)
}

/// The largest difference of two tensors.
pub fn worst(one: &Tensor, other: &Tensor) -> f64 {
    assert_eq!(one.size(), other.size());
    (one - other).abs().max().double_value(&[])
}

/// Dialogues of `personas` personas, `each` a persona, in ConvAI2's format with three candidates.
pub fn dialogues(personas: usize, each: usize) -> String {
    const PETS: [&str; 6] = ["cat", "dog", "fish", "horse", "snake", "hen"];
    let mut text = String::new();
    for persona in 0..personas {
        let (pet, other) = (PETS[persona % PETS.len()], PETS[(persona + 1) % PETS.len()]);
        for dialogue in 0..each {
            writeln!(text, "1 your persona: i am number {persona} and i have a {pet} .").unwrap();
            let replies = [
                ("hello , who are you ?", format!("i am number {persona} .")),
                ("what pet do you have ?", format!("my pet is a {pet} , number {dialogue} .")),
            ];
            for (line, (partner, reply)) in replies.into_iter().enumerate() {
                writeln!(text, "{} {partner}\t{reply}\t\tno .|my pet is a {other} .|{reply}", line + 2).unwrap();
            }
        }
    }
    text
}

/// A folder with `train.txt`, `valid.txt` and `base/`, a random model with a tokenizer for these dialogues.
pub fn workplace() -> (tempfile::TempDir, PathBuf) {
    workplace_of(small_config())
}

/// The same with a base of another family.
pub fn workplace_of(config: ModelConfig) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    std::fs::write(path.join("train.txt"), dialogues(5, 4)).unwrap();
    std::fs::write(path.join("valid.txt"), dialogues(3, 3)).unwrap();
    let base = path.join("base");
    std::fs::create_dir(&base).unwrap();
    let text = dialogues(6, 1);
    let tokenizer = train_bpe(text.lines(), 300).unwrap();
    save_tokenizer(&tokenizer, base.join("tokenizer.json")).unwrap();
    let config = ModelConfig {
        vocab_size: tokenizer.largest_id() as usize + 1,
        eos_token_id: tokenizer.end_of_text_id().unwrap(),
        n_positions: 128,
        ..config
    };
    write_base(&base, &config, &random(&params::base_table(&config), 0.1, 5), Storage::F32).unwrap();
    (folder, path)
}

/// The bytes of every file below a folder, by relative path.
pub fn contents(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// What a run directory says that does not depend on the clock: all but the event files, the seconds in the state (and
/// the digest of the state), and what a killed program may leave.
pub fn result(run: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = contents(run);
    let temporary = |part: std::path::Component| {
        part.as_os_str().to_string_lossy().starts_with(marionette_models::files::TEMPORARY_PREFIX)
    };
    found.retain(|path, _| !path.starts_with("tensorboard") && !path.components().any(temporary));
    for (path, bytes) in &mut found {
        let varies = if path.ends_with("state.json") {
            "  \"seconds\": "
        } else if path.ends_with("SHA256SUMS") {
            "  state.json"
        } else {
            continue;
        };
        let text = String::from_utf8(bytes.clone()).unwrap();
        let kept: Vec<&str> = text.lines().filter(|line| !line.contains(varies)).collect();
        assert_eq!(kept.len() + 1, text.lines().count());
        *bytes = kept.join("\n").into_bytes();
    }
    found
}
