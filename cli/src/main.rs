//! `marionette`: parses the command line.

use std::process::ExitCode;

use clap::Parser as _;
use marionette_cli::args::Cli;
use marionette_runtime::session;

fn main() -> ExitCode {
    // SAFETY: the first statement of the program; no other thread runs yet.
    unsafe { session::disable_telemetry() };
    marionette_cli::run(&Cli::parse())
}
