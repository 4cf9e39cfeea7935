//! `marionette-train` as its user meets it.

#![allow(clippy::unwrap_used, clippy::panic)] // Clippy knows tests, but not their helpers.

mod support;

use std::fs;

use marionette_models::checkpoint::{read_adapters, read_base};
use marionette_models::probe::Probe;
use marionette_models::run::{ADAPTERS, CONFIG_TOML, PROBE, RunModel, Which, checkpoint};
use marionette_trainer::trained::Trained;
use support::program::{command, interrupt, refuses, spawn, train, wait_until, works};
use support::{contents, result, workplace};

const RUN: &str = "run --base base --data train.txt --valid valid.txt --bottleneck 4 --support-dialogues 2 --inner-steps 2 \
                   --inner-lr 0.05 --dialogues-per-step 1 --meta-batch 2 --iterations 4 --validate-every 2";

#[test]
fn a_run_is_whole_and_the_same_command_gives_the_same_bytes() {
    let (_keep, folder) = workplace();
    let said = works(&train(&folder, &format!("{RUN} --out one")));
    assert!(said.contains("4 meta-iterations") && said.contains("validation perplexity"), "{said}");
    let run = folder.join("one");
    let model = RunModel::read(&run, &checkpoint(&run, Which::Best).unwrap()).unwrap();
    let base = read_base(&model.base).unwrap();
    assert_eq!((model.method.as_str(), model.adapter.bottleneck, model.inner_loop.steps), ("extra-place", 4, 2));
    let best = checkpoint(&run, Which::Best).unwrap();
    read_adapters(&best.join(ADAPTERS), &base.config, &model.adapter).unwrap();
    // What changes in config.toml, by hand or by a fault, changes nothing of what the checkpoint is.
    let config = run.join(CONFIG_TOML);
    let written = fs::read_to_string(&config).unwrap();
    let other = written.replace("persona_text = false", "persona_text = true").replace("steps = 2", "steps = 3");
    assert_ne!(written, other);
    fs::write(&config, other).unwrap();
    assert_eq!(RunModel::read(&run, &best).unwrap(), model);
    let trained = Trained::open(&run, None, tch::Device::Cpu).unwrap();
    assert_eq!(trained.config.model, model);
    fs::write(&config, written).unwrap();
    let probe = Probe::read(&run.join(PROBE), &base.config, &model.adapter).unwrap();
    assert_eq!((probe.batch, probe.losses.len()), (2, 2));
    assert!(probe.losses[1] < probe.losses[0]);
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    assert!(lines[2]["validation"]["loss_after"].is_number() && lines[1]["validation"].is_null());
    assert!(lines[4]["gradient_norm"].as_f64().unwrap() > 0.0);
    let kept = fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert!(kept == 2 || kept == 3, "the newest two and the best: {kept}");

    // Again by the same command, again by its config.toml from elsewhere, and with another seed.
    // How many personas are computed side by side makes no difference.
    works(&train(&folder, &format!("{RUN} --workers 2 --out two")));
    assert_eq!(result(&run), result(&folder.join("two")));
    fs::create_dir(folder.join("elsewhere")).unwrap();
    works(&train(&folder.join("elsewhere"), "run --config ../one/config.toml --out ../three"));
    assert_eq!(result(&run), result(&folder.join("three")));
    works(&train(&folder, &format!("{RUN} --seed 2 --out four")));
    let last = |run: &str| fs::read(checkpoint(&folder.join(run), Which::Last).unwrap().join(ADAPTERS)).unwrap();
    assert_eq!(last("one"), last("two"));
    assert_ne!(last("one"), last("four"));

    let table = works(&train(&folder, "evaluate one --data valid.txt --shots 0,1,2"));
    assert!(table.contains("perplexity") && table.contains("Hits@1"), "{table}");
    let json = works(&train(&folder, "evaluate one --data valid.txt --shots 0,2 --personas 2 --folds 1 --json"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["shots"].as_array().unwrap().len(), &json["shots"][1]["k"]), (2, &serde_json::json!(2)));
    assert_eq!(json["shots"][0]["replies"], 4);
    for name in ["perplexity", "hits_at_1", "f1"] {
        assert!(json["shots"][1][name].is_number(), "{name}");
    }

    // Where its base lies makes no difference.
    let evaluate = "evaluate one --data valid.txt --shots 0,2 --personas 1 --json";
    let figures = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap()["shots"].clone();
    let before = figures(works(&train(&folder, evaluate)));
    fs::rename(folder.join("base"), folder.join("moved")).unwrap();
    refuses(&train(&folder, evaluate), 1, &["config.toml names it", "--base gives its new place"]);
    assert_eq!(figures(works(&train(&folder, &format!("{evaluate} --base moved")))), before);
    fs::rename(folder.join("moved"), folder.join("base")).unwrap();

    // A run is not written over, and its base must be what it was.
    refuses(&train(&folder, &format!("{RUN} --out one")), 1, &["one", "exists already", "--out another folder"]);
    fs::copy(folder.join("base/config.json"), folder.join("config.json")).unwrap();
    let text = fs::read_to_string(folder.join("config.json")).unwrap();
    fs::write(folder.join("base/config.json"), text.replace("1e-05", "1e-06").replace("0.00001", "0.000001")).unwrap();
    refuses(&train(&folder, "evaluate one --data valid.txt --shots 0"), 1, &["has digest", "was made with", "--base"]);
}

#[test]
fn a_run_is_evaluated_in_the_precision_that_it_was_trained_in() {
    let (_keep, folder) = workplace();
    works(&train(&folder, &format!("{RUN} --precision bf16 --out one")));
    let trained = marionette_trainer::trained::Trained::open(&folder.join("one"), None, tch::Device::Cpu).unwrap();
    // The same adapters, computed in 32 bits: the digits of bf16 are not those of fp32.
    let exact = trained.model.unrounded();
    let ids = tch::Tensor::from_slice(&[1_i64, 2, 3]).unsqueeze(0);
    let logits = |model: &marionette_trainer::model::Model| {
        let layout = marionette_trainer::decoder::Layout::default();
        model.at(&trained.start).unwrap().forward(&ids, layout, None).unwrap()
    };
    assert!(support::worst(&logits(&trained.model), &logits(&exact)) > 0.0);
}

#[test]
fn first_order_and_a_held_out_part_run() {
    let (_keep, folder) = workplace();
    let run = RUN.replace("--valid valid.txt", "--hold-out 0.4");
    let said = works(&train(&folder, &format!("{run} --meta fomaml --persona-text --patience 1 --out one")));
    assert!(said.contains("meta-iterations"), "{said}");
    let config = fs::read_to_string(folder.join("one/config.toml")).unwrap();
    assert!(config.contains("gradient = \"fomaml\"") && config.contains("persona_text = true"), "{config}");
}

#[test]
fn pretraining_makes_a_model_folder_with_the_same_bytes_each_time() {
    let (_keep, folder) = workplace();
    let pretrain = "pretrain --data train.txt --valid valid.txt --vocab-size 280 --n-embd 16 --n-layer 2 --n-head 4 \
                    --n-positions 64 --batch-tokens 256 --steps 12 --warmup 3 --lr 0.01 --validate-every 6";
    let said = works(&train(&folder, &format!("{pretrain} --out one")));
    assert!(said.contains("12 steps") && said.contains("perplexity"), "{said}");
    let base = read_base(&folder.join("one")).unwrap();
    assert_eq!((base.config.n_positions, base.config.n_inner), (64, 64));
    assert!(marionette_dialogues::load_tokenizer(folder.join("one")).unwrap().end_of_text_id().is_some());
    works(&train(&folder, &format!("{pretrain} --out two")));
    assert_eq!(contents(&folder.join("one")), contents(&folder.join("two")));
    refuses(&train(&folder, &format!("{pretrain} --out one")), 1, &["one", "exists already"]);
    // The untrained model gives each of some 280 tokens the same chance: a loss of 5.6.
    let loss: f64 = said.rsplit("loss ").next().unwrap().split(',').next().unwrap().trim().parse().unwrap();
    assert!(loss < 5.5, "{said}");
}

#[test]
fn an_interrupted_run_keeps_what_it_learned() {
    let (_keep, folder) = workplace();
    let run = RUN.replace("--iterations 4", "--iterations 1000000 --patience 1000000");
    let run = format!("{run} --out one");
    let mut child = spawn(&folder, &run);
    let metrics = folder.join("one/metrics.jsonl");
    wait_until(&mut child, || fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 2));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
    let run = folder.join("one");
    let model = RunModel::read(&run, &checkpoint(&run, Which::Best).unwrap()).unwrap();
    let base = read_base(&model.base).unwrap();
    for which in [Which::Best, Which::Last] {
        read_adapters(&checkpoint(&run, which).unwrap().join(ADAPTERS), &base.config, &model.adapter).unwrap();
    }
    Probe::read(&run.join(PROBE), &base.config, &model.adapter).unwrap();
}

#[test]
fn impossible_options_are_wrong_usage() {
    let (_keep, folder) = workplace();
    // The values of each option are tested where they are checked; here, that they end as wrong usage.
    for (options, parts) in [
        ("--inner-lr NaN", vec!["--inner-lr", "NaN"]),
        ("--inner-steps 0", vec!["--inner-steps", "0"]),
        ("--support-dialogues 4", vec!["--support-dialogues", "is 4", "at most 3"]),
        ("--method other", vec!["--method", "extra-place"]),
        ("--config base/config.json", vec!["cannot be used with"]),
    ] {
        let given = options.split(' ').next().unwrap();
        let mut run: Vec<&str> = RUN.split_whitespace().collect();
        if let Some(at) = run.iter().position(|&word| word == given) {
            run.drain(at..at + 2);
        }
        refuses(&train(&folder, &format!("{} {options} --out one", run.join(" "))), 2, &parts);
    }
    refuses(&train(&folder, "run --data train.txt --out one"), 2, &["--base"]);
    // What a config.toml or a run to go on with says is not said again, at no level of the options.
    for options in ["--base base", "--inner-steps 3", "--outer-lr 0.5", "--support-dialogues 3", "--seed 3"] {
        let config = format!("run --config one/config.toml {options} --out two");
        refuses(&train(&folder, &config), 2, &["cannot be used with", options.split(' ').next().unwrap()]);
        if options != "--base base" {
            refuses(&train(&folder, &format!("run --out one --resume {options}")), 2, &["--base"]);
        }
    }
    refuses(&train(&folder, "pretrain --data train.txt --n-head 5 --out one"), 2, &["--n-head", "5"]);
    refuses(
        &train(&folder, "evaluate one --data valid.txt --shots 3"),
        1,
        &["no persona has more than 3", "number of shots"],
    );
    assert!(!folder.join("one").exists());
}

#[test]
fn wrong_files_are_named() {
    let (_keep, folder) = workplace();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    write("empty.txt", b"");
    write("foreign.txt", b"\x89PNG\r\n\x1a\n\0\0");
    write("nobody.txt", b"1 hello\thi\n1 hello\thi\n");
    write("single.txt", b"1 your persona: i ski .\n2 hello\thi\n");
    write("cut.toml", b"base = \"");
    write("other.toml", b"[package]\nname = \"x\"\n");
    let with = |option: &str, value: &str| {
        let words: Vec<&str> = RUN.split_whitespace().collect();
        let at = words.iter().position(|&word| word == option).unwrap();
        let mut words = words;
        words[at + 1] = value;
        train(&folder, &format!("{} --out one", words.join(" ")))
    };
    refuses(&with("--data", "missing.txt"), 1, &["missing.txt"]);
    refuses(&with("--data", "empty.txt"), 1, &["empty.txt"]);
    refuses(&with("--data", "foreign.txt"), 1, &["foreign.txt", "is a picture that cannot be read"]);
    refuses(&with("--data", "nobody.txt"), 1, &["nobody.txt", "line 1", "persona"]);
    refuses(&with("--data", "single.txt"), 1, &["single.txt", "two dialogues"]);
    refuses(&with("--valid", "empty.txt"), 1, &["empty.txt"]);
    refuses(&with("--base", "./missing"), 1, &["./missing", "is not a folder"]);
    refuses(&with("--base", "train.txt"), 1, &["train.txt", "is not a folder"]);
    refuses(&train(&folder, "run --config cut.toml --out one"), 1, &["cut.toml"]);
    refuses(&train(&folder, "run --config other.toml --out one"), 1, &["other.toml", "config.toml of a run"]);
    refuses(&train(&folder, "run --config missing.toml --out one"), 1, &["missing.toml"]);
    refuses(&train(&folder, "pretrain --data empty.txt --out one"), 1, &["empty.txt"]);
    refuses(&train(&folder, "evaluate missing --data valid.txt"), 1, &["missing"]);
    refuses(&train(&folder, "evaluate base --data valid.txt --shots 0"), 1, &["config.toml"]);
    for (file, parts) in [("model.safetensors", vec!["model.safetensors"]), ("tokenizer.json", vec!["tokenizer.json"])]
    {
        let path = folder.join("base").join(file);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        refuses(&with("--data", "train.txt"), 1, &parts);
        fs::write(&path, whole).unwrap();
    }
    write("file", b"");
    refuses(&train(&folder, &format!("{RUN} --out file")), 1, &["file"]);
    assert!(!folder.join("one").exists());
    let left = fs::read_dir(&folder).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(marionette_models::files::TEMPORARY_PREFIX)
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn divergence_is_named_and_keeps_the_last_good_state() {
    let (_keep, folder) = workplace();
    let run = RUN.replace("--inner-lr 0.05", "--inner-lr 1e30");
    refuses(&train(&folder, &format!("{run} --out one")), 1, &["inner step", "--inner-lr"]);
    assert!(!folder.join("one").exists());
    // Here the outer loop diverges, after the first checkpoint.
    let run = format!("{RUN} --outer-lr 1e30 --out two");
    refuses(&train(&folder, &run), 1, &["meta-iteration 2", "lower --inner-lr or --outer-lr"]);
    let run = folder.join("two");
    let model = RunModel::read(&run, &checkpoint(&run, Which::Best).unwrap()).unwrap();
    let base = read_base(&model.base).unwrap();
    read_adapters(&checkpoint(&run, Which::Best).unwrap().join(ADAPTERS), &base.config, &model.adapter).unwrap();
}

/// Whoever reads may go away, or have no room: no program dies of it.
#[cfg(target_os = "linux")]
#[test]
fn output_that_nobody_takes_stops_nothing() {
    let (_keep, folder) = workplace();
    let full = || std::fs::File::create("/dev/full").unwrap();
    let data = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_marionette-train"));
        command.current_dir(&folder).args(["data", "train.txt"]).args(more);
        command
    };
    let output = data(&[]).stdout(full()).output().unwrap();
    refuses(&output, 1, &["the output cannot be written", "No space left"]);
    // A pipe that is closed at once.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = data(&["--json"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
    // Standard error is full from the first line on; the run is made all the same.
    let run = command(&folder, &format!("{RUN} --out quiet")).stderr(full()).output().unwrap();
    assert!(run.status.success() && folder.join("quiet/best").is_file());
}
