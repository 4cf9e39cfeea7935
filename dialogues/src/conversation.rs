//! A conversation as its program keeps it, who says what and when, and the one rule that makes dialogues of it.
//!
//! Readers only read: they hand messages to a [`Sink`] one by one, in the order in which they were said. Which of the speakers is the
//! persona is found first ([`Census`]), in a reading of its own, unless they are roles, which say it; then the rule ([`Threads`])
//! joins, cuts and drops.

mod census;
mod copies;
mod repeats;
mod threads;
mod turns;

pub(crate) use census::{Census, Me};
pub(crate) use copies::Copies;
pub(crate) use repeats::Repeats;
pub(crate) use threads::Threads;

use std::hash::{DefaultHasher, Hash, Hasher as _};

use jiff::civil::{DateTime, date};
use serde::Serialize;

use crate::Dialogue;

/// The persona of formats in which roles speak instead of people.
pub(crate) const ASSISTANT: &str = "assistant";
/// The other role.
pub(crate) const USER: &str = "user";

/// Somebody who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Speaker {
    /// As the program shows it; empty where it has none, as of a deleted account.
    pub name: String,
    /// What stays the same when the name changes, where the program has it.
    pub id: Option<String>,
}

/// Why a message is none of its speaker's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// The program itself says it: somebody joined, a name changed.
    Notice,
    /// Somebody else's words, passed on.
    Forwarded,
    /// It was taken back.
    Deleted,
    /// A program says it in a name of its own.
    Bot,
    /// A picture, a sticker, a voice message, without words.
    Media,
    /// It stands word for word in many dialogues.
    Repeated,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Who says it; nobody, where it is a notice.
    pub speaker: Speaker,
    /// Seconds, by a clock that is the same for all messages of a file.
    pub time: Option<i64>,
    /// What replies name it by, where the program has replies.
    pub id: Option<i64>,
    /// The message that it is a reply to, where it is one.
    pub replies_to: Option<i64>,
    /// What is said, not yet [`crate::clean`].
    pub text: String,
    /// Why it is not to be read as the speaker's words.
    pub mark: Option<Mark>,
    /// Whether it is to be learned, where the persona says it.
    pub learned: bool,
    /// Where it begins, from 1.
    pub line: usize,
}

impl Message {
    /// Words to learn, of no known time.
    pub fn of(speaker: Speaker, text: String, line: usize) -> Self {
        Self { speaker, time: None, id: None, replies_to: None, text, mark: None, learned: true, line }
    }

    /// Words of a role.
    pub fn of_role(role: &str, text: String, line: usize) -> Self {
        Self::of(Speaker { name: role.to_owned(), id: None }, text, line)
    }
}

/// Seconds from the beginning of 1970 to a time, by the clock that the time is of.
pub(crate) fn seconds(time: DateTime) -> i64 {
    time.duration_since(date(1970, 1, 1).into()).as_secs()
}

/// What stands for a value among many: the same in every run.
fn hashed(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What a file says of a conversation before its messages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct About {
    /// The persona's sentences.
    pub persona: Vec<String>,
    /// The partner's.
    pub partner_persona: Vec<String>,
    /// Whether it was written down as a dialogue: its first words are its beginning, and not what is left of an endless chat.
    pub whole: bool,
    /// The name or id of whoever the file is of: who exported it, or the character of a role play.
    pub owner: Option<String>,
    /// The name of the one whom the owner talks with, where there is one alone.
    pub partner: Option<String>,
}

/// What takes a file's messages.
pub(crate) trait Sink {
    /// Another conversation begins.
    fn begin(&mut self, about: About);
    /// The next message of it.
    fn message(&mut self, message: Message);
    /// A dialogue of a format that has exchanges instead of messages.
    fn dialogue(&mut self, dialogue: Dialogue);
}

/// How messages become dialogues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Names or ids of the one whose words are to be learned. None of them where the file says whose it is, or two people speak.
    pub me: Vec<String>,
    /// The longest pause, in seconds, after which the same speaker's next message is still of the same utterance.
    pub join: u64,
    /// The pause, in seconds, after which another dialogue begins.
    pub silence: u64,
    /// Whether each of several others' words begin with who says them.
    pub group: bool,
    /// Whether nothing that cannot be read may be left out.
    pub strict: bool,
}

impl Default for Rules {
    /// Five minutes and six hours.
    fn default() -> Self {
        Self { me: Vec::new(), join: 5 * 60, silence: 6 * 3600, group: false, strict: false }
    }
}

/// Who speaks in a file, and who of them was taken for the persona.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Speakers {
    /// The persona's names.
    pub me: Vec<String>,
    /// How that was found.
    pub found: Found,
    /// All names with how many messages with words each has, most first; the persona's among them.
    pub messages: Vec<(String, usize)>,
    /// When the first message was written and when the last, in seconds by the file's own clock since 1970, where it has times.
    pub span: Option<[i64; 2]>,
}

/// How the persona was found among the speakers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// It was named.
    Named,
    /// The file says whose it is.
    Owner,
    /// The one of two who answers first.
    Answers,
}
