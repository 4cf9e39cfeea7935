//! The command line of `marionette`: each command is a module, which parses nothing and decides nothing of the model; what it does is
//! `marionette-runtime`'s.

use std::io;
use std::process::ExitCode;

use marionette_console::{interrupt, say};
use marionette_runtime::Error;
use marionette_runtime::sampling::SamplingError;

pub mod adapt;
pub mod args;
pub mod bench;
pub mod chat;
mod common;
pub mod dialogues;
pub mod evaluate;
pub mod generate;
pub mod inspect;
pub mod personas;

use args::{Cli, Command};

/// Does what the command line says, and gives the exit code; an error is said.
pub fn run(cli: &Cli) -> ExitCode {
    let result = match &cli.command {
        Command::Adapt(args) => adapt::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Personas(args) => personas::run(args),
        Command::Dialogues(args) => dialogues::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => bench::run(args),
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
