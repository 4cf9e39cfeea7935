//! `marionette-export`: parses the command line and prints.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use marionette_console::interrupt::{self, Work};
use marionette_console::options::{MOST_TOKENS, whole};
use marionette_exporter::{ExportError, Exported, FreshAdapters, Source, export, import, report};
use marionette_models::AdapterConfig;
use marionette_models::bundle::{Operators, Precision};

/// Turns a run directory, or a Hugging Face model folder with fresh adapters, into a bundle that the device runs.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    bundle: Option<BundleArgs>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turns a GGUF file into a Hugging Face model folder, which the trainer and this program read
    Import {
        /// The file: of the Llama architecture, with values of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or the K-quants
        gguf: PathBuf,
        /// The folder to make
        #[arg(long)]
        out: PathBuf,
        /// Shorten the model's context to so many tokens [default: the file's own]
        #[arg(long, value_name = "TOKENS", value_parser = whole::<1, MOST_TOKENS>, allow_negative_numbers = true)]
        context: Option<usize>,
    },
}

#[derive(Debug, clap::Args)]
struct BundleArgs {
    /// A run directory of marionette-train (its best checkpoint is taken), or a Hugging Face model folder (GPT-2, Llama)
    source: PathBuf,
    /// The bundle: a new folder, or an older bundle to be replaced
    #[arg(long)]
    out: PathBuf,
    /// How the frozen weights are stored
    #[arg(long, value_enum, default_value_t = PrecisionArg::Fp32)]
    precision: PrecisionArg,
    /// Which operators the graphs are made of
    #[arg(long, value_enum, default_value_t = OperatorsArg::Ort)]
    ops: OperatorsArg,
    /// Where a run's base model lies by now; the same one as ever
    #[arg(long)]
    base: Option<PathBuf>,
    /// Shorten the model's context to so many tokens: the cache of keys and values takes as much less [default: the model's own]
    #[arg(long, value_name = "TOKENS", value_parser = whole::<1, MOST_TOKENS>, allow_negative_numbers = true)]
    context: Option<usize>,
    #[arg(long, value_parser = whole::<1, { AdapterConfig::MOST_BOTTLENECK }>, allow_negative_numbers = true, help = format!("Width of fresh adapters, for a model folder or a run that learned none [default: {}]",
        AdapterConfig::default().bottleneck))]
    bottleneck: Option<usize>,
    /// Seed of fresh adapters, for a model folder or a run that learned none [default: 0]
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionArg {
    /// 32-bit floating point
    Fp32,
    /// 16-bit floating point
    Fp16,
    /// 8-bit integers, a scale a column
    Int8,
    /// 4-bit integers, a scale for each 128
    Int4,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Fp32 => Self::Fp32,
            PrecisionArg::Fp16 => Self::Fp16,
            PrecisionArg::Int8 => Self::Int8,
            PrecisionArg::Int4 => Self::Int4,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OperatorsArg {
    /// ONNX's own, ONNX Runtime's where it has faster ones, and functions for which marionette has kernels
    Ort,
    /// ONNX's own alone, for execution providers and runtimes that know no others
    Standard,
}

impl From<OperatorsArg> for Operators {
    fn from(operators: OperatorsArg) -> Self {
        match operators {
            OperatorsArg::Ort => Self::Ort,
            OperatorsArg::Standard => Self::Standard,
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{error:#}"));
            ExitCode::from(match error.downcast_ref() {
                Some(ExportError::Usage(_)) => 2,
                Some(ExportError::Interrupted | ExportError::Unmeasured) => interrupt::EXIT_CODE,
                _ => 1,
            })
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    interrupt::take_over(None).context("SIGINT cannot be handled")?;
    let _work = Work::begin();
    match (&args.command, &args.bundle) {
        (Some(Command::Import { gguf, out, context }), _) => {
            let imported = import(gguf, out, *context, interrupt::flag())?;
            let line = format!("{}: {}, {} parameters", out.display(), imported.config.family, imported.parameters);
            printed(std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{line}\n")))
        }
        (None, Some(args)) => bundle(args),
        // The parser wants one of them.
        (None, None) => printed(Args::command().print_help()),
    }
}

fn bundle(args: &BundleArgs) -> anyhow::Result<()> {
    let fresh = FreshAdapters { bottleneck: args.bottleneck, seed: args.seed };
    let mut source = Source::read(&args.source, fresh, args.base.as_deref())?;
    if let Some(context) = args.context {
        source = source.with_context(context)?;
    }
    for note in source.base.notes.iter().chain(&source.hint) {
        say(format_args!("{note}"));
    }
    let exported = export(&source, args.precision.into(), args.ops.into(), &args.out, interrupt::flag())?;
    printed(print(&exported))?;
    if exported.manifest.precision != Precision::Fp32 {
        let (precision, operators) = (exported.manifest.precision, exported.manifest.operators);
        let report = report::measure(&source, precision, operators, &args.out, interrupt::flag())?;
        printed(std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{report}")))?;
        if report.gradient.is_low() {
            say(format_args!(
                "warning: the adapters' gradient is far from fp32's, so that adapting may not teach this bundle a persona: \
                 choose a higher --precision"
            ));
        }
    }
    Ok(())
}

/// A line on standard error.
fn say(line: std::fmt::Arguments<'_>) {
    marionette_console::say(format_args!("marionette-export: {line}"));
}

fn printed(result: std::io::Result<()>) -> anyhow::Result<()> {
    match result {
        // Whoever read the output has enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("all is written, but what was done cannot be printed"),
    }
}

fn print(exported: &Exported) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    for (name, entry) in &exported.manifest.files {
        let content = match exported.nodes.get(name.as_str()) {
            Some(nodes) => format!("{nodes} nodes"),
            None if name == marionette_models::bundle::WEIGHTS => {
                format!("{} frozen parameters", exported.frozen_parameters)
            }
            None if name == marionette_models::bundle::ADAPTERS => {
                format!("{} adapter parameters", exported.adapter_parameters)
            }
            None => String::new(),
        };
        writeln!(out, "{}", format!("{name:<22}{:>14} bytes   {content}", entry.bytes).trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_limits_which_are_said() {
        let parse =
            |option: &str, value: &str| Args::try_parse_from(["marionette-export", "x", "--out", "y", option, value]);
        for value in ["18446744073709551616", "18446744073709551615", "1000000000000", "32769", "0", "-1", "nan"] {
            let error = parse("--bottleneck", value).map(drop).expect_err(value);
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            assert!(error.exit_code() == 2 && first.contains("--bottleneck") && first.contains("1 to 32768"), "{text}");
        }
        for (option, value) in [("--bottleneck", "1"), ("--bottleneck", "32768"), ("--seed", "18446744073709551615")] {
            assert!(parse(option, value).is_ok(), "{option} {value}");
        }
        assert_eq!(parse("--seed", "-1").map(drop).expect_err("-1").exit_code(), 2);
    }
}
