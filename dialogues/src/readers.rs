//! Reading dialogues from files: what a file is, its content says, not its name.

mod bad;
mod card;
mod character_ai;
mod chat;
mod convai2;
mod discord;
mod format;
mod guard;
mod imessage;
mod instagram;
mod lines;
mod objects;
mod persona;
mod personachat;
mod sillytavern;
mod source;
mod stream;
mod synthetic;
mod telegram;
mod unpack;
mod whatsapp;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::conversation::{ASSISTANT, Census, Me, Rules, Sink, Speakers, Threads};
use crate::{DataError, Dialogue, FileSummary};

pub use chat::write_chat;
pub use convai2::{SILENCE, write_convai2};
pub use format::Format;
pub use persona::read_persona;
use source::Source;
use unpack::{Unpacked, unpack};

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
    /// What was understood of the file at `path`, and its dialogues.
    pub fn into_parts(self, path: &Path) -> (FileSummary, Vec<Dialogue>) {
        let Self { format, dialogues, speakers, left_out } = self;
        let path = path.to_path_buf();
        let replaced = Vec::new();
        (FileSummary { path, format, dialogues: dialogues.len(), speakers, left_out, replaced }, dialogues)
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
/// character, and what it says of it the persona; it may be in a picture (PNG). Character.AI's chats, old and new, are read alike.
///
/// A zip archive with one of these is read as what is in it, `ARCHIVE#NAME` reads one of several. A Parquet table's rows are read
/// as the objects of a fine-tuning file. `-` is standard input.
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
    let path = path.as_ref();
    let (mut texts, _) = Found::all(path, rules.strict)?;
    let text = match (texts.pop(), texts.is_empty()) {
        (Some(text), true) => text,
        (last, _) => {
            let names: Vec<String> = texts.iter().chain(&last).map(|text| text.path.display().to_string()).collect();
            let problem = format!("has {} files of dialogues, expected one", names.len());
            return Err(DataError::file(path, problem, format!("choose one, as {}", names.join(" or "))));
        }
    };
    let (me, speakers) = match text.format.has_names() {
        // Read once for who speaks, and again for what is said.
        true => {
            let mut census = Census::default();
            text.read(&mut census)?;
            let (me, speakers) = census.choose(rules, &text.path)?;
            (me, Some(speakers))
        }
        false => (text.role(rules)?, None),
    };
    let mut dialogues = Vec::new();
    let left_out = text.dialogues(&me, rules, &HashSet::new(), &mut |dialogue| dialogues.push(dialogue))?;
    match dialogues.is_empty() {
        true => Err(text.empty(speakers.as_ref())),
        false => Ok(Reading { format: text.format, dialogues, speakers, left_out }),
    }
}

/// A text that was found, and what it is.
struct Found {
    path: PathBuf,
    /// The part of it that is wanted, where it has several.
    part: Option<String>,
    source: Source,
    format: Format,
}

impl Found {
    /// The texts that a path names: one, or all of an archive that are dialogues; and the names of what else is in the archive.
    ///
    /// # Errors
    /// There is none.
    fn all(path: &Path, strict: bool) -> Result<(Vec<Self>, Vec<String>), DataError> {
        let (path, part) = split_part(path);
        let (texts, mut others) = match unpack(&path)? {
            Unpacked::One(name, text) => {
                let (source, format) = Source::of(&name, text, strict)?;
                if let Some(part) = part.as_deref().filter(|_| format != Format::PersonaChatJson) {
                    return Err(DataError::file(
                        &name,
                        format!("has no part {part:?}: it is {format}, which has no parts"),
                        "leave `#` and what follows it out",
                    ));
                }
                return Ok((vec![Self { path: name, part, source, format }], Vec::new()));
            }
            Unpacked::Picture => {
                let remedy = "export the character with its card, or as JSON";
                return Err(DataError::file(&path, "is a picture without a character card", remedy));
            }
            Unpacked::Several(texts, others) => (texts, others),
        };
        let is_wanted = |name: &Path| match &part {
            Some(part) => name.as_os_str() == format!("{}#{part}", path.display()).as_str(),
            None => true,
        };
        let (mut found, mut refused) = (Vec::new(), Vec::new());
        for (name, text) in texts.into_iter().filter(|(name, _)| is_wanted(name)) {
            match Source::of(&name, text, strict) {
                Ok((source, format)) => found.push(Self { path: name, part: None, source, format }),
                Err(error) => refused.push(error),
            }
        }
        if found.is_empty() {
            return Err(match (refused.pop(), refused.is_empty(), part) {
                // The only one: what is wrong with it is what is wrong.
                (Some(error), true, _) => error,
                (_, _, Some(part)) => {
                    DataError::file(&path, format!("has no file {part:?}"), "choose one of those in the archive")
                }
                (_, _, None) => DataError::file(
                    &path,
                    "is an archive without a chat",
                    format!("unpack it, or {}", format::ACCEPTED),
                ),
            });
        }
        others.extend(refused.into_iter().map(|error| error.path.display().to_string()));
        Ok((found, others))
    }

    /// Hands all of it to a sink.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
        let Self { path, part, source, format } = self;
        match format {
            Format::ConvAi2 => convai2::read(path, source, sink),
            Format::PersonaChatJson => personachat::read(path, source, sink, part.as_deref()),
            Format::SyntheticPersonaChat => synthetic::read(path, source, sink),
            Format::ChatJsonl => chat::read_lines(path, source, sink),
            Format::ChatJson => chat::read_objects(path, source, sink),
            Format::WhatsApp => whatsapp::read(path, source, sink),
            Format::Telegram => stream::read::<telegram::Telegram>(path, source, sink),
            Format::Discord => stream::read::<discord::Discord>(path, source, sink),
            Format::Instagram => stream::read::<instagram::Instagram>(path, source, sink),
            Format::CharacterAi => stream::read::<character_ai::CharacterAi>(path, source, sink),
            Format::SillyTavern => sillytavern::read(path, source, sink),
            Format::IMessage => imessage::read(path, source, sink),
            Format::Card => card::read(path, source, sink),
        }
    }

    /// The role that is learned, where roles speak.
    ///
    /// # Errors
    /// Somebody else is wanted.
    fn role(&self, rules: &Rules) -> Result<Me, DataError> {
        let Self { path, format, .. } = self;
        match rules.me.iter().find(|me| !me.eq_ignore_ascii_case(ASSISTANT)) {
            None => Ok(Me::role(ASSISTANT)),
            Some(me) => {
                let problem =
                    format!("has no speaker {me:?}: it is {format}, in which roles speak and {ASSISTANT} is learned");
                Err(DataError::file(path, problem, "leave --me out"))
            }
        }
    }

    /// Its dialogues one by one, and what is in none.
    ///
    /// # Errors
    /// It cannot be read.
    fn dialogues(
        &self,
        me: &Me,
        rules: &Rules,
        repeated: &HashSet<u64>,
        emit: &mut dyn FnMut(Dialogue),
    ) -> Result<Vec<LeftOut>, DataError> {
        let mut threads = Threads::new(rules, me, repeated, emit);
        let mut left_out = self.read(&mut threads)?;
        left_out.extend(threads.end());
        left_out.retain(|left| left.count > 0);
        Ok(left_out)
    }

    /// No dialogue came of it.
    fn empty(&self, speakers: Option<&Speakers>) -> DataError {
        let Self { path, format, .. } = self;
        let taken = |speakers: &Speakers| format!(" ({speakers})").replace('\n', ";").replace(";  ", "; ");
        let who = speakers.map(taken).unwrap_or_default();
        DataError::file(path, format!("is {format}, and {}{who}", format.lacks()), format.remedy())
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
