//! The methods of the paper: what learns, where it starts, and that each runs from beginning to end.

#![allow(clippy::unwrap_used, clippy::panic)] // Clippy knows tests, but not their helpers.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use marionette_models::checkpoint::{read_adapters, read_base, read_table};
use marionette_models::run::{ADAPTERS, CLASSIFIER, OPTIMISER, RunModel, Which, checkpoint, inner_loop};
use marionette_models::{LearningRate, ModelConfig, Tensors, digest, params, safetensors_file};
use marionette_trainer::method::{METHODS, Method};
use marionette_trainer::train::read_metrics;
use support::program::{refuses, train, works};
use support::{ADAPTER, result, small_config, small_configs, workplace, workplace_of};

/// Which tensors learn: of the base, of the adapters, of the classifier.
fn counts(method: Method) -> (usize, usize, usize) {
    let table = method.table(&small_config(), &ADAPTER);
    let names: BTreeSet<&str> = table.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names.len(), table.len());
    let of = |wanted: &dyn Fn(&str) -> bool| names.iter().filter(|name| wanted(name)).count();
    let (adapters, classifier) = (of(&|name| name.contains("_adapter.")), of(&|name| name.starts_with("classifier.")));
    (names.len() - adapters - classifier, adapters, classifier)
}

#[test]
fn each_method_learns_its_tensors() {
    // Two embeddings, twelve tensors in each of two blocks, the last normalisation; two adapters a block of four tensors.
    const BASE: usize = 2 + 2 * 12 + 2;
    const BOTH: usize = 2 * 2 * 4;
    let expected = [
        ("reinit", (BASE, 0, 0), true, false),
        ("transfer", (BASE, 0, 0), false, false),
        ("reinit-maml", (BASE, 0, 0), true, true),
        ("in-place", (BASE, 0, 0), false, true),
        ("extra-place-unfixed", (BASE, BOTH, 0), false, true),
        ("extra-place", (0, BOTH, 0), false, true),
        ("transfertransfo", (BASE, 0, 2), false, false),
        ("transfer-adapters", (0, BOTH, 0), false, false),
        ("none", (0, BOTH, 0), false, false),
        ("in-context", (0, BOTH, 0), false, false),
        ("in-context-persona", (0, BOTH, 0), false, false),
    ];
    let found = METHODS.map(|method| (method.name(), counts(method), method.starts_random(), method.is_meta()));
    assert_eq!(found, expected);
    assert!(METHODS.iter().all(|&method| Method::from_name(method.name()) == Some(method)));
}

#[test]
fn adapters_of_another_run_can_be_begun_with() {
    let (_keep, folder) = workplace();
    let once = RUN.replace("--iterations 3", "--iterations 1");
    let usual = |seed: u64| train(&folder, &format!("{RUN} --method transfer-adapters --seed {seed} --out usual"));
    works(&usual(1));
    let best = || checkpoint(&folder.join("usual"), Which::Best).unwrap().join(ADAPTERS);
    works(&train(&folder, &format!("{once} --start usual --out meta")));
    let tensors = |file: &Path| safetensors_file::read(file).unwrap().0;
    assert_eq!(tensors(&folder.join("meta/checkpoints/step-0").join(ADAPTERS)), tensors(&best()));
    // In a comparison by all whose adapters are trained.
    let line = once.replace("run ", "compare ")
        + " --methods extra-place,transfer-adapters,none --start usual --test valid.txt";
    works(&train(&folder, &format!("{line} --shots 0 --folds 1 --max-tokens 0 --rank-by none --out compared")));
    for (method, begins) in [("extra-place", true), ("transfer-adapters", true), ("none", false)] {
        let start = folder.join(format!("compared/runs/{method}-seed1/checkpoints/step-0")).join(ADAPTERS);
        assert_eq!(tensors(&start) == tensors(&best()), begins, "{method}");
    }
    // The run goes on without them, and with the same ones elsewhere, but not with others.
    fs::rename(folder.join("usual"), folder.join("moved")).unwrap();
    works(&train(&folder, "run --resume --out meta --iterations 2"));
    works(&usual(5));
    let other = train(&folder, "run --resume --out meta --iterations 3 --start usual");
    refuses(&other, 1, &["cannot go on as another", "start.sha256"]);
    works(&train(&folder, "run --resume --out meta --iterations 3 --start moved"));
    // A new one needs what it names, and a method that has adapters.
    let begun = |more: &str| train(&folder, &format!("{once} {more} --out other"));
    refuses(&begun("--start usual --method transfer"), 2, &["--start", "transfer begins with none"]);
    refuses(&begun("--start usual --method none"), 2, &["--start", "none begins with none"]);
    refuses(&begun("--start nowhere"), 1, &["nowhere"]);
    let whole = fs::read(best()).unwrap();
    fs::write(best(), &whole[..whole.len() - 1]).unwrap();
    refuses(&begun("--start usual"), 1, &[ADAPTERS]);
    assert!(!folder.join("other").exists());
}

#[test]
fn the_rate_that_nobody_gave_is_the_best_of_four_for_the_base() {
    for config in small_configs() {
        let (_keep, folder) = workplace_of(config);
        let once = RUN.replace("--iterations 3", "--iterations 1 --validation-personas 4");
        let first = |name: &str, more: &str| {
            works(&train(&folder, &format!("{once} {more} --out {name}")));
            read_metrics(&folder.join(name)).unwrap().swap_remove(0)
        };
        let tried: Vec<(f64, f64)> = ["0.3", "0.1", "0.03", "0.01"]
            .iter()
            .map(|rate| {
                let found = first(rate, &format!("--inner-lr {rate}"));
                (found.validation.unwrap().loss_after, found.inner_lr)
            })
            .collect();
        let best = tried.iter().copied().reduce(|one, other| if other.0 < one.0 { other } else { one }).unwrap();
        for (name, more) in [("found", ""), ("learned", "--inner-lr learned")] {
            let found = first(name, more);
            assert!((found.inner_lr / best.1 - 1.0).abs() < 1e-5, "{}, of {tried:?}", found.inner_lr);
            assert!((found.validation.unwrap().loss_after - best.0).abs() < 1e-5, "{found:?}");
        }
        // A whole model keeps to its usual one.
        assert!((first("whole", "--method in-place").inner_lr - 0.1).abs() < 1e-6);
    }
}

const RUN: &str = "run --base base --data train.txt --valid valid.txt --bottleneck 4 --support-dialogues 2 --inner-steps 2 \
                   --meta-batch 2 --iterations 3 --validate-every 2 --save-every 1 --keep 9";

/// All that a checkpoint has learned.
fn learned(run: &Path, method: Method, step: usize) -> Tensors {
    let folder = run.join(format!("checkpoints/step-{step}"));
    let model = RunModel::read(run, &checkpoint(run, Which::Best).unwrap()).unwrap();
    let config = read_base(&model.base).unwrap().config;
    let mut all = Tensors::new();
    let there = |name: &str| folder.join(name).is_file();
    assert_eq!(there("model.safetensors"), method.learns_base());
    assert_eq!(there("config.json"), method.learns_base());
    assert_eq!(there(ADAPTERS), method.learns_adapters());
    assert_eq!(there(CLASSIFIER), method.classifies());
    if method.learns_base() {
        all.extend(read_base(&folder).unwrap().tensors);
    }
    if method.learns_adapters() {
        all.extend(read_adapters(&folder.join(ADAPTERS), &config, &model.adapter).unwrap().0);
    }
    if method.classifies() {
        all.extend(read_table(&folder.join(CLASSIFIER), &params::classifier_table(&config)).unwrap().0);
    }
    all
}

/// A run, the same again, what it says, and an evaluation.
fn runs(method: Method, config: ModelConfig) {
    let (_keep, folder) = workplace_of(config);
    let name = method.name();
    let base = read_base(&folder.join("base")).unwrap();
    let said = works(&train(&folder, &format!("{RUN} --method {name} --out one")));
    assert!(said.contains("3 meta-iterations"), "{said}");
    works(&train(&folder, &format!("{RUN} --method {name} --out two")));
    let run = folder.join("one");
    assert_eq!(result(&run), result(&folder.join("two")));

    // Where it starts.
    let (first, last) = (learned(&run, method, 0), learned(&run, method, 3));
    let part = |all: &Tensors, of: &Tensors| -> Tensors {
        all.iter()
            .filter(|(name, _)| of.contains_key(*name))
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect()
    };
    if method.learns_base() {
        let random = matches!(method, Method::Reinit | Method::ReinitMaml);
        assert_eq!(part(&first, &base.tensors) == base.tensors, !random);
    }
    assert!(
        first.iter().all(|(name, tensor)| !name.contains(".up.") || tensor.values.iter().all(|&value| value == 0.0))
    );
    // What learns moves, but the classifier's bias, which softmax does not hear; the optimiser has moments of just these.
    for (name, tensor) in &first {
        assert!(name == "classifier.bias" || tensor != &last[name], "{name}");
    }
    let (moments, _) = safetensors_file::read(&run.join("checkpoints/step-3").join(OPTIMISER)).unwrap();
    let expected = first.keys().flat_map(|name| [format!("first.{name}"), format!("second.{name}")]);
    assert_eq!(moments.keys().cloned().collect::<BTreeSet<_>>(), expected.collect());
    // What is frozen does not.
    let model = RunModel::read(&run, &checkpoint(&run, Which::Best).unwrap()).unwrap();
    assert_eq!(digest::base_sha256(&base.config, &base.tensors), model.base_sha256);
    assert_eq!(read_base(&folder.join("base")).unwrap(), base);

    let metrics = read_metrics(&run).unwrap();
    assert_eq!(metrics.iter().map(|line| line.iteration).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let sensible = |loss: f64| loss > 0.5 && loss < 8.0;
    for (line, before) in metrics.iter().skip(1).zip(&metrics) {
        assert!(sensible(line.loss.unwrap()), "{line:?}");
        assert!(line.gradient_norm.unwrap() > 0.0 && line.gradient_norm.unwrap().is_finite(), "{line:?}");
        assert!(line.tokens > before.tokens && line.inner_lr > 0.0, "{line:?}");
    }
    assert_eq!((metrics[0].loss, metrics[0].gradient_norm, metrics[0].tokens), (None, None, 0));
    assert_eq!(metrics.iter().map(|line| line.validation.is_some()).collect::<Vec<_>>(), [true, false, true, true]);
    for validation in metrics.iter().filter_map(|line| line.validation) {
        assert!(sensible(validation.loss_before) && sensible(validation.loss_after), "{validation:?}");
    }

    let json = works(&train(
        &folder,
        "evaluate one --data valid.txt --shots 0,1 --personas 2 --folds 1 --max-tokens 3 --json",
    ));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let shots = json["shots"].as_array().unwrap();
    assert_eq!(shots.iter().map(|shot| shot["k"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    for shot in shots {
        let number = |name: &str| shot[name].as_f64().unwrap();
        assert!(number("perplexity") > 1.0 && number("perplexity") < 1000.0, "{shot}");
        assert!((0.0..=100.0).contains(&number("hits_at_1")) && (0.0..=100.0).contains(&number("f1")), "{shot}");
    }
    assert_eq!(json["rank_by"], if method.classifies() { "classifier" } else { "mean" });
}

/// A test of each method for each family.
macro_rules! each_method_runs {
    ($($test:ident: $method:ident),* $(,)?) => {
        mod gpt2 {
            $(#[test] fn $test() { super::runs(super::Method::$method, super::small_configs()[0].clone()); })*
        }
        mod llama {
            $(#[test] fn $test() { super::runs(super::Method::$method, super::small_configs()[1].clone()); })*
        }
    };
}

each_method_runs!(
    reinit_runs: Reinit,
    transfer_runs: Transfer,
    reinit_maml_runs: ReinitMaml,
    in_place_runs: InPlace,
    extra_place_unfixed_runs: ExtraPlaceUnfixed,
    extra_place_runs: ExtraPlace,
    transfertransfo_runs: Transfertransfo,
    transfer_adapters_runs: TransferAdapters,
);

#[test]
fn adapters_begin_as_the_bare_base_and_random_starts_are_shared() {
    let (_keep, folder) = workplace();
    let once = RUN.replace("--iterations 3", "--iterations 1");
    for name in ["extra-place", "extra-place-unfixed", "transfer", "reinit", "reinit-maml", "transfer-adapters", "none"]
    {
        works(&train(&folder, &format!("{once} --precision fp32 --method {name} --out {name}")));
    }
    let first = |name: &str| read_metrics(&folder.join(name)).unwrap()[0].validation.unwrap().loss_before;
    // One is computed by hand, one by libtorch.
    assert!((first("extra-place") / first("transfer") - 1.0).abs() < 1e-6);
    assert_eq!(first("extra-place-unfixed"), first("transfer"));
    // One trains them for a meta-iteration, one as usual, one not at all.
    assert_eq!([first("transfer-adapters"), first("none")], [first("extra-place"); 2]);
    let iterations = |name: &str| read_metrics(&folder.join(name)).unwrap().len() - 1;
    assert_eq!(["extra-place", "transfer-adapters", "none"].map(iterations), [1, 1, 0]);
    let adapters = |name: &str| fs::read(folder.join(name).join("checkpoints/step-0").join(ADAPTERS)).unwrap();
    assert_eq!([adapters("transfer-adapters"), adapters("none")], [adapters("extra-place"), adapters("extra-place")]);
    // With the same seed the methods that start at random differ in what they learn alone.
    let start = |name: &str| fs::read(folder.join(name).join("checkpoints/step-0/model.safetensors")).unwrap();
    assert_eq!(start("reinit"), start("reinit-maml"));
    assert_ne!(first("reinit"), first("transfer"));
}

#[test]
fn rates_are_learned_or_chosen() {
    let (_keep, folder) = workplace();
    let rates = |name: &str| {
        let best = checkpoint(&folder.join(name), Which::Last).unwrap();
        inner_loop(&best).unwrap().learning_rate
    };
    for meta in ["maml", "fomaml"] {
        works(&train(&folder, &format!("{RUN} --meta {meta} --inner-lr learned:0.05 --out {meta}")));
        let LearningRate::PerTensor(learned) = rates(meta) else { panic!("{:?}", rates(meta)) };
        assert_eq!(learned.len(), 16);
        // Adam's steps of 0.003 in log α: near the start, but elsewhere, and not all in one place.
        // Two hundredths an iteration, whatever the rate of the outer loop is.
        assert!(learned.iter().all(|rate| *rate != 0.05 && (rate / 0.05).ln().abs() < 0.0601), "{learned:?}");
        assert!(learned.iter().any(|rate| (rate / 0.05).ln().abs() > 0.055), "{learned:?}");
        assert!(learned.iter().any(|rate| *rate != learned[0]));
        let metrics = read_metrics(&folder.join(meta)).unwrap();
        let mean = learned.iter().map(|&rate| f64::from(rate)).sum::<f64>() / 16.0;
        assert!((metrics[3].inner_lr - mean).abs() < 1e-12);
        works(&train(&folder, &format!("evaluate {meta} --data valid.txt --shots 1 --max-tokens 0")));
    }
    works(&train(&folder, &format!("{RUN} --meta reptile --inner-lr 0.05 --out reptile")));
    assert_eq!(rates("reptile"), LearningRate::Shared(0.05));
    // Far too small, so that each validation, that before the first step included, takes the largest: three times.
    works(&train(&folder, &format!("{RUN} --method transfer --inner-lr chosen:0.0001 --out chosen")));
    let LearningRate::Shared(chosen) = rates("chosen") else { panic!("{:?}", rates("chosen")) };
    assert!((chosen / 0.0027 - 1.0).abs() < 1e-5, "{chosen}");
}
