//! What the programs survive of files and systems that are hostile or broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use marionette_tests::{Scratch, tiny};

use crate::road::{one_persona, road};

fn marionette(scratch: &Scratch, words: &[&Path]) -> marionette_tests::Run {
    scratch.run("marionette", words)
}

/// Copies of a folder's files.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
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
