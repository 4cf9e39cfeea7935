//! All files of one persona: what they say of it together, and what of them should not be learned.

use std::path::{Path, PathBuf};

use super::unpack::{CONTAINERS, TEXTS, ending};
use super::{Found, LeftOut};
use crate::conversation::{About, Census, Copies, Me, Message, Repeats, Rules, Sink, Speakers};
use crate::redact::{Redaction, Redactions};
use crate::{DataError, Dialogue, FileSummary};

/// What the first reading of a text tells.
struct Survey<'a> {
    census: Census,
    repeats: &'a mut Repeats,
    silence: u64,
    /// The persona's sentences, where some are there.
    persona: Option<Vec<String>>,
}

impl Sink for Survey<'_> {
    fn begin(&mut self, about: About) {
        self.repeats.begin();
        if self.persona.is_none() && !about.persona.is_empty() {
            self.persona = Some(about.persona.clone());
        }
        self.census.begin(about);
    }

    fn message(&mut self, message: Message) {
        self.repeats.see(&message, self.silence);
        self.census.message(message);
    }

    fn dialogue(&mut self, dialogue: Dialogue) {
        if self.persona.is_none() && !dialogue.persona.is_empty() {
            self.persona = Some(dialogue.persona);
        }
    }
}

/// A text whose first reading is done.
struct Surveyed {
    text: Found,
    me: Me,
    speakers: Option<Speakers>,
    /// Whether it says something of the persona itself.
    described: bool,
}

/// What a path that was given holds.
struct Given {
    texts: Vec<Found>,
    /// Names of what is in it and is no chat.
    others: Vec<String>,
    /// Whether texts of it may be none of the persona's.
    is_archive: bool,
}

/// Reads files that are all of one persona, and hands on a dialogue at a time, in the order of the files. A folder is all its files that
/// may be chats by their names, in the order of these; an archive all chats in it, as far as the persona speaks there.
///
/// Rules say who of a chat is meant; beside chats of people, files in which roles speak are read as they are. What one file says of the
/// persona holds for files that say nothing of it: a character card and a chat go together. What is not somebody's own words is not
/// learned: messages that are word for word the same in many dialogues, and dialogues that were there before, or nearly. What a
/// redaction finds in what remains is replaced.
///
/// The files are read twice, and one dialogue is in memory at a time, with 400 bytes for each that was there.
///
/// # Errors
/// As [`super::read_chat`], after dialogues were handed on, too; a folder that cannot be read or has no such files.
pub fn read_persona<P: AsRef<Path>>(
    paths: &[P],
    rules: &Rules,
    redaction: Option<&Redaction>,
    emit: &mut dyn FnMut(Dialogue),
) -> Result<Vec<FileSummary>, DataError> {
    let mut given = Vec::new();
    for path in paths.iter().map(AsRef::as_ref) {
        given.extend(of_path(path, rules.strict)?);
    }
    let has_names = given.iter().flat_map(|given| &given.texts).any(|text| text.format.has_names());
    let of_roles = Rules { me: if has_names { Vec::new() } else { rules.me.clone() }, ..rules.clone() };
    let (mut repeats, mut persona) = (Repeats::default(), None);
    let mut surveyed = Vec::new();
    for Given { texts, mut others, is_archive } in given {
        let (mut here, mut refusal) = (Vec::new(), None);
        for text in texts {
            let mut survey =
                Survey { census: Census::default(), repeats: &mut repeats, silence: rules.silence, persona: None };
            text.read(&mut survey)?;
            let Survey { census, persona: described, .. } = survey;
            let who = match text.format.has_names() {
                true => census.choose(rules, &text.path).map(|(me, speakers)| (me, Some(speakers))),
                false => text.role(&of_roles).map(|me| (me, None)),
            };
            match who {
                Ok((me, speakers)) => {
                    here.push(Surveyed { text, me, speakers, described: described.is_some() });
                    persona = persona.or(described);
                }
                Err(error) if is_archive && !rules.me.is_empty() => {
                    others.push(text.path.display().to_string());
                    refusal.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        if let (true, Some(error)) = (here.is_empty(), refusal) {
            return Err(error);
        }
        surveyed.push((here, others, is_archive));
    }
    let repeated = repeats.found();
    let mut copies = Copies::default();
    let mut files = Vec::new();
    for (texts, mut others, is_archive) in surveyed {
        let (first, several) = (files.len(), texts.len() > 1);
        for Surveyed { text, me, speakers, described } in texts {
            let (mut total, mut copied) = (0, 0);
            let mut redactions = redaction.map(Redactions::new);
            let mut take = |mut dialogue: Dialogue| {
                total += 1;
                if let Some(persona) = persona.as_ref().filter(|_| !described) {
                    dialogue.persona.clone_from(persona);
                }
                if copies.has(&dialogue) {
                    copied += 1;
                    return;
                }
                if let Some(redactions) = &mut redactions {
                    redactions.apply(&mut dialogue);
                }
                emit(dialogue);
            };
            let mut left_out = text.dialogues(&me, rules, &repeated, &mut take)?;
            if total == 0 && is_archive && several {
                others.push(text.path.display().to_string());
                continue;
            } else if total == 0 {
                return Err(text.empty(speakers.as_ref()));
            }
            if copied > 0 {
                let what = "dialogues that were there before, or nearly".to_owned();
                left_out.push(LeftOut { what, count: copied });
            }
            let Found { path, format, .. } = text;
            let replaced = redactions.map(Redactions::end).unwrap_or_default();
            files.push(FileSummary { path, format, dialogues: total - copied, speakers, left_out, replaced });
        }
        if let Some(file) = files.get_mut(first).filter(|_| !others.is_empty()) {
            file.left_out.push(LeftOut { what: named(&others), count: others.len() });
        }
    }
    Ok(files)
}

/// What is beside the chats, with the first names.
fn named(others: &[String]) -> String {
    const SHOWN: usize = 5;
    let name = |other: &String| Path::new(other).file_name().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = others.iter().take(SHOWN).filter_map(name).collect();
    if others.len() > SHOWN {
        names.push("…".to_owned());
    }
    format!("files beside it that are no chats of the persona ({})", names.join(", "))
}

/// What a path holds, or each file of a folder.
fn of_path(path: &Path, strict: bool) -> Result<Vec<Given>, DataError> {
    let of_file = |path: &Path| {
        Found::all(path, strict).map(|(texts, others)| Given { is_archive: texts.len() > 1, texts, others })
    };
    if !path.is_dir() {
        return Ok(vec![of_file(path)?]);
    }
    let (files, mut passed) = files_of(path)?;
    let mut given: Vec<Given> = Vec::new();
    for file in files {
        // A picture without a card is a picture.
        match of_file(&file) {
            Err(_) if is_picture(&file) => passed.push(file.display().to_string()),
            found => given.push(found?),
        }
    }
    match given.first_mut() {
        Some(first) => first.others.extend(passed),
        None => return Err(without_files(path)),
    }
    Ok(given)
}

fn is_picture(path: &Path) -> bool {
    ending(path).as_deref() == Some("png")
}

/// The files of a folder whose names do not begin with a dot: those that may be chats, and the names of the others.
fn files_of(folder: &Path) -> Result<(Vec<PathBuf>, Vec<String>), DataError> {
    let unreadable = |error: std::io::Error| DataError::file(folder, format!("cannot be read: {error}"), REMEDY);
    let (mut files, mut others) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden || !path.is_file() {
            continue;
        }
        match ending(&path).is_none_or(|ending| TEXTS.iter().chain(&CONTAINERS).any(|one| *one == ending)) {
            true => files.push(path),
            false => others.push(path.display().to_string()),
        }
    }
    files.sort();
    others.sort();
    if files.is_empty() { Err(without_files(folder)) } else { Ok((files, others)) }
}

const REMEDY: &str = "name a folder with the files of one persona";

fn without_files(folder: &Path) -> DataError {
    DataError::file(folder, "is a folder without files of dialogues", REMEDY)
}
