//! The commands `personas …`, and versions as `adapt` makes them.

use std::fs;
use std::path::Path;

use marionette_dialogues::read_dialogues;
use marionette_tests::{Run, Scratch, persona};
use serde_json::Value;

use crate::road::{one_persona, road};

/// Runs `marionette`, with `{bundle}` and a file in its arguments.
fn marionette(scratch: &Scratch, line: &str, file: &Path) -> Run {
    let word = |word: &str| match word {
        "{bundle}" => road().bundle(),
        "{file}" => file.to_owned(),
        word => word.into(),
    };
    let words = line.split(' ').map(word).chain(["--home".into(), scratch.path("own")]);
    scratch.run("marionette", words)
}

fn json(run: &Run) -> Value {
    serde_json::from_str(&run.done()).unwrap()
}

#[test]
fn personas_are_kept_compared_taken_back_and_learned_again() {
    let scratch = Scratch::new();
    let file = one_persona(&scratch);
    let run = |line: &str| marionette(&scratch, line, &file);
    let own = scratch.path("own");
    run("personas list").done();
    assert_eq!(json(&run("personas list --json"))["personas"], serde_json::json!([]));
    let adapt = "adapt {bundle} --persona ada --dialogues {file} --inner-lr 0.3";
    let first = json(&run(&format!("{adapt} --shots 2 --json")));
    assert_eq!((&first["version"], &first["is_current"]), (&1.into(), &true.into()));
    let held_out = &first["record"]["held_out"];
    assert_eq!(held_out["dialogues"], 1);
    assert!(held_out["after"].as_f64().unwrap() < held_out["before"].as_f64().unwrap());
    let replies = first["replies"].as_array().unwrap();
    let dialogues = read_dialogues(&file).unwrap();
    let asked: Vec<&str> = dialogues[2].exchanges.iter().map(|said| said.partner.as_str()).take(3).collect();
    assert_eq!(replies.iter().map(|reply| reply["to"].as_str().unwrap()).collect::<Vec<_>>(), asked);
    assert!(replies.iter().any(|reply| reply["before"] != reply["after"]), "{replies:?}");
    let said = run(&format!("{adapt} --shots 5 --from ada@1 --epochs 2")).done();
    assert!(said.contains("saved as ada@2") && said.contains("that it did not learn from"), "{said}");
    let alone = persona(&own, "ada");
    assert_eq!((&alone.1["from"], &alone.1["dialogues"]), (&"ada@1".into(), &5.into()));

    // From version 1 the third dialogue is known; a persona from the bundle's start is another.
    let shown = json(&run("personas show ada --json"));
    assert_eq!(
        (&shown["version"], &shown["record"]["dialogues"], &shown["keeps_dialogues"]),
        (&2.into(), &5.into(), &true.into())
    );
    let history = run("personas history ada").done();
    let lines: Vec<&str> = history.lines().collect();
    assert!(lines.len() == 3 && lines[1].starts_with("  1") && lines[2].starts_with("* 2"), "{history}");
    assert!(lines[2].contains("ada@1"), "{history}");
    let differences = json(&run("personas diff ada --json"));
    assert_eq!((&differences["one"]["version"], &differences["other"]["version"]), (&1.into(), &2.into()));
    let shared = serde_json::json!({"both": 3, "one_alone": 0, "other_alone": 3});
    assert_eq!(differences["dialogues"], shared);
    assert!(differences["adapters"]["relative"].as_f64().unwrap() > 0.0);
    let same = json(&run("personas diff ada@2 ada@2 --json"));
    assert_eq!(same["adapters"]["relative"], 0.0);

    let reply = |who: &str| {
        run(&format!("generate {{bundle}} --prompt hi --temperature 0 --max-tokens 16 --persona {who}")).done()
    };
    let [old, new] = ["ada@1", "ada@2"].map(reply);
    assert_eq!(reply("ada"), new);
    assert!(run("personas revert ada").done().contains("ada@1 is current"));
    assert_eq!(reply("ada"), old);
    run("personas revert ada").refused(1, &["ada has no version 0 (it has 1, 2)"]);
    assert!(run("personas revert ada 2").done().contains("ada@2"));
    run("generate {bundle} --prompt hi --persona ada@7").refused(1, &["no version 7", "personas history ada"]);

    // Out and in again.
    for (format, beginning) in
        [("safetensors", None), ("onnx_adapter", Some(&b"TORT"[..])), ("npz", Some(b"PK\x03\x04"))]
    {
        let out = scratch.path(format);
        run(&format!("personas export ada --format {format} --out {}", out.display())).done();
        let bytes = fs::read(&out).unwrap();
        let at = if format == "onnx_adapter" { 4 } else { 0 };
        assert!(beginning.is_none_or(|beginning| bytes[at..].starts_with(beginning)), "{format}");
    }
    let exported = scratch.path("safetensors");
    run(&format!("personas import {} --persona zoë", exported.display())).done();
    assert_eq!(reply("zoë"), new);
    run(&format!("personas import {} --persona zoë", file.display())).refused(1, &["one-persona.txt"]);
    // What was imported has no dialogues.
    run("personas readapt zoë {bundle}").refused(1, &["zoë, version 1, was saved without its dialogues"]);

    run("personas rename ada eve").done();
    run("personas rename ada eva").refused(1, &["no persona ada", "eve, zoë"]);
    run("personas rename eve zoë").refused(1, &["there is a persona zoë already"]);
    // Learned again, from the bundle's start, from what was kept.
    let again = run("personas readapt eve@1 {bundle} --inner-lr 0.3 --json");
    let again = json(&again);
    assert_eq!((&again["version"], &again["record"]["dialogues"]), (&3.into(), &2.into()));
    assert_eq!(again["record"]["losses"], first["record"]["losses"]);
    run("personas remove eve@3").refused(1, &["nobody is there to be asked", "--yes"]);
    run("personas revert eve 1").done();
    run("personas remove eve@3 --yes").done();
    run("personas remove eve@1 --yes").refused(1, &["is the current one"]);
    run("personas remove eve --yes").done();
    let left = json(&run("personas list --json"));
    assert_eq!(left["personas"].as_array().unwrap().len(), 1);
    assert_eq!(left["personas"][0]["persona"], "zoë");
}

/// A lesson that goes wrong does not cost yesterday's persona.
#[test]
fn a_worse_version_is_kept_and_never_current() {
    let scratch = Scratch::new();
    let file = one_persona(&scratch);
    let run = |line: &str| marionette(&scratch, line, &file);
    let own = scratch.path("own");
    run("adapt {bundle} --persona ada --dialogues {file} --shots 5 --inner-lr 0.3 --epochs 2").done();
    let good = persona(&own, "ada");
    // One dialogue of five, hardly learned; it is better than the bundle's start on what both are judged by, and worse than ada.
    let dialogues = read_dialogues(&file).unwrap();
    let mut text = Vec::new();
    for dialogue in [&dialogues[0], &dialogues[6]] {
        marionette_dialogues::write_chat(&mut text, dialogue).unwrap();
    }
    let few = scratch.write("few.jsonl", text);
    let said =
        marionette(&scratch, "adapt {bundle} --persona ada --dialogues {file} --holdout 1 --inner-lr 0.001", &few)
            .done();
    assert!(said.contains("saved as ada@2") && said.contains("ada@1 stays current"), "{said}");
    assert!(said.contains("marionette personas revert ada 2"), "{said}");
    assert!(persona(&own, "ada") == good);
}

/// Ctrl-C keeps the best so far.
#[cfg(unix)]
#[test]
fn an_interrupted_adaptation_keeps_the_best_so_far() {
    use std::process::Command;
    use std::time::{Duration, Instant};
    let scratch = Scratch::new();
    let file = one_persona(&scratch);
    let mut words = vec!["adapt".into(), road().bundle(), "--persona".into(), "ada".into(), "--dialogues".into(), file];
    words.extend(["--inner-lr", "0.05", "--epochs", "100000", "--home", "own"].map(Into::into));
    let running = scratch.start("marionette", words, &[]);
    let id = running.id().to_string();
    // The persona's lock is there before the first step is.
    let begun = Instant::now();
    while !scratch.path("own/personas/.ada.lock").exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_secs(3));
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let run = running.end();
    assert_eq!(run.code(), Some(130), "{}{}", run.stdout(), run.stderr());
    assert!(run.stderr().contains("interrupted: the best so far is saved"), "{}", run.stderr());
    let (_, record) = persona(&scratch.path("own"), "ada");
    let [before, after] = ["before", "after"].map(|when| record["held_out"][when].as_f64().unwrap());
    assert!(after < before, "{record}");
    // Of whole passes over the seven dialogues, or of what was done when it was stopped; far from all.
    let steps = record["losses"].as_array().unwrap().len();
    assert!((1..700_000).contains(&steps), "{steps}");
}

/// What a reply should have been becomes a dialogue that the next version learns.
#[test]
fn a_persona_is_taught_and_learns_in_a_chat() {
    let scratch = Scratch::new();
    let file = one_persona(&scratch);
    marionette(&scratch, "adapt {bundle} --persona ada --dialogues {file} --shots 3 --inner-lr 0.3", &file).done();
    let saved = scratch.path("talk.jsonl");
    let words = "chat {bundle} --persona ada --inner-lr 0.02 --temperature 0 --max-tokens 6 --home";
    let words = words.split(' ').map(|word| if word == "{bundle}" { road().bundle() } else { word.into() });
    let words: Vec<_> = words.chain([scratch.path("own")]).collect();
    let talk = format!(
        "/teach too early\n/learn\nhi\nwhat do you do ?\n/teach i am a  fox .\n/save {saved}\n/learn\nhi\n/quit\n",
        saved = saved.display()
    );
    let run = scratch.run_on(&talk, "marionette", words.clone());
    let said = run.done();
    let told = run.stderr();
    for part in
        ["nothing was said yet", "there is nothing to learn", "kept: 1 dialogue to learn", "the conversation is in"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(said.contains("saved as ada@2"), "{said}{told}");
    let store = marionette_runtime::personas::Store::new(Some(&scratch.path("own"))).unwrap();
    let ada = "ada".parse().unwrap();
    let dialogues = store.dialogues(&ada, Some(2)).unwrap();
    // Three and the one that was taught, and last the one that is held out.
    assert_eq!((dialogues.len(), store.version(&ada, Some(2)).unwrap().record.dialogues), (5, 4));
    let taught = &dialogues[3];
    let [first, second] = taught.exchanges.as_slice() else { panic!("{taught:?}") };
    assert!(!first.learned && second.learned && first.partner == "hi");
    assert_eq!((second.partner.as_str(), second.reply.as_str()), ("what do you do ?", "i am a  fox ."));
    assert_eq!(
        store.dialogues(&ada, Some(1)).unwrap().last(),
        dialogues.last().map(|last| { marionette_dialogues::Dialogue { line: 4, ..last.clone() } }).as_ref()
    );
    // Where it is the current one, nothing waits to be learned any more.
    let waiting = store.taught(&ada).unwrap().len();
    assert_eq!(waiting, usize::from(store.current(&ada).unwrap() == 1));

    // What was saved goes on elsewhere, with the reply as it should have been.
    let again = scratch.run_on(&format!("/load {}\n/undo\n/undo\n/undo\n", saved.display()), "marionette", words);
    again.done();
    let told = again.stderr();
    assert!(told.contains("after 2 exchanges") && told.matches("is taken back").count() == 2, "{told}");
    let text = fs::read_to_string(saved).unwrap();
    assert!(text.contains("i am a  fox .") && !text.contains("\"weight\""), "{text}");
}

/// A line that cannot be taken is said, and the chat goes on.
#[test]
fn a_chat_survives_bad_lines() {
    let scratch = Scratch::new();
    let words = ["chat".into(), road().bundle(), "--temperature".into(), "0".into(), "--max-tokens".into(), "4".into()];
    let long = "x".repeat(1 << 17);
    let talk = format!(
        "{long}\n/load {}\n/set top-p 7\n/persona nobody\n/teach x\n//hi\n\"\"\"one\ntwo\"\"\"\nhi\n\"\"\"never ends\n",
        scratch.write("broken.jsonl", "{").display()
    );
    let run = scratch.run_on(&talk, "marionette", words);
    let (said, told) = (run.done(), run.stderr());
    for part in [
        "longer than 65536 bytes",
        "broken.jsonl",
        "--top-p is 7",
        "no persona nobody",
        "nobody is there to be taught",
        "have no end",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(said.lines().count(), 3, "{said}");
}

/// Files that grow are learned again.
#[cfg(unix)]
#[test]
fn watched_dialogues_are_learned_again_when_they_grow() {
    use std::process::Command;
    use std::time::{Duration, Instant};
    let scratch = Scratch::new();
    let all = read_dialogues(one_persona(&scratch)).unwrap();
    let file = scratch.path("talks.jsonl");
    let write = |most: usize| {
        let mut text = Vec::new();
        all.iter().take(most).for_each(|dialogue| marionette_dialogues::write_chat(&mut text, dialogue).unwrap());
        fs::write(&file, text).unwrap();
    };
    write(3);
    let mut words = vec!["adapt".into(), road().bundle(), "--persona".into(), "ada".into(), "--dialogues".into()];
    words.extend([file.clone(), "--watch".into(), "--home".into(), "own".into()]);
    words.extend(["--inner-lr", "0.1", "--even-if-worse", "--replies", "0"].map(Into::into));
    let running = scratch.start("marionette", words, &[]);
    let store = marionette_runtime::personas::Store::new(Some(&scratch.path("own"))).unwrap();
    let ada = "ada".parse().unwrap();
    let wait_for = |versions: usize| {
        let begun = Instant::now();
        while store.versions(&ada).map_or(0, |there| there.len()) < versions {
            assert!(begun.elapsed() < Duration::from_secs(120), "version {versions} does not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for(1);
    // What is half-written is said, and is whole the next time.
    fs::write(&file, "{").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    write(6);
    wait_for(2);
    let learned = [1, 2].map(|version| store.version(&ada, Some(version)).unwrap().record.dialogues);
    assert_eq!(learned, [2, 5]);
    // The number of a version is there before all is said.
    std::thread::sleep(Duration::from_secs(1));
    assert!(Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap().success());
    let run = running.end();
    assert_eq!(run.code(), Some(130), "{}", run.stderr());
    assert!(run.stderr().contains("talks.jsonl") && run.stdout().contains("saved as ada@2"), "{}", run.stdout());
}
