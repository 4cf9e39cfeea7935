//! The commands `personas …`: what there is, and going back to what there was.

mod differences;
mod told;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use anyhow::anyhow;
use marionette_console::say;
use marionette_models::terminal::printable_line;
use marionette_runtime::adapt::divide;
use marionette_runtime::persona_name::{PersonaName, PersonaRef};
use marionette_runtime::personas::{PersonaError, Store, Version};

use self::differences::Differences;
use self::told::{Told, versions};
use crate::adapt::{self, Lesson};
use crate::args::{
    DiffArgs, ExportArgs, HistoryArgs, ImportArgs, ListArgs, PersonasArgs, PersonasCommand, ReadaptArgs, RemoveArgs,
    RenameArgs, RevertArgs, ShowArgs,
};
use crate::common::{Opened, listen, open};

/// Does what is asked of the personas.
///
/// # Errors
/// There is no such persona or version; it is busy; a file cannot be read or written.
pub fn run(args: &PersonasArgs) -> anyhow::Result<()> {
    match &args.command {
        PersonasCommand::List(args) => list(args),
        PersonasCommand::Show(args) => show(args),
        PersonasCommand::History(args) => history(args),
        PersonasCommand::Diff(args) => diff(args),
        PersonasCommand::Revert(args) => revert(args),
        PersonasCommand::Rename(args) => rename(args),
        PersonasCommand::Remove(args) => remove(args),
        PersonasCommand::Export(args) => export(args),
        PersonasCommand::Import(args) => import(args),
        PersonasCommand::Readapt(args) => readapt(args),
    }
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let store = args.home.store()?;
    let mut found = Vec::new();
    for name in store.names().iter().filter_map(|name| name.parse::<PersonaName>().ok()) {
        // One that is broken does not hide the others.
        match store.version(&name, None) {
            Ok(version) => found.push(Told::new(&name, version)),
            Err(error) => say(format_args!("{name}: {error}")),
        }
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "folder": store.folder(), "personas": found }))?;
    } else if found.is_empty() {
        say(format_args!("no personas in {}; `marionette adapt` makes one", store.folder().display()));
    } else {
        write!(out, "{}", versions(&found, |told| told.persona.clone()))?;
    }
    Ok(())
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let store = args.home.store()?;
    let PersonaRef { name, version } = &args.persona;
    let told = Told::new(name, store.version(name, *version)?);
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&told)?)?,
        false => write!(out, "{told}")?,
    }
    Ok(())
}

fn history(args: &HistoryArgs) -> anyhow::Result<()> {
    let store = args.home.store()?;
    let name = &args.persona;
    let mut found = Vec::new();
    for number in store.versions(name)? {
        match store.version(name, Some(number)) {
            Ok(version) => found.push(Told::new(name, version)),
            Err(error) => say(format_args!("{name}@{number}: {error}")),
        }
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "persona": name.as_str(), "versions": found }))?;
        return Ok(());
    }
    write!(
        out,
        "{}",
        versions(&found, |told| format!("{}{}", if told.is_current { "* " } else { "  " }, told.version))
    )?;
    Ok(())
}

fn diff(args: &DiffArgs) -> anyhow::Result<()> {
    let store = args.home.store()?;
    let one = numbered(&store, &args.one)?;
    let other = match &args.other {
        Some(other) => numbered(&store, other)?,
        None => {
            let before = store.versions(&one.0)?.into_iter().rfind(|&number| number < one.1.number);
            let before =
                before.ok_or_else(|| anyhow!("{}@{} is the first version: name another", one.0, one.1.number))?;
            (one.0.clone(), store.version(&one.0, Some(before))?)
        }
    };
    // The older one first, as a change is told.
    let (one, other) = if args.other.is_none() { (other, one) } else { (one, other) };
    let differences = Differences::between(&store, one, other)?;
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&differences)?)?,
        false => write!(out, "{differences}")?,
    }
    Ok(())
}

fn numbered(store: &Store, persona: &PersonaRef) -> Result<(PersonaName, Version), PersonaError> {
    Ok((persona.name.clone(), store.version(&persona.name, persona.version)?))
}

fn revert(args: &RevertArgs) -> anyhow::Result<()> {
    let store = args.home.store()?;
    let version = store.lock(&args.persona)?.revert(args.version.map(usize::from))?;
    writeln!(io::stdout(), "{}@{version} is current", args.persona)?;
    Ok(())
}

fn rename(args: &RenameArgs) -> anyhow::Result<()> {
    let store = args.home.store()?;
    let from = store.lock(&args.persona)?;
    let to = store.lock(&args.to)?;
    from.rename(&to)?;
    writeln!(io::stdout(), "{} is {} now", args.persona, args.to)?;
    Ok(())
}

fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    let store = args.home.store()?;
    let PersonaRef { name, version } = &args.persona;
    let lock = store.lock(name)?;
    let versions = store.versions(name)?.len();
    let what = match version {
        Some(version) => format!("version {version} of {name}"),
        None => format!("{name} with {}", crate::common::count(versions, "version")),
    };
    if !args.yes && !agreed(&format!("remove {what}? It cannot be had back. [y/N] "))? {
        return Err(anyhow!("nothing was removed"));
    }
    match version {
        Some(version) => lock.remove_version(*version)?,
        None => lock.remove()?,
    }
    writeln!(io::stdout(), "removed {what}")?;
    Ok(())
}

/// Asks on a terminal; elsewhere nobody could answer.
fn agreed(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(anyhow!("nobody is there to be asked; --yes removes without asking"));
    }
    write!(io::stderr(), "{question}")?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let store = args.home.store()?;
    let PersonaRef { name, version } = &args.persona;
    store.export(name, *version, args.format, &args.out)?;
    let out = args.out.display().to_string();
    writeln!(io::stdout(), "{} is in {}", args.persona, printable_line(&out))?;
    Ok(())
}

fn import(args: &ImportArgs) -> anyhow::Result<()> {
    let store = args.home.store()?;
    let saved = store.lock(&args.persona)?.import(&args.file)?;
    writeln!(io::stdout(), "{}@{} is current", args.persona, saved.version)?;
    Ok(())
}

fn readapt(args: &ReadaptArgs) -> anyhow::Result<()> {
    let ReadaptArgs { persona: PersonaRef { name, version }, common, home, learning } = args;
    let (dialogues, held_out, _) = adapt::again(&home.store()?, name, *version)?;
    let (there, holdout) = (dialogues.len(), learning.holdout.unwrap_or(held_out));
    let source = args.persona.to_string();
    divide(there, None, Some(holdout)).map_err(|error| anyhow!("{source}: {error}"))?;
    let Opened { mut engine, encoder, .. } = open(common, None)?;
    listen()?;
    let lesson = Lesson { home, persona: name, from: None, dialogues, holdout, source, keep_dialogues: true, learning };
    adapt::learn(&mut engine, &encoder, &lesson)
}
