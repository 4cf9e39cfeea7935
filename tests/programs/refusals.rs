//! Every refusal: one line that names the file, the place and what was expected; the exit code; nothing half-written.

use std::fs;
use std::path::{Path, PathBuf};

use marionette_tests::{Run, Scratch, copy, dialogues, persona_file, tiny};

use crate::road::{one_persona, road};

const GOOD: &str = "1 your persona: i sew.\n2 hi there\thello .\n3 what do you do ?\ti sew my own clothes .\n\
                    1 your persona: i sew.\n2 hello\thi , how are you ?\n3 fine\tgood to hear .\n";

fn arguments(words: &[&str]) -> Vec<PathBuf> {
    words.iter().map(PathBuf::from).collect()
}

fn train(scratch: &Scratch, data: &Path, more: &[&str]) -> Run {
    let mut words = vec!["run".into(), "--base".into(), tiny(), "--data".into(), data.to_owned()];
    words.extend(["--out".into(), scratch.path("run")]);
    words.extend(arguments(more));
    scratch.run("marionette-train", words)
}

fn marionette(scratch: &Scratch, command: &str, bundle: &Path, more: &[&str]) -> Run {
    let mut words = vec![command.into(), bundle.to_owned()];
    words.extend(arguments(more));
    scratch.run("marionette", words)
}

#[test]
fn dialogues_are_refused_with_their_line() {
    let utf16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let long = format!("1 hi\t{}\n", "x".repeat(3 << 20));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "empty"),
        ("bytes", b"1 hi\t\xff\xfe\xfd\n".to_vec(), "line 1"),
        ("utf16", [b"\xff\xfe".as_slice(), &utf16].concat(), "line 1"),
        ("prose", b"Call me Ishmael.\nSome years ago\n".to_vec(), "line 1"),
        ("jump", GOOD.replace("3 what", "4 what").into_bytes(), "line 3"),
        ("no-reply", GOOD.replace("hi there\thello .", "hi there\t").into_bytes(), "line 2"),
        ("long", long.into_bytes(), "line 1"),
        ("persona-only", b"1 your persona: i sew.\n".to_vec(), "line 1"),
    ];
    for (name, content, place) in cases {
        let scratch = Scratch::new();
        let file = scratch.write(&format!("{name}.txt"), content);
        train(&scratch, &file, &[]).refused(1, &[&format!("{name}.txt"), place]);
        let home = scratch.path("own-home");
        let words = ["--persona", "x", "--dialogues", file.to_str().unwrap(), "--home", home.to_str().unwrap()];
        marionette(&scratch, "adapt", &road().bundle(), &words).refused(1, &[&format!("{name}.txt"), place]);
        assert_eq!(scratch.listing(), [format!("{name}.txt")].as_slice(), "{name}: nothing else was written");
    }
}

#[test]
fn missing_files_and_folders_are_named() {
    let scratch = Scratch::new();
    let none = scratch.path("none");
    let name = none.to_str().unwrap();
    train(&scratch, &none, &[]).refused(1, &[name]);
    let (train_data, out) = (dialogues("train"), scratch.path("run"));
    let words = ["run".into(), "--base".into(), none.clone(), "--data".into(), train_data, "--out".into(), out];
    scratch.run("marionette-train", words).refused(1, &[name]);
    scratch
        .run("marionette-train", ["evaluate".into(), none.clone(), "--data".into(), dialogues("test")])
        .refused(1, &[name]);
    scratch.run("marionette-export", [none.clone(), "--out".into(), scratch.path("bundle")]).refused(1, &[name]);
    marionette(&scratch, "inspect", &none, &[]).refused(1, &[name]);
    marionette(&scratch, "adapt", &road().bundle(), &["--persona", "x", "--dialogues", name]).refused(1, &[name]);
    assert_eq!(scratch.listing(), Vec::<String>::new());
}

#[test]
fn too_little_data_is_said_before_training() {
    let scratch = Scratch::new();
    let file = scratch.write("one.txt", GOOD);
    train(&scratch, &file, &["--support-dialogues", "5"]).refused(1, &["persona"]);
    assert_eq!(scratch.listing(), ["one.txt"]);
}

#[test]
fn impossible_options_are_wrong_usage() {
    let scratch = Scratch::new();
    let data = dialogues("train");
    for options in [
        &["--inner-steps", "0"][..],
        &["--meta-batch", "0"],
        &["--inner-lr", "nan"],
        &["--inner-lr", "-1"],
        &["--outer-lr", "inf"],
        &["--support-dialogues", "0"],
        &["--bottleneck", "0"],
        &["--method", "telepathy"],
        &["--device", "abacus"],
        &["--no-such-flag"],
    ] {
        train(&scratch, &data, options).refused(2, &[options[0]]);
    }
    let bundle = road().bundle();
    for (command, options) in [
        ("generate", &["--prompt", "hi", "--top-p", "1.5"][..]),
        ("generate", &["--prompt", "hi", "--temperature", "-1"]),
        ("generate", &["--prompt", "hi", "--temperature", "nan"]),
        ("generate", &["--prompt", "hi", "--repetition-penalty", "0"]),
        ("generate", &["--prompt", "hi", "--max-tokens", "0"]),
        ("generate", &["--prompt", "hi", "--ep", "abacus"]),
        ("generate", &["--prompt", "hi", "--threads", "0"]),
        ("adapt", &["--persona", "x", "--dialogues", "y", "--shots", "0"]),
        ("adapt", &["--persona", "x", "--dialogues", "y", "--inner-lr", "nan"]),
        ("bench", &["--length", "0"]),
        ("bench", &["--batch", "0"]),
        ("evaluate", &["--dialogues", "y", "--shots", "one"]),
    ] {
        let flag = options[options.len() - 2];
        marionette(&scratch, command, &bundle, options).refused(2, &[flag]);
    }
    scratch.run("marionette-export", ["x", "--out", "y", "--precision", "int1"]).refused(2, &["--precision"]);
    assert_eq!(scratch.listing(), Vec::<String>::new());
}

#[test]
fn numbers_beyond_their_limits_are_wrong_usage_before_any_work() {
    let scratch = Scratch::new();
    let (data, bundle) = (dialogues("train"), road().bundle());
    const MOST: &str = "18446744073709551615";
    for (option, limit) in [
        ("--iterations", "100000000"),
        ("--inner-steps", "10000"),
        ("--meta-batch", "10000"),
        ("--bottleneck", "32768"),
    ] {
        train(&scratch, &data, &[option, MOST]).refused(2, &[option, limit]);
        train(&scratch, &data, &[option, "-1"]).refused(2, &[option, limit]);
    }
    for (command, option, value, limit) in [
        ("adapt", "--epochs", MOST, "1000000"),
        ("adapt", "--shots", "9223372036854775808", "1000000"),
        ("adapt", "--threads", "100000", "1024"),
        ("bench", "--prompt-tokens", MOST, "1048576"),
        ("bench", "--batch", "1000000000000", "4096"),
        ("bench", "--length", MOST, "1048576"),
        ("bench", "--new-tokens", "-1", "1048576"),
    ] {
        let needed: &[&str] = if command == "adapt" { &["--persona", "x", "--dialogues", "y"] } else { &[] };
        let words = [needed, &[option, value]].concat();
        marionette(&scratch, command, &bundle, &words).refused(2, &[option, limit]);
    }
    scratch.run("marionette-export", ["x", "--out", "y", "--bottleneck", MOST]).refused(2, &["--bottleneck", "32768"]);

    // What fits the option, and not this model or these dialogues.
    marionette(&scratch, "bench", &bundle, &["--prompt-tokens", "1048576"]).refused(1, &["--prompt-tokens", "context"]);
    let file = one_persona(&scratch);
    let words = ["--persona", "x", "--dialogues", file.to_str().unwrap(), "--epochs", "1000000"];
    marionette(&scratch, "adapt", &bundle, &words).refused(1, &["--epochs", "1000000"]);

    // A manifest is read as strictly.
    let copied = scratch.path("copy");
    copy(&bundle, &copied);
    let manifest = fs::read_to_string(copied.join("manifest.json")).unwrap();
    let place = manifest.find("\"steps\": ").unwrap() + "\"steps\": ".len();
    let end = place + manifest[place..].find(',').unwrap();
    fs::write(copied.join("manifest.json"), format!("{}{MOST}{}", &manifest[..place], &manifest[end..])).unwrap();
    marionette_models::bundle::seal(&copied).unwrap();
    marionette(&scratch, "inspect", &copied, &[]).refused(1, &["manifest.json", MOST, "1000000"]);
}

#[test]
fn models_that_are_not_what_they_say_are_refused() {
    let change = |name: &str, change: fn(&Path), parts: &[&str]| {
        let scratch = Scratch::new();
        let base = scratch.path("base");
        copy(&tiny(), &base);
        change(&base);
        let run = scratch.run("marionette-export", [base.clone(), "--out".into(), scratch.path("bundle")]);
        run.refused(1, parts);
        let words = ["run".into(), "--base".into(), base, "--data".into(), dialogues("valid")];
        let words = words.into_iter().chain(["--out".into(), scratch.path("run")]);
        scratch.run("marionette-train", words).refused(1, parts);
        assert_eq!(scratch.listing(), ["base"], "{name}: nothing else was written");
    };
    fn edit(base: &Path, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(base.join(file)).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(base.join(file), text.replacen(from, to, 1)).unwrap();
    }
    fn cut(base: &Path, file: &str, keep: usize) {
        let bytes = fs::read(base.join(file)).unwrap();
        fs::write(base.join(file), &bytes[..keep]).unwrap();
    }
    change("config", |b| cut(b, "config.json", 40), &["config.json"]);
    change(
        "family",
        |b| edit(b, "config.json", "\"gpt2\"", "\"bloom\""),
        &["config.json", "model_type", "gpt2", "llama"],
    );
    change("another family", |b| edit(b, "config.json", "\"gpt2\"", "\"llama\""), &["config.json", "hidden_size"]);
    change("template", |b| fs::write(b.join("chat_template.jinja"), "{% for").unwrap(), &["chat_template.jinja"]);
    change(
        "layers",
        |b| edit(b, "config.json", "\"n_layer\": ", "\"n_layer\": 1"),
        &["model.safetensors", "is missing"],
    );
    change("weights", |b| cut(b, "model.safetensors", 5000), &["model.safetensors"]);
    change("header", |b| fs::write(b.join("model.safetensors"), (1_u64 << 63).to_le_bytes()).unwrap(), &["header"]);
    change("no tokenizer", |b| fs::remove_file(b.join("tokenizer.json")).unwrap(), &["tokenizer.json"]);
    change("tokenizer", |b| cut(b, "tokenizer.json", 1000), &["tokenizer.json"]);
    change("foreign tokenizer", |b| fs::write(b.join("tokenizer.json"), "[]").unwrap(), &["tokenizer.json"]);
}

#[test]
fn changed_bundles_are_refused() {
    let scratch = Scratch::new();
    for file in ["weights.bin", "adapt.onnx", "adapters.safetensors", "tokenizer.json", "manifest.json"] {
        let bundle = scratch.path("copy");
        copy(&road().bundle(), &bundle);
        let bytes = fs::read(bundle.join(file)).unwrap();
        fs::write(bundle.join(file), &bytes[..bytes.len() / 2]).unwrap();
        marionette(&scratch, "generate", &bundle, &["--prompt", "hi"]).refused(1, &[file]);
        fs::remove_dir_all(&bundle).unwrap();
    }
}

#[test]
fn export_keeps_what_is_not_a_bundle() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("mine")).unwrap();
    scratch.write("mine/thesis.txt", "years of work");
    scratch.run("marionette-export", [road().run(), "--out".into(), scratch.path("mine")]).refused(1, &["mine"]);
    assert_eq!(fs::read_to_string(scratch.path("mine/thesis.txt")).unwrap(), "years of work");
    assert_eq!(scratch.listing(), ["mine"]);
}

#[test]
fn a_second_run_does_not_overwrite_the_first() {
    let scratch = Scratch::new();
    let before = fs::read(road().run().join("config.toml")).unwrap();
    let words = ["run".into(), "--base".into(), tiny(), "--data".into(), dialogues("valid")];
    let words = words.into_iter().chain(["--out".into(), road().run()]);
    scratch.run("marionette-train", words).refused(1, &[road().run().to_str().unwrap()]);
    assert_eq!(fs::read(road().run().join("config.toml")).unwrap(), before);
}

#[test]
fn personas_of_another_base_and_broken_ones_are_refused() {
    let scratch = Scratch::new();
    let home = scratch.path("own-home");
    let home_text = home.to_str().unwrap();
    let file = one_persona(&scratch);
    let adapt = ["--persona", "ada", "--dialogues", file.to_str().unwrap(), "--home", home_text, "--shots", "1"];
    marionette(&scratch, "adapt", &road().bundle(), &adapt).done();
    let path = persona_file(&home, "ada");
    let good = fs::read(&path).unwrap();

    // The same shapes over other weights.
    let base = scratch.path("base");
    copy(&tiny(), &base);
    let weights = base.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let other = scratch.path("other");
    let words = [base, "--out".into(), other.clone(), "--bottleneck".into(), "8".into()];
    scratch.run("marionette-export", words).done();
    let talk = ["--prompt", "hi", "--persona", "ada", "--home", home_text];
    marionette(&scratch, "generate", &other, &talk).refused(1, &["ada/1/adapters.safetensors", "base"]);

    fs::write(&path, &good[..good.len() - 10]).unwrap();
    marionette(&scratch, "generate", &road().bundle(), &talk).refused(1, &["ada/1/adapters.safetensors"]);
    fs::write(&path, b"").unwrap();
    marionette(&scratch, "generate", &road().bundle(), &talk).refused(1, &["ada/1/adapters.safetensors"]);
    let nobody = ["--prompt", "hi", "--persona", "nobody", "--home", home_text];
    marionette(&scratch, "generate", &road().bundle(), &nobody).refused(1, &["nobody"]);
    for name in ["../x", "", "CON", "a/b"] {
        let words = ["--prompt", "hi", "--persona", name, "--home", home_text];
        let run = marionette(&scratch, "generate", &road().bundle(), &words);
        assert!(matches!(run.code(), Some(1 | 2)), "{name}: {}", run.stderr());
    }
}

#[test]
fn onnx_runtime_that_is_missing_or_something_else_is_an_error_with_its_remedy() {
    let scratch = Scratch::new();
    let bundle = road().bundle();
    let generate = |library: &Path| {
        let words = ["generate".into(), bundle.clone(), "--prompt".into(), PathBuf::from("hi")];
        scratch.run_with("marionette", words, &[("ORT_DYLIB_PATH", library.to_str().unwrap())])
    };
    generate(&scratch.path("none.so")).refused(1, &["none.so", "ORT_DYLIB_PATH"]);
    let text = scratch.write("text.so", "not a library");
    generate(&text).refused(1, &["text.so"]);
    // A library, but not ONNX Runtime.
    if let Some(libc) = ["/lib/x86_64-linux-gnu/libz.so.1", "/lib/x86_64-linux-gnu/libm.so.6"]
        .map(PathBuf::from)
        .into_iter()
        .find(|p| p.exists())
    {
        generate(&libc).refused(1, &["ONNX Runtime"]);
    }
}

#[test]
fn providers_that_cannot_be_had_are_refused_with_those_that_can() {
    let scratch = Scratch::new();
    let run =
        marionette(&scratch, "generate", &road().bundle(), &["--prompt", "hi", "--ep", "cuda", "--max-tokens", "1"]);
    if run.code() != Some(0) {
        run.refused(1, &["cuda", "cpu"]);
    }
    let run = train(&scratch, &dialogues("valid"), &["--device", "cuda", "--iterations", "1"]);
    if run.code() != Some(0) {
        run.refused(1, &["cuda", "LIBTORCH"]);
    }
}
