//! The command line of `personas …`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use marionette_runtime::persona_name::{PersonaName, PersonaRef};
use marionette_runtime::personas::Format;

use super::{Common, Home, LearningArgs, MOST, from_one, one_of};

/// `personas`.
#[derive(Debug, Args)]
pub struct PersonasArgs {
    /// What is done with them.
    #[command(subcommand)]
    pub command: PersonasCommand,
}

/// What is done with personas.
#[derive(Debug, Subcommand)]
pub enum PersonasCommand {
    /// The personas that there are
    List(ListArgs),
    /// What a persona was learned from, and how
    Show(ShowArgs),
    /// All versions of a persona
    History(HistoryArgs),
    /// What two versions, or two personas, differ in
    Diff(DiffArgs),
    /// Make another version the current one
    Revert(RevertArgs),
    /// Give a persona another name
    Rename(RenameArgs),
    /// Remove a persona, or one of its versions
    Remove(RemoveArgs),
    /// Write a persona's adapters to a file
    Export(ExportArgs),
    /// Take a persona from a file that was exported
    Import(ImportArgs),
    /// Learn a persona again from the dialogues that were kept with it, on this bundle
    Readapt(ReadaptArgs),
}

/// `personas list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `personas show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The persona, or a version of it, NAME@N
    #[arg(value_name = "NAME")]
    pub persona: PersonaRef,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `personas history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The persona
    #[arg(value_name = "NAME")]
    pub persona: PersonaName,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `personas diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// A persona, or a version of it, NAME@N
    #[arg(value_name = "NAME")]
    pub one: PersonaRef,
    /// Another [default: the version before it]
    #[arg(value_name = "OTHER")]
    pub other: Option<PersonaRef>,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `personas revert`.
#[derive(Debug, Args)]
pub struct RevertArgs {
    /// The persona
    #[arg(value_name = "NAME")]
    pub persona: PersonaName,
    /// The version [default: the one before the current one]
    #[arg(value_name = "VERSION", value_parser = from_one::<MOST>)]
    pub version: Option<NonZeroUsize>,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
}

/// `personas rename`.
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// The persona
    #[arg(value_name = "NAME")]
    pub persona: PersonaName,
    /// Its new name
    #[arg(value_name = "NEW")]
    pub to: PersonaName,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
}

/// `personas remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The persona, with all its versions; or one version of it, NAME@N
    #[arg(value_name = "NAME")]
    pub persona: PersonaRef,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
}

/// `personas export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The persona, or a version of it, NAME@N
    #[arg(value_name = "NAME")]
    pub persona: PersonaRef,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// For whom: another marionette (safetensors), ONNX Runtime's adapters, or NumPy
    #[arg(long, value_name = "FORMAT", default_value = Format::Safetensors.name(), value_parser = one_of(Format::ALL, Format::name))]
    pub format: Format,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
}

/// `personas import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file, as `personas export` wrote it (safetensors)
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The persona that gets it as a new version
    #[arg(long, value_name = "NAME")]
    pub persona: PersonaName,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
}

/// `personas readapt`.
#[derive(Debug, Args)]
pub struct ReadaptArgs {
    /// The persona, or the version whose dialogues are taken, NAME@N
    #[arg(value_name = "NAME")]
    pub persona: PersonaRef,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// Where personas are.
    #[command(flatten)]
    pub home: Home,
    /// How it is learned.
    #[command(flatten)]
    pub learning: LearningArgs,
}
