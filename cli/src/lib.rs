//! The command line of `marionette`: each command is a module, which parses nothing and decides nothing of the model; what it does is
//! `marionette-runtime`'s.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use marionette_console::{interrupt, say};
use marionette_models::FileError;
use marionette_runtime::Error;
use marionette_runtime::sampling::SamplingError;

pub mod adapt;
pub mod args;
pub mod bench;
pub mod chat;
mod common;
pub mod dialogues;
pub mod doctor;
pub mod evaluate;
pub mod generate;
pub mod inspect;
pub mod personas;
pub mod settings;

use args::{Cli, Command};

/// Does what the command line says, and gives the exit code; an error is said.
pub fn run(cli: &Cli) -> ExitCode {
    if cli.quiet {
        marionette_console::be_quiet();
    }
    let result = match &cli.command {
        Command::Adapt(args) => adapt::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Personas(args) => personas::run(args),
        Command::Dialogues(args) => dialogues::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions { shell } => completions(*shell),
        Command::Man { dir } => manual(dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has enough.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Only standard output's errors come bare: every other one names its file.
            let what = if error.is::<io::Error>() { "the output cannot be written: " } else { "" };
            say(format_args!("marionette: {what}{error}"));
            match error.downcast_ref::<Error>() {
                Some(Error::Interrupted | Error::Stopped) => ExitCode::from(interrupt::EXIT_CODE),
                Some(Error::Sampling(_)) if is_usage(&error) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// The completions of a shell, from the definitions of the command line.
fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "marionette", &mut script);
    Ok(io::stdout().lock().write_all(&script)?)
}

/// The manual pages, from the same definitions.
fn manual(dir: &Path) -> anyhow::Result<()> {
    marionette_models::files::create_folders(dir)?;
    let failed = |error| FileError::new(dir, format!("the manual pages cannot be written: {error}"));
    Ok(clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_error = match error.downcast_ref::<Error>() {
        Some(Error::Output(error)) => Some(error),
        _ => error.downcast_ref::<io::Error>(),
    };
    io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn is_usage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Sampling(SamplingError::Option { .. })))
}
