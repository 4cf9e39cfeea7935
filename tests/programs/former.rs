//! What former versions wrote: bundles of format 1 and the persona that one of them was adapted to, beside today's export of the same
//! model folder.

use std::fs;
use std::path::{Path, PathBuf};

use marionette_dialogues::{save_tokenizer, train_bpe};
use marionette_models::bundle::{self, ADAPTERS, Bundle, MANIFEST};
use marionette_models::checkpoint::{Storage, write_base};
use marionette_models::safetensors_file;
use marionette_models::{Gpt2Shape, HostTensor, ModelConfig, params};
use marionette_tests::{Scratch, copy, persona, root};

use crate::road::json;

const DIALOGUES: &str = "1 your persona: i sew.\n2 hi\tme sew\n3 why\tart !\n\
                         1 your persona: i sew.\n2 you\tme sew\n3 ok\tart !\n";

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/format-1").join(name)
}

/// The model folder that the bundles were exported from.
fn write_model(folder: &Path) {
    let shape = Gpt2Shape { vocab_size: 300, n_positions: 64, n_embd: 16, n_layer: 2, n_head: 2 };
    let config = ModelConfig { n_inner: 32, eos_token_id: 256, ..shape.into() };
    let mut state = 1_u32;
    // A linear congruential generator (Numerical Recipes, chapter 7): the same numbers everywhere.
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 65_536.0 - 0.5
    };
    let mut filled = |spec: params::TensorSpec| {
        let values = (0..spec.len()).map(|_| next()).collect();
        (spec.name, HostTensor { shape: spec.shape, values })
    };
    let base = params::base_table(&config).into_iter().map(&mut filled).collect();
    fs::create_dir(folder).unwrap();
    write_base(folder, &config, &base, Storage::F32).unwrap();
    // 256 bytes and <|endoftext|>: nothing occurs twice.
    save_tokenizer(&train_bpe(["a"], 300).unwrap(), folder.join("tokenizer.json")).unwrap();
}

/// Exports the model of a fixture as it is done today, with the fixture's inner loop and adapters: others are taken by now where a
/// model folder brings none.
fn export(scratch: &Scratch, name: &str) -> PathBuf {
    write_model(&scratch.path("model"));
    let bundle = scratch.path("today");
    let (precision, operators) = name.split_once('-').unwrap();
    let mut arguments = vec![scratch.path("model"), "--out".into(), bundle.clone()];
    let options = ["--bottleneck", "4", "--precision", precision, "--ops", operators];
    arguments.extend(options.map(PathBuf::from));
    scratch.run("marionette-export", arguments).done();
    let manifest = |dir: &Path| json(&fs::read_to_string(dir.join(MANIFEST)).unwrap());
    let (mut own, mut former) = (manifest(&bundle), manifest(&fixture(name)));
    own["inner_loop"] = former["inner_loop"].take();
    own["files"][ADAPTERS] = former["files"][ADAPTERS].take();
    fs::copy(fixture(name).join(ADAPTERS), bundle.join(ADAPTERS)).unwrap();
    fs::write(bundle.join(MANIFEST), own.to_string()).unwrap();
    bundle::seal(&bundle).unwrap();
    bundle
}

/// What `marionette COMMAND BUNDLE …` prints.
fn marionette(scratch: &Scratch, command: &str, bundle: &Path, more: &[&str]) -> String {
    let mut arguments = vec![PathBuf::from(command), bundle.to_owned()];
    arguments.extend(more.iter().map(PathBuf::from));
    arguments.extend(["--threads", "1"].map(PathBuf::from));
    scratch.run("marionette", arguments).done()
}

/// Greedy replies, by a persona where one is given.
fn replies(scratch: &Scratch, bundle: &Path, persona: &[&str]) -> String {
    let common = ["--prompt", "hi", "--prompt", "why sew ?", "--temperature", "0", "--max-tokens", "24"];
    marionette(scratch, "generate", bundle, &[persona, &common].concat())
}

/// Learns a persona from [`DIALOGUES`], as those of the fixtures were.
fn adapt(scratch: &Scratch, bundle: &Path, name: &str) {
    let dialogues = scratch.write("dialogues.txt", DIALOGUES);
    let learn = ["--dialogues", dialogues.to_str().unwrap(), "--inner-lr", "0.3", "--epochs", "6"];
    marionette(scratch, "adapt", bundle, &[&["--persona", name], &learn[..]].concat());
}

fn personas(scratch: &Scratch) -> PathBuf {
    scratch.path("home/marionette/personas")
}

/// The values of a persona's adapters, and the losses on the way to them.
fn learned(scratch: &Scratch, name: &str) -> (Vec<f32>, Vec<f32>) {
    // Those of the fixtures are files as they were.
    let former = personas(scratch).join(format!("{name}.safetensors"));
    let (tensors, losses) = if former.exists() {
        let (tensors, metadata) = safetensors_file::read(&former).unwrap();
        (tensors, serde_json::from_str(&metadata["losses"]).unwrap())
    } else {
        let (tensors, record) = persona(&scratch.path("home/marionette"), name);
        (tensors, record["losses"].clone())
    };
    let values = tensors.values().flat_map(|tensor| tensor.to_f32().unwrap().values).collect();
    (values, serde_json::from_value(losses).unwrap())
}

/// What the same arithmetic in another order differs by.
const ROUNDING: f32 = 1e-5;

#[track_caller]
fn near(found: &[f32], expected: &[f32], most: f32) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
    assert!(worst <= most, "{worst}");
}

#[track_caller]
fn learned_alike(scratch: &Scratch, name: &str, other: &str, [most, most_of_losses]: [f32; 2]) {
    let ((values, losses), (expected, expected_losses)) = (learned(scratch, name), learned(scratch, other));
    near(&values, &expected, most);
    near(&losses, &expected_losses, most_of_losses);
    assert!(losses.last() < losses.first());
}

/// Log-perplexities without dialogues to learn from, and with one.
fn perplexities(scratch: &Scratch, bundle: &Path) -> Vec<f32> {
    let dialogues = scratch.write("dialogues.txt", DIALOGUES);
    let options = ["--dialogues", dialogues.to_str().unwrap(), "--shots", "0,1", "--json"];
    let shots = json(&marionette(scratch, "evaluate", bundle, &options))["shots"].take();
    shots.as_array().unwrap().iter().map(|shot| shot["perplexity"].as_f64().unwrap().ln() as f32).collect()
}

/// All that a device does with a bundle of format 1 gives what today's export of the same model gives.
fn works_as_today(name: &str) {
    let scratch = Scratch::new();
    let (former, today) = (fixture(name), export(&scratch, name));
    let [old, new] = [&former, &today].map(|dir| Bundle::open(dir).unwrap());
    assert_eq!([old.manifest().format_version, new.manifest().format_version], [1, 2]);
    assert_eq!(old.manifest().base_sha256, new.manifest().base_sha256);
    assert_eq!((&old.manifest().model, &old.manifest().prompt), (&new.manifest().model, &new.manifest().prompt));
    assert!(marionette(&scratch, "inspect", &former, &[]).contains("(format 1, by marionette-export"));

    // Integers are rounded otherwise by now; and of random weights the next token is a matter of the last bits.
    let is_exact = name == "fp32-ort";
    let same = |found: &str, expected: &str| assert!(found == expected || !is_exact, "{found:?} {expected:?}");
    let bare = replies(&scratch, &former, &[]);
    same(&bare, &replies(&scratch, &today, &[]));
    let most = if is_exact { [ROUNDING; 3] } else { [0.1, 0.02, 0.02] };
    near(&perplexities(&scratch, &former), &perplexities(&scratch, &today), most[2]);
    adapt(&scratch, &former, "former");
    adapt(&scratch, &today, "today");
    learned_alike(&scratch, "former", "today", [most[0], most[1]]);
    // A persona of the one is one of the other: they have the same base.
    let adapted = replies(&scratch, &former, &["--persona", "former"]);
    assert_ne!(adapted, bare);
    for (bundle, name) in [(&former, "today"), (&today, "former"), (&today, "today")] {
        let found = replies(&scratch, bundle, &["--persona", name]);
        same(&found, &adapted);
        assert_ne!(found, bare);
    }
}

#[test]
fn a_bundle_of_format_1_works_as_an_export_of_today() {
    works_as_today("fp32-ort");
}

#[test]
fn a_bundle_of_format_1_with_integers_works_as_an_export_of_today() {
    works_as_today("int8-ort");
}

/// The personas of the fixtures were adapted by the program of then, on the bundles of then.
#[test]
fn a_persona_of_a_bundle_of_format_1_is_one_of_todays() {
    // The program of then rounded a row of the 300 gradients of logits with one scale.
    for (name, most) in [("fp32-ort", [ROUNDING; 2]), ("int8-ort", [0.05, 0.01])] {
        let scratch = Scratch::new();
        let today = export(&scratch, name);
        fs::create_dir_all(personas(&scratch)).unwrap();
        let file = format!("{name}.safetensors");
        fs::copy(fixture("personas").join(&file), personas(&scratch).join(&file)).unwrap();
        adapt(&scratch, &today, "again");
        learned_alike(&scratch, name, "again", most);
        for bundle in [&today, &fixture(name)] {
            let [former, again] = [name, "again"].map(|name| replies(&scratch, bundle, &["--persona", name]));
            // Of random weights the next token is a matter of the last bits.
            assert!(former == again || name == "int8-ort");
            assert_ne!(former, replies(&scratch, bundle, &[]));
        }
    }
}

#[test]
fn a_bundle_of_format_1_that_is_wrong_is_refused_in_one_line() {
    let scratch = Scratch::new();
    let bundle = scratch.path("bundle");
    copy(&fixture("fp32-ort"), &bundle);
    let path = bundle.join(MANIFEST);
    let written = fs::read_to_string(&path).unwrap();
    for (from, to) in [("\"n_head\": 2", "\"n_head\": 3"), ("\"adapt-recomputed\":", "\"prefill\":")] {
        assert!(written.contains(from), "{from}");
        fs::write(&path, written.replacen(from, to, 1)).unwrap();
        let run = scratch.run("marionette", [Path::new("inspect"), &bundle]);
        run.refused(1, &[bundle.to_str().unwrap(), "(export the model, or the run, again)"]);
    }
    // What is no bundle any more may still be replaced by one.
    write_model(&scratch.path("model"));
    let arguments = [scratch.path("model"), "--out".into(), bundle.clone(), "--bottleneck".into(), "4".into()];
    scratch.run("marionette-export", arguments).done();
    assert_eq!(Bundle::open(&bundle).unwrap().manifest().format_version, 2);
}
