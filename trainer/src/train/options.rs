//! The options of the command line, and how they resolve to the configuration of a run.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgGroup, ArgMatches, ValueEnum};
use marionette_console::options::whole;
use marionette_models::checkpoint::BaseFiles;
use marionette_models::run::RunModel;
use marionette_models::{AdapterConfig, InnerLoop, LearningRate};
use marionette_models::{FileError, bundle};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use super::config::{Config, Outer, Start, digests, method_of};
use crate::error::{Result, TrainError};
use crate::method::Method;
use crate::{device, hub};

/// The gradient that the outer loop follows, as on the command line and in `config.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Gradient {
    /// The exact meta-gradient, through the inner loop (second order)
    Maml,
    /// The first-order meta-gradient
    Fomaml,
    /// The way that the inner loop goes
    Reptile,
    /// The ordinary gradient, without an inner loop
    #[value(skip)]
    Normal,
}

/// Where the inner learning rates come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateRule {
    /// They stay as they are.
    Fixed,
    /// One a tensor, learned with the parameters.
    Learned,
    /// One for all, taken at each validation from a third of it, itself and three times it.
    Chosen,
}

/// `--inner-lr`: a number, or a rule with the number to begin at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InnerRate {
    rule: RateRule,
    start: Option<f32>,
}

impl FromStr for InnerRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rule, start) = match text.split_once(':') {
            Some((rule, start)) => (rule, Some(start)),
            None => (text, None),
        };
        let number = |text: &str| {
            let expected = "expected a number, learned, chosen, learned:A or chosen:A";
            text.parse::<f32>().map_err(|_| format!("{text:?} is no learning rate; {expected}"))
        };
        let rule = match rule {
            "learned" => RateRule::Learned,
            "chosen" => RateRule::Chosen,
            _ => return Ok(Self { rule: RateRule::Fixed, start: Some(number(text)?) }),
        };
        Ok(Self { rule, start: start.map(number).transpose()? })
    }
}

impl InnerRate {
    /// For a method: the rule, whether what α begins at is looked for, and that.
    fn resolve(self, method: Method) -> (RateRule, bool, LearningRate) {
        let start = LearningRate::Shared(self.start.unwrap_or(method.inner_rate()));
        (self.rule, self.start.is_none() && !method.learns_base(), start)
    }
}

/// The kind in which linear layers, attention and the head are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floating point
    Fp32,
    /// bfloat16, with parameters, sums, normalisation and the loss in 32 bits (autocast)
    Bf16,
}

impl Precision {
    /// What is usual on a device, for any method.
    pub fn usual(device: Device) -> Self {
        if device.is_cuda() { Self::Bf16 } else { Self::Fp32 }
    }

    /// What is taken for a method where nobody says: on a processor that multiplies bfloat16, methods that move a whole model are 1.5 to 1.7 times
    /// as fast in it, with steps of the same worth (docs/meta-gradient.md); where adapters alone learn, the derivatives that are
    /// written by hand are in 32 bits.
    pub fn of_method(method: Method, device: Device) -> Self {
        if device == Device::Cpu && method.learns_base() && device::multiplies_bf16() {
            return Self::Bf16;
        }
        Self::usual(device)
    }

    /// As libtorch names it.
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// A precision as on the command line: none is `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chosen(pub Option<Precision>);

const AUTO: &str = "auto";
const BY_METHOD: &str = "bf16 on a GPU, and on a processor that multiplies it where a whole model learns; else fp32";

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.and_then(|precision| precision.to_possible_value()) {
            Some(value) => f.write_str(value.get_name()),
            None => f.write_str(AUTO),
        }
    }
}

/// Reads a precision, or `auto`, which means what is said of it.
pub(crate) fn precision(auto: &'static str) -> impl TypedValueParser<Value = Chosen> {
    let known = Precision::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let auto = PossibleValue::new(AUTO).help(auto);
    PossibleValuesParser::new([auto].into_iter().chain(known))
        .map(|name| Chosen(Precision::from_str(&name, false).ok()))
}

/// The options of [`Settings`] and [`OuterOptions`], those of the structs within them left out.
const OWN: [&str; 14] = [
    "base",
    "offline",
    "method",
    "persona_text",
    "bottleneck",
    "adapt_blocks",
    "inner_steps",
    "inner_lr",
    "dialogues_per_step",
    "frozen",
    "start",
    "meta",
    "learning_rate",
    "precision",
];

/// The most inner steps, and dialogues and personas of one step: all of them are in memory at once.
pub const MOST_AT_ONCE: usize = 10_000;
/// The most personas or dialogues that are counted in files, and passes over them.
pub const MOST_COUNTED: usize = 1_000_000;
/// The most meta-iterations, or steps.
pub const MOST_ITERATIONS: usize = 100_000_000;

/// What `--adapt-blocks` may be: the first block, as the beginning of a range.
pub(crate) fn first_block(text: &str) -> Result<usize, String> {
    let first = text.strip_suffix("..").and_then(|first| first.parse().ok());
    first.ok_or_else(|| "expected the first block with adapters and two dots, as in 15..".to_owned())
}

/// What `--frozen` may be.
pub(crate) fn frozen() -> impl TypedValueParser<Value = bundle::Precision> {
    let known = bundle::Precision::ALL.into_iter().filter(|&held| held != bundle::Precision::Fp16);
    PossibleValuesParser::new(known.map(bundle::Precision::name)).try_map(|name| name.parse::<bundle::Precision>())
}

/// The settings of a new run.
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[group(skip)]
// By hand, because the group of a struct with other structs in it is empty (clap_derive 4.6): what says a new run.
#[command(group = ArgGroup::new("Settings").multiple(true).args(OWN))]
pub struct Settings {
    /// The pre-trained model: a Hugging Face folder (GPT-2 or Llama), or its name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME", required_unless_present_any = ["config", "resume"])]
    pub base: Option<PathBuf>,
    /// Take a model of the hub from the local cache alone
    #[arg(long)]
    pub offline: bool,
    /// What is trained
    #[arg(long, value_enum, default_value_t = Method::ExtraPlace)]
    pub method: Method,
    /// Put the persona's sentences in front of each dialogue
    #[arg(long)]
    pub persona_text: bool,
    /// The width of the adapters' bottleneck
    #[arg(long, default_value_t = AdapterConfig::default().bottleneck, value_name = "N", value_parser = whole::<1, { AdapterConfig::MOST_BOTTLENECK }>, allow_negative_numbers = true)]
    pub bottleneck: usize,
    /// The first block with adapters: `15..` leaves the 15 below bare. What lies below is computed once a dialogue, so that adapting again
    /// is cheaper
    #[arg(long, value_name = "FIRST..", default_value = "0..", value_parser = first_block)]
    pub adapt_blocks: usize,
    /// Inner SGD steps, S
    #[arg(long, default_value_t = InnerLoop::default().steps, value_name = "N", value_parser = whole::<1, MOST_AT_ONCE>, allow_negative_numbers = true)]
    pub inner_steps: usize,
    /// Inner learning rate α: a number; `learned`, one a tensor, with the parameters; `chosen`, by the validations.
    /// [default: for adapters alone the best of 0.3, 0.1, 0.03 and 0.01 on some validation personas before training, for a whole
    /// model 0.1; chosen where training is ordinary]
    #[arg(long, value_name = "A", allow_negative_numbers = true)]
    pub inner_lr: Option<InnerRate>,
    /// Support dialogues in the batch of one inner step
    #[arg(long, default_value_t = InnerLoop::default().dialogues_per_step, value_name = "N", value_parser = whole::<1, MOST_AT_ONCE>, allow_negative_numbers = true)]
    pub dialogues_per_step: usize,
    /// How the matrices that do not learn are held: fp32, or int8 or int4 as a bundle of that precision holds them, multiplied as the device does
    #[arg(long, value_name = "PRECISION", default_value_t = bundle::Precision::Fp32, value_parser = frozen())]
    pub frozen: bundle::Precision,
    /// A run whose adapters to begin with, those of its best checkpoint, instead of zero
    #[arg(long, value_name = "RUN")]
    pub start: Option<PathBuf>,
    /// Where the personas come from
    #[command(flatten)]
    pub data: Data,
    /// The outer loop
    #[command(flatten)]
    pub outer: OuterOptions,
}

/// Where the personas come from, and how their dialogues are split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Dialogue files to meta-train on
    #[arg(long = "data", num_args = 1.., value_name = "FILE")]
    pub train: Vec<PathBuf>,
    /// Dialogue files to validate on
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub valid: Vec<PathBuf>,
    /// The part of the training personas to validate on instead, where there is no --valid
    #[arg(long, default_value_t = 0.1, value_name = "PART", allow_negative_numbers = true)]
    pub hold_out: f64,
    /// The part of the training personas to keep for testing, which a run never sees
    #[arg(long, default_value_t = 0.0, value_name = "PART", allow_negative_numbers = true)]
    pub test_part: f64,
    /// Support dialogues of a persona, K. PAML's recipe is --support 1 --query 1
    #[arg(long, visible_alias = "support", default_value_t = 5, value_name = "K", value_parser = whole::<1, MOST_AT_ONCE>, allow_negative_numbers = true)]
    pub support_dialogues: usize,
    /// The most query dialogues of a persona
    #[arg(long, visible_alias = "query", default_value_t = 4, value_name = "N", value_parser = whole::<1, MOST_AT_ONCE>, allow_negative_numbers = true)]
    pub query_dialogues: usize,
    /// The most personas to validate on
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = whole::<1, MOST_COUNTED>, allow_negative_numbers = true)]
    pub validation_personas: usize,
    /// The digests of the files, those to train on first.
    #[arg(skip)]
    pub sha256: Vec<String>,
}

/// The outer loop, as on the command line.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct OuterOptions {
    /// The gradient of the outer loop, for methods that are meta-learned [default: maml]
    #[arg(long, value_enum, value_name = "GRADIENT")]
    pub meta: Option<Gradient>,
    /// Outer learning rate, β [default: 0.003 for extra-place, 0.001 for transfer-adapters, 0.002 for reinit, 0.0007 for
    /// reinit-maml, else 0.0001]
    #[arg(long = "outer-lr", value_name = "B", allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// What linear layers, attention and the head are computed in
    #[arg(long, value_name = "PRECISION", default_value_t, value_parser = precision(BY_METHOD))]
    pub precision: Chosen,
    /// The numbers that need no resolving
    #[command(flatten)]
    pub plan: Plan,
}

/// The numbers of the outer loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, clap::Args)]
pub struct Plan {
    /// Meta-iterations; none has none
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = whole::<1, MOST_ITERATIONS>, allow_negative_numbers = true)]
    pub iterations: usize,
    /// Personas in one meta-iteration
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = whole::<1, MOST_AT_ONCE>, allow_negative_numbers = true)]
    pub meta_batch: usize,
    /// The global norm to which the meta-gradient is clipped
    #[arg(long, default_value_t = 2.0, value_name = "NORM", allow_negative_numbers = true)]
    pub clip: f64,
    /// Meta-iterations between validations
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = whole::<1, MOST_ITERATIONS>, allow_negative_numbers = true)]
    pub validate_every: usize,
    /// Validations without improvement after which the run stops
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = whole::<1, MOST_ITERATIONS>, allow_negative_numbers = true)]
    pub patience: usize,
    /// Meta-iterations between checkpoints; each validation makes one too
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = whole::<1, MOST_ITERATIONS>, allow_negative_numbers = true)]
    pub save_every: usize,
    /// The newest checkpoints to keep, beside the best
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = whole::<1, MOST_AT_ONCE>, allow_negative_numbers = true)]
    pub keep: usize,
    /// The seed of all random numbers
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

impl Settings {
    /// Resolves the settings for a device, and reads the base model that they name.
    ///
    /// # Errors
    /// Impossible options; the base model, or a file, cannot be read.
    pub fn resolve(self, device: Device) -> Result<(Config, BaseFiles)> {
        let Some(base) = &self.base else {
            let problem = "is missing, expected the folder of a pre-trained model; there is no run to go on with";
            return Err(TrainError::option("--base", problem));
        };
        if self.data.train.is_empty() {
            let problem = "is missing, expected dialogue files; there is no run to go on with";
            return Err(TrainError::option("--data", problem));
        }
        let Self { method, outer: OuterOptions { meta, learning_rate, precision, plan }, .. } = self;
        let gradient = match (method.is_meta(), meta) {
            (true, meta) => meta.unwrap_or(Gradient::Maml),
            (false, None) => Gradient::Normal,
            (false, Some(_)) => {
                let problem = format!("is for methods that are meta-learned, which {} is not", method.name());
                return Err(TrainError::option("--meta", problem));
            }
        };
        let usual = if method.is_meta() { RateRule::Fixed } else { RateRule::Chosen };
        let inner_lr = self.inner_lr.unwrap_or(InnerRate { rule: usual, start: None });
        let (inner_rate, find_inner_rate, rate) = inner_lr.resolve(method);
        let plan = if method == Method::None { Plan { iterations: 0, ..plan } } else { plan };
        let mut config = Config {
            model: RunModel {
                base: base.clone(),
                base_sha256: String::new(),
                method: method.name().to_owned(),
                persona_text: self.persona_text || method.classifies(),
                adapter: AdapterConfig { bottleneck: self.bottleneck, first_block: self.adapt_blocks },
                frozen: self.frozen,
                inner_loop: InnerLoop {
                    steps: self.inner_steps,
                    dialogues_per_step: self.dialogues_per_step,
                    learning_rate: rate,
                },
            },
            data: self.data,
            outer: Outer {
                gradient,
                learning_rate: learning_rate.unwrap_or(method.outer_rate()),
                inner_rate,
                find_inner_rate,
                precision: precision.0.unwrap_or(Precision::of_method(method, device)),
                plan,
            },
            start: self.start.as_deref().map(Start::of_run).transpose()?,
        };
        config.check()?;
        if config.data.train.is_empty() {
            return Err(TrainError::option("--data", "is missing, expected dialogue files to train on"));
        }
        config.model.base = absolute(&hub::resolve(base, self.offline)?)?;
        let data = &mut config.data;
        for files in [&mut data.train, &mut data.valid] {
            *files = files.iter().map(|file| absolute_part(file)).collect::<Result<_>>()?;
        }
        config.data.sha256 = digests(&config.data)?;
        let base = BaseFiles::open(&config.model.base)?;
        config.model.base_sha256 = base.sha256()?;
        Ok((config, base))
    }

    /// The settings of a run to go on with: those of its `config.toml`, but for what was given on the command line. The
    /// base model and the dialogue files are taken as they are now.
    ///
    /// # Errors
    /// `config.toml` is wrong; the base model, or a file, cannot be read.
    pub fn over(self, recorded: &Path, given: &Given) -> Result<(Config, BaseFiles)> {
        let mut config = Config::recorded(recorded)?;
        let Self { base, offline, method, persona_text, bottleneck, adapt_blocks, inner_steps, inner_lr, .. } = self;
        if let Some(run) = &self.start {
            config.start = Some(Start::of_run(run)?);
        }
        let Config { model, data, outer, .. } = &mut config;
        given.put("method", &mut model.method, method.name().to_owned());
        given.put("persona_text", &mut model.persona_text, persona_text);
        given.put("bottleneck", &mut model.adapter.bottleneck, bottleneck);
        given.put("adapt_blocks", &mut model.adapter.first_block, adapt_blocks);
        given.put("inner_steps", &mut model.inner_loop.steps, inner_steps);
        given.put("dialogues_per_step", &mut model.inner_loop.dialogues_per_step, self.dialogues_per_step);
        given.put("frozen", &mut model.frozen, self.frozen);
        if let Some(inner_lr) = inner_lr {
            (outer.inner_rate, outer.find_inner_rate, model.inner_loop.learning_rate) =
                inner_lr.resolve(method_of(model)?);
        }
        let Data { train, valid, hold_out, test_part, support_dialogues, query_dialogues, validation_personas, .. } =
            self.data;
        given.put("hold_out", &mut data.hold_out, hold_out);
        given.put("test_part", &mut data.test_part, test_part);
        given.put("support_dialogues", &mut data.support_dialogues, support_dialogues);
        given.put("query_dialogues", &mut data.query_dialogues, query_dialogues);
        given.put("validation_personas", &mut data.validation_personas, validation_personas);
        let OuterOptions { meta, learning_rate, precision, plan } = self.outer;
        outer.gradient = meta.unwrap_or(outer.gradient);
        outer.learning_rate = learning_rate.unwrap_or(outer.learning_rate);
        outer.precision = precision.0.unwrap_or(outer.precision);
        let Plan { iterations, meta_batch, clip, validate_every, patience, save_every, keep, seed } = plan;
        given.put("iterations", &mut outer.plan.iterations, iterations);
        given.put("meta_batch", &mut outer.plan.meta_batch, meta_batch);
        given.put("clip", &mut outer.plan.clip, clip);
        given.put("validate_every", &mut outer.plan.validate_every, validate_every);
        given.put("patience", &mut outer.plan.patience, patience);
        given.put("save_every", &mut outer.plan.save_every, save_every);
        given.put("keep", &mut outer.plan.keep, keep);
        given.put("seed", &mut outer.plan.seed, seed);
        for (files, option, named) in [(train, "--data", &mut data.train), (valid, "--valid", &mut data.valid)] {
            if !files.is_empty() {
                *named = files.iter().map(|file| absolute_part(file)).collect::<Result<_>>()?;
            } else if let Some(file) = named.iter().find(|file| !marionette_dialogues::split_part(file).0.exists()) {
                let remedy = format!("{} names it; {option} gives its new place", recorded.display());
                return Err(FileError::new(file, "is not there").remedy(remedy).into());
            }
        }
        data.sha256 = digests(data)?;
        let moved = base.map(|base| absolute(&hub::resolve(&base, offline)?)).transpose()?;
        model.place_base(recorded, moved.as_deref())?;
        let base = BaseFiles::open(&model.base)?;
        model.base_sha256 = base.sha256()?;
        Ok((config, base))
    }
}

/// The options that stand on the command line: the others' values are defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given(BTreeSet<String>);

impl Given {
    /// Those of a subcommand.
    pub fn of(matches: &ArgMatches) -> Self {
        let names = matches.ids().map(clap::Id::as_str);
        let given = names.filter(|name| matches.value_source(name) == Some(ValueSource::CommandLine));
        Self(given.map(str::to_owned).collect())
    }

    fn put<T>(&self, option: &str, place: &mut T, value: T) {
        if self.0.contains(option) {
            *place = value;
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(fs::canonicalize(path).map_err(|error| FileError::new(path, format!("cannot be opened: {error}")))?)
}

/// The absolute path of a dialogue file, of which a part may be named after a `#`.
fn absolute_part(path: &Path) -> Result<PathBuf> {
    let (file, part) = marionette_dialogues::split_part(path);
    let mut whole = absolute(&file)?.into_os_string();
    if let Some(part) = part {
        whole.push("#");
        whole.push(part);
    }
    Ok(whole.into())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[arg(long)]
        config: Option<PathBuf>,
        #[arg(long)]
        resume: bool,
        #[command(flatten)]
        settings: Settings,
    }

    fn refused(options: &str) -> String {
        let words = "run --base ./base --data train.txt ".to_owned() + options;
        match Line::try_parse_from(words.split_whitespace()) {
            Ok(line) => line.settings.resolve(Device::Cpu).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn precision_goes_by_what_learns_unless_told() {
        let chosen = |options: &str| {
            let words = "run --base ./base --data train.txt ".to_owned() + options;
            Line::try_parse_from(words.split_whitespace()).unwrap().settings.outer.precision
        };
        assert_eq!((chosen(""), chosen("--precision auto")), (Chosen(None), Chosen(None)));
        assert_eq!(chosen("--precision bf16"), Chosen(Some(Precision::Bf16)));
        assert_eq!([Chosen(None), Chosen(Some(Precision::Fp32))].map(|chosen| chosen.to_string()), ["auto", "fp32"]);
        let native = if device::multiplies_bf16() { Precision::Bf16 } else { Precision::Fp32 };
        let of = |method, device| Precision::of_method(method, device);
        assert_eq!([Method::InPlace, Method::Transfer].map(|method| of(method, Device::Cpu)), [native; 2]);
        assert_eq!(of(Method::ExtraPlace, Device::Cpu), Precision::Fp32);
        assert_eq!([Method::InPlace, Method::ExtraPlace].map(|m| of(m, Device::Cuda(0))), [Precision::Bf16; 2]);
    }

    #[test]
    fn impossible_values_are_refused_by_the_name_of_their_option() {
        for options in [
            "--iterations 0",
            "--iterations -1",
            "--inner-steps 0",
            "--inner-steps 10001",
            "--inner-lr NaN",
            "--inner-lr 0",
            "--inner-lr -0.1",
            "--inner-lr inf",
            "--outer-lr NaN",
            "--outer-lr 0",
            "--outer-lr 1e37",
            "--clip 0",
            "--clip -2",
            "--meta-batch 0",
            "--bottleneck 0",
            "--adapt-blocks 15",
            "--adapt-blocks ..15",
            "--bottleneck 32769",
            "--support-dialogues 0",
            "--query-dialogues 0",
            "--dialogues-per-step 0",
            "--validation-personas 0",
            "--validate-every 0",
            "--patience 0",
            "--test-part 1",
            "--test-part -0.1",
            "--hold-out 0",
            "--hold-out 1",
            "--hold-out NaN",
            "--method other",
            "--meta normal",
            "--keep 0",
            "--save-every 0",
            "--inner-lr learned:x",
            "--seed x",
        ] {
            let error = refused(options);
            let mut words = options.split(' ');
            let (option, value) = (words.next().unwrap(), words.next().unwrap());
            assert!(error.contains(option), "{options}: {error}");
            assert!(error.contains(value), "{options}: {error}");
        }
        assert!(refused("").starts_with("./base: is not a folder"), "{}", refused(""));
    }

    #[test]
    fn numbers_have_limits_which_are_said() {
        for (option, least, most) in [
            ("--bottleneck", 1, AdapterConfig::MOST_BOTTLENECK),
            ("--inner-steps", 1, MOST_AT_ONCE),
            ("--dialogues-per-step", 1, MOST_AT_ONCE),
            ("--support-dialogues", 1, MOST_AT_ONCE),
            ("--query-dialogues", 1, MOST_AT_ONCE),
            ("--validation-personas", 1, MOST_COUNTED),
            ("--iterations", 1, MOST_ITERATIONS),
            ("--meta-batch", 1, MOST_AT_ONCE),
            ("--validate-every", 1, MOST_ITERATIONS),
            ("--patience", 1, MOST_ITERATIONS),
            ("--save-every", 1, MOST_ITERATIONS),
            ("--keep", 1, MOST_AT_ONCE),
        ] {
            let beyond = [(most + 1).to_string(), (least - 1).to_string()];
            let huge =
                ["18446744073709551616", "18446744073709551615", "9223372036854775808", "1000000000000", "-1", "nan"];
            for value in huge.into_iter().chain(beyond.iter().map(String::as_str)) {
                let error = refused(&format!("{option} {value}"));
                let first = error.lines().next().unwrap();
                assert!(
                    first.contains(option) && first.contains(&format!("from {least} to {most}")),
                    "{option} {value}: {error}"
                );
            }
        }
        for value in ["nan", "inf", "-inf"] {
            for option in ["--inner-lr", "--outer-lr", "--clip", "--hold-out", "--test-part"] {
                assert!(refused(&format!("{option}={value}")).contains(option), "{option} {value}");
                assert!(refused(&format!("--valid v {option}={value}")).contains(option), "{option} {value}");
            }
        }
    }

    #[test]
    fn a_run_to_go_on_with_keeps_all_but_what_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");
        let data = folder.path().join("train.txt");
        fs::write(&data, "any").unwrap();
        let parse = |options: &str| {
            let matches = Line::command().get_matches_from(options.split_whitespace());
            (Line::from_arg_matches(&matches).unwrap().settings, Given::of(&matches))
        };
        let begin = format!("run --base {tiny} --data {} --iterations 7 --seed 9 --inner-lr 0.2", data.display());
        let (begun, _) = parse(&begin).0.resolve(Device::Cpu).unwrap();
        begun.write(folder.path()).unwrap();
        let recorded = folder.path().join("config.toml");
        let over = |options: &str| {
            let (settings, given) = parse(&format!("run --resume {options}"));
            let (config, _) = settings.over(&recorded, &given).unwrap();
            begun.differences(&config).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(over(""), [""; 0]);
        let cases = [
            ("--method in-place", "method: \"extra-place\" -> \"in-place\""),
            ("--persona-text", "persona_text: false -> true"),
            ("--bottleneck 5", "adapter.bottleneck: 64 -> 5"),
            ("--adapt-blocks 3..", "adapter.first_block: not set -> 3"),
            ("--inner-steps 3", "inner_loop.steps: 5 -> 3"),
            ("--inner-lr 0.5", "inner_loop.learning_rate: 0.2"),
            ("--dialogues-per-step 2", "inner_loop.dialogues_per_step: 1 -> 2"),
            ("--frozen int8", "frozen: not set -> \"int8\""),
            ("--hold-out 0.2", "data.hold_out: 0.1 -> 0.2"),
            ("--test-part 0.2", "data.test_part: 0.0 -> 0.2"),
            ("--support-dialogues 2", "data.support_dialogues: 5 -> 2"),
            ("--query-dialogues 2", "data.query_dialogues: 4 -> 2"),
            ("--validation-personas 2", "data.validation_personas: 16 -> 2"),
            ("--meta fomaml", "outer.gradient: \"maml\" -> \"fomaml\""),
            ("--outer-lr 0.5", "outer.learning_rate: 0.003 -> 0.5"),
            ("--precision bf16", "outer.precision: \"fp32\" -> \"bf16\""),
            ("--iterations 200", "outer.iterations: 7 -> 200"),
            ("--meta-batch 2", "outer.meta_batch: 4 -> 2"),
            ("--clip 1", "outer.clip: 2.0 -> 1.0"),
            ("--validate-every 2", "outer.validate_every: 10 -> 2"),
            ("--patience 2", "outer.patience: 10 -> 2"),
            ("--save-every 2", "outer.save_every: 10 -> 2"),
            ("--keep 3", "outer.keep: 2 -> 3"),
            ("--seed 1", "outer.seed: 9 -> 1"),
        ];
        for (option, change) in cases {
            let found = over(option);
            assert!(found.len() == 1 && found[0].starts_with(change), "{option}: {found:?}");
        }
        // A later option is not forgotten: all but those of places, which other tests have.
        let all = Line::command().get_arguments().filter(|option| option.get_id() != "config").count();
        assert_eq!(all, cases.len() + "resume base offline data valid start".split(' ').count());
    }
}
