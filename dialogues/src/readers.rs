//! Reading dialogues from files: what a file is, its content says, not its name.

mod bad;
mod chat;
mod convai2;
mod format;
mod guard;
mod lines;
mod objects;
mod personachat;
mod synthetic;
mod turns;

use std::io::{BufRead, BufReader, Cursor, Read as _};
use std::path::{Path, PathBuf};

use marionette_models::files;
use serde::Serialize;

use crate::{DataError, Dialogue};

pub use convai2::{SILENCE, write_convai2};
pub use format::Format;

/// How much of a file is looked at to find out its format, in bytes, and the most where that says nothing.
const HEADS: [usize; 2] = [1 << 16, lines::LONGEST_LINE + 1];

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
    /// What was left out.
    pub left_out: Vec<LeftOut>,
}

/// What a reader of one format gives.
type Found = (Vec<Dialogue>, Vec<LeftOut>);

impl Reading {
    /// What was left out, a line each.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.left_out.iter().map(|LeftOut { what, count }| format!("{count} left out: {what}"))
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
/// Chats, a dialogue an object: `{"messages":[{"role":"user","content":"…"},{"role":"assistant","content":"…"},…],
/// "persona":["…",…]}`, a line each (JSONL), in a list, or over several lines. The assistant is the persona; `persona` or
/// `personality` (a string or a list of them) may be missing, then the `system` messages at the beginning say it. Roles have
/// the names of fine-tuning files (`human`, `bot`, `gpt`, `model`, `developer`, …) in any case. `content` is a string, a list of
/// parts, or null. A message whose `weight` is 0 is history that is not learned. Messages of one role in a row are joined by a
/// space; those of tools are left out.
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
    const MARK: &[u8] = b"\xEF\xBB\xBF";
    let (path, part) = split_part(path.as_ref());
    let path = path.as_path();
    let mut file = files::open_regular(path)
        .map_err(|error| DataError::file(path, error.problem, "check the name of the dialogue file"))?;
    let mut head = Vec::new();
    let mut found = None;
    for most in HEADS {
        let more = (most - head.len()) as u64;
        let read = (&mut file).take(more).read_to_end(&mut head).map_err(|error| {
            DataError::file(path, format!("cannot be read: {error}"), "check that it is a readable file")
        })?;
        let is_all = (read as u64) < more || most == HEADS[1];
        found = format::find(path, head.strip_prefix(MARK).unwrap_or(&head), is_all)?;
        if found.is_some() {
            break;
        }
    }
    if head.starts_with(MARK) {
        head.drain(..MARK.len());
    }
    // Not found without an error: that cannot be, as there was no more to see.
    let format = found.unwrap_or(Format::ChatJsonl);
    if let Some(part) = part.as_deref().filter(|_| format != Format::PersonaChatJson) {
        return Err(DataError::file(
            path,
            format!("has no part {part:?}: it is {format}, which has no parts"),
            "leave `#` and what follows it out",
        ));
    }
    let only_returns = head.contains(&b'\r') && !head.contains(&b'\n');
    let whole = BufReader::new(Cursor::new(head).chain(file));
    let (dialogues, left_out) = match only_returns {
        true => read_as(format, path, BufReader::new(lines::ReturnsAsFeeds(whole)), part.as_deref())?,
        false => read_as(format, path, whole, part.as_deref())?,
    };
    Ok(Reading { format, dialogues, left_out: left_out.into_iter().filter(|left| left.count > 0).collect() })
}

fn read_as(format: Format, path: &Path, reader: impl BufRead, part: Option<&str>) -> Result<Found, DataError> {
    match format {
        Format::ConvAi2 => convai2::read(path, reader),
        Format::PersonaChatJson => Ok((personachat::read(path, reader, part)?, Vec::new())),
        Format::SyntheticPersonaChat => synthetic::read(path, reader),
        Format::ChatJsonl => chat::read_lines(path, reader),
        Format::ChatJson => chat::read_objects(path, reader),
    }
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
