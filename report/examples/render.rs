//! Renders a `comparison.json` again: `cargo run -p marionette-report --example render -- comparison.json OUT`.

use std::path::PathBuf;

use clap::Parser;

/// Makes the report of a comparison from its `comparison.json`.
#[derive(Parser)]
struct Arguments {
    /// The file that `marionette-train compare` wrote.
    comparison: PathBuf,
    /// The folder that the report goes into.
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    marionette_report::write(&arguments.out, &marionette_report::read(&arguments.comparison)?)?;
    println!("{}", arguments.out.join("index.html").display());
    Ok(())
}
