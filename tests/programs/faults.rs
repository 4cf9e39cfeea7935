//! What the programs survive of files and systems that are hostile or broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use marionette_tests::{Scratch, copy, tiny};

use crate::road::{one_persona, road};

fn marionette(scratch: &Scratch, words: &[&Path]) -> marionette_tests::Run {
    scratch.run("marionette", words)
}

/// Nobody writes into it: whoever opens it waits.
fn fifo(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn nothing_waits_on_a_fifo() {
    let scratch = Scratch::new();
    let (pipe, home) = (scratch.path("pipe"), scratch.path("home"));
    fifo(&pipe);
    let bundle = road().bundle();
    let refused = "is not a regular file";
    let words: [&Path; 8] = [
        "adapt".as_ref(),
        &bundle,
        "--persona".as_ref(),
        "ann".as_ref(),
        "--dialogues".as_ref(),
        &pipe,
        "--home".as_ref(),
        &home,
    ];
    marionette(&scratch, &words).refused(1, &["pipe", refused]);
    scratch.run("marionette-train", ["data".as_ref(), pipe.as_path()]).refused(1, &["pipe", refused]);
    let gguf = ["import".as_ref(), pipe.as_path(), "--out".as_ref(), "imported".as_ref()];
    scratch.run("marionette-export", gguf).refused(1, &["pipe", refused]);
    // Each file of a model, and each of a bundle.
    for file in ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"] {
        let model = scratch.path("model");
        copy(&tiny(), &model);
        fifo(&model.join(file));
        let words = [model.as_path(), "--out".as_ref(), "bundle".as_ref()];
        scratch.run("marionette-export", words).refused(1, &[file, refused]);
        fs::remove_dir_all(&model).unwrap();
    }
    for entry in fs::read_dir(&bundle).unwrap() {
        let file = entry.unwrap().file_name();
        let own = scratch.path("own");
        copy(&bundle, &own);
        fifo(&own.join(&file));
        marionette(&scratch, &["inspect".as_ref(), &own]).refused(1, &[file.to_str().unwrap(), refused]);
        fs::remove_dir_all(&own).unwrap();
    }
    fs::create_dir_all(home.join("personas")).unwrap();
    fifo(&home.join("personas/ann.safetensors"));
    let words: [&Path; 8] = [
        "generate".as_ref(),
        &bundle,
        "--persona".as_ref(),
        "ann".as_ref(),
        "--prompt".as_ref(),
        "hi".as_ref(),
        "--home".as_ref(),
        &home,
    ];
    marionette(&scratch, &words).refused(1, &["ann.safetensors", refused]);
}

#[test]
fn no_escape_sequence_reaches_the_terminal() {
    let scratch = Scratch::new();
    let hostile = "\u{1b}]0;title\u{7}\u{9b}31m\u{202e}";
    let clean = |run: &marionette_tests::Run| {
        let shown = run.stdout() + &run.stderr();
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{shown:?}");
        shown
    };
    // Names of files.
    let file = scratch.write(&format!("{hostile}.txt"), "");
    let shown = clean(&scratch.run("marionette-train", ["data".as_ref(), file.as_path()]));
    assert!(shown.contains(r"\u{1b}]0;title\u{7}\u{9b}31m\u{202e}.txt"), "{shown}");
    let missing = [file.with_extension("model"), "--out".into(), "bundle".into()];
    clean(&scratch.run("marionette-export", missing)).find("is not a folder").unwrap();
    // What a bundle says of itself, and what its tokenizer's parser says of it.
    let own = scratch.path("own");
    copy(&road().bundle(), &own);
    let manifest = fs::read_to_string(own.join("manifest.json")).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    value["producer"] = hostile.into();
    fs::write(own.join("manifest.json"), value.to_string()).unwrap();
    marionette_models::bundle::seal(&own).unwrap();
    let shown = clean(&marionette(&scratch, &["inspect".as_ref(), &own]));
    assert!(shown.contains(r"by \u{1b}]0;title"), "{shown}");
    let model = scratch.path("model");
    copy(&tiny(), &model);
    let tokenizer = fs::read_to_string(model.join("tokenizer.json")).unwrap();
    let other = tokenizer.replacen(
        "\"ByteLevel\"",
        &format!("\"{}\"", hostile.escape_unicode().to_string().replace(['{', '}'], "")),
        1,
    );
    assert_ne!(other, tokenizer);
    fs::write(model.join("tokenizer.json"), other).unwrap();
    clean(&scratch.run("marionette-export", [model, "--out".into(), "bundle".into()])).find("tokenizer.json").unwrap();
}

/// Adapts a persona in `home`.
fn adapt(scratch: &Scratch, home: &Path, name: &str, dialogues: &Path) -> marionette_tests::Run {
    let mut words: Vec<PathBuf> = ["adapt".into(), road().bundle(), "--persona".into(), name.into()].into();
    words.extend(["--dialogues".into(), dialogues.to_owned(), "--home".into(), home.to_owned()]);
    scratch.run("marionette", words)
}

#[test]
fn names_that_differ_only_in_case_and_begin_at_once_leave_one_persona() {
    let (scratch, home) = (Scratch::new(), Scratch::new());
    let (file, home) = (one_persona(&scratch), home.path("home"));
    let runs: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = ["fox", "Fox", "FOX"]
            .map(|name| {
                let (scratch, home, file) = (&scratch, &home, &file);
                scope.spawn(move || (name, adapt(scratch, home, name, file)))
            })
            .into();
        started.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let saved: Vec<_> = runs.iter().filter(|(_, run)| run.code() == Some(0)).collect();
    assert_eq!(saved.len(), 1, "one of them is first");
    for (_, run) in runs.iter().filter(|(_, run)| run.code() != Some(0)) {
        assert!(run.stderr().contains("is busy") || run.stderr().contains("only in case"), "{}", run.stderr());
    }
    adapt(&scratch, &home, saved[0].0, &file).done();
}

/// Each leaf of a JSON value replaced by what it should not be, and each entry left out; of long lists and maps the first few.
fn mutated(value: &serde_json::Value) -> Vec<serde_json::Value> {
    use serde_json::{Value, json};
    const FEW: usize = 4;
    let others = || {
        [
            Value::Null,
            json!(0),
            json!(-1),
            json!(3),
            json!(1e300),
            json!(1_u64 << 40),
            json!("x"),
            json!(true),
            json!([]),
        ]
    };
    let mut all = Vec::new();
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields.iter().take(24) {
                let mut without = fields.clone();
                without.remove(key);
                all.push(Value::Object(without));
                for changed in mutated(inner).into_iter().chain(others()) {
                    all.push(Value::Object(
                        fields
                            .iter()
                            .map(|(k, v)| (k.clone(), if k == key { changed.clone() } else { v.clone() }))
                            .collect(),
                    ));
                }
            }
        }
        Value::Array(items) => {
            for index in 0..items.len().min(FEW) {
                let mut without = items.clone();
                without.remove(index);
                all.push(Value::Array(without));
                for changed in mutated(&items[index]) {
                    let mut items = items.clone();
                    items[index] = changed;
                    all.push(Value::Array(items));
                }
            }
        }
        _ => {}
    }
    all
}

/// What the exporter takes, the device takes.
#[test]
fn no_changed_model_is_exported_that_the_device_refuses() {
    use marionette_exporter::{FreshAdapters, Source, export};
    use marionette_models::bundle::{Bundle, Operators, Precision};
    use marionette_runtime::Engine;
    use marionette_runtime::chat::Conversation;
    use marionette_runtime::generate::Go;
    use marionette_runtime::sampling::{Sampler, Sampling};
    use std::sync::atomic::AtomicBool;
    let scratch = Scratch::new();
    let model = scratch.path("model");
    small_model(&model);
    let (mut exported, mut refused) = (0, 0);
    for name in ["config.json", "tokenizer.json"] {
        let path = model.join(name);
        let whole = fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&whole).unwrap();
        for changed in [value.clone()].into_iter().chain(mutated(&value)) {
            fs::write(&path, changed.to_string()).unwrap();
            let fresh = FreshAdapters { bottleneck: Some(2), seed: None };
            let out = scratch.path("bundle");
            let made = Source::read(&model, fresh, None)
                .and_then(|source| export(&source, Precision::Fp32, Operators::Ort, &out, &AtomicBool::new(false)));
            if made.is_err() {
                refused += 1;
                continue;
            }
            exported += 1;
            let opened = (|| -> Result<(), marionette_runtime::Error> {
                let bundle = Bundle::open(&out)?;
                let encoder = marionette_runtime::engine::encoder(&bundle)?;
                let mut engine = Engine::open(&bundle, marionette_runtime::Options::default())?;
                let mut sampler = Sampler::new(Sampling::default())?;
                Conversation::new(&encoder, Vec::new(), 2).say(&mut engine, &mut sampler, "hi", |_| Ok(Go::On))?;
                Ok(())
            })();
            if let Err(error) = opened {
                let text: String = changed.to_string().chars().take(700).collect();
                panic!("{name} is exported, but the device says: {error}\n{text}");
            }
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(exported > 20 && refused > 100, "{exported} exported, {refused} refused");
}

/// A model folder, as small as can be adapted.
fn small_model(path: &Path) {
    use marionette_models::checkpoint::{Storage, write_base};
    use marionette_models::{Gpt2Shape, ModelConfig, init, params};
    use rand::SeedableRng as _;
    fs::create_dir(path).unwrap();
    let shape = Gpt2Shape { vocab_size: 260, n_positions: 16, n_embd: 16, n_layer: 1, n_head: 2 };
    let config = ModelConfig { n_inner: 16, eos_token_id: 256, ..shape.into() };
    let tensors = init::initialise(&params::base_table(&config), &mut rand_chacha::ChaCha8Rng::seed_from_u64(1));
    write_base(path, &config, &tensors, Storage::F32).unwrap();
    marionette_dialogues::save_tokenizer(
        &marionette_dialogues::train_bpe(["a"], 257).unwrap(),
        path.join("tokenizer.json"),
    )
    .unwrap();
}

/// The page says by which tests each fault is held: they are there.
#[test]
fn the_tests_that_the_page_names_exist() {
    fn sources(folder: &Path, into: &mut String) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                sources(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let page = fs::read_to_string(marionette_tests::root().join("docs/reliability.md")).unwrap();
    let mut all = String::new();
    for member in
        ["models", "dialogues", "kernels", "console", "trainer", "exporter", "runtime", "cli", "tests", "fuzz"]
    {
        sources(&marionette_tests::root().join(member), &mut all);
    }
    let is_name =
        |text: &str| text.contains('_') && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let named: Vec<&str> = page.split('`').skip(1).step_by(2).filter(|text| is_name(text)).collect();
    assert!(named.len() > 60, "{} names", named.len());
    for name in named {
        assert!(all.contains(&format!("fn {name}()")), "{name} is no test");
    }
    for number in 1..=44 {
        assert!(page.contains(&format!("\n| {number} | ")), "fault {number} is not on the page");
    }
}
