//! Runs that are killed, interrupted or damaged go on, and end as if nothing had happened.

#![allow(clippy::unwrap_used, clippy::panic)] // Clippy knows tests, but not their helpers.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, SystemTime};

use marionette_models::files::TEMPORARY_PREFIX;
use marionette_models::{digest, safetensors_file};
use marionette_trainer::train::read_metrics;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::events::same_curves;
use support::program::{interrupt, refuses, spawn, train, wait_until, works};
use support::{contents, result, workplace};

const RUN: &str = "run --base base --data train.txt --valid valid.txt --bottleneck 4 --support-dialogues 2 --inner-steps 2 \
                   --meta-batch 2 --iterations 24 --validate-every 5 --save-every 1 --keep 3";
const EXTRA_PLACE: &str = "--method extra-place --inner-lr learned:0.05";
const TRANSFER: &str = "--method transfer";

/// Lines of a run's metrics.
fn lines(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// The checkpoints of a run, by meta-iteration.
fn steps(run: &Path) -> BTreeSet<usize> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect()
}

fn newest(run: &Path) -> PathBuf {
    run.join(format!("checkpoints/step-{}", steps(run).last().unwrap()))
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in contents(from) {
        let to = to.join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
}

/// Says on one line that a checkpoint was passed over, and which.
#[track_caller]
fn fell_back(output: &Output, folder: &Path) {
    works(output);
    let error = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = error.lines().filter(|line| line.contains("taking the checkpoint before it")).collect();
    let name = folder.file_name().unwrap().to_str().unwrap();
    assert!(said.len() == 1 && said[0].contains(&format!("{name}/")), "{name}: {error}");
}

/// Kills a run at random points, resumes it until it is done, and compares it with one that was left alone.
fn killed(options: &str, seed: u64) {
    let (_keep, folder) = workplace();
    works(&train(&folder, &format!("{RUN} {options} --out whole")));
    let (whole, run) = (folder.join("whole"), folder.join("killed"));
    let resume = format!("{RUN} {options} --out killed --resume");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut kills = Vec::new();
    for kill in 0..6 {
        let mut child = spawn(&folder, &resume);
        // During start-up; while the first checkpoint is written; after some meta-iterations more. Then at a random moment,
        // which is in the midst of a checkpoint more often than not.
        let wanted = lines(&run) + rng.random_range(1..=3);
        let reached = || match kill {
            0 => true,
            1 => run.join("config.toml").exists(),
            _ => lines(&run) >= wanted,
        };
        while !reached() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..if kill == 0 { 300_000 } else { 25_000 })));
        // One that is done already cannot be killed.
        let _ = child.kill();
        if child.wait().unwrap().success() {
            break;
        }
        kills.push(lines(&run));
    }
    println!("{options}: killed with {kills:?} lines of metrics written");
    assert!(!kills.is_empty());
    let said = works(&train(&folder, &resume));
    assert!(said.contains("24 meta-iterations"), "{said}");
    assert_eq!(result(&run), result(&whole));
    same_curves(&run);
    same_curves(&whole);
}

#[test]
fn killed_adapters_with_learned_rates_end_as_if_nothing_had_happened() {
    killed(EXTRA_PLACE, 7);
}

#[test]
fn a_killed_whole_model_ends_as_if_nothing_had_happened() {
    killed(TRANSFER, 8);
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_end() {
    let (_keep, folder) = workplace();
    works(&train(&folder, &format!("{RUN} {EXTRA_PLACE} --out whole")));
    let run = folder.join("one");
    let mut child = spawn(&folder, &format!("{RUN} {EXTRA_PLACE} --out one"));
    wait_until(&mut child, || lines(&run) > 3);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{error}");
    assert!(error.contains("finishing the step") && error.contains("interrupted"), "{error}");
    // The step was finished and saved, the probe fits what there is.
    let last = newest(&run);
    assert_eq!(fs::read_to_string(run.join("last")).unwrap().trim(), last.file_name().unwrap().to_str().unwrap());
    assert_eq!(lines(&run), steps(&run).last().unwrap() + 1);
    assert!(run.join("probe.safetensors").is_file());
    works(&train(&folder, "run --out one --resume"));
    assert_eq!(result(&run), result(&folder.join("whole")));
    same_curves(&run);
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let (_keep, folder) = workplace();
    // One validation alone takes 10,000 inner steps for each persona.
    let run = RUN.replace("--inner-steps 2", "--inner-steps 10000");
    let mut child = spawn(&folder, &format!("{run} --method extra-place --inner-lr 1e-6 --out one"));
    let mut error = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut until = |word: &str| {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut error, &mut line).unwrap() > 0, "ended before it said {word:?}");
        }
    };
    until("forecast");
    interrupt(&child);
    until("once more");
    assert!(child.try_wait().unwrap().is_none());
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!folder.join("one").exists());
}

#[test]
fn a_run_directory_takes_one_process() {
    let (_keep, folder) = workplace();
    let run = RUN.replace("--iterations 24", "--iterations 10000");
    let mut child = spawn(&folder, &format!("{run} {EXTRA_PLACE} --out one"));
    wait_until(&mut child, || lines(&folder.join("one")) > 2);
    refuses(&train(&folder, "run --out one --resume"), 1, &["one", "another process is training in it"]);
    child.kill().unwrap();
    child.wait().unwrap();
    // A dead process holds nothing.
    works(&train(&folder, &format!("{RUN} {EXTRA_PLACE} --out one --resume --force")));
}

/// A run that was killed after so many lines of metrics, and the same run left alone.
fn half(folder: &Path, options: &str, after: usize) -> (PathBuf, PathBuf) {
    works(&train(folder, &format!("{RUN} {options} --out whole")));
    let run = folder.join("half");
    let mut child = spawn(folder, &format!("{RUN} {options} --out half"));
    wait_until(&mut child, || lines(&run) > after);
    child.kill().unwrap();
    child.wait().unwrap();
    (run, folder.join("whole"))
}

/// Damages each file of the newest checkpoint in turn.
fn damaged(options: &str, files: &[&str]) {
    let (_keep, folder) = workplace();
    let (half, whole) = half(&folder, options, 20);
    let expected = result(&whole);
    let names: Vec<String> =
        fs::read_dir(newest(&half)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.iter().map(String::as_str).collect::<BTreeSet<_>>(), files.iter().copied().collect());
    let run = folder.join("run");
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut goes_on_after = |damage: &mut dyn FnMut(&Path, &mut ChaCha8Rng)| {
        let _ = fs::remove_dir_all(&run);
        copy(&half, &run);
        let checkpoint = newest(&run);
        damage(&checkpoint, &mut rng);
        fell_back(&train(&folder, "run --out run --resume"), &checkpoint);
        assert_eq!(result(&run), expected);
    };
    for file in files {
        goes_on_after(&mut |checkpoint, rng| {
            let path = checkpoint.join(file);
            let mut bytes = fs::read(&path).unwrap();
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << rng.random_range(0..8);
            fs::write(&path, bytes).unwrap();
        });
    }
    goes_on_after(&mut |checkpoint, rng| {
        let path = checkpoint.join("optimiser.safetensors");
        let length = fs::metadata(&path).unwrap().len();
        fs::File::options().write(true).open(&path).unwrap().set_len(rng.random_range(0..length)).unwrap();
    });
    goes_on_after(&mut |checkpoint, _| fs::remove_file(checkpoint.join("SHA256SUMS")).unwrap());
}

#[test]
fn a_damaged_checkpoint_of_adapters_is_passed_over() {
    let files = ["SHA256SUMS", "adapters.safetensors", "inner_loop.json", "optimiser.safetensors", "state.json"];
    damaged(EXTRA_PLACE, &files);
}

#[test]
fn a_damaged_checkpoint_of_a_whole_model_is_passed_over() {
    let base = ["config.json", "model.safetensors"];
    let others = ["SHA256SUMS", "inner_loop.json", "optimiser.safetensors", "state.json"];
    damaged(TRANSFER, &[base.as_slice(), &others].concat());
}

#[test]
fn a_damaged_best_checkpoint_is_used_by_nothing() {
    let (_keep, folder) = workplace();
    works(&train(&folder, &format!("{RUN} {EXTRA_PLACE} --out one")));
    let run = folder.join("one");
    let best = run.join("checkpoints").join(fs::read_to_string(run.join("best")).unwrap().trim());
    let adapters = best.join("adapters.safetensors");
    let mut bytes = fs::read(&adapters).unwrap();
    let at = bytes.len() - 4;
    bytes[at] ^= 1;
    fs::write(&adapters, bytes).unwrap();
    let evaluate = "evaluate one --data valid.txt --shots 0 --personas 1";
    let parts = ["adapters.safetensors", "another digest", "restore"];
    refuses(&train(&folder, evaluate), 1, &parts);
    // The probe of a run that goes on is of the best, too; where the newest is the best, the one before it is gone on from.
    if best != newest(&run) {
        refuses(&train(&folder, "run --out one --resume"), 1, &parts);
    }
    fs::remove_file(best.join("SHA256SUMS")).unwrap();
    refuses(&train(&folder, evaluate), 1, &["SHA256SUMS", "nobody knows"]);
}

#[test]
fn a_run_does_not_go_on_as_another_unless_forced() {
    let (_keep, folder) = workplace();
    let (half, whole) = half(&folder, EXTRA_PLACE, 12);
    let before = contents(&half);
    let resume = format!("{RUN} {EXTRA_PLACE} --out half --resume");
    let refused = |options: &str, parts: &[&str]| {
        // What is not given again is as it was.
        let output = train(&folder, &format!("run --out half --resume {options}"));
        refuses(&output, 1, &[&["config.toml", "--force"], parts].concat());
        assert_eq!(String::from_utf8_lossy(&output.stderr).trim_end().lines().count(), 1);
    };
    refused("--seed 2", &["outer.seed: 1 -> 2"]);
    refused("--outer-lr 0.5", &["outer.learning_rate: 0.003 -> 0.5"]);
    refused("--seed 2 --meta-batch 3 --keep 9", &["outer.meta_batch: 2 -> 3", "outer.seed: 1 -> 2"]);
    refused("--query-dialogues 1", &["data.query_dialogues: 4 -> 1"]);
    refused("--meta fomaml", &["outer.gradient: \"maml\" -> \"fomaml\""]);
    let data = fs::read_to_string(folder.join("train.txt")).unwrap();
    let other = data.replacen("hello", "hi there", 1);
    fs::write(folder.join("train.txt"), &other).unwrap();
    let digests = [digest::sha256(other.as_bytes()), digest::sha256(data.as_bytes())];
    refused("", &["data.sha256", &digests[0], &digests[1]]);
    fs::write(folder.join("train.txt"), &data).unwrap();
    // What the checkpoints cannot be read as, no force helps with; and nothing was touched by any of it.
    let wider = resume.replace("--bottleneck 4", "--bottleneck 5");
    refuses(&train(&folder, &format!("{wider} --force")), 1, &["checkpoints", "has shape", "--out"]);
    assert_eq!(contents(&half), before);

    // A file that was edited is no other way to the same.
    let config = fs::read_to_string(half.join("config.toml")).unwrap();
    fs::write(half.join("config.toml"), config.replace("clip = 2.0", "clip = 3.0")).unwrap();
    refused("", &["outer.clip: 2.0 -> 3.0"]);
    fs::write(half.join("config.toml"), config).unwrap();

    let forced = train(&folder, "run --out half --resume --outer-lr 0.5 --force");
    works(&forced);
    let said = String::from_utf8_lossy(&forced.stderr);
    let changes: Vec<&str> = said.lines().filter(|line| line.contains(" -> ") && line.contains("going on")).collect();
    assert_eq!(changes, ["going on with outer.learning_rate: 0.003 -> 0.5"], "{said}");
    assert_eq!(lines(&half), 25);
    assert_ne!(result(&half), result(&whole));
    assert!(fs::read_to_string(half.join("config.toml")).unwrap().contains("learning_rate = 0.5"));
    // A run that came to its end goes on where there is more to do.
    let longer = train(&folder, "run --out half --resume --iterations 26");
    works(&longer);
    assert!(String::from_utf8_lossy(&longer.stderr).contains("going on with outer.iterations: 24 -> 26"));
    assert_eq!(lines(&half), 27);
    // How far it went is no other run, and the end may lie before what was done.
    works(&train(&folder, "run --out half --resume --iterations 20 --patience 3 --save-every 2 --keep 4"));
    assert_eq!(lines(&half), 27);
    assert!(fs::read_to_string(half.join("config.toml")).unwrap().contains("meta_batch = 2"));
}

#[test]
fn a_run_goes_on_with_files_that_were_moved() {
    let (_keep, folder) = workplace();
    let (half, whole) = half(&folder, EXTRA_PLACE, 12);
    let move_to = |from: &str, to: &str| fs::rename(folder.join(from), folder.join(to)).unwrap();
    move_to("base", "base-moved");
    refuses(&train(&folder, "run --out half --resume"), 1, &["config.toml names it", "--base gives its new place"]);
    move_to("valid.txt", "valid-moved.txt");
    refuses(&train(&folder, "run --out half --resume"), 1, &["valid.txt", "config.toml names it", "--valid gives"]);
    move_to("train.txt", "train-moved.txt");
    refuses(&train(&folder, "run --out half --resume"), 1, &["train.txt", "config.toml names it", "--data gives"]);
    let moved = "--base base-moved --data train-moved.txt --valid valid-moved.txt";
    works(&train(&folder, &format!("run --out half --resume {moved}")));
    assert_eq!(fs::read(half.join("metrics.jsonl")).unwrap(), fs::read(whole.join("metrics.jsonl")).unwrap());
    let config = fs::read_to_string(half.join("config.toml")).unwrap();
    assert!(config.contains("base-moved\"") && config.contains("valid-moved.txt\""), "{config}");
    works(&train(&folder, "run --out half --resume"));

    // Another model in the same place is another.
    let path = folder.join("base-moved/config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("1e-05", "1e-06").replace("0.00001", "0.000001")).unwrap();
    refuses(&train(&folder, "run --out half --resume"), 1, &["base_sha256: ", " -> ", "--force"]);
}

#[test]
fn what_lies_about_is_ignored_and_what_is_missing_is_named() {
    let (_keep, folder) = workplace();
    let said = works(&train(&folder, &format!("{} {EXTRA_PLACE} --out one", RUN.replace("--keep 3", "--keep 1"))));
    let run = folder.join("one");
    let best: usize =
        fs::read_to_string(run.join("best")).unwrap().trim().strip_prefix("step-").unwrap().parse().unwrap();
    assert_eq!(steps(&run), [best, 24].into());

    // A finished run says again what came out of it, and nothing else happens.
    let before = contents(&run);
    let again = works(&train(&folder, "run --out one --resume"));
    assert_eq!(again, said);
    assert_eq!(contents(&run), before);

    // Left by a killed program, and of one that still runs, long ago by its clock.
    let checkpoints = run.join("checkpoints");
    let stale = |name: &str| checkpoints.join(format!("{TEMPORARY_PREFIX}{name}"));
    for name in ["1-step-99", "2-step-98"] {
        fs::create_dir(stale(name)).unwrap();
        fs::write(stale(name).join("state.json"), "{").unwrap();
    }
    let held = fs::File::open(stale("2-step-98")).unwrap();
    held.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    held.lock().unwrap();
    let more = format!("{RUN} {EXTRA_PLACE} --out one --resume --force")
        .replace("--keep 3", "--keep 1")
        .replace("--iterations 24", "--iterations 25");
    works(&train(&folder, &more));
    assert!(!stale("1-step-99").exists() && stale("2-step-98").exists());
    assert_eq!(steps(&run).last(), Some(&25));

    // Metrics that are shorter than the checkpoint knows them.
    let metrics = fs::read(run.join("metrics.jsonl")).unwrap();
    fs::write(run.join("metrics.jsonl"), &metrics[..metrics.len() - 10]).unwrap();
    let more = more.replace("--iterations 25", "--iterations 26");
    let bytes = metrics.len().to_string();
    refuses(&train(&folder, &more), 1, &["metrics.jsonl", &format!("has {} bytes", metrics.len() - 10), &bytes]);
    // As long, but another.
    let mut flipped = metrics.clone();
    flipped[metrics.len() / 2] ^= 1;
    fs::write(run.join("metrics.jsonl"), &flipped).unwrap();
    refuses(&train(&folder, &more), 1, &["metrics.jsonl", "was changed"]);
    assert!(read_metrics(&run).unwrap_err().to_string().contains("was changed"));
    fs::write(run.join("metrics.jsonl"), &metrics).unwrap();
    works(&train(&folder, &more));

    // With no checkpoint that is whole there is nothing to go on from; what is there is not overwritten.
    for step in steps(&run) {
        fs::remove_file(checkpoints.join(format!("step-{step}/state.json"))).unwrap();
    }
    let before = contents(&checkpoints);
    refuses(&train(&folder, "run --out one --resume"), 1, &["checkpoints", "state.json", "--out"]);
    assert_eq!(contents(&checkpoints), before);
}

/// No number of a run is not a number.
fn all_finite(run: &Path) {
    for path in contents(run).keys() {
        let path = run.join(path);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => {
                let (tensors, _) = safetensors_file::read(&path).unwrap();
                for (name, tensor) in tensors.iter().filter(|(name, _)| !name.contains("ids") && !name.contains("mask"))
                {
                    let values = tensor.to_f32().unwrap().values;
                    assert!(values.iter().all(|value| value.is_finite()), "{} {name}", path.display());
                }
            }
            Some("json" | "toml") => {
                let text = fs::read_to_string(&path).unwrap();
                for word in ["null", "nan", "inf,", "inf\n"] {
                    assert!(!text.to_lowercase().contains(word), "{word} in {}", path.display());
                }
            }
            _ => {}
        }
    }
    for line in read_metrics(run).unwrap() {
        let numbers = line.loss.into_iter().chain(line.gradient_norm).chain([line.inner_lr]);
        let validations = line.validation.into_iter().flat_map(|found| [found.loss_before, found.loss_after]);
        assert!(numbers.chain(validations).all(f64::is_finite), "{line:?}");
        assert_eq!(line.loss.is_none(), line.iteration == 0);
    }
}

#[test]
fn divergence_is_named_and_never_saved() {
    let (_keep, folder) = workplace();
    let cases = [
        (
            "--method extra-place --inner-lr 0.05 --outer-lr 1e30",
            vec!["is NaN at meta-iteration 2", "lower --inner-lr or --outer-lr"],
        ),
        ("--method transfer --outer-lr 1e30", vec!["is NaN at meta-iteration 2", "lower --inner-lr or --outer-lr"]),
        ("--method in-place --meta reptile --outer-lr 1e30", vec!["is NaN at meta-iteration 2", "--outer-lr"]),
        (
            "--method in-place --outer-lr 1e30 --validate-every 1",
            vec!["meta-iteration 1, validation persona 1", "--outer-lr"],
        ),
    ];
    for (case, (options, parts)) in cases.iter().enumerate() {
        let mut words: Vec<&str> = RUN.split_whitespace().collect();
        if options.contains("--validate-every") {
            let at = words.iter().position(|&word| word == "--validate-every").unwrap();
            words.drain(at..at + 2);
        }
        let run = folder.join(format!("run-{case}"));
        let output = train(&folder, &format!("{} {options} --out run-{case}", words.join(" ")));
        refuses(&output, 1, parts);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(error.lines().filter(|line| line.contains("lower")).count(), 1, "{error}");
        all_finite(&run);
        let table = works(&train(
            &folder,
            &format!("evaluate run-{case} --data valid.txt --shots 0,1 --max-tokens 0 --personas 1"),
        ));
        assert!(table.contains("perplexity"), "{table}");
    }
}
