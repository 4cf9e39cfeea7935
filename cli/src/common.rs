//! What several commands do alike: opening a bundle with a persona, reading dialogues, printing a reply.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use marionette_console::{interrupt, note};
use marionette_dialogues::{Dialogue, Encoder, FileSummary, Rules, read_chat, read_persona};
use marionette_models::terminal::printable;
use marionette_runtime::chat::Said;
use marionette_runtime::generate::Go;
use marionette_runtime::persona_name::PersonaRef;
use marionette_runtime::{Engine, Error, engine};

use crate::args::{ChatRules, Common, Home};

/// A bundle that is open.
pub struct Opened {
    pub engine: Engine,
    pub encoder: Encoder,
    /// The sentences of the persona.
    pub sentences: Vec<String>,
}

/// Opens the bundle on its device, with a persona where one is named.
pub fn open(common: &Common, persona: Option<(&PersonaRef, &Home)>) -> Result<Opened, Error> {
    let (mut engine, encoder) = engine::open(&common.bundle, common.options())?;
    let mut sentences = Vec::new();
    if let Some((PersonaRef { name, version }, home)) = persona {
        let persona = home.store()?.load(name, *version, engine.manifest())?;
        engine.set_adapters(&persona.adapters)?;
        sentences = persona.record.persona;
    }
    Ok(Opened { engine, encoder, sentences })
}

/// Ends work in hand cleanly when the user interrupts.
pub fn listen() -> Result<(), Error> {
    interrupt::take_over(None).map_err(|error| Error::Impossible(format!("SIGINT cannot be handled: {error}")))
}

/// The dialogues of one persona's files, the first so many of them.
pub fn read(paths: &[PathBuf], rules: &ChatRules, most: usize) -> Result<Vec<Dialogue>, Error> {
    let mut dialogues = Vec::new();
    let files = read_persona(paths, &rules.rules(), rules.redaction(false)?.as_ref(), &mut |dialogue| {
        if dialogues.len() < most {
            dialogues.push(dialogue);
        }
    })?;
    files.iter().for_each(tell);
    Ok(dialogues)
}

/// Says who of a file was taken for the persona, and what was left out.
fn tell(file: &FileSummary) {
    file.notes().for_each(|line| note(format_args!("{}: {line}", file.path.display())));
}

/// The dialogues of any personas in a file.
pub fn read_any(path: &Path) -> Result<Vec<Dialogue>, Error> {
    let (file, dialogues) = read_chat(path, &Rules::default())?.into_parts(path);
    tell(&file);
    Ok(dialogues)
}

pub fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Prints a reply piece by piece and ends its line: `reply` gives it to what it is handed.
pub fn answer(
    reply: impl FnOnce(&mut dyn FnMut(&str) -> Result<Go, Error>) -> Result<Said, Error>,
    mut go: impl FnMut() -> Go,
) -> Result<Said, Error> {
    let mut out = io::stdout().lock();
    let said = reply(&mut |piece| {
        out.write_all(printable(piece).as_bytes())?;
        out.flush()?;
        Ok(go())
    })?;
    writeln!(out)?;
    out.flush()?;
    if said.cut {
        note("(these words are longer than the context: only their end was read)");
    }
    Ok(said)
}
