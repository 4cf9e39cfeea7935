//! The command line of `marionette`, parsed; nothing is done here.

mod personas;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use marionette_console::options::{MOST_TOKENS, whole};
use marionette_dialogues::{Context, RankBy, Redaction, Redactor, Rules};
use marionette_models::{InnerLoop, files};

use marionette_runtime::bench::{self, Part, Shape};
use marionette_runtime::persona_name::{PersonaName, PersonaRef};
use marionette_runtime::personas::{PersonaError, Store};
use marionette_runtime::sampling::Sampling;
use marionette_runtime::{Error, Options, Provider};

pub use personas::*;

/// Adapts a language model to a persona on this device, and talks with it.
#[derive(Debug, Parser)]
#[command(
    name = "marionette",
    version,
    max_term_width = 100,
    after_help = "\
What an option does not say is taken from the environment, where the help names a variable, then from the table of options in\n\
$XDG_CONFIG_HOME/marionette/config.toml or ~/.config/marionette/config.toml, such as `temperature = 0.5`."
)]
pub struct Cli {
    /// Say nothing but results and errors
    #[arg(long, short, global = true, env = "MARIONETTE_QUIET")]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Learn a persona from its dialogues, and save it
    Adapt(AdaptArgs),
    /// Reply to a prompt
    Generate(GenerateArgs),
    /// Talk with a persona
    Chat(ChatArgs),
    /// Adapt to the personas of a file and test on dialogues that were held out
    Evaluate(EvaluateArgs),
    /// Keep personas: list them, go back to a version, learn one again on another model
    Personas(PersonasArgs),
    /// Say what chats and dialogue files hold, and write them as dialogues
    Dialogues(DialoguesArgs),
    /// Say what is in a bundle, and check that this device computes what the trainer did
    Inspect(InspectArgs),
    /// Measure the speed and memory of a bundle on this device
    Bench(BenchArgs),
    /// Say what this device has, and what is wrong with it or with a bundle
    Doctor(DoctorArgs),
    /// Write the completions of a shell to standard output
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages, one a command, into a folder
    Man {
        /// The folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A bundle to look at too
    #[arg(value_name = "BUNDLE")]
    pub bundle: Option<PathBuf>,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Common {
    /// The bundle, a folder that marionette-export wrote
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// The execution provider
    #[arg(long, env = "MARIONETTE_EP", hide_env_values = true, value_name = "PROVIDER", default_value = "cpu", value_parser = one_of(Provider::ALL, Provider::name), help_heading = "Device")]
    pub ep: Provider,
    /// Threads within an operator [default: ONNX Runtime's choice, one a core]
    #[arg(long, env = "MARIONETTE_THREADS", hide_env_values = true, value_name = "N", value_parser = from_one::<MOST_THREADS>, allow_negative_numbers = true, help_heading = "Device")]
    pub threads: Option<NonZeroUsize>,
}

/// Where personas are, for the commands that read or write them.
#[derive(Debug, Args)]
pub struct Home {
    /// The folder where personas live [default: $XDG_DATA_HOME/marionette or ~/.local/share/marionette]
    #[arg(long, env = "MARIONETTE_HOME", hide_env_values = true, value_name = "DIR", help_heading = "Device")]
    pub home: Option<PathBuf>,
}

impl Home {
    /// The personas there.
    ///
    /// # Errors
    /// No folder is known.
    pub fn store(&self) -> Result<Store, PersonaError> {
        Store::new(self.home.as_deref())
    }
}

impl Common {
    /// How the engine runs.
    pub fn options(&self) -> Options {
        Options { provider: self.ep, threads: self.threads, ..Options::default() }
    }
}

/// One of the values that a library's enumeration has, by its name.
fn one_of<T: Copy + Send + Sync + 'static, const N: usize>(
    all: [T; N],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.map(name)).try_map(move |chosen| {
        let found = all.into_iter().find(|&value| name(value) == chosen);
        found.ok_or("is none of them")
    })
}

/// How tokens are drawn.
#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// Divides the logits: lower is more predictable, 0 always takes the most probable token
    #[arg(long, env = "MARIONETTE_TEMPERATURE", hide_env_values = true, value_name = "T", default_value_t = Sampling::default().temperature, allow_negative_numbers = true, help_heading = "Sampling")]
    pub temperature: f32,
    /// Draw from the fewest tokens whose probabilities add up to P (nucleus); 1 for all
    #[arg(long, env = "MARIONETTE_TOP_P", hide_env_values = true, value_name = "P", default_value_t = Sampling::default().top_p, allow_negative_numbers = true, help_heading = "Sampling")]
    pub top_p: f32,
    /// Draw from the K most probable tokens; 0 for all
    #[arg(long, env = "MARIONETTE_TOP_K", hide_env_values = true, value_name = "K", default_value_t = Sampling::default().top_k, help_heading = "Sampling")]
    pub top_k: usize,
    /// Draw from tokens at least P times as probable as the most probable one; 0 for all
    #[arg(long, env = "MARIONETTE_MIN_P", hide_env_values = true, value_name = "P", default_value_t = Sampling::default().min_p, allow_negative_numbers = true, help_heading = "Sampling")]
    pub min_p: f32,
    /// Makes tokens that were there before less probable; 1 for not
    #[arg(long, env = "MARIONETTE_REPETITION_PENALTY", hide_env_values = true, value_name = "R", default_value_t = Sampling::default().repetition_penalty, allow_negative_numbers = true, help_heading = "Sampling")]
    pub repetition_penalty: f32,
    /// The seed of the random numbers: the same seed gives the same words [default: another each time]
    #[arg(long, env = "MARIONETTE_SEED", hide_env_values = true, value_name = "N", help_heading = "Sampling")]
    pub seed: Option<u64>,
    /// End a reply before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Sampling")]
    pub stop: Vec<String>,
    /// The longest reply, in tokens
    #[arg(long, env = "MARIONETTE_MAX_TOKENS", hide_env_values = true, value_name = "N", default_value = "64", value_parser = from_one::<MOST_TOKENS>, allow_negative_numbers = true, help_heading = "Sampling")]
    pub max_tokens: NonZeroUsize,
}

impl SamplingArgs {
    /// How tokens are drawn.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed.unwrap_or_else(rand::random),
        }
    }
}

/// How chats become dialogues.
#[derive(Debug, Args)]
pub struct ChatRules {
    /// Whose words are learned: a name or an id in the chat; given twice where one person has two names [default: the one whose export it
    /// is, or of two the one who answers first]
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, help_heading = "Chats")]
    pub me: Vec<String>,
    /// Messages of one person are one utterance while no more than so many minutes lie between two
    #[arg(long, value_name = "MINUTES", default_value_t = Rules::default().join / 60, help_heading = "Chats")]
    pub join: u64,
    /// After so many hours without a message another dialogue begins
    #[arg(long, value_name = "HOURS", default_value_t = Rules::default().silence / 3600, help_heading = "Chats")]
    pub silence: u64,
    /// In a group, let others' words begin with who says them
    #[arg(long, help_heading = "Chats")]
    pub group: bool,
    /// Refuse a file of which any line or dialogue cannot be read; otherwise up to a tenth is left out and said
    #[arg(long, help_heading = "Chats")]
    pub strict: bool,
    /// Replace e-mail addresses, links, and numbers of phones, cards and accounts by placeholders before anything is learned
    #[arg(long, help_heading = "Chats")]
    pub redact: bool,
    /// Replace the words and phrases of this file too, one a line; implies --redact
    #[arg(long, value_name = "FILE", help_heading = "Chats")]
    pub block: Option<PathBuf>,
}

impl ChatRules {
    /// The rules.
    pub fn rules(&self) -> Rules {
        let Self { me, join, silence, group, strict, .. } = self;
        Rules {
            me: me.clone(),
            join: join.saturating_mul(60),
            silence: silence.saturating_mul(3600),
            group: *group,
            strict: *strict,
        }
    }

    /// What is to be replaced; `shown` where it is to be shown.
    ///
    /// # Errors
    /// The list of words cannot be read.
    pub fn redaction(&self, shown: bool) -> Result<Option<Redaction>, Error> {
        /// A list of words is shorter.
        const LONGEST: u64 = 16 << 20;
        let list = match &self.block {
            None => return Ok(self.redact.then(|| Redaction { shown, ..Redaction::default() })),
            Some(path) => files::read_limited(path, LONGEST)?,
        };
        let text = String::from_utf8_lossy(&list);
        let words: Vec<&str> = text.trim_start_matches('\u{FEFF}').lines().collect();
        Ok(Some(Redaction { redactor: Redactor::new(&words), shown }))
    }
}

/// `dialogues`.
#[derive(Debug, Args)]
pub struct DialoguesArgs {
    /// Chats and dialogue files of one persona, in any format that the README lists, or folders of them
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// How chats become dialogues.
    #[command(flatten)]
    pub rules: ChatRules,
    /// Write the dialogues here, as chat JSONL, which every command reads
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Show what was replaced: it is then on the screen, and in --json
    #[arg(long)]
    pub show_redactions: bool,
    /// Count tokens as this bundle does
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `adapt`.
#[derive(Debug, Args)]
pub struct AdaptArgs {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// The persona's name; one that is there already gets a new version
    #[arg(long, value_name = "NAME")]
    pub persona: PersonaName,
    /// The persona's chats and dialogues, in any format that the README lists, or a folder of them; may be given several times, all are this persona's
    #[arg(long, value_name = "FILE", required = true)]
    pub dialogues: Vec<PathBuf>,
    /// How chats become dialogues.
    #[command(flatten)]
    pub rules: ChatRules,
    /// Learn from the first K dialogues only; those after them may be held out
    #[arg(long, value_name = "K", value_parser = from_one::<MOST>, allow_negative_numbers = true)]
    pub shots: Option<NonZeroUsize>,
    /// Go on from a persona, or a version of it (NAME@N), instead of the bundle's start
    #[arg(long, value_name = "NAME")]
    pub from: Option<PersonaRef>,
    /// Go on when this is done, and learn again from all dialogues whenever their files grow, until it is interrupted
    #[arg(long)]
    pub watch: bool,
    /// Do not keep the dialogues with the persona; `readapt` needs them
    #[arg(long)]
    pub forget_dialogues: bool,
    /// How it is learned.
    #[command(flatten)]
    pub learning: LearningArgs,
}

/// How a persona is learned, whatever its dialogues come from.
#[derive(Debug, Args)]
pub struct LearningArgs {
    /// Dialogues that are not learned from, but judge what was learned, after each pass: the best is kept [default: 1 where there are three or
    /// more, the last]
    #[arg(long, value_name = "N", value_parser = whole::<0, MOST>, allow_negative_numbers = true)]
    pub holdout: Option<usize>,
    /// How many replies to show, as they were before and are now
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<0, MOST>, allow_negative_numbers = true)]
    pub replies: usize,
    /// Passes over the dialogues [default: as many steps as the bundle's inner loop has]
    #[arg(long, value_name = "E", value_parser = from_one::<MOST>, allow_negative_numbers = true)]
    pub epochs: Option<NonZeroUsize>,
    /// The learning rate [default: the bundle's]
    #[arg(long, value_name = "A", value_parser = learning_rate, allow_negative_numbers = true)]
    pub inner_lr: Option<f32>,
    /// Save a version also where the loss did not go down; a better one stays current
    #[arg(long)]
    pub even_if_worse: bool,
    /// The most memory to hold, such as 600MiB: steps are split, or activations computed twice, to fit
    #[arg(long, value_name = "SIZE", help_heading = "Device")]
    pub memory_limit: Option<ByteSize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

fn learning_rate(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected a number above 0".into()),
    }
}

/// The most threads within an operator.
const MOST_THREADS: usize = 1024;
/// The most of what is counted in files, and of passes over it.
const MOST: usize = InnerLoop::MOST_STEPS;

fn from_one<const MOST: usize>(text: &str) -> Result<NonZeroUsize, String> {
    let number = whole::<1, MOST>(text)?;
    NonZeroUsize::new(number).ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

/// Numbers of passes, each greater than the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epochs(pub Vec<usize>);

fn ascending(text: &str) -> Result<Epochs, String> {
    let numbers = text.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>();
    match numbers {
        Ok(numbers)
            if numbers.is_sorted_by(|before, after| before < after)
                && numbers.last().is_some_and(|&last| last <= MOST) =>
        {
            Ok(Epochs(numbers))
        }
        _ => Err(format!("expected whole numbers from 0 to {MOST} in ascending order, such as 0,1,3")),
    }
}

/// A bundle has no classifier, so it cannot be ranked by.
fn ranking() -> impl TypedValueParser<Value = RankBy> {
    one_of([RankBy::Mean, RankBy::Sum, RankBy::Pmi, RankBy::None], RankBy::name)
}

/// `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// The persona that replies, or a version of it, NAME@N [default: none, the bundle as it was trained]
    #[arg(long, value_name = "NAME")]
    pub persona: Option<PersonaRef>,
    /// Print one JSON object a reply
    #[arg(long)]
    pub json: bool,
    /// What is said to it; several are answered one after the other, each as the beginning of a conversation. What begins with a hyphen is
    /// joined: --prompt=-x
    #[arg(long, value_name = "TEXT", required = true, num_args = 1..)]
    pub prompt: Vec<String>,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// The persona to talk with, or a version of it, NAME@N [default: none, the bundle as it was trained]
    #[arg(long, value_name = "NAME")]
    pub persona: Option<PersonaRef>,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How /learn learns.
    #[command(flatten)]
    pub learning: LearningArgs,
}

/// `evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// Dialogues, in any format that the README lists, grouped into personas by their persona sentences
    #[arg(long, value_name = "FILE")]
    pub dialogues: PathBuf,
    /// The persona to begin at: with --shots 0 it is tested as it is [default: none, the bundle as it was trained]
    #[arg(long, value_name = "NAME")]
    pub persona: Option<PersonaRef>,
    /// The numbers of dialogues to adapt on
    #[arg(long, value_name = "K,K,…", value_delimiter = ',', default_value = "0,1,5,10", value_parser = whole::<0, MOST>, allow_negative_numbers = true)]
    pub shots: Vec<usize>,
    /// Only the first N personas
    #[arg(long, value_name = "N", value_parser = from_one::<MOST>, allow_negative_numbers = true)]
    pub personas: Option<NonZeroUsize>,
    /// Only the first N folds of each persona
    #[arg(long, value_name = "N", value_parser = from_one::<MOST>, allow_negative_numbers = true)]
    pub folds: Option<NonZeroUsize>,
    /// The longest reply to generate for F1, in tokens, greedy; 0 leaves F1 out
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole::<0, MOST_TOKENS>, allow_negative_numbers = true)]
    pub max_tokens: usize,
    /// Learn nothing: let what is to be adapted on stand in the prompt, as much as fits: the dialogues, or these and the persona's
    /// sentences
    #[arg(long, value_name = "WHAT", value_parser = one_of(Context::ALL, Context::name))]
    pub in_context: Option<Context>,
    /// A model of natural language inference: the folder with its model.onnx, tokenizer.json and config.json. It says of each reply which of
    /// the persona's sentences follow from it (PAML's consistency)
    #[arg(long, value_name = "DIR")]
    pub nli: Option<PathBuf>,
    /// Dialogues of people who are none of the personas: what is forgotten of them by adapting is measured on the first sixteen
    #[arg(long, value_name = "FILE")]
    pub reference: Option<PathBuf>,
    /// After how many passes over the dialogues to test, in ascending order; 0 tests without adapting [default: once, after as
    /// many steps as the bundle's inner loop has]
    #[arg(long, value_name = "E,E,…", value_parser = ascending, allow_negative_numbers = true)]
    pub epochs: Option<Epochs>,
    /// What ranks the candidates for Hits@1: the mean or the sum of the log-probabilities of a candidate's tokens, or
    /// log p(reply | context) - log p(reply)
    #[arg(long, value_name = "HOW", default_value = "mean", value_parser = ranking())]
    pub rank_by: RankBy,
    /// The learning rate [default: the bundle's]
    #[arg(long, value_name = "A", value_parser = learning_rate, allow_negative_numbers = true)]
    pub inner_lr: Option<f32>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// Compare all three graphs with what the trainer recorded; exit code 1 where one differs too much
    #[arg(long)]
    pub check: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole::<1, MOST_TOKENS>, allow_negative_numbers = true)]
    pub prompt_tokens: usize,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = whole::<1, MOST_TOKENS>, allow_negative_numbers = true)]
    pub new_tokens: usize,
    /// Rows of a step's batch
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = whole::<1, { Shape::MOST_ROWS }>, allow_negative_numbers = true)]
    pub batch: usize,
    /// Tokens of a row
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = whole::<2, MOST_TOKENS>, allow_negative_numbers = true)]
    pub length: usize,
    /// Measure so many conversations at once too, each with adapters of its own, such as 1,2,4,8
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = whole::<1, { bench::MOST_CONVERSATIONS }>, allow_negative_numbers = true)]
    pub rows: Vec<usize>,
    /// Measure one part alone, so that the peak memory is its own
    #[arg(long, value_name = "PART", value_parser = one_of(Part::ALL, Part::name))]
    pub only: Option<Part>,
    /// The most memory to hold while adapting, such as 600MiB: steps are split, or activations computed twice, to fit
    #[arg(long, value_name = "SIZE", help_heading = "Device")]
    pub memory_limit: Option<ByteSize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests;
