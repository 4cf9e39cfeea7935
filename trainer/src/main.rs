//! `marionette-train`: reads the command line, calls the library, prints the result.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use marionette_trainer::device::DeviceName;
use marionette_trainer::workers::Compute;
use marionette_trainer::{Result, TrainError, evaluate, interrupt, pretrain, train};

/// Meta-trains persona adapters for a GPT-2 (MAMLviaPP).
#[derive(Parser)]
#[command(name = "marionette-train", version)]
struct Arguments {
    /// Threads of libtorch; all cores unless told
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// The device that computes
    #[arg(long, global = true, value_enum, default_value_t)]
    device: DeviceName,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pre-train a small GPT-2 from scratch
    Pretrain(pretrain::Options),
    /// Meta-train adapters on personas
    Run(Run),
    /// Evaluate a run on personas that it has not seen
    Evaluate(evaluate::Options),
}

#[derive(clap::Args)]
struct Run {
    /// The run directory to make
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Do again what the config.toml of a former run says
    #[arg(long, value_name = "FILE", conflicts_with_all = ["Settings", "Data", "Outer"])]
    config: Option<PathBuf>,
    /// Personas computed side by side, each with its own memory; on a processor one a thread unless told, on a GPU one
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    #[command(flatten)]
    settings: train::Settings,
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match arguments.threads {
        Some(threads) if threads == 0 || threads > 1024 => {
            return Err(TrainError::option("--threads", format!("is {threads}, expected 1 to 1024")));
        }
        other => other.unwrap_or(cores),
    };
    let device = arguments.device.open()?;
    tch::set_num_threads(threads as i32);
    interrupt::listen();
    match arguments.command {
        Command::Pretrain(options) => {
            let report = pretrain::pretrain(&options, device)?;
            println!("{report}");
            Ok(ended(report.interrupted, &options.out))
        }
        Command::Run(Run { out, config, workers, settings }) => {
            let mut compute = Compute::new(device, threads);
            compute.workers = match workers {
                Some(workers) if workers == 0 || workers > 1024 => {
                    return Err(TrainError::option("--workers", format!("is {workers}, expected 1 to 1024")));
                }
                other => other.unwrap_or(compute.workers),
            };
            let (config, base) = match config {
                Some(path) => train::Config::read(&path)?,
                None => settings.resolve()?,
            };
            let report = train::run(&config, &base, &out, compute)?;
            println!("{report}");
            Ok(ended(report.interrupted, &out))
        }
        Command::Evaluate(options) => {
            let evaluation = evaluate::evaluate(&options, device)?;
            match options.json {
                true => println!("{}", serde_json::json!(evaluation)),
                false => println!("{evaluation}"),
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The exit code of a program that saved its result.
fn ended(interrupted: bool, out: &std::path::Path) -> ExitCode {
    if interrupted {
        eprintln!("marionette-train: interrupted; what was learned so far is in {}", out.display());
        return ExitCode::from(interrupt::EXIT_CODE);
    }
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("marionette-train: {error}");
            match error {
                TrainError::Option { .. } => ExitCode::from(2),
                TrainError::Interrupted => ExitCode::from(interrupt::EXIT_CODE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
