//! The experiment of the paper: every method with every seed is trained on the same personas and evaluated on the same
//! others, and a report says what came. What is done already is not done again.

mod results;
mod test;

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use marionette_console::interrupt;
use marionette_dialogues::{Candidates, Evaluation, PersonaSplit};
use marionette_models::{AdapterConfig, FileError, InnerLoop, bundle};
use marionette_report::{Comparison, MethodResult, Split};

use crate::data;
use crate::error::{Result, TrainError};
use crate::evaluate::How;
use crate::method::{METHODS, Method};
use crate::train::options::{MOST_AT_ONCE, first_block, frozen, precision};
use crate::train::{self, Chosen, Config, Data, Gradient, InnerRate, OuterOptions, Plan, Precision, Resume, Settings};
use crate::trained::Trained;
use crate::workers::Compute;
use marionette_console::options::whole;
use marionette_console::say;
use tch::Device;

use test::{Grid, Personas};

/// The outcome of an evaluation, beside the run that it is of.
const OUTCOME: &str = "outcome.json";
/// Contexts that every method answers, one a persona.
const SAMPLES: usize = 6;

/// What to compare.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Options {
    /// The pre-trained model: a Hugging Face folder (GPT-2 or Llama), or its name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME")]
    pub base: PathBuf,
    /// Take a model of the hub from the local cache alone
    #[arg(long)]
    pub offline: bool,
    /// The folder to make: `runs`, and the `report`. Where it is there already, what is done is kept
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Dialogue files to test on; without them a part of the personas of --data is kept for it
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub test: Vec<PathBuf>,
    /// The methods to train and test [default: all; none beside --run]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METHOD,…")]
    pub methods: Vec<Method>,
    /// A run to test beside them as it is, of whatever settings, and the name of its row, as ours=models/smollm2-persona
    #[arg(long = "run", num_args = 1.., value_name = "NAME=RUN")]
    pub runs: Vec<Given>,
    /// How often the whole experiment is done, each time with another seed
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seeds: u64,
    /// The inner and outer learning rate of a method, as in-place=0.1,0.0005 or extra-place=learned:0.3,0.003
    #[arg(long, num_args = 1.., value_name = "METHOD=A,B")]
    pub rates: Vec<Rates>,
    /// The width of the adapters' bottleneck
    #[arg(long, default_value_t = AdapterConfig::default().bottleneck, value_name = "N", value_parser = whole::<1, { AdapterConfig::MOST_BOTTLENECK }>, allow_negative_numbers = true)]
    pub bottleneck: usize,
    /// The first block with adapters: `15..` leaves the 15 below bare
    #[arg(long, value_name = "FIRST..", default_value = "0..", value_parser = first_block)]
    pub adapt_blocks: usize,
    /// Inner SGD steps, S
    #[arg(long, default_value_t = InnerLoop::default().steps, value_name = "N", value_parser = whole::<1, MOST_AT_ONCE>, allow_negative_numbers = true)]
    pub inner_steps: usize,
    /// Support dialogues in the batch of one inner step
    #[arg(long, default_value_t = InnerLoop::default().dialogues_per_step, value_name = "N", value_parser = whole::<1, MOST_AT_ONCE>, allow_negative_numbers = true)]
    pub dialogues_per_step: usize,
    /// The gradient of the outer loop, for methods that are meta-learned [default: maml]
    #[arg(long, value_enum, value_name = "GRADIENT")]
    pub meta: Option<Gradient>,
    /// A run whose adapters every method that learns adapters begins with, instead of zero; none has fresh ones
    #[arg(long, value_name = "RUN")]
    pub start: Option<PathBuf>,
    /// How matrices are held by methods that do not move them: fp32, or int8 or int4 as a bundle of that precision holds them
    #[arg(long, value_name = "PRECISION", default_value_t = bundle::Precision::Fp32, value_parser = frozen())]
    pub frozen: bundle::Precision,
    /// What linear layers, attention and the head are computed in, by all methods, so that they differ in nothing else
    #[arg(long, value_name = "PRECISION", default_value_t, value_parser = precision("bf16 on a GPU, fp32 on a processor"))]
    pub precision: Chosen,
    /// Where the personas come from
    #[command(flatten)]
    pub data: Data,
    /// The outer loop; its seed is the first
    #[command(flatten)]
    pub plan: Plan,
    /// How to evaluate
    #[command(flatten)]
    pub how: How,
    /// What is looked for before
    #[command(flatten)]
    pub grid: Grid,
}

/// `--rates`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    method: Method,
    inner: InnerRate,
    outer: f64,
}

impl FromStr for Rates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected a method, inner and outer learning rate, as in-place=0.1,0.0005");
        let (method, rates) = text.split_once('=').ok_or_else(wrong)?;
        let (inner, outer) = rates.split_once(',').ok_or_else(wrong)?;
        Ok(Self {
            method: Method::from_name(method).ok_or_else(wrong)?,
            inner: inner.parse()?,
            outer: outer.parse().map_err(|_| wrong())?,
        })
    }
}

/// `--run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    name: String,
    run: PathBuf,
}

impl FromStr for Given {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Its outcome's file has the name.
        let fits = |name: &str| {
            name.starts_with(|first: char| first.is_ascii_alphanumeric())
                && name.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char))
        };
        match text.split_once('=') {
            Some((name, run)) if fits(name) && !run.is_empty() => Ok(Self { name: name.to_owned(), run: run.into() }),
            _ => Err(format!(
                "{text:?}: expected a name of letters, digits, hyphens, dots and a run directory, as ours=models/smollm2-persona"
            )),
        }
    }
}

/// What a row of the comparison is of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Row<'a> {
    /// It is trained here.
    Method(Method),
    /// It was trained before.
    Given(&'a Given),
}

impl Row<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Method(method) => method.name(),
            Self::Given(given) => &given.name,
        }
    }
}

/// The methods in the paper's order, then the runs that are given.
fn rows(options: &Options) -> Result<Vec<Row<'_>>> {
    let mut methods = options.methods.clone();
    if methods.is_empty() && options.runs.is_empty() {
        methods = METHODS.to_vec();
    }
    methods.sort_unstable();
    methods.dedup();
    let mut rows: Vec<Row<'_>> = methods.into_iter().map(Row::Method).collect();
    for given in &options.runs {
        if rows.iter().any(|row| row.name() == given.name) {
            return Err(TrainError::option("--run", format!("gives the name {} a second time", given.name)));
        }
        rows.push(Row::Given(given));
    }
    Ok(rows)
}

/// Compares the methods, and writes `OUT/report` after each run. `command` is said in the report. Gives the Markdown table.
///
/// # Errors
/// Impossible options, or files that cannot be read or written. A method that diverges is reported, and the others go on.
pub fn compare(options: &Options, compute: Compute, command: String) -> Result<String> {
    let mut options = options.clone();
    if options.seeds == 0 || options.seeds > 1000 {
        return Err(TrainError::option("--seeds", format!("is {}, expected 1 to 1000", options.seeds)));
    }
    if options.test.is_empty() && options.data.test_part == 0.0 {
        options.data.test_part = 0.25;
    }
    // All settings are checked before the first run takes its time, and before personas are split by them.
    let rows = rows(&options)?;
    for row in &rows {
        match row {
            Row::Method(method) => {
                settings(&options, method.trained_as(), options.plan.seed, compute.device).resolve(compute.device)?;
            }
            Row::Given(given) => drop(Trained::open(&given.run, base_of(&options), compute.device)?),
        }
    }
    let (split, mut notes) = data::split(&options.data)?;
    let test = match options.test.is_empty() {
        true => split.test.clone(),
        false => {
            let (test, more) = data::read(&options.test)?;
            notes.extend(more);
            test.tasks
        }
    };
    options.how.check(&test)?;
    options.grid.check()?;
    if !options.grid.factors.is_empty() && !options.how.epochs.is_empty() {
        return Err(TrainError::option(
            "--epochs",
            "are given, but --tune-rates chooses the passes: see --tune-epochs",
        ));
    }
    let known = data::known(&split, &test);
    notes.extend(known.clone());
    notes.iter().for_each(say);
    notes.extend(notes_on(&options, &rows));
    let unseen = if known.is_some() { "" } else { " on unseen personas" };
    let seeds: Vec<u64> = (0..options.seeds).map(|seed| options.plan.seed.wrapping_add(seed)).collect();
    let mut comparison = Comparison {
        title: format!("Methods compared{unseen}"),
        base: options.base.display().to_string(),
        data: options.data.train.iter().chain(&options.test).map(|file| file.display().to_string()).collect(),
        personas: counts(&options, &split, test.len()),
        seeds: seeds.clone(),
        rank_by: options.how.rank_by.to_string(),
        command,
        machine: results::machine(compute),
        recipe: results::recipe(&options),
        methods: Vec::new(),
        differences: Vec::new(),
        notes: notes.clone(),
    };
    let valid = &split.valid[..split.valid.len().min(options.data.validation_personas)];
    let names = options.test.iter().map(|file| file.display().to_string()).collect();
    let personas = Personas { valid, test: &test, names };
    let mut done: Vec<Vec<results::Done>> = rows.iter().map(|_| Vec::new()).collect();
    let mut failures: Vec<Option<String>> = vec![None; rows.len()];
    let total = seeds.len() * rows.len();
    let mut number = 0;
    for &seed in &seeds {
        for (index, row) in rows.iter().enumerate() {
            number += 1;
            let varies = match row {
                // Fresh adapters change nothing, whatever they were drawn with.
                Row::Method(method) => method.in_context().is_none(),
                Row::Given(_) => false,
            };
            if !varies && seed != options.plan.seed {
                continue;
            }
            say(format_args!("{} with seed {seed} ({number} of {total})", row.name()));
            let result = match row {
                Row::Method(method) => one(&options, (*method, seed), &personas, compute),
                Row::Given(given) => as_given(&options, given, &personas, compute),
            };
            match result {
                Ok(result) => done[index].push(result),
                Err(error @ (TrainError::NotFinite { .. } | TrainError::Evaluation(_))) => {
                    say(format_args!("{}: {error}", row.name()));
                    failures[index] = Some(format!("seed {seed}: {error}"));
                }
                Err(error) => return Err(error),
            }
            comparison.methods = results_of(&rows, &done, &failures);
            comparison.differences = results::differences(&rows, &done);
            let evaluations: Vec<Evaluation> = done.iter().flatten().map(|done| done.outcome.evaluation()).collect();
            if evaluations.iter().any(|evaluation| evaluation.candidates == Candidates::Drawn) {
                comparison.rank_by = format!("{}, candidates drawn", options.how.rank_by);
            }
            // The same for every run: the personas are.
            let few = evaluations.first().map(|evaluation| evaluation.too_few.as_slice()).unwrap_or_default();
            comparison.notes = notes.iter().cloned().chain(few.iter().map(ToString::to_string)).collect();
            report(&options.out, &comparison)?;
        }
    }
    let table = options.out.join("report/table.md");
    Ok(fs::read_to_string(&table).map_err(|error| FileError::new(&table, format!("cannot be read: {error}")))?)
}

fn results_of(rows: &[Row<'_>], done: &[Vec<results::Done>], failures: &[Option<String>]) -> Vec<MethodResult> {
    let rows = rows.iter().zip(done).zip(failures);
    rows.filter(|((_, done), failure)| !done.is_empty() || failure.is_some())
        .map(|((row, done), failure)| results::row(row.name(), done, failure.clone()))
        .collect()
}

fn report(out: &Path, comparison: &Comparison) -> Result<()> {
    let dir = out.join("report");
    Ok(marionette_report::write(&dir, comparison).map_err(|error| FileError::new(&dir, error))?)
}

/// How many personas are for what.
fn counts(options: &Options, split: &PersonaSplit, test: usize) -> Split {
    let tested = options.how.personas.unwrap_or(usize::MAX).min(test);
    Split { train: split.train.len(), valid: split.valid.len().min(options.data.validation_personas), test: tested }
}

/// What a reader of the report must know of the methods beside the figures.
fn notes_on(options: &Options, rows: &[Row<'_>]) -> Vec<String> {
    let methods = || {
        rows.iter().filter_map(|row| match row {
            Row::Method(method) => Some(*method),
            Row::Given(_) => None,
        })
    };
    let mut notes = Vec::new();
    if options.test.is_empty() {
        notes.push(format!("Tested on {} of the personas of the data, which no training saw.", options.data.test_part));
    }
    if methods().any(|method| method == Method::Transfertransfo) {
        notes.push(
            "transfertransfo sees the persona's sentences and ranks by its classifier; no other method does."
                .to_owned(),
        );
    }
    if methods().any(|method| method.in_context().is_some()) {
        notes.push(
            "in-context learns nothing: as many of the K dialogues as fit stand in the prompt, with the first seed alone; \
             in-context-persona has the persona's sentences after them."
                .to_owned(),
        );
    }
    if methods().any(|method| !method.is_meta() && method.in_context().is_none()) {
        notes.push(
            "Methods with ordinary training are fine-tuned with the learning rate that the validation personas chose."
                .to_owned(),
        );
    }
    for Given { name, run } in &options.runs {
        notes.push(format!(
            "{name} is the run {} as it was trained, with one seed and settings of its own.",
            run.display()
        ));
    }
    notes
}

/// The settings of one run.
fn settings(options: &Options, method: Method, seed: u64, device: Device) -> Settings {
    let rates = options.rates.iter().rev().find(|rates| rates.method == method);
    Settings {
        base: Some(options.base.clone()),
        offline: options.offline,
        method,
        persona_text: false,
        bottleneck: options.bottleneck,
        adapt_blocks: options.adapt_blocks,
        inner_steps: options.inner_steps,
        inner_lr: rates.map(|rates| rates.inner),
        dialogues_per_step: options.dialogues_per_step,
        frozen: if method.learns_base() { bundle::Precision::Fp32 } else { options.frozen },
        start: options.start.clone().filter(|_| method.bears_start()),
        data: options.data.clone(),
        outer: OuterOptions {
            meta: options.meta.filter(|_| method.is_meta()),
            learning_rate: rates.map(|rates| rates.outer),
            precision: Chosen(Some(options.precision.0.unwrap_or(Precision::usual(device)))),
            plan: Plan { seed, ..options.plan.clone() },
        },
    }
}

/// Trains and tests one method with one seed, as far as that was not done before.
fn one(
    options: &Options,
    (method, seed): (Method, u64),
    personas: &Personas<'_>,
    compute: Compute,
) -> Result<results::Done> {
    let trained_as = method.trained_as();
    let run = options.out.join("runs").join(format!("{}-seed{seed}", trained_as.name()));
    let (config, base): (Config, _) = settings(options, trained_as, seed, compute.device).resolve(compute.device)?;
    let report = train::run(&config, base, &run, compute, Resume::Same)?;
    if report.interrupted || interrupt::asked() {
        return Err(TrainError::Interrupted);
    }
    let trained = Trained::open(&run, None, compute.device)?;
    let (file, grid, learned, rates) = match method.in_context() {
        None => (OUTCOME.to_owned(), options.grid.clone(), learned(&trained), results::rates(&trained)),
        Some(_) => (format!("{}.{OUTCOME}", method.name()), Grid::default(), 0, String::new()),
    };
    let how = How { in_context: method.in_context(), ..options.how.clone() };
    let (outcome, tried) = test::test(&trained, personas, (&how, &grid), (&run, &run.join(file)), compute)?;
    let (report, curve) = (Some(report), train::read_metrics(&run)?);
    Ok(results::Done { method, seed, report, outcome, tried, curve, learned, rates })
}

/// Tests a run as it is; its folder may be somebody else's, so nothing is written there.
fn as_given(
    options: &Options,
    Given { name, run }: &Given,
    personas: &Personas<'_>,
    compute: Compute,
) -> Result<results::Done> {
    let trained = Trained::open(run, base_of(options), compute.device)?;
    let runs = options.out.join("runs");
    fs::create_dir_all(&runs).map_err(|error| FileError::new(&runs, format!("cannot be made: {error}")))?;
    let file = runs.join(format!("{name}.{OUTCOME}"));
    let (outcome, tried) = test::test(&trained, personas, (&options.how, &options.grid), (run, &file), compute)?;
    let report = train::recorded(run)?;
    Ok(results::Done {
        method: trained.method,
        seed: options.plan.seed,
        curve: if report.is_some() { train::read_metrics(run)? } else { Vec::new() },
        report,
        outcome,
        tried,
        learned: learned(&trained),
        rates: results::rates(&trained),
    })
}

/// How many numbers learn.
fn learned(trained: &Trained) -> usize {
    trained.model.table().iter().map(marionette_models::params::TensorSpec::len).sum()
}

/// Where the base model lies, if it is named by its folder; else each run says where it found its own.
fn base_of(options: &Options) -> Option<&Path> {
    options.base.is_dir().then_some(options.base.as_path())
}
