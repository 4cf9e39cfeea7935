//! `marionette-train`: reads the command line, calls the library, prints the result.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use marionette_console::interrupt::{self, Work};
use marionette_console::say;
use marionette_models::terminal::printable;
use marionette_trainer::device::DeviceName;
use marionette_trainer::workers::Compute;
use marionette_trainer::{Result, TrainError, compare, data, evaluate, memory, pretrain, publish, train};

/// Meta-trains persona adapters for a language model (MAMLviaPP).
#[derive(Parser)]
#[command(name = "marionette-train", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What computes.
#[derive(clap::Args)]
struct Machine {
    /// Threads of libtorch; all cores unless told
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The device that computes
    #[arg(long, value_enum, default_value_t)]
    device: DeviceName,
}

impl Machine {
    /// The device, and the number of threads.
    fn open(&self) -> Result<(tch::Device, usize)> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = match self.threads {
            Some(threads) if threads == 0 || threads > 1024 => {
                return Err(TrainError::option("--threads", format!("is {threads}, expected 1 to 1024")));
            }
            other => other.unwrap_or(cores),
        };
        let device = self.device.open()?;
        tch::set_num_threads(threads as i32);
        // Those that products of integers are shared out to; there is one pool a process.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        // Where no handler can be set, a signal does what it does by default: it ends the program.
        let _ = interrupt::take_over(Some("finishing the step; once more to stop at once"));
        Ok((device, threads))
    }

    fn compute(&self, workers: Option<usize>) -> Result<Compute> {
        let (device, threads) = self.open()?;
        let usual = Compute::new(device, threads);
        match workers {
            Some(workers) if workers == 0 || workers > 1024 => {
                Err(TrainError::option("--workers", format!("is {workers}, expected 1 to 1024")))
            }
            other => Ok(Compute { workers: other.unwrap_or(usual.workers), ..usual }),
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Pre-train a small GPT-2 from scratch
    Pretrain(Pretrain),
    /// Train on personas
    Run(Run),
    /// Evaluate a run on personas that it has not seen
    Evaluate(Evaluate),
    /// Train and evaluate every method, and report: the paper's table, figure and samples
    Compare(Box<Compare>),
    /// Make of a run's adapters a small run directory to pass on
    Publish(Publish),
    /// Say what dialogue files hold: dialogues, personas, replies, tokens
    Data(Data),
}

#[derive(clap::Args)]
struct Pretrain {
    #[command(flatten)]
    options: pretrain::Options,
    #[command(flatten)]
    machine: Machine,
}

#[derive(clap::Args)]
struct Run {
    /// The run directory to make
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Do again what the config.toml of a former run says
    #[arg(long, value_name = "FILE", conflicts_with_all = ["Settings", "Data", "Plan"])]
    config: Option<PathBuf>,
    /// Go on with the run of --out where it was left: what is not given again is as its config.toml says. --iterations,
    /// --patience, --save-every and --keep may be others than before; --base, --data and --valid give new places of the
    /// same files. What else would change the result needs --force
    #[arg(long)]
    resume: bool,
    /// Go on although settings or data are others than the run was begun with; each that changes is said
    #[arg(long, requires = "resume")]
    force: bool,
    /// First compare losses and gradients on the device with those on the processor, and stop where they differ
    #[arg(long)]
    check_device: bool,
    /// Personas computed side by side, each with its own memory; on a processor one a thread unless told, on a GPU one
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    #[command(flatten)]
    settings: train::Settings,
    #[command(flatten)]
    machine: Machine,
}

#[derive(clap::Args)]
struct Evaluate {
    #[command(flatten)]
    options: evaluate::Options,
    /// Personas computed side by side, each with its own memory; on a processor one a thread unless told, on a GPU one
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    #[command(flatten)]
    machine: Machine,
}

#[derive(clap::Args)]
struct Compare {
    #[command(flatten)]
    options: compare::Options,
    /// Personas computed side by side, each with its own memory; on a processor one a thread unless told, on a GPU one
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    #[command(flatten)]
    machine: Machine,
}

#[derive(clap::Args)]
struct Publish {
    #[command(flatten)]
    options: publish::Options,
    #[command(flatten)]
    machine: Machine,
}

#[derive(clap::Args)]
struct Data {
    /// Dialogue files, of any format that can be trained on
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The model whose tokenizer counts tokens: a Hugging Face folder, or a name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME")]
    base: Option<PathBuf>,
    /// Take a model of the hub from the local cache alone
    #[arg(long)]
    offline: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn run(arguments: Arguments, given: &train::Given) -> Result<ExitCode> {
    // A first signal only asks, where signals are taken over.
    let _work = Work::begin();
    match arguments.command {
        Command::Pretrain(Pretrain { options, machine }) => {
            let (device, _) = machine.open()?;
            let report = pretrain::pretrain(&options, device)?;
            print(&report)?;
            Ok(ended(report.interrupted, &options.out))
        }
        Command::Run(Run { out, config, resume, force, check_device, workers, settings, machine }) => {
            let compute = machine.compute(workers)?;
            let device = compute.device;
            let recorded = out.join(marionette_models::run::CONFIG_TOML);
            let (config, base) = match config {
                Some(path) => train::Config::read(&path)?,
                None if resume && recorded.is_file() => settings.over(&recorded, given)?,
                None => settings.resolve(device)?,
            };
            let resume = match (resume, force) {
                (false, _) => train::Resume::No,
                (true, false) => train::Resume::Same,
                (true, true) => train::Resume::Forced,
            };
            if check_device {
                say(train::check_device(&config, &base, device)?);
            }
            let report = train::run(&config, base, &out, compute, resume)?;
            print(report)?;
            Ok(ended(report.interrupted, &out))
        }
        Command::Evaluate(Evaluate { options, workers, machine }) => {
            let evaluation = evaluate::evaluate(&options, machine.compute(workers)?)?.evaluation();
            match options.json {
                true => print(serde_json::json!(evaluation))?,
                false => print(&evaluation)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Compare(compare) => {
            let Compare { options, workers, machine } = *compare;
            let words: Vec<String> = std::env::args().collect();
            let table = compare::compare(&options, machine.compute(workers)?, words.join(" "))?;
            print(table)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Publish(Publish { options, machine }) => {
            print(publish::publish(&options, machine.open()?.0)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Data(Data { files, base, offline, json }) => {
            let summary = data::summarise(&files, base.as_deref(), offline)?;
            match json {
                true => print(serde_json::json!(summary))?,
                false => print(&summary)?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Prints a result. Whoever closed the pipe has enough.
fn print(result: impl std::fmt::Display) -> Result<()> {
    match writeln!(std::io::stdout(), "{}", printable(&result.to_string())) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// The exit code of a program that saved its result.
fn ended(interrupted: bool, out: &std::path::Path) -> ExitCode {
    if interrupted {
        say(format_args!("marionette-train: interrupted; what was learned so far is in {}", out.display()));
        return ExitCode::from(interrupt::EXIT_CODE);
    }
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    // SAFETY: the first statement of the program; the libraries start threads only when they are asked to compute.
    unsafe { memory::prepare() };
    let matches = Arguments::command().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let given = matches.subcommand().map(|(_, matches)| train::Given::of(matches)).unwrap_or_default();
    match run(arguments, &given) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("marionette-train: {error}"));
            match error {
                TrainError::Option { .. } => ExitCode::from(2),
                TrainError::Interrupted => ExitCode::from(interrupt::EXIT_CODE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
