//! Reading dialogues from files: what a file is, its content says, not its name.

mod bad;
mod card;
mod chat;
mod convai2;
mod discord;
mod format;
mod guard;
mod imessage;
mod instagram;
mod lines;
mod objects;
mod personachat;
mod sillytavern;
mod source;
mod stream;
mod synthetic;
mod telegram;
mod whatsapp;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::conversation::{ASSISTANT, Census, Me, Rules, Sink, Speakers, Threads};
use crate::{DataError, Dialogue};

pub use chat::write_chats;
pub use convai2::{SILENCE, write_convai2};
pub use format::Format;
use source::Source;

/// Something of a file that is in no dialogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// What it is, in the plural.
    pub what: String,
    /// How often it occurs; never 0.
    pub count: usize,
}

/// What was read from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What the file is.
    pub format: Format,
    /// Its dialogues in file order; never empty.
    pub dialogues: Vec<Dialogue>,
    /// Who speaks in it, where it is a chat of people with names.
    pub speakers: Option<Speakers>,
    /// What was left out.
    pub left_out: Vec<LeftOut>,
}

impl Reading {
    /// Who speaks, and what was left out, a line each.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let speakers = self.speakers.iter().flat_map(|speakers| {
            let lines = speakers.to_string();
            lines.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        });
        speakers.chain(self.left_out.iter().map(|LeftOut { what, count }| format!("{count} left out: {what}")))
    }
}

/// The dialogues of a file in any of the formats that [`read_file`] knows, in file order; never an empty list.
///
/// # Errors
/// As [`read_file`].
pub fn read_dialogues(path: impl AsRef<Path>) -> Result<Vec<Dialogue>, DataError> {
    read_file(path).map(|reading| reading.dialogues)
}

/// Reads a file of dialogues. Its content says which format it has:
///
/// ConvAI2's text format (Zhang et al. 2018, Dinan et al. 2019), in all variants:
/// ```text
/// 1 your persona: i like to ski.
/// 2 partner's persona: i have two cats.
/// 3 hello , how are you ?<TAB>fine , just back from the slopes .<TAB><TAB>no idea .|fine , just back from the slopes .
/// ```
/// A line's number restarting at 1 begins a new dialogue. Of an exchange's four fields (partner, reply, reward,
/// candidates separated by `|`) the last two may be missing; the reward is not kept. Persona lines of either side may
/// be missing. `__SILENCE__` in the place of the partner's words means that the persona spoke first: it becomes an
/// empty utterance.
///
/// Hugging Face's `personachat_self_original.json` (Wolf et al. 2019): `{"train":[{"personality":[…],"utterances":
/// [{"candidates":[…],"history":[…]},…]},…],"valid":[…]}`, the gold reply the last candidate. `FILE#valid` reads one
/// part of it (where no file has that very name).
///
/// Synthetic-Persona-Chat CSV (Jandaghi et al. 2023) with the columns `user 1 personas`, `user 2 personas` and `Best
/// Generated Conversation`. Each conversation gives two dialogues, one from each user's side: what is a reply in the one is
/// the partner's words in the other. A line without a speaker goes on with the utterance before it; stage directions
/// (whole lines in brackets or asterisks) are left out.
///
/// Fine-tuning files, a dialogue an object: `{"messages":[{"role":"user","content":"…"},{"role":"assistant","content":"…"},…],
/// "persona":["…",…]}`, a line each (JSONL), in a list, or over several lines. The assistant is the persona; `persona` or
/// `personality` (a string or a list of them) may be missing, then the `system` messages at the beginning say it. Roles have
/// the names of fine-tuning files (`human`, `bot`, `gpt`, `model`, `developer`, …) in any case. `content` is a string, a list of
/// parts, or null. A message whose `weight` is 0 is history that is not learned. Messages of one role in a row are joined by a
/// space; those of tools are left out. ShareGPT's `conversations` with `from` and `value`, Alpaca's `instruction`, `input`, `output` with
/// `system` and `history`, and TRL's `prompt` and `completion`, strings or messages, are read alike.
///
/// Chats of people: WhatsApp's export as text, of all its languages' forms; Telegram's `result.json`, of a chat or a whole account;
/// DiscordChatExporter's JSON; `message_1.json` of Instagram and Messenger; SillyTavern's JSONL; imessage-exporter's text. [`Rules`] say who
/// of them is the persona, and what is a dialogue. A character card's examples (`mes_example`, `first_mes`) are dialogues of the
/// character, and what it says of it the persona.
///
/// Text is cleaned ([`crate::clean`]); a byte-order mark and blank lines are passed over; carriage returns are line ends before a line
/// feed or where the file has no other, and blanks elsewhere. Words at the end that have no reply are left out. Lines or dialogues
/// that cannot be read are left out with what they belong to, as long as they are no more than a tenth; all that is left out is
/// counted.
///
/// # Errors
/// [`DataError`] naming the line and what was expected, for a file that is missing, empty, not UTF-8, or in no such format; and
/// for a line, string or record longer than 1 MiB, which is never held in memory whole.
pub fn read_file(path: impl AsRef<Path>) -> Result<Reading, DataError> {
    read_chat(path, &Rules::default())
}

/// [`read_file`], with rules for what a chat of people becomes.
///
/// # Errors
/// As [`read_file`]; nobody in a chat has the name that is wanted, or it is not known whose words are to be learned.
pub fn read_chat(path: impl AsRef<Path>, rules: &Rules) -> Result<Reading, DataError> {
    let (path, part) = split_part(path.as_ref());
    let found = Source::of(&path)?;
    read_source(&path, part, found, rules)
}

fn read_source(
    path: &Path,
    part: Option<String>,
    (source, format): (Source, Format),
    rules: &Rules,
) -> Result<Reading, DataError> {
    if let Some(part) = part.as_deref().filter(|_| format != Format::PersonaChatJson) {
        return Err(DataError::file(
            path,
            format!("has no part {part:?}: it is {format}, which has no parts"),
            "leave `#` and what follows it out",
        ));
    }
    let read = |sink: &mut dyn Sink| match format {
        Format::ConvAi2 => convai2::read(path, &source, sink),
        Format::PersonaChatJson => personachat::read(path, &source, sink, part.as_deref()),
        Format::SyntheticPersonaChat => synthetic::read(path, &source, sink),
        Format::ChatJsonl => chat::read_lines(path, &source, sink),
        Format::ChatJson => chat::read_objects(path, &source, sink),
        Format::WhatsApp => whatsapp::read(path, &source, sink),
        Format::Telegram => stream::read::<telegram::Telegram>(path, &source, sink),
        Format::Discord => stream::read::<discord::Discord>(path, &source, sink),
        Format::Instagram => stream::read::<instagram::Instagram>(path, &source, sink),
        Format::SillyTavern => sillytavern::read(path, &source, sink),
        Format::IMessage => imessage::read(path, &source, sink),
        Format::Card => card::read(path, &source, sink),
    };
    let (me, speakers) = match format.has_names() {
        // Read once for who speaks, and again for what is said.
        true => {
            let mut census = Census::default();
            read(&mut census)?;
            let (me, speakers) = census.choose(rules, path)?;
            (me, Some(speakers))
        }
        false => match rules.me.iter().find(|me| !me.eq_ignore_ascii_case(ASSISTANT)) {
            None => (Me::role(ASSISTANT), None),
            Some(me) => {
                let problem =
                    format!("has no speaker {me:?}: it is {format}, in which roles speak and {ASSISTANT} is learned");
                return Err(DataError::file(path, problem, "leave --me out"));
            }
        },
    };
    let mut dialogues = Vec::new();
    let mut emit = |dialogue| dialogues.push(dialogue);
    let mut threads = Threads::new(rules, &me, &mut emit);
    let mut left_out = read(&mut threads)?;
    left_out.extend(threads.end());
    if dialogues.is_empty() {
        let taken = |speakers: &Speakers| format!(" ({speakers})").replace('\n', ";").replace(";  ", "; ");
        let who = speakers.as_ref().map(taken).unwrap_or_default();
        return Err(DataError::file(path, format!("is {format}, and {}{who}", format.lacks()), format.remedy()));
    }
    let left_out = left_out.into_iter().filter(|left| left.count > 0).collect();
    Ok(Reading { format, dialogues, speakers, left_out })
}

/// Reads files that are all of one persona; a folder is all its files whose names do not begin with a dot, in the order of their names.
/// Rules say who of a chat is meant; beside chats of people, files in which roles speak are read as they are. What one file says of the
/// persona holds for files that say nothing of it: a character card and a chat go together.
///
/// # Errors
/// As [`read_chat`]; a folder that cannot be read or is empty.
pub fn read_persona<P: AsRef<Path>>(paths: &[P], rules: &Rules) -> Result<Vec<(PathBuf, Reading)>, DataError> {
    let mut files = Vec::new();
    for path in paths.iter().map(AsRef::as_ref) {
        match path.is_dir() {
            true => files.extend(files_of(path)?),
            false => files.push(path.to_path_buf()),
        }
    }
    let mut found = Vec::with_capacity(files.len());
    for file in &files {
        let (path, part) = split_part(file);
        let source = Source::of(&path)?;
        found.push((path, part, source));
    }
    let roles = match found.iter().any(|(.., (_, format))| format.has_names()) {
        true => Rules { me: Vec::new(), ..rules.clone() },
        false => rules.clone(),
    };
    let mut readings = Vec::with_capacity(files.len());
    for (file, (path, part, source)) in files.into_iter().zip(found) {
        let own = if source.1.has_names() { rules } else { &roles };
        let reading = read_source(&path, part, source, own)?;
        readings.push((file, reading));
    }
    let known =
        |reading: &Reading| reading.dialogues.iter().find(|one| !one.persona.is_empty()).map(|one| one.persona.clone());
    if let Some(persona) = readings.iter().find_map(|(_, reading)| known(reading)) {
        for (_, reading) in readings.iter_mut().filter(|(_, reading)| known(reading).is_none()) {
            reading.dialogues.iter_mut().for_each(|one| one.persona.clone_from(&persona));
        }
    }
    Ok(readings)
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let refuse = |problem: String| DataError::file(folder, problem, "name a folder with the files of one persona");
    let unreadable = |error: std::io::Error| refuse(format!("cannot be read: {error}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() { Err(refuse("is a folder without files".to_owned())) } else { Ok(files) }
}

/// A dialogue file's path, and the part of it that is named after a `#`, where no file has that very name but the one before
/// the `#` exists.
pub fn split_part(path: &Path) -> (PathBuf, Option<String>) {
    let whole = || (path.to_path_buf(), None);
    if path.exists() {
        return whole();
    }
    match path.to_str().and_then(|text| text.rsplit_once('#')) {
        Some((file, part)) if Path::new(file).exists() => (file.into(), Some(part.to_owned())),
        _ => whole(),
    }
}
