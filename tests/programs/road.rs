use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use marionette_models::run::{ADAPTERS, Which, checkpoint};
use marionette_models::safetensors_file::{self, RawTensor};
use marionette_tests::{Scratch, copy, dialogues, persona, root, tiny};
use serde_json::Value;

/// A run and its bundle that every test of this binary reads and none changes.
pub struct Road {
    pub scratch: Scratch,
}

impl Road {
    pub fn run(&self) -> PathBuf {
        self.scratch.path("run")
    }
    pub fn bundle(&self) -> PathBuf {
        self.scratch.path("bundle")
    }
}

pub fn road() -> &'static Road {
    static ROAD: OnceLock<Road> = OnceLock::new();
    ROAD.get_or_init(|| {
        let scratch = Scratch::new();
        train(&scratch, "run").done();
        scratch.run("marionette-export", [scratch.path("run"), "--out".into(), scratch.path("bundle")]).done();
        Road { scratch }
    })
}

/// What makes a run one of seconds.
pub const SHORT_RUN: [(&str, &str); 8] = [
    ("--iterations", "2"),
    ("--validate-every", "1"),
    ("--meta-batch", "2"),
    ("--inner-steps", "2"),
    ("--dialogues-per-step", "1"),
    ("--support-dialogues", "2"),
    ("--query-dialogues", "1"),
    ("--bottleneck", "8"),
];

/// Two meta-iterations: enough for every file, far too few to learn.
fn train(scratch: &Scratch, out: &str) -> marionette_tests::Run {
    train_with(scratch, out, &[])
}

fn train_with(scratch: &Scratch, out: &str, more: &[PathBuf]) -> marionette_tests::Run {
    let mut arguments = vec![
        "run".into(),
        "--base".into(),
        tiny(),
        "--data".into(),
        dialogues("valid"),
        "--out".into(),
        scratch.path(out),
        "--threads".into(),
        "1".into(),
    ];
    for (flag, value) in [("--hold-out", "0.2")].into_iter().chain(SHORT_RUN) {
        arguments.extend([flag.into(), value.into()]);
    }
    arguments.extend_from_slice(more);
    scratch.run("marionette-train", arguments)
}

/// The dialogues of the first `count` personas of a split.
pub fn first_personas(split: &str, count: usize) -> String {
    let text = std::fs::read_to_string(dialogues(split)).unwrap();
    let (mut first, mut seen) = (String::new(), Vec::new());
    for line in text.lines() {
        // The first sentence tells the bundled personas apart.
        if line.starts_with("1 ") && !seen.contains(&line) {
            if seen.len() == count {
                break;
            }
            seen.push(line);
        }
        first.push_str(line);
        first.push('\n');
    }
    first
}

/// The dialogues of the first persona of the test split, as a file of its own.
pub fn one_persona(scratch: &Scratch) -> PathBuf {
    scratch.write("one-persona.txt", first_personas("test", 1))
}

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn personas(home: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(home.join("personas"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

#[test]
fn the_run_directory_is_as_documented() {
    let run = road().run();
    for file in ["config.toml", "metrics.jsonl", "best", "last", "probe.safetensors"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    let last = std::fs::read_to_string(run.join("last")).unwrap();
    assert_eq!(last.trim(), "step-2");
    assert!(run.join("checkpoints/step-2/adapters.safetensors").is_file());
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().map(json).filter(Value::is_object).count(), metrics.lines().count());
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let scratch = Scratch::new();
    train(&scratch, "again").done();
    for file in ["checkpoints/step-2/adapters.safetensors", "probe.safetensors"] {
        let (first, second) = (std::fs::read(road().run().join(file)), std::fs::read(scratch.path("again").join(file)));
        assert!(first.unwrap() == second.unwrap(), "{file} differs");
    }
    let bundle = scratch.path("bundle");
    scratch.run("marionette-export", [road().run(), "--out".into(), bundle.clone()]).done();
    let manifest = |dir: &Path| std::fs::read_to_string(dir.join("manifest.json")).unwrap();
    // The manifest holds the digest of every other file.
    assert_eq!(manifest(&bundle), manifest(&road().bundle()));
}

#[test]
fn the_device_computes_what_the_trainer_did() {
    let scratch = Scratch::new();
    let table = scratch.run("marionette", ["inspect".into(), road().bundle(), "--check".into()]).done();
    eprintln!("{table}");
    assert!(table.contains("logits") && table.contains("adapter tensors"), "{table}");
}

#[test]
fn trainer_and_device_evaluate_alike() {
    let scratch = Scratch::new();
    let data = dialogues("test");
    let few = ["--shots", "0,2", "--personas", "2", "--folds", "1", "--json", "--reference"].map(PathBuf::from);
    let few: Vec<PathBuf> = few.into_iter().chain([dialogues("valid")]).collect();
    for reading in [&[][..], &["--in-context", "dialogues"], &["--in-context", "persona"]] {
        let options = || few.iter().cloned().chain(reading.iter().map(PathBuf::from));
        let trainer = ["evaluate".into(), road().run(), "--data".into(), data.clone()].into_iter().chain(options());
        let device =
            ["evaluate".into(), road().bundle(), "--dialogues".into(), data.clone()].into_iter().chain(options());
        let trainer = json(&scratch.run("marionette-train", trainer).done());
        let device = json(&scratch.run("marionette", device).done());
        assert_eq!(keys(&device), ["candidates", "costs", "rank_by", "seconds", "shots", "too_few"]);
        for k in 0..2 {
            let (a, b) = (&trainer["shots"][k], &device["shots"][k]);
            let figures = "f1 hits_at_1 intervals k likeness perplexity perplexity_per_word personas reference_perplexity \
                           replies";
            assert_eq!(keys(b).join(" "), figures);
            let cost = &device["costs"][k];
            assert!(cost["token_ms"].as_f64() > Some(0.0) && cost["adapt_seconds"].is_null() == (k == 0), "{cost}");
            assert_eq!((&a["replies"], &a["personas"], &a["k"]), (&b["replies"], &b["personas"], &b["k"]));
            for figure in ["perplexity", "reference_perplexity"] {
                let (p, q) = (a[figure].as_f64().unwrap(), b[figure].as_f64().unwrap());
                assert!((p / q - 1.0).abs() < 1e-3, "{reading:?}, {figure} {p} and {q}");
            }
            // The same candidates win, and the same words are said.
            assert_eq!(a["likeness"], b["likeness"], "{reading:?}");
            for figure in ["hits_at_1", "f1"] {
                let (p, q) = (a[figure].as_f64().unwrap(), b[figure].as_f64().unwrap());
                assert!((p - q).abs() < 1e-9, "{reading:?}, {figure} {p} and {q}");
            }
        }
        let perplexity = |k: usize| device["shots"][k]["perplexity"].as_f64().unwrap();
        assert!(perplexity(0) != perplexity(1), "{reading:?}: two dialogues make no difference");
    }
}

#[test]
fn adapting_writes_a_persona_that_changes_the_replies() {
    let scratch = Scratch::new();
    let (bundle, home) = (road().bundle(), scratch.path("home-of-its-own"));
    let file = one_persona(&scratch);
    let adapt = |name: &str| {
        let arguments = ["adapt".as_ref(), bundle.as_os_str(), "--persona".as_ref(), name.as_ref()];
        let more = ["--dialogues".as_ref(), file.as_os_str(), "--shots".as_ref(), "3".as_ref(), "--home".as_ref()];
        let rates = ["--inner-lr".as_ref(), "0.5".as_ref(), "--epochs".as_ref(), "4".as_ref()];
        let arguments = arguments.into_iter().chain(more).chain([home.as_os_str()]).chain(rates);
        scratch.run("marionette", arguments).done()
    };
    adapt("ada");
    adapt("bob");
    assert_eq!(personas(&home), ["ada", "bob"]);
    let read = |name: &str| {
        let (tensors, mut record) = persona(&home, name);
        assert!(record.as_object_mut().unwrap().remove("seconds").unwrap().as_f64().unwrap() > 0.0);
        (tensors, record)
    };
    assert!(read("ada") == read("bob"), "the same dialogues give the same persona");
    let generate = |persona: Option<&str>, seed: &str| {
        let mut arguments = vec!["generate".into(), bundle.clone(), "--prompt".into(), "what do you do ?".into()];
        arguments.extend(["--home".into(), home.clone(), "--seed".into(), seed.into()]);
        arguments.extend(["--max-tokens".into(), "12".into()]);
        if let Some(persona) = persona {
            arguments.extend(["--persona".into(), persona.into()]);
        }
        scratch.run("marionette", arguments).done()
    };
    let adapted = generate(Some("ada"), "1");
    assert_eq!(adapted, generate(Some("ada"), "1"), "the same seed gives the same reply");
    assert_eq!(adapted, generate(Some("bob"), "1"), "the same dialogues give the same persona");
    assert!(["2", "3", "4", "5"].iter().any(|seed| generate(Some("ada"), seed) != adapted), "the seed counts");
    assert!(
        ["1", "2", "3", "4", "5"].iter().any(|seed| generate(None, seed) != generate(Some("ada"), seed)),
        "the persona counts"
    );
}

/// What is needed depends on the machine: the refusal of a limit that is too low says it.
#[cfg(target_os = "linux")]
#[test]
fn a_memory_limit_is_kept_and_explained() {
    let scratch = Scratch::new();
    a_limit_is_kept(&scratch, road().bundle());
    // Adapters of 19 MB, of which an adaptation holds copies: what the persona was, what it becomes, and that as it is written.
    let wide = scratch.path("wide");
    let arguments = [tiny(), "--bottleneck".into(), "1024".into(), "--out".into(), wide.clone()];
    scratch.run("marionette-export", arguments).done();
    a_limit_is_kept(&scratch, wide);
}

#[cfg(target_os = "linux")]
fn a_limit_is_kept(scratch: &Scratch, bundle: PathBuf) {
    let (file, home) = (one_persona(scratch), bundle.with_extension("home"));
    let adapt = |limit: Option<&str>| {
        let mut arguments = vec!["adapt".into(), bundle.clone(), "--persona".into(), "ada".into()];
        arguments.extend(["--dialogues".into(), file.clone(), "--home".into(), home.clone(), "--even-if-worse".into()]);
        arguments.extend(limit.into_iter().flat_map(|limit| ["--memory-limit".into(), limit.into()]));
        scratch.run("marionette", arguments)
    };
    let refused = adapt(Some("1MiB"));
    refused.refused(1, &["--memory-limit 1.0 MiB", "these dialogues need", "MiB"]);
    assert_eq!(personas(&home), Vec::<String>::new());
    let needed = refused.stderr().split("need ").nth(1).and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let limit = format!("{}MiB", needed.unwrap() + 16.0);
    let kept = adapt(Some(&limit));
    let loss = |run: &marionette_tests::Run| run.done().split(',').next().unwrap().to_owned();
    // The same steps, but for the order of sums.
    assert_eq!(loss(&kept), loss(&adapt(None)));
    let explained = kept.stderr();
    assert!(explained.contains("memory limit") && explained.contains("tokens at once"), "{explained}");
    assert!(explained.contains("held at most") && !explained.contains("more than the limit"), "{explained}");
}

/// What a run learned is passed on in half the bytes, goes the same road elsewhere, and names no place of this machine.
#[test]
fn a_start_is_passed_on_and_gone_on_from() {
    let scratch = Scratch::new();
    let (run, start, bundle) = (road().run(), scratch.path("start"), scratch.path("bundle"));
    let publish = || scratch.run("marionette-train", ["publish".into(), run.clone(), "--out".into(), start.clone()]);
    publish().done();
    publish().refused(1, &["start", "exists already"]);
    let adapters = |run: &Path| checkpoint(run, Which::Best).unwrap().join(ADAPTERS);
    let (learned, passed_on) = [&run, &start].map(|run| safetensors_file::read(&adapters(run)).unwrap().0).into();
    assert_eq!(learned.len(), passed_on.len());
    for (name, whole) in learned {
        let (whole, half) = (whole.to_f32().unwrap(), &passed_on[&name]);
        assert_eq!(*half, RawTensor::f16(&whole.shape, &whole.values), "{name}");
    }
    let config = fs::read_to_string(start.join("config.toml")).unwrap();
    assert!(config.contains("base = \"tiny\"") && config.contains("train = [\"valid.txt\"]"), "{config}");
    let export = |base: Option<PathBuf>| {
        let mut arguments = vec![start.clone(), "--out".into(), bundle.clone(), "--precision".into(), "int8".into()];
        arguments.extend(base.into_iter().flat_map(|base| ["--base".into(), base]));
        scratch.run("marionette-export", arguments)
    };
    export(None).refused(1, &["tiny: is not a folder", "--base gives its new place"]);
    // What eight bits cost is measured on the dialogues that came along: the files are elsewhere.
    let exported = export(Some(tiny()));
    assert!(exported.done().contains("validation dialogues"), "{}", exported.stderr());
    let checked = scratch.run("marionette", ["inspect".into(), bundle, "--check".into()]);
    assert!(checked.done().contains("adapter tensors"), "{}", checked.stderr());
    // Another run begins with it; itself it cannot go on.
    let begun = train_with(&scratch, "begun", &["--start".into(), start.clone()]);
    begun.done();
    let first = safetensors_file::read(&scratch.path("begun/checkpoints/step-0").join(ADAPTERS)).unwrap().0;
    assert!(first.iter().all(|(name, tensor)| tensor.to_f32() == passed_on[name].to_f32()));
    // Nor does one of another base, be it by one bit.
    let other = scratch.path("other");
    copy(&tiny(), &other);
    let mut weights = fs::read(other.join("model.safetensors")).unwrap();
    let low = weights.len() - 2;
    weights[low] ^= 1;
    fs::write(other.join("model.safetensors"), weights).unwrap();
    let mut arguments: Vec<PathBuf> = ["run", "--bottleneck", "8", "--base"].map(PathBuf::from).into();
    arguments.extend([other, "--data".into(), dialogues("valid"), "--out".into(), scratch.path("none")]);
    arguments.extend(["--start".into(), start.clone()]);
    scratch.run("marionette-train", arguments).refused(1, &["is of another base model", "give --start another run"]);
    let mut arguments: Vec<PathBuf> = ["run", "--resume", "--base"].map(PathBuf::from).into();
    arguments.extend([tiny(), "--data".into(), dialogues("valid"), "--out".into(), start]);
    scratch.run("marionette-train", arguments).refused(1, &["state.json"]);
}

#[test]
fn bench_prints_the_documented_object() {
    let scratch = Scratch::new();
    let mut arguments = vec!["bench".into(), road().bundle(), "--json".into()];
    for (flag, value) in [("--prompt-tokens", "8"), ("--new-tokens", "4"), ("--batch", "2"), ("--length", "16")] {
        arguments.extend([PathBuf::from(flag), value.into()]);
    }
    let value = json(&scratch.run("marionette", arguments.clone()).done());
    let expected = [
        "adapt_step_ms",
        "adapt_tokens_per_s",
        "decode_tokens_per_s",
        "first_token_ms",
        "peak_rss_mib",
        "prefill_tokens_per_s",
    ];
    assert_eq!(keys(&value), expected);
    assert!(value.as_object().unwrap().values().all(|figure| figure.as_f64().is_some_and(|f| f > 0.0)), "{value}");

    arguments.extend(["--only".into(), "adapt".into()]);
    let value = json(&scratch.run("marionette", arguments).done());
    assert_eq!(keys(&value), ["adapt_step_ms", "adapt_tokens_per_s", "peak_rss_mib"]);
}

#[test]
fn a_hugging_face_folder_is_exported_with_fresh_adapters() {
    let scratch = Scratch::new();
    let bundle = scratch.path("bare");
    scratch.run("marionette-export", [tiny(), "--out".into(), bundle.clone()]).done();
    let text = scratch.run("marionette", ["inspect".into(), bundle]).done();
    assert!(text.contains("fp32"), "{text}");
}

#[test]
fn the_examples_of_the_readme_name_files_that_exist() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let named: Vec<&str> = readme
        .split([' ', '\n', '`', ')', '('])
        .filter(|word| word.starts_with("models/") || word.starts_with("docs/") || *word == "ARCHITECTURE.md")
        .collect();
    assert!(named.len() > 4, "{named:?}");
    for name in named {
        assert!(root().join(name).exists(), "{name}");
    }
}

/// With adapters in the upper blocks alone the whole road leads to a persona, and what lies below them is a graph of its own.
#[test]
fn adapters_in_upper_blocks_learn_on_the_device() {
    let scratch = Scratch::new();
    let file = one_persona(&scratch);
    let blocks = |from: &str| ["--adapt-blocks".into(), from.into()];
    train_with(&scratch, "run", &blocks("4..")).done();
    let config = fs::read_to_string(scratch.path("run/config.toml")).unwrap();
    assert!(config.contains("first_block = 4"), "{config}");
    scratch.run("marionette-train", ["run", "--out", "run", "--resume", "--iterations", "3", "--threads", "1"]).done();
    for precision in ["fp32", "int8"] {
        scratch.run("marionette-export", ["run", "--precision", precision, "--out", precision]).done();
        assert!(scratch.path(&format!("{precision}/below.onnx")).exists());
        scratch.run("marionette", ["inspect", precision, "--check", "--json"]).done();
        let words = ["adapt", precision, "--persona", precision, "--shots", "2", "--home", "home", "--epochs", "2"];
        let more = ["--dialogues".into(), file.clone(), "--memory-limit".into(), "2GiB".into()];
        let told = scratch.run("marionette", words.into_iter().map(PathBuf::from).chain(more));
        assert!(told.done().contains("memory limit") || told.stderr().contains("memory limit"), "{}", told.stderr());
        let text = ["generate", precision, "--persona", precision, "--home", "home", "--prompt", "hello"];
        assert!(!scratch.run("marionette", text).done().is_empty());
    }
    // A block that is not there, and a start of another shape.
    train_with(&scratch, "other", &blocks("6..")).refused(2, &["--adapt-blocks: is 6, expected 0 to 5"]);
    let options = ["--adapt-blocks", "3..", "--start", "run"].map(PathBuf::from);
    train_with(&scratch, "other", &options).refused(1, &["adapters.safetensors"]);
    assert!(!scratch.path("other").exists());
}

/// What was learned beside integers is stored with the same ones, and the check knows it.
#[test]
fn a_run_beside_integers_is_checked_as_such() {
    let scratch = Scratch::new();
    let frozen = |precision: &str| ["--frozen".into(), precision.into()];
    train_with(&scratch, "run", &frozen("int8")).done();
    let config = fs::read_to_string(scratch.path("run/config.toml")).unwrap();
    assert!(config.contains("frozen = \"int8\""), "{config}");
    let bundle = |precision: &str| {
        scratch.run("marionette-export", ["run", "--precision", precision, "--out", precision]).done();
        scratch.run("marionette", ["inspect", precision, "--check", "--json"]).done()
    };
    let [same, other] = ["int8", "fp32"].map(|precision| json(&bundle(precision)));
    let checked = |found: &Value| (found["parity"]["precision"].clone(), found["parity"]["trained"].clone());
    assert_eq!(checked(&same), ("int8".into(), "int8".into()));
    assert_eq!(checked(&other), ("fp32".into(), "int8".into()));
    // It goes on with what it began with, and what cannot be is said before anything is done.
    scratch.run("marionette-train", ["run", "--out", "run", "--resume", "--iterations", "3", "--threads", "1"]).done();
    for (options, part) in [
        (&["--method", "transfer"][..], "transfer moves the matrices themselves"),
        (&["--precision", "bf16"], "leave out --precision bf16"),
    ] {
        let options: Vec<PathBuf> = frozen("int8").into_iter().chain(options.iter().map(PathBuf::from)).collect();
        train_with(&scratch, "other", &options).refused(2, &["--frozen", part]);
        assert!(!scratch.path("other").exists());
    }
}
