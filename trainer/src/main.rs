//! `marionette-train`: reads the command line, calls the library, prints the result.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use marionette_trainer::{Result, TrainError, interrupt, pretrain};
use tch::Device;

/// Meta-trains persona adapters for a GPT-2 (MAMLviaPP).
#[derive(Parser)]
#[command(name = "marionette-train", version)]
struct Arguments {
    /// Threads of libtorch; all cores unless told
    #[arg(long, global = true)]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pre-train a small GPT-2 from scratch
    Pretrain(pretrain::Options),
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match arguments.threads {
        Some(threads) if threads == 0 || threads > 1024 => {
            return Err(TrainError::option("--threads", format!("is {threads}, expected 1 to 1024")));
        }
        other => other.unwrap_or(cores),
    };
    tch::set_num_threads(threads as i32);
    interrupt::listen();
    match arguments.command {
        Command::Pretrain(options) => {
            let report = pretrain::pretrain(&options, Device::Cpu)?;
            println!(
                "{} parameters, {} steps, {} tokens in {:.0} s ({:.0} tok/s), loss {:.4}{}",
                report.parameters,
                report.steps,
                report.tokens,
                report.seconds,
                report.tokens as f64 / report.seconds.max(1e-9),
                report.train_loss,
                report.valid_loss.map_or_else(String::new, |loss| format!(
                    ", validation {loss:.4} (perplexity {:.2})",
                    loss.exp()
                )),
            );
            if report.interrupted {
                eprintln!("marionette-train: interrupted; the model as it is now is in {}", options.out.display());
                return Ok(ExitCode::from(interrupt::EXIT_CODE));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
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
