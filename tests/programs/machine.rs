//! What scripts and shells want of `marionette`: JSON, silence, settings from elsewhere, completions, manual pages, and what is wrong.

use std::fs;

use marionette_tests::{Run, Scratch, copy};
use serde_json::Value;

use crate::road::{one_persona, road};

/// Runs `marionette` with settings in the environment, and none of the user's.
fn marionette(scratch: &Scratch, line: &str, environment: &[(&str, &str)]) -> Run {
    let bundle = road().bundle();
    let word = |word: &str| if word == "{bundle}" { bundle.clone().into_os_string() } else { word.into() };
    let config = scratch.path("config");
    let settings = [("XDG_CONFIG_HOME", config.to_str().unwrap())];
    scratch.run_with("marionette", line.split(' ').map(word), &[&settings, environment].concat())
}

fn tokens(run: &Run) -> u64 {
    let reply: Value = serde_json::from_str(&run.done()).unwrap();
    assert!(reply["reply"].as_str().is_some_and(|reply| !reply.is_empty()), "{reply}");
    reply["tokens_written"].as_u64().unwrap()
}

#[test]
fn options_come_from_the_command_line_then_the_environment_then_a_file() {
    let scratch = Scratch::new();
    let generate = "generate {bundle} --prompt hi --json --temperature 0";
    let run = |line: &str, environment: &[(&str, &str)]| marionette(&scratch, line, environment);
    fs::create_dir_all(scratch.path("config/marionette")).unwrap();
    let file = scratch.write("config/marionette/config.toml", "max-tokens = 3\nquiet = true\n");
    assert_eq!(tokens(&run(generate, &[])), 3);
    assert_eq!(tokens(&run(generate, &[("MARIONETTE_MAX_TOKENS", "2")])), 2);
    assert_eq!(tokens(&run(&format!("{generate} --max-tokens 1"), &[("MARIONETTE_MAX_TOKENS", "2")])), 1);
    let other = scratch.write("other.toml", "max-tokens = 4\n");
    assert_eq!(tokens(&run(generate, &[("MARIONETTE_CONFIG", other.to_str().unwrap())])), 4);
    for (text, parts) in [
        ("colour = 'red'\n", &["config.toml", "colour", "max-tokens"][..]),
        ("max-tokens = [1]\n", &["config.toml", "max-tokens", "a number"]),
        ("max-tokens = \n", &["config.toml"]),
    ] {
        fs::write(&file, text).unwrap();
        run(generate, &[]).refused(1, parts);
    }
    // Where the value is wrong, one reads where it may come from.
    fs::write(&file, "max-tokens = 0\n").unwrap();
    let wrong = run(generate, &[]);
    assert_eq!(wrong.code(), Some(2));
    let said = wrong.stderr();
    assert!(said.contains("config.toml sets options too") && said.contains("--max-tokens"), "{said}");
    run(generate, &[("MARIONETTE_CONFIG", "none.toml")]).refused(1, &["none.toml"]);
}

#[test]
fn what_is_quiet_says_results_and_errors_alone() {
    let scratch = Scratch::new();
    let file = one_persona(&scratch);
    let adapt = format!("adapt {{bundle}} --persona ada --shots 2 --dialogues {} --home own", file.display());
    let loud = marionette(&scratch, &adapt, &[]);
    assert!(loud.stderr().contains("forecast"), "{}", loud.stderr());
    for (line, environment) in
        [(format!("{adapt} --quiet"), &[][..]), (format!("-q {adapt}"), &[]), (adapt, &[("MARIONETTE_QUIET", "true")])]
    {
        let quiet = marionette(&scratch, &line, environment);
        assert!(quiet.done().contains("saved as ada@") && quiet.stderr().is_empty(), "{}", quiet.stderr());
    }
    marionette(&scratch, "adapt {bundle} --persona ada --dialogues none --quiet", &[]).refused(1, &["none"]);
}

#[test]
fn a_doctor_says_what_there_is_and_what_is_wrong() {
    let scratch = Scratch::new();
    let said = marionette(&scratch, "doctor {bundle}", &[]).done();
    for part in [
        "ONNX Runtime",
        "cpu starts",
        "cuda ",
        "processor",
        "threads",
        "personas",
        "config.toml, which is not there",
        "whole, GPT-2",
        "it learns",
        "with at most ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let found: Value = serde_json::from_str(&marionette(&scratch, "doctor --json", &[]).done()).unwrap();
    assert_eq!(found["wrong"], 0);
    let broken = scratch.path("broken");
    copy(&road().bundle(), &broken);
    let weights = broken.join("weights.bin");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[1000] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let run = marionette(&scratch, "doctor broken", &[]);
    assert!(run.stdout().contains("WRONG") && run.stdout().contains("weights.bin"), "{}", run.stdout());
    run.refused(1, &["one thing is wrong"]);
    let run = marionette(&scratch, "doctor", &[("ORT_DYLIB_PATH", "none.so")]);
    assert!(run.stdout().contains("none.so"), "{}", run.stdout());
    run.refused(1, &["one thing is wrong"]);
}

#[test]
fn a_bundle_is_described_as_json() {
    let scratch = Scratch::new();
    let read = |line: &str| serde_json::from_str::<Value>(&marionette(&scratch, line, &[]).done()).unwrap();
    let plain = read("inspect {bundle} --json");
    assert_eq!((&plain["manifest"]["format_version"], &plain["provider"]), (&2.into(), &"cpu".into()));
    assert!(plain["parity"].is_null() && plain["runtime"]["version"].is_string(), "{plain}");
    let checked = read("inspect {bundle} --json --check");
    assert_eq!(checked["is_good"], true);
    assert!(checked["parity"]["checks"].as_array().unwrap().len() > 3, "{checked}");
}

#[test]
fn shells_and_manuals_know_every_command() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = marionette(&scratch, &format!("completions {shell}"), &[]).done();
        assert!(["readapt", "holdout", "doctor"].iter().all(|word| script.contains(word)), "{shell}");
    }
    marionette(&scratch, "man pages", &[]).done();
    for page in ["marionette.1", "marionette-adapt.1", "marionette-personas-readapt.1"] {
        let text = fs::read_to_string(scratch.path("pages").join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    marionette(&scratch, "completions dos", &[]).refused(2, &[]);
}
