//! What commands say and keep.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use marionette_tests::{Run, Scratch, dialogues, persona, tiny};

use crate::road::{json, one_persona, road};

/// A command line: its words, `{name}` among them a path.
fn words(line: &str, paths: &[(&str, &Path)]) -> Vec<PathBuf> {
    let path = |word: &str| {
        let name = word.strip_prefix('{')?.strip_suffix('}')?;
        paths.iter().find(|(known, _)| *known == name).map(|(_, path)| path.to_path_buf())
    };
    line.split_whitespace().map(|word| path(word).unwrap_or_else(|| word.into())).collect()
}

fn marionette(scratch: &Scratch, line: &str, file: &Path) -> Run {
    let (bundle, home) = (road().bundle(), scratch.path("own-home"));
    scratch.run("marionette", words(line, &[("bundle", &bundle), ("home", &home), ("file", file)]))
}

#[test]
fn data_says_what_files_hold_and_what_was_left_out() {
    let scratch = Scratch::new();
    let text = fs::read_to_string(dialogues("test")).unwrap() + "12 see you\n";
    let (file, base) = (scratch.write("some.txt", text), tiny());
    let paths = [("file", file.as_path()), ("base", base.as_path())];
    let shown = scratch.run("marionette-train", words("data {file} --base {base}", &paths)).done();
    for part in [
        "some.txt: ConvAI2 text, 128 dialogues",
        "1 left out: closing words without a reply",
        "personas              16",
        "the largest has 8 dialogues, joined by \"",
        "longer than the context of 512 tokens: 0",
    ] {
        assert!(shown.contains(part), "expected \"{part}\" in:\n{shown}");
    }
    let found = json(&scratch.run("marionette-train", words("data {file} --base {base} --json", &paths)).done());
    assert_eq!((found["personas"].as_u64(), found["largest"]["dialogues"].as_u64()), (Some(16), Some(8)));
    let system = "{\"messages\":[{\"role\":\"system\",\"content\":\"Be helpful.\"},{\"role\":\"assistant\",\"content\":\"x N\"}]}\n";
    let same = scratch.write("same.jsonl", (0..4).map(|n| system.replace('N', &n.to_string())).collect::<String>());
    let paths = [("file", same.as_path()), ("base", base.as_path())];
    let shown = scratch.run("marionette-train", words("data {file}", &paths)).done();
    assert!(shown.contains("\"Be helpful.\" stands in every dialogue, so it says nothing about who speaks"), "{shown}");
    let run = scratch.path("run");
    let line = words("run --base {base} --data {file} --out {run}", &[paths.as_slice(), &[("run", &run)]].concat());
    scratch.run("marionette-train", line).refused(1, &["same.jsonl", "Be helpful.", "says nothing about who speaks"]);
}

#[test]
fn chat_answers_line_by_line_and_takes_commands() {
    let scratch = Scratch::new();
    let bundle = road().bundle();
    let line = words("chat {bundle} --temperature 0 --max-tokens 6", &[("bundle", &bundle)]);
    let run = scratch.run_on("hi\n\nwhat do you do ?\n/reset\nhi\n/dance\n/quit\nnever read\n", "marionette", line);
    let replies: Vec<String> = run.done().lines().map(str::to_owned).collect();
    assert_eq!((replies.len(), &replies[0]), (3, &replies[2]), "{replies:?}");
    let stderr = run.stderr();
    assert!(stderr.contains("begins anew") && stderr.contains("/dance is no command"), "{stderr}");
    // A first word is what `generate` says to it, and what is typed is cleaned as training text is.
    for prompt in ["hi", "\u{feff}hi\n", "\u{1b}hi"] {
        let line = words("generate {bundle} --temperature 0 --max-tokens 6 --prompt", &[("bundle", &bundle)]);
        let said = scratch.run("marionette", line.into_iter().chain([prompt.into()])).done();
        assert_eq!(said.trim_end_matches('\n'), replies[0], "{prompt:?}");
    }
}

/// ONNX Runtime's telemetry begins some nine seconds after the library was loaded, and leaves files in the user's folders.
#[cfg(target_os = "linux")]
#[test]
fn nothing_leaves_the_device() {
    let scratch = Scratch::new();
    let (bundle, user) = (road().bundle(), scratch.path("user"));
    fs::create_dir(&user).unwrap();
    let line = words("chat {bundle} --temperature 0 --max-tokens 2", &[("bundle", &bundle)]);
    let folder = user.to_str().unwrap();
    let mut chat = scratch.start(
        "marionette",
        line,
        &[("HOME", folder), ("XDG_CACHE_HOME", folder), ("ORT_DISABLE_TELEMETRY", "0")],
    );
    chat.say("hi\n");
    for _ in 0..60 {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let open = fs::read_dir(format!("/proc/{}/fd", chat.id())).unwrap().flatten();
        let open: Vec<PathBuf> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
        let own = |path: &PathBuf| !path.to_string_lossy().starts_with("socket:") && !path.starts_with("/tmp/.ses");
        assert!(open.iter().all(own), "{open:?}");
    }
    chat.end().done();
    assert_eq!(fs::read_dir(&user).unwrap().count(), 0, "nothing was written for the user");
}

#[test]
fn the_device_is_checked_before_a_run() {
    let scratch = Scratch::new();
    let (base, data, run) = (tiny(), dialogues("valid"), scratch.path("run"));
    let paths = [("base", base.as_path()), ("data", &data), ("run", &run)];
    let line = "run --base {base} --data {data} --out {run} --iterations 1 --meta-batch 1 --inner-steps 1 \
                --support-dialogues 1 --query-dialogues 1 --validation-personas 1 --bottleneck 4 --check-device";
    let checked = scratch.run("marionette-train", words(line, &paths));
    checked.done();
    let said = checked.stderr();
    assert!(said.contains("fp32 on cpu against fp32 on the CPU"), "{said}");
    let error = said.lines().find(|line| line.contains("outer gradient")).unwrap();
    assert!(error.contains("relative error 0.0e0"), "the processor against itself: {error}");
}

/// What a person has on the phone, learned as it is, and as the dialogues that are made of it.
#[test]
fn a_chat_is_shown_written_and_learned() {
    let scratch = Scratch::new();
    let days = (1..8).map(|day| {
        format!(
            "0{day}/11/2025, 18:02 - Ada B.: what is on day {day} ?\n0{day}/11/2025, 18:03 - Ole K.: {day} bees .\n\
             0{day}/11/2025, 18:04 - Eve: <Media omitted>\n"
        )
    });
    let (chat, out) = (scratch.write("_chat.txt", days.collect::<String>()), scratch.path("ole.jsonl"));
    let bundle = road().bundle();
    let paths = [("chat", chat.as_path()), ("out", &out), ("bundle", &bundle)];
    let run = |line: &str| scratch.run("marionette", words(line, &paths));
    let shown = run("dialogues {chat} --out {out} --bundle {bundle}").done();
    for part in [
        "_chat.txt: a WhatsApp export, 7 dialogues",
        "speak, with so many messages: \"Ada B.\" (7), \"Ole K.\" (7); from 2025-11-01 to 2025-11-07",
        "learned is \"Ole K.\", who answers first",
        "7 left out: pictures, voice messages and other media without words",
        "replies a dialogue: 1 to 1, median 1\n",
        "tokens a dialogue: ",
        "line 1:\n  them  what is on day 1 ?\n  me    1 bees .\n",
        "line 7:\n",
        "line 19:\n",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let read = fs::read_to_string(&out).unwrap();
    assert_eq!(read.lines().count(), 7);
    let line =
        r#"{"messages":[{"content":"what is on day 1 ?","role":"user"},{"content":"1 bees .","role":"assistant"}]}"#;
    assert_eq!(read.lines().next(), Some(line));
    // What was written is what was read: together they are no more.
    let object = json(&run("dialogues {chat} {out} --json").done());
    assert_eq!((&object["dialogues"], &object["files"][0]["speakers"]["found"]), (&7.into(), &"answers".into()));
    assert_eq!(object["files"][1]["left_out"][0]["count"], 7);
    // What is to be replaced is, in what is shown and in what is written; nothing is written where a file is refused.
    let list = scratch.write("list.txt", "bees\n");
    let paths = [("chat", chat.as_path()), ("out", &out), ("list", &list), ("bundle", &bundle)];
    let run = |line: &str| scratch.run("marionette", words(line, &paths));
    let shown = run("dialogues {chat} --block {list} --show-redactions --out {out}").done();
    assert!(shown.contains("7 replaced by [blocked]: blocked words\n    \"bees\" (7)\n"), "{shown}");
    let written = fs::read_to_string(&out).unwrap();
    assert!(written.contains("1 [blocked] .") && !written.contains("bees"), "{written}");
    run("dialogues {chat} --me Olaf --out {out}").refused(1, &["nobody in it is called"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), written);
    run("dialogues {chat} --block none.txt").refused(1, &["none.txt"]);
    // What comes through a pipe is read as what is in a file.
    let piped = |line: &str| scratch.run_on(&fs::read_to_string(&chat).unwrap(), "marionette", words(line, &paths));
    assert!(piped("dialogues -").done().starts_with("standard input: a WhatsApp export, 7 dialogues\n"));
    scratch.run_on("", "marionette", ["dialogues", "-"]).refused(1, &["standard input, line 1: the file is empty"]);
    run("dialogues {chat} --out {out}").done();
    // As it is, or as it was written: the same persona.
    let loss = |line: &str| {
        let adapted = marionette(&scratch, line, &chat);
        let said = adapted.done();
        said.lines().next().unwrap().split_once(" on ").unwrap().0.split_once(": ").unwrap().1.to_owned()
    };
    let written = "adapt {bundle} --home {home} --persona ole --dialogues ".to_owned() + &out.display().to_string();
    assert_eq!(loss("adapt {bundle} --home {home} --persona ole --dialogues {file}"), loss(&written));
    // Who is not in it is told who is.
    run("dialogues {chat} --me Olaf").refused(1, &["nobody in it is called", "Ada B. (7), Ole K. (7)", "--me NAME"]);
}

#[test]
fn a_comparison_says_unseen_only_where_it_is_true() {
    let scratch = Scratch::new();
    let (base, valid, test) = (tiny(), dialogues("valid"), dialogues("test"));
    let compare = |out: &str, test: &Path| {
        let out = scratch.path(out);
        let paths = [("base", base.as_path()), ("valid", &valid), ("test", test), ("out", &out)];
        let line = "compare --base {base} --data {valid} --test {test} --out {out} --methods extra-place,transfer \
                    --hold-out 0.2 --iterations 1 --meta-batch 1 --inner-steps 1 --support-dialogues 1 --query-dialogues 1 \
                    --validation-personas 1 --bottleneck 4 --shots 0,1,50 --folds 1 --personas 1 --max-tokens 4";
        let run = scratch.run("marionette-train", words(line, &paths));
        let table = run.done();
        let read = |file: &str| fs::read_to_string(out.join("report").join(file)).unwrap();
        (table, run.stderr(), read("comparison.json"), read("index.html"))
    };
    let (table, said, comparison, page) = compare("apart", &test);
    assert!(table.contains("extra-place") && table.contains("K = 1") && !table.contains("K = 50"), "{table}");
    assert!(page.contains("Methods compared on unseen personas") && !said.contains("trained on"), "{said}");
    let comparison = json(&comparison);
    assert_eq!(comparison["methods"].as_array().map(Vec::len), Some(2));
    assert!(comparison["notes"].to_string().contains("no row for 50 shots"), "{}", comparison["notes"]);
    let (_, said, _, page) = compare("same", &valid);
    assert!(!page.contains("unseen") && page.contains("were trained on"), "{said}");
    assert!(said.contains("10 of 10 personas and 80 of 80 dialogues to test on were trained on"), "{said}");
}

/// The same comparison twice: what it does the second time, it has done.
#[test]
fn rivals_are_compared_at_their_best_on_the_same_replies() {
    let scratch = Scratch::new();
    let (base, valid, test, out) = (tiny(), dialogues("valid"), dialogues("test"), scratch.path("out"));
    let paths = [("base", base.as_path()), ("valid", &valid), ("test", &test), ("out", &out)];
    let line = "compare --base {base} --data {valid} --test {test} --out {out} --seeds 2 --validation-personas 2 \
                --methods extra-place,transfer-adapters,none,in-context,in-context-persona --hold-out 0.3 --iterations 1 \
                --meta-batch 1 --inner-steps 1 --support-dialogues 1 --query-dialogues 1 --bottleneck 4 --shots 0,2 \
                --folds 1 --personas 3 --max-tokens 4 --tune-rates 0.1,1,1e30 --tune-epochs 1,2";
    let compare = || scratch.run("marionette-train", words(line, &paths));
    let table = compare().done();
    for name in ["none", "in-context", "in-context-persona", "transfer-adapters"] {
        assert!(table.contains(&format!("| extra-place − {name} | ")), "{table}");
    }
    assert!(table.contains("| transfer-adapters − itself at K = 0 |"), "{table}");
    let comparison = || json(&fs::read_to_string(out.join("report/comparison.json")).unwrap());
    let first = comparison();
    let methods = first["methods"].as_array().unwrap();
    for method in methods {
        let (name, tried) = (method["method"].as_str().unwrap(), method["tried"].as_array().unwrap());
        let seeds = method["cells"][0]["perplexity"]["seeds"].as_array().unwrap().len();
        match name.starts_with("in-context") {
            true => assert_eq!((tried.len(), seeds, &method["learned_parameters"]), (0, 1, &serde_json::json!(0))),
            false => {
                assert_eq!((tried.len(), seeds), (2 * 3 * 2, 2), "{name}: a point a seed, factor and number of passes");
                let far = tried.iter().filter(|tried| tried["factor"].as_f64() == Some(1e30));
                let is_lost = |tried: &&serde_json::Value| tried["perplexity"].is_null() && tried["chosen"] == false;
                assert_eq!(far.filter(is_lost).count(), 2 * 2, "{name}: what diverges is not chosen");
                assert_eq!(tried.iter().filter(|tried| tried["chosen"] == true).count(), 2, "{name}");
            }
        }
    }
    // Fresh adapters and dialogues that are not there yet leave the base as it is.
    let at_0 = |index: usize| methods[index]["cells"][0]["perplexity"]["value"].as_f64().unwrap();
    let index = |name: &str| methods.iter().position(|method| method["method"] == name).unwrap();
    assert!((at_0(index("none")) - at_0(index("in-context"))).abs() < 1e-6);
    let again = compare();
    again.done();
    assert_eq!(comparison()["methods"], first["methods"], "nothing is done twice, or comes out otherwise");
    // What was tested of another checkpoint is tested anew.
    let record = out.join("runs/extra-place-seed1/outcome.json");
    let mut recorded = json(&fs::read_to_string(&record).unwrap());
    recorded["checkpoint"] = "of yesterday".into();
    recorded["outcomes"][0]["cells"][0]["personas"][0]["nll"] = 1e6.into();
    fs::write(&record, recorded.to_string()).unwrap();
    compare().done();
    let cells = |all: &serde_json::Value| {
        let mut cells = all["methods"][index("extra-place")]["cells"].clone();
        for cell in cells.as_array_mut().unwrap() {
            for time in ["adapt_seconds", "token_ms"] {
                cell[time] = serde_json::Value::Null;
            }
        }
        cells
    };
    assert_eq!(cells(&comparison()), cells(&first));
    // Runs that were trained before come to what they came to, whatever they are called, without a file in their folders.
    let (run, start, as_given) = (out.join("runs/extra-place-seed1"), scratch.path("start"), scratch.path("given"));
    scratch.run("marionette-train", ["publish".into(), run, "--out".into(), start.clone()]).done();
    let files = |folder: &Path| fs::read_dir(folder).unwrap().count();
    let before = files(&start);
    let paths = [&paths[..], &[("given", &as_given)]].concat();
    let line = "compare --base {base} --data {valid} --test {test} --out {given} --validation-personas 2 --hold-out 0.3 \
                --shots 0,2 --folds 1 --personas 3 --max-tokens 4 --tune-rates 0.1,1,1e30 --tune-epochs 1,2 --run";
    let compare = |runs: &[(&str, &Path)]| {
        let runs = runs.iter().map(|(name, run)| format!("{name}={}", run.display()).into());
        scratch.run("marionette-train", words(line, &paths).into_iter().chain(runs))
    };
    let plain = out.join("runs/transfer-adapters-seed1");
    let table = compare(&[("ours", &start), ("plain", &plain)]).done();
    assert!(table.contains("| ours − plain | ") && !table.contains("in-place | 14.10 | 13.2 | 15.93 | 2"), "{table}");
    assert_eq!(files(&start), before);
    let given = json(&fs::read_to_string(as_given.join("report/comparison.json")).unwrap());
    let perplexities = |all: &serde_json::Value, name: &str| -> Vec<f64> {
        let method = all["methods"].as_array().unwrap().iter().find(|method| method["method"] == name).unwrap();
        let cells = method["cells"].as_array().unwrap().iter();
        cells.map(|cell| cell["perplexity"]["seeds"][0].as_f64().unwrap()).collect()
    };
    assert_eq!(perplexities(&given, "plain"), perplexities(&first, "transfer-adapters"));
    // Adapters in 16 bits are nearly the same.
    for (ours, whole) in perplexities(&given, "ours").iter().zip(perplexities(&first, "extra-place")) {
        assert!((ours / whole - 1.0).abs() < 1e-3, "{ours} {whole}");
    }
    let iterations = |index: usize| &given["methods"][index]["iterations"];
    assert_eq!((iterations(0), iterations(1)), (&serde_json::Value::Null, &serde_json::json!(1)));
    compare(&[("ours", &start), ("ours", &plain)]).refused(2, &["--run", "the name ours a second time"]);
    compare(&[("../ours", &start)]).refused(2, &["../ours", "a name of letters"]);
    let refused = scratch
        .run("marionette-train", words("run --base {base} --data {valid} --out {out}2 --method in-context", &paths));
    refused.refused(2, &["--method", "--in-context"]);
}

#[test]
fn what_was_trained_on_is_said_where_it_is_evaluated() {
    let scratch = Scratch::new();
    let run = road().run();
    let evaluate = |data: &Path| {
        let line = "evaluate {run} --data {data} --shots 0 --personas 1 --folds 1 --max-tokens 0";
        let run = scratch.run("marionette-train", words(line, &[("run", &run), ("data", data)]));
        run.done();
        run.stderr()
    };
    let said = evaluate(&dialogues("valid"));
    assert!(said.contains("10 of 10 personas and 80 of 80 dialogues to test on were trained on"), "{said}");
    assert!(!evaluate(&dialogues("test")).contains("trained on"));
}

#[test]
fn a_k_beyond_what_there_is_has_no_row_on_either_side() {
    let scratch = Scratch::new();
    let (run, test) = (road().run(), dialogues("test"));
    let ask = |shots: &str| {
        let more = format!("--shots {shots} --personas 1 --folds 1 --max-tokens 0");
        let trainer = format!("evaluate {{run}} --data {{test}} {more}");
        [
            scratch.run("marionette-train", words(&trainer, &[("run", &run), ("test", &test)])),
            marionette(&scratch, &format!("evaluate {{bundle}} --dialogues {{file}} {more}"), &test),
        ]
    };
    for found in ask("7,50").map(|run| run.done()) {
        let rows = found.lines().filter(|line| line.trim_start().starts_with(|digit: char| digit.is_ascii_digit()));
        let shots: Vec<&str> = rows.filter_map(|row| row.split_whitespace().next()).take(1).collect();
        assert_eq!(shots, ["7"], "{found}");
        assert!(found.contains("no row for 50 shots: no persona has 50 dialogues"), "{found}");
    }
    for run in ask("8,50") {
        run.refused(1, &["no persona has more than 8 dialogues", "so 8 cannot be adapted on"]);
    }
}

#[test]
fn adapting_that_makes_it_worse_keeps_the_persona() {
    let scratch = Scratch::new();
    let file = one_persona(&scratch);
    let adapt = |more: &str| {
        let line = format!("adapt {{bundle}} --persona ada --dialogues {{file}} --home {{home}} --shots 3 {more}");
        marionette(&scratch, &line, &file)
    };
    let (home, folder) = (scratch.path("own-home"), scratch.path("own-home/personas/ada"));
    adapt("").done();
    let good = persona(&home, "ada");
    for held_out in ["0", "1"] {
        let worse = format!("--inner-lr 1e4 --holdout {held_out}");
        adapt(&worse).refused(1, &["so nothing was saved", "smaller --inner-lr", "--even-if-worse"]);
        assert!(persona(&home, "ada") == good && !folder.join("2").exists(), "the persona is as it was");
    }
    // Judged by a dialogue that it did not learn from, it is kept beside the better one; by its own word it is believed.
    let said = adapt("--inner-lr 1e4 --even-if-worse --holdout 1").done();
    assert!(said.contains("ada@2") && said.contains("revert ada 2"), "{said}");
    assert!(persona(&home, "ada") == good && folder.join("2/adapters.safetensors").exists());
    adapt("--inner-lr 1e4 --even-if-worse --holdout 0").done();
    assert!(persona(&home, "ada") != good);
}

#[test]
fn a_stray_carriage_return_is_known_before_the_steps() {
    let scratch = Scratch::new();
    let text = fs::read_to_string(one_persona(&scratch)).unwrap();
    let adapted = |name: &str, text: String| {
        let file = scratch.write(name, text);
        let line = "adapt {bundle} --persona ada --dialogues {file} --home {home} --shots 2";
        marionette(&scratch, line, &file).done();
        persona(&scratch.path("own-home"), "ada").0
    };
    let plain = adapted("plain.txt", text.clone());
    assert!(plain == adapted("lines.txt", text.replace('\n', "\r\r\n")));
    assert!(plain == adapted("mac.txt", text.replace('\n', "\r")));
    assert!(plain == adapted("blanks.txt", text.replacen("? ", "?\r", 1)));
}

#[test]
fn a_dialogue_longer_than_the_context_is_learned_in_windows() {
    let scratch = Scratch::new();
    let mut text = String::new();
    for number in 1..=120 {
        writeln!(text, "{number} what about hive number {number} ?\thive {number} gave {number} jars of honey .")
            .unwrap();
    }
    let file = scratch.write("long.txt", text);
    let line = "adapt {bundle} --persona bees --dialogues {file} --home {home} --inner-lr 0.1";
    let run = marionette(&scratch, line, &file);
    let said = run.stderr();
    assert!(run.done().contains(" on 1 dialogue, "), "{said}");
    let windows: usize =
        said.split("learned in ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    assert!(said.contains("longer than the context: 1 dialogue") && windows > 3, "{said}");
    // One whole pass over all windows, a step each.
    assert!(run.stdout().contains(&format!(" {windows} steps")), "{}", run.stdout());
}
