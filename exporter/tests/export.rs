//! The program as a whole: what it writes, and what it refuses.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use marionette_dialogues::{save_tokenizer, train_bpe};
use marionette_models::bundle::{ADAPT, ADAPTERS, Bundle, GENERATE, SCORE, TOKENIZER, WEIGHTS};
use marionette_models::checkpoint::{Storage, write_adapters, write_base};
use marionette_models::run::{SUMS, seal};
use marionette_models::{
    AdapterConfig, Gpt2Shape, HostTensor, InnerLoop, LearningRate, ModelConfig, Tensors, digest, params,
};
use tempfile::TempDir;

fn config() -> ModelConfig {
    ModelConfig {
        n_inner: 32,
        eos_token_id: 256,
        ..Gpt2Shape { vocab_size: 300, n_positions: 16, n_embd: 16, n_layer: 2, n_head: 2 }.into()
    }
}

fn filled(table: Vec<params::TensorSpec>) -> Tensors {
    table
        .into_iter()
        .enumerate()
        .map(|(i, spec)| {
            let values = (0..spec.len()).map(|j| ((i * 31 + j * 7) % 19) as f32 * 0.01).collect();
            (spec.name, HostTensor { shape: spec.shape, values })
        })
        .collect()
}

/// A folder with a model, a run and room for bundles.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        let (config, model) = (config(), scratch.path("model"));
        let base = filled(params::base_table(&config));
        fs::create_dir(&model).unwrap();
        write_base(&model, &config, &base, Storage::F32).unwrap();
        // 256 bytes and <|endoftext|>: nothing occurs twice.
        save_tokenizer(&train_bpe(["a"], 300).unwrap(), model.join("tokenizer.json")).unwrap();

        let checkpoint = scratch.path("run/checkpoints/step-30");
        fs::create_dir_all(&checkpoint).unwrap();
        fs::write(scratch.path("run/best"), "step-30\n").unwrap();
        let adapters = filled(params::adapter_table(&config, &AdapterConfig::in_all_blocks(4)));
        write_adapters(&checkpoint.join("adapters.safetensors"), &adapters, &Default::default()).unwrap();
        let toml = format!(
            "base = {:?}\nbase_sha256 = \"{}\"\nmethod = \"extra-place\"\npersona_text = true\nseed = 1\n\
             [adapter]\nbottleneck = 4\n[inner_loop]\nsteps = 3\ndialogues_per_step = 2\nlearning_rate = 0.05\n",
            model,
            digest::base_sha256(&config, &base)
        );
        fs::write(scratch.path("run/config.toml"), toml).unwrap();
        // α as it was by then, which is another than at the beginning of the run.
        let recipe = r#"{"steps": 3, "dialogues_per_step": 2, "learning_rate": 0.07}"#;
        fs::write(checkpoint.join("inner_loop.json"), recipe).unwrap();
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts a base that the run has learned into its checkpoint.
    fn learned_base(&self) -> Tensors {
        let mut base = filled(params::base_table(&config()));
        base.values_mut().flat_map(|tensor| &mut tensor.values).for_each(|value| *value += 0.5);
        write_base(&self.path("run/checkpoints/step-30"), &config(), &base, Storage::F32).unwrap();
        base
    }

    /// Exports what the tests have put together as if it had been written so.
    fn export(&self, source: &str, out: &str, more: &[&str]) -> Output {
        seal(&self.path("run/checkpoints/step-30")).unwrap();
        self.export_as_it_is(source, out, more)
    }

    fn export_as_it_is(&self, source: &str, out: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_marionette-export"))
            .args([self.path(source).as_os_str(), "--out".as_ref(), self.path(out).as_os_str()])
            .args(more)
            .output()
            .unwrap()
    }

    /// The one line with which an export is refused, leaving nothing behind.
    fn refused(&self, source: &str, more: &[&str], code: i32) -> String {
        let before = listing(self.0.path());
        let output = self.export(source, "bundle", more);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(output.stdout.is_empty());
        assert_eq!(error.lines().count(), 1, "{error}");
        assert_eq!(listing(self.0.path()), before);
        error
    }
}

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_model_folder_becomes_a_bundle_with_fresh_adapters() {
    let scratch = Scratch::new();
    let output = scratch.export("model", "bundle", &["--bottleneck", "4", "--seed", "7"]);
    succeeds(&output);
    let table = String::from_utf8(output.stdout).unwrap();
    for file in [GENERATE, SCORE, ADAPT, WEIGHTS, ADAPTERS, TOKENIZER] {
        assert!(table.contains(file), "{table}");
    }
    let bundle = Bundle::open(&scratch.path("bundle")).unwrap();
    let adapters = bundle.adapters().unwrap();
    assert!(adapters["h.1.mlp_adapter.up.weight"].values.iter().all(|&value| value == 0.0));
    let down = &adapters["h.0.attn_adapter.down.weight"].values;
    let variance = down.iter().map(|value| value * value).sum::<f32>() / down.len() as f32;
    // 1/D = 1/16, from 64 values.
    assert!((0.02..0.14).contains(&variance), "{variance}");
}

#[test]
fn the_context_can_be_shortened() {
    let scratch = Scratch::new();
    succeeds(&scratch.export("model", "whole", &["--bottleneck", "4"]));
    succeeds(&scratch.export("model", "short", &["--bottleneck", "4", "--context", "10"]));
    let [whole, short] = ["whole", "short"].map(|name| Bundle::open(&scratch.path(name)).unwrap());
    assert_eq!((whole.manifest().model.n_positions, short.manifest().model.n_positions), (16, 10));
    // Personas of one are personas of the other.
    assert_eq!(whole.manifest().base_sha256, short.manifest().base_sha256);
    // The positions from the eleventh on are gone, and nothing else.
    let mut expected = filled(params::base_table(&config()));
    let positions = expected.get_mut(params::names::WPE).unwrap();
    *positions = HostTensor { shape: vec![10, 16], values: positions.values[..160].to_vec() };
    weights_are(&scratch.path("short"), &expected);
    for (context, part) in [("17", "--context is 17, expected 1 to 16"), ("1", "--context is 1, which is too little")] {
        let error = scratch.refused("model", &["--context", context], 2);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_run_becomes_a_bundle_with_its_best_adapters_and_inner_loop() {
    let scratch = Scratch::new();
    succeeds(&scratch.export("run", "bundle", &[]));
    let bundle = Bundle::open(&scratch.path("bundle")).unwrap();
    let expected = filled(params::adapter_table(&config(), &AdapterConfig::in_all_blocks(4)));
    assert_eq!(bundle.adapters().unwrap(), expected);
    let recipe = &bundle.manifest().inner_loop;
    assert_eq!((recipe.steps, &recipe.learning_rate), (3, &LearningRate::Shared(0.07)));
    assert!(bundle.manifest().persona_text);
    assert!(bundle.probe().unwrap().is_none());
}

/// Those of before `state.json` said what a checkpoint was made with: `config.toml` has it all.
#[test]
fn a_run_of_a_former_version_is_exported() {
    let scratch = Scratch::new();
    let more = "[data]\ntrain = [\"train.txt\"]\nvalid = []\nhold_out = 0.2\ntest_part = 0.0\nsha256 = [\"00\"]\n\
                support_dialogues = 2\n[outer]\ngradient = \"maml\"\nlearning_rate = 0.001\ninner_rate = \"fixed\"\n";
    let path = scratch.path("run/config.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config + more).unwrap();
    let state = r#"{"iteration": 30, "tokens": 9, "seconds": 1.5, "waited": 0, "best_iteration": 30, "metrics_bytes": 7,
        "finished": true, "optimiser_steps": 30, "rates": [0.07]}"#;
    fs::write(scratch.path("run/checkpoints/step-30/state.json"), state).unwrap();
    succeeds(&scratch.export("run", "bundle", &[]));
    let bundle = Bundle::open(&scratch.path("bundle")).unwrap();
    let expected = filled(params::adapter_table(&self::config(), &AdapterConfig::in_all_blocks(4)));
    assert_eq!(bundle.adapters().unwrap(), expected);
    assert_eq!(bundle.manifest().inner_loop.learning_rate, LearningRate::Shared(0.07));
    assert!(bundle.manifest().persona_text);
}

#[test]
fn a_run_that_learned_the_base_is_exported_with_it_and_fresh_adapters() {
    let scratch = Scratch::new();
    let learned = scratch.learned_base();
    let checkpoint = scratch.path("run/checkpoints/step-30");
    fs::remove_file(checkpoint.join("adapters.safetensors")).unwrap();
    // Of a method that classifies replies; and of adapters that are not exported.
    fs::write(checkpoint.join("classifier.safetensors"), b"any").unwrap();
    fs::write(scratch.path("run/probe.safetensors"), b"any").unwrap();
    let fresh = ["--bottleneck", "4", "--seed", "7"];
    let output = scratch.export("run", "bundle", &fresh);
    succeeds(&output);
    let hint = String::from_utf8(output.stderr).unwrap();
    assert!(hint.contains("learned no adapters") && hint.lines().count() == 1, "{hint}");
    let bundle = Bundle::open(&scratch.path("bundle")).unwrap();
    assert_eq!(bundle.manifest().base_sha256, digest::base_sha256(&config(), &learned));
    weights_are(&scratch.path("bundle"), &learned);
    assert!(bundle.manifest().persona_text && bundle.probe().unwrap().is_none());
    // The adapters and the inner loop are those of a model folder.
    succeeds(&scratch.export("model", "bare", &fresh));
    let bare = Bundle::open(&scratch.path("bare")).unwrap();
    assert_ne!(bare.manifest().base_sha256, bundle.manifest().base_sha256);
    assert_eq!(bundle.adapters().unwrap(), bare.adapters().unwrap());
    assert_eq!(bare.manifest().inner_loop, InnerLoop::default());
    assert_eq!(bundle.manifest().inner_loop, bare.manifest().inner_loop);
}

#[test]
fn a_run_that_learned_base_and_adapters_is_exported_with_both() {
    let scratch = Scratch::new();
    let learned = scratch.learned_base();
    let output = scratch.export("run", "bundle", &[]);
    succeeds(&output);
    assert!(output.stderr.is_empty());
    let bundle = Bundle::open(&scratch.path("bundle")).unwrap();
    assert_eq!(bundle.manifest().base_sha256, digest::base_sha256(&config(), &learned));
    weights_are(&scratch.path("bundle"), &learned);
    let expected = filled(params::adapter_table(&config(), &AdapterConfig::in_all_blocks(4)));
    assert_eq!(bundle.adapters().unwrap(), expected);
    assert_eq!(bundle.manifest().inner_loop.steps, 3);
    fs::remove_dir_all(scratch.path("bundle")).unwrap();
    assert!(scratch.refused("run", &["--seed", "4"], 2).contains("brings its own"));
}

#[test]
fn a_learned_base_that_cannot_be_is_refused() {
    let scratch = Scratch::new();
    scratch.learned_base();
    let checkpoint = scratch.path("run/checkpoints/step-30");
    let weights = checkpoint.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 4]).unwrap();
    assert!(scratch.refused("run", &[], 1).contains("step-30/model.safetensors"));
    fs::remove_file(&weights).unwrap();
    assert!(scratch.refused("run", &[], 1).contains("step-30/model.safetensors"));
    fs::write(&weights, whole).unwrap();
    let text = fs::read_to_string(checkpoint.join("config.json")).unwrap();
    fs::write(checkpoint.join("config.json"), text.replace("1e-05", "1e-06").replace("0.00001", "0.000001")).unwrap();
    assert!(scratch.refused("run", &[], 1).contains("step-30/config.json: is not that of"));
    fs::write(checkpoint.join("config.json"), text).unwrap();
    // The tokenizer comes from the model that the run began with.
    let mut base = filled(params::base_table(&config()));
    base.get_mut("wpe.weight").unwrap().values[5] += 1e-6;
    write_base(&scratch.path("model"), &config(), &base, Storage::F32).unwrap();
    assert!(scratch.refused("run", &[], 1).contains("is not the model that"));
}

#[test]
fn learned_learning_rates_reach_the_bundle() {
    let scratch = Scratch::new();
    let path = scratch.path("run/checkpoints/step-30/inner_loop.json");
    let with = |count: usize| {
        let rates: Vec<f32> = (0..count).map(|tensor| 0.01 * tensor as f32).collect();
        let text = format!(r#"{{"steps": 3, "dialogues_per_step": 2, "learning_rate": {rates:?}}}"#);
        fs::write(&path, text).unwrap();
        rates
    };
    with(15);
    let error = scratch.refused("run", &[], 1);
    assert!(error.contains("inner_loop.json: learning_rate: has 15 values, expected one or 16"), "{error}");
    // Two blocks of two adapters of four tensors.
    let rates = with(16);
    succeeds(&scratch.export("run", "bundle", &[]));
    let bundle = Bundle::open(&scratch.path("bundle")).unwrap();
    assert_eq!(bundle.manifest().inner_loop.learning_rate, LearningRate::PerTensor(rates));

    // Where the base learned as well, its tensors' rates come first.
    scratch.learned_base();
    let rates = with(40);
    succeeds(&scratch.export("run", "both", &[]));
    let bundle = Bundle::open(&scratch.path("both")).unwrap();
    assert_eq!(bundle.manifest().inner_loop.learning_rate, LearningRate::PerTensor(rates[24..].to_vec()));
}

#[test]
fn an_export_says_what_its_precision_costs_or_why_it_cannot() {
    let scratch = Scratch::new();
    let said = |output: Output| {
        succeeds(&output);
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!said(scratch.export("run", "fp32", &[])).contains("costs"));
    let said_of_model = said(scratch.export("model", "bundle", &["--precision", "int8"]));
    assert!(said_of_model.contains("what int8 costs, beside fp32:\n  worst logit difference "), "{said_of_model}");
    assert!(said_of_model.contains("are not measured: a model folder names no validation dialogues"));

    // A run whose dialogues are there, and the same after they have changed.
    let dialogues = scratch.path("valid.txt");
    let file = "1 your persona: i am here.\n2 a b\tc d\t\ta|c d\n1 your persona: i am here.\n2 b a\td c\t\ta|d c\n";
    fs::write(&dialogues, file).unwrap();
    let config = scratch.path("run/config.toml");
    let data = format!(
        "[data]\ntrain = []\nvalid = [{dialogues:?}]\nhold_out = 0.1\ntest_part = 0.0\nsha256 = [\"{}\"]\n",
        digest::sha256(file.as_bytes())
    );
    fs::write(&config, fs::read_to_string(&config).unwrap() + &data).unwrap();
    let said_of_run = said(scratch.export("run", "bundle", &["--precision", "int8"]));
    assert!(said_of_run.contains(" of 2 validation dialogues\n  10 steps of adaptation: loss "), "{said_of_run}");
    fs::write(&dialogues, file.to_owned() + " ").unwrap();
    let said_of_run = said(scratch.export("run", "bundle", &["--precision", "int8"]));
    assert!(said_of_run.contains("valid.txt has changed since the run"), "{said_of_run}");
}

#[test]
fn weights_that_16_bits_cannot_hold_are_refused() {
    let scratch = Scratch::new();
    let mut base = filled(params::base_table(&config()));
    base.get_mut("h.1.mlp.c_fc.weight").unwrap().values[5] = 65_520.0;
    write_base(&scratch.path("model"), &config(), &base, Storage::F32).unwrap();
    let error = scratch.refused("model", &["--precision", "fp16"], 1);
    assert!(error.contains("\"h.1.mlp.c_fc.weight\" has 65520; take fp32"), "{error}");
    succeeds(&scratch.export("model", "bundle", &[]));
}

#[test]
fn standard_operators_are_those_of_onnx_alone() {
    let scratch = Scratch::new();
    succeeds(&scratch.export("run", "bundle", &["--precision", "int4", "--ops", "standard"]));
    let bundle = Bundle::open(&scratch.path("bundle")).unwrap();
    assert_eq!(bundle.manifest().operators, marionette_models::bundle::Operators::Standard);
}

#[test]
fn the_weights_file_holds_each_tensor_where_the_graphs_look_for_it() {
    let scratch = Scratch::new();
    succeeds(&scratch.export("run", "bundle", &[]));
    weights_are(&scratch.path("bundle"), &filled(params::base_table(&config())));
}

/// Every graph finds each tensor of `base` in the bundle's weights.
#[track_caller]
fn weights_are(bundle: &Path, base: &Tensors) {
    use marionette_models::onnx::ModelProto;
    use prost::Message as _;
    let weights = fs::read(bundle.join(WEIGHTS)).unwrap();
    for graph in [GENERATE, SCORE, ADAPT] {
        let model = ModelProto::decode(&fs::read(bundle.join(graph)).unwrap()[..]).unwrap();
        let external: Vec<_> =
            model.graph.unwrap().initializer.into_iter().filter(|tensor| tensor.data_location == 1).collect();
        assert_eq!(external.len(), base.len());
        for tensor in external {
            let field = |key: &str| -> usize {
                tensor.external_data.iter().find(|entry| entry.key == key).unwrap().value.parse().unwrap()
            };
            let (offset, length) = (field("offset"), field("length"));
            assert_eq!(offset % 4096, 0);
            let bytes: Vec<u8> = base[&tensor.name].values.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(weights[offset..offset + length], bytes[..], "{}", tensor.name);
        }
    }
}

#[test]
fn the_same_source_gives_the_same_bytes_and_a_bundle_can_be_replaced() {
    let scratch = Scratch::new();
    let fresh = |seed: &'static str| ["--bottleneck", "4", "--seed", seed];
    succeeds(&scratch.export("model", "one", &fresh("7")));
    succeeds(&scratch.export("model", "two", &fresh("8")));
    let content = |bundle: &str, file: &str| fs::read(scratch.path(bundle).join(file)).unwrap();
    assert_ne!(content("one", ADAPTERS), content("two", ADAPTERS));
    succeeds(&scratch.export("model", "two", &fresh("7")));
    for file in listing(&scratch.path("one")) {
        assert_eq!(content("one", &file), content("two", &file), "{file}");
    }
}

#[test]
fn wrong_options_are_refused() {
    let scratch = Scratch::new();
    assert!(scratch.refused("run", &["--bottleneck", "4"], 2).contains("brings its own"));
    let output = scratch.export("model", "bundle", &["--bottleneck", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 to 32768"));
    let output = scratch.export("model", "bundle", &["--precision", "fp8"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn sources_that_are_none_are_refused() {
    let scratch = Scratch::new();
    assert!(scratch.refused("nowhere", &[], 1).contains("is not a folder"));
    fs::create_dir(scratch.path("empty")).unwrap();
    assert!(scratch.refused("empty", &[], 1).contains("config.json"));
    fs::write(scratch.path("model/tokenizer.json"), "{").unwrap();
    assert!(scratch.refused("model", &[], 1).contains("tokenizer.json"));
    fs::remove_file(scratch.path("model/tokenizer.json")).unwrap();
    assert!(scratch.refused("model", &[], 1).contains("has no tokenizer"));
}

#[test]
fn a_tokenizer_that_does_not_fit_the_embedding_is_refused() {
    let scratch = Scratch::new();
    let train = |texts: &[&str], size: usize| {
        let tokenizer = train_bpe(texts.iter().copied(), size).unwrap();
        save_tokenizer(&tokenizer, scratch.path("model/tokenizer.json")).unwrap();
    };
    let text: String = (0..200).map(|i| format!("word{i} word{i} ")).collect();
    train(&[&text], 340);
    let error = scratch.refused("model", &[], 1);
    assert!(error.contains("model: vocab_size: ") && error.contains("embedding has 300 rows"), "{error}");
    train(&[&text], 280);
    let error = scratch.refused("model", &[], 1);
    assert!(error.contains("eos_token_id 256: ") && error.contains("use a tokenizer"), "{error}");
}

#[test]
fn heads_that_onnx_runtime_does_not_take_are_refused() {
    let scratch = Scratch::new();
    let config = ModelConfig { n_head: 4, n_kv_head: 4, head_dim: 4, ..config() };
    write_base(&scratch.path("model"), &config, &filled(params::base_table(&config)), Storage::F32).unwrap();
    assert!(scratch.refused("model", &[], 1).contains("multiple of 8"));
}

#[test]
fn a_run_whose_base_has_changed_is_refused() {
    let scratch = Scratch::new();
    let mut base = filled(params::base_table(&config()));
    base.get_mut("wpe.weight").unwrap().values[5] += 1e-6;
    write_base(&scratch.path("model"), &config(), &base, Storage::F32).unwrap();
    let error = scratch.refused("run", &[], 1);
    assert!(error.contains("is not the model that") && error.contains("train again"), "{error}");
    fs::remove_dir_all(scratch.path("model")).unwrap();
    let error = scratch.refused("run", &[], 1);
    assert!(error.contains("config.toml names it") && error.contains("--base gives its new place"), "{error}");
}

#[test]
fn a_base_that_was_moved_is_taken_where_it_is_the_same() {
    let scratch = Scratch::new();
    succeeds(&scratch.export("run", "one", &[]));
    fs::rename(scratch.path("model"), scratch.path("moved")).unwrap();
    let moved = scratch.path("moved");
    let base = ["--base", moved.to_str().unwrap()];
    succeeds(&scratch.export("run", "two", &base));
    for file in listing(&scratch.path("one")) {
        let content = |bundle: &str| fs::read(scratch.path(bundle).join(&file)).unwrap();
        assert_eq!(content("one"), content("two"), "{file}");
    }
    assert!(scratch.refused("moved", &base, 2).contains("--base is for a run directory"));
    let mut other = filled(params::base_table(&config()));
    other.get_mut("wpe.weight").unwrap().values[5] += 1e-6;
    write_base(&moved, &config(), &other, Storage::F32).unwrap();
    assert!(scratch.refused("run", &base, 1).contains("moved: base_sha256: is not the model that"));
}

#[test]
fn a_run_on_a_part_of_a_file_is_measured_on_that_part() {
    let scratch = Scratch::new();
    let entry = |(persona, text): (&str, &str)| {
        let said = format!(r#"{{"candidates": ["no", "{text}"], "history": ["hello"]}}"#);
        format!(r#"{{"personality": ["{persona}"], "utterances": [{said}]}}"#)
    };
    let all = [("i ski.", "a b"), ("i ski.", "b a"), ("i swim.", "a b"), ("i swim.", "b a")].map(entry).join(", ");
    let text = format!(r#"{{"train": [{all}], "valid": [{}]}}"#, entry(("i read.", "a b")));
    let file = scratch.path("all.json");
    fs::write(&file, &text).unwrap();
    let config = scratch.path("run/config.toml");
    let data = format!(
        "[data]\ntrain = [\"{}#train\"]\nvalid = []\nhold_out = 0.5\ntest_part = 0.0\nsha256 = [\"{}\"]\n",
        file.display(),
        digest::sha256(text.as_bytes())
    );
    fs::write(&config, fs::read_to_string(&config).unwrap() + &data).unwrap();
    let output = scratch.export("run", "bundle", &["--precision", "int8"]);
    succeeds(&output);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(" of 2 validation dialogues"), "{said}");
}

#[test]
fn a_run_without_its_checkpoint_is_refused() {
    let scratch = Scratch::new();
    let checkpoint = scratch.path("run/checkpoints/step-30/adapters.safetensors");
    let whole = fs::read(&checkpoint).unwrap();
    fs::write(&checkpoint, &whole[..whole.len() - 4]).unwrap();
    assert!(scratch.refused("run", &[], 1).contains("adapters.safetensors"));
    fs::write(&checkpoint, b"").unwrap();
    assert!(scratch.refused("run", &[], 1).contains("adapters.safetensors"));
    fs::write(scratch.path("run/best"), "step-31\n").unwrap();
    assert!(scratch.refused("run", &[], 1).contains("step-31"));
    fs::write(scratch.path("run/best"), "step-30\n").unwrap();
    fs::remove_file(&checkpoint).unwrap();
    assert!(scratch.refused("run", &[], 1).contains("holds neither adapters.safetensors nor model.safetensors"));
    fs::write(scratch.path("run/config.toml"), "base = 1").unwrap();
    assert!(scratch.refused("run", &[], 1).contains("config.toml"));
    fs::remove_file(scratch.path("run/best")).unwrap();
    assert!(scratch.refused("run", &[], 1).contains("best"));
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let scratch = Scratch::new();
    let checkpoint = scratch.path("run/checkpoints/step-30");
    seal(&checkpoint).unwrap();
    let refused = |part: &str| {
        let output = scratch.export_as_it_is("run", "bundle", &[]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.lines().count() == 1 && error.contains(part), "{error}");
        assert!(!scratch.path("bundle").exists());
    };
    let adapters = checkpoint.join("adapters.safetensors");
    let whole = fs::read(&adapters).unwrap();
    let mut flipped = whole.clone();
    // In the mantissa of the last value: nothing but the digest can tell.
    let at = flipped.len() - 4;
    flipped[at] ^= 1;
    fs::write(&adapters, flipped).unwrap();
    refused("step-30/adapters.safetensors: has another digest than it was written with (restore");
    fs::write(&adapters, whole).unwrap();
    fs::write(checkpoint.join("classifier.safetensors"), b"any").unwrap();
    refused("step-30/classifier.safetensors: is not in SHA256SUMS (restore");
    fs::remove_file(checkpoint.join("classifier.safetensors")).unwrap();
    succeeds(&scratch.export_as_it_is("run", "bundle", &[]));
    fs::remove_dir_all(scratch.path("bundle")).unwrap();
    fs::remove_file(checkpoint.join(SUMS)).unwrap();
    refused("step-30/SHA256SUMS: cannot be read");
}

#[test]
fn a_foreign_probe_is_refused() {
    let scratch = Scratch::new();
    fs::write(scratch.path("run/probe.safetensors"), b"foreign").unwrap();
    assert!(scratch.refused("run", &[], 1).contains("probe.safetensors"));
}

#[test]
fn a_folder_that_is_no_bundle_is_not_overwritten() {
    let scratch = Scratch::new();
    let letters = scratch.path("bundle/letters.txt");
    fs::create_dir(scratch.path("bundle")).unwrap();
    fs::write(&letters, "dear").unwrap();
    assert!(scratch.refused("model", &[], 1).contains("is no bundle"));
    assert_eq!(fs::read_to_string(&letters).unwrap(), "dear");
}
