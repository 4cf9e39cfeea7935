//! `marionette`: parses the command line.

use std::env;
use std::process::ExitCode;

use clap::Parser as _;
use marionette_cli::args::Cli;
use marionette_cli::settings;
use marionette_console::say;
use marionette_runtime::session;

fn main() -> ExitCode {
    // SAFETY: the first statement of the program; no other thread runs yet.
    unsafe { session::disable_telemetry() };
    let settings = match settings::of_file() {
        Ok(settings) => settings,
        Err(error) => {
            say(format_args!("marionette: {error}"));
            return ExitCode::FAILURE;
        }
    };
    for (variable, value) in &settings {
        // SAFETY: as above.
        unsafe { env::set_var(variable, value) };
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Where a value may come from the file, the error has to say so.
            if let (true, Some(file)) = (error.use_stderr() && !settings.is_empty(), settings::file()) {
                say(format_args!("({} sets options too)", file.display()));
            }
            error.exit()
        }
    };
    marionette_cli::run(&cli)
}
