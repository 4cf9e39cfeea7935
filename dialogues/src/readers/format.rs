//! Finding out a file's format from its first bytes.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde::de::IgnoredAny;

use super::{imessage, synthetic, whatsapp};
use crate::DataError;
use crate::error::excerpt;

/// What a file of dialogues is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// ConvAI2's text format.
    #[serde(rename = "convai2")]
    ConvAi2,
    /// Hugging Face's `personachat_self_original.json`.
    #[serde(rename = "personachat-json")]
    PersonaChatJson,
    /// Synthetic-Persona-Chat CSV.
    SyntheticPersonaChat,
    /// Messages with roles, a dialogue a line.
    ChatJsonl,
    /// The same dialogues in a list, or over several lines each.
    ChatJson,
    /// WhatsApp's export as text.
    #[serde(rename = "whatsapp")]
    WhatsApp,
    /// Telegram's export as JSON.
    Telegram,
    /// DiscordChatExporter's JSON.
    Discord,
    /// Instagram's and Messenger's messages as JSON.
    Instagram,
    /// A chat of SillyTavern as JSONL.
    #[serde(rename = "sillytavern")]
    SillyTavern,
    /// imessage-exporter's text.
    #[serde(rename = "imessage")]
    IMessage,
    /// A chat of Character.AI as JSON.
    #[serde(rename = "character-ai")]
    CharacterAi,
    /// A character card.
    #[serde(rename = "character-card")]
    Card,
}

impl Format {
    /// Whether people with names speak in it, and not roles.
    pub(super) fn has_names(self) -> bool {
        match self {
            Self::WhatsApp | Self::Telegram | Self::Discord | Self::Instagram | Self::SillyTavern | Self::IMessage => {
                true
            }
            Self::ConvAi2
            | Self::PersonaChatJson
            | Self::SyntheticPersonaChat
            | Self::ChatJsonl
            | Self::ChatJson
            | Self::CharacterAi
            | Self::Card => false,
        }
    }

    /// What a file of it has not, of which no dialogue came.
    pub(super) fn lacks(self) -> &'static str {
        match self {
            Self::ConvAi2 | Self::PersonaChatJson => "has no dialogues",
            Self::SyntheticPersonaChat => "has no conversation with lines such as \"User 1: Hi!\"",
            Self::ChatJsonl | Self::ChatJson => "has no dialogue with a reply of the assistant to learn from",
            Self::CharacterAi => "has no words of the character that answer anybody's",
            Self::Card => "has no examples of how the character talks",
            _ => "has no words of the persona that answer anybody's",
        }
    }

    /// What to do about it.
    pub(super) fn remedy(self) -> &'static str {
        match self {
            Self::ConvAi2 => "give dialogues",
            Self::PersonaChatJson => super::personachat::REMEDY,
            Self::SyntheticPersonaChat => synthetic::REMEDY,
            Self::ChatJsonl | Self::ChatJson => super::chat::REMEDY,
            Self::CharacterAi => "export a chat in which you wrote something",
            Self::Card => "write some into its `mes_example`, or give a chat with the character",
            _ => "name another speaker with --me, or export more of the chat",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::ConvAi2 => "ConvAI2 text",
            Self::PersonaChatJson => "Hugging Face's personachat JSON",
            Self::SyntheticPersonaChat => "Synthetic-Persona-Chat CSV",
            Self::ChatJsonl => "chat JSONL",
            Self::ChatJson => "chat JSON",
            Self::WhatsApp => "a WhatsApp export",
            Self::Telegram => "a Telegram export",
            Self::Discord => "a Discord export",
            Self::Instagram => "messages of Instagram or Messenger",
            Self::SillyTavern => "a SillyTavern chat",
            Self::IMessage => "an iMessage export",
            Self::CharacterAi => "a Character.AI chat",
            Self::Card => "a character card",
        })
    }
}

pub(super) const ACCEPTED: &str = "give a chat of WhatsApp, Telegram (`result.json`), Discord, Instagram, Messenger, iMessage, Character.AI or \
                                   SillyTavern, a character card, chat JSONL or JSON (`messages`, `conversations`, `instruction` or \
                                   `prompt`), ConvAI2 text, personachat JSON or Synthetic-Persona-Chat CSV, or an archive of these";

/// What archives begin with, and tables within an archive.
const OTHERS: [(&[u8], &str); 5] = [
    (b"\x1F\x8B", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xB5\x2F\xFD", "a zstd archive"),
    (b"BZh", "a bzip2 archive"),
    (b"PAR1", "a Parquet table"),
];

/// The format of a file that begins with `head`, which has no byte-order mark; `None` where more of it has to be seen, unless
/// `last` says that there is no more to see.
pub(super) fn find(path: &Path, head: &[u8], last: bool) -> Result<Option<Format>, DataError> {
    if head.starts_with(b"\xFF\xFE") || head.starts_with(b"\xFE\xFF") {
        return Err(DataError::line(path, 1, "the text is UTF-16, expected UTF-8", "save the file as UTF-8"));
    }
    let looks_like =
        |what: &str| DataError::line(path, 1, format!("this looks like {what}, not like dialogues"), ACCEPTED);
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(DataError { remedy: format!("unpack it, or {ACCEPTED}"), ..looks_like(what) });
    }
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start();
    let first_line = text.lines().next().unwrap_or_default();
    let after_number = first_line.trim_start_matches(|character: char| character.is_ascii_digit());
    if text.is_empty() {
        let problem = "the file is empty, expected dialogues";
        Err(DataError::line(path, 1, problem, ACCEPTED))
    } else if after_number.len() < first_line.len() && after_number.starts_with(' ') {
        Ok(Some(Format::ConvAi2))
    } else if whatsapp::is_header(first_line) {
        Ok(Some(Format::WhatsApp))
    } else if imessage::is_header(first_line) {
        Ok(Some(Format::IMessage))
    } else if text.starts_with(['{', '[']) {
        match of_json(text) {
            Some(format) => Ok(Some(format)),
            None if !last => Ok(None),
            None if text.starts_with('[') => Err(looks_like("a JSON list of something else")),
            None => Err(looks_like(&format!("JSON that begins {}", excerpt(text)))),
        }
    } else if first_line.contains('\0') {
        Err(looks_like("a binary file, or UTF-16"))
    } else if synthetic::is_header(first_line) {
        Ok(Some(Format::SyntheticPersonaChat))
    } else if first_line.contains(',') && !first_line.contains('\t') {
        Err(synthetic::wrong_columns(path, first_line.split(',')))
    } else {
        Err(looks_like(&format!("text that begins {}", excerpt(first_line))))
    }
}

/// Which format of JSON: that of the key which comes first, where `personality` may also stand before `messages`.
fn of_json(text: &str) -> Option<Format> {
    let first = |key: &str| {
        let followed_by_colon = |place: &usize| text[place + key.len()..].trim_start().starts_with(':');
        text.match_indices(key).map(|(place, _)| place).find(followed_by_colon)
    };
    let all = |keys: &[&str]| keys.iter().all(|key| first(key).is_some());
    if is_telegram(text) {
        return Some(Format::Telegram);
    } else if all(&["\"guild\"", "\"channel\""]) {
        return Some(Format::Discord);
    } else if all(&["\"participants\"", "\"sender_name\""]) {
        return Some(Format::Instagram);
    } else if all(&["\"user_name\"", "\"character_name\""]) {
        return Some(Format::SillyTavern);
    } else if all(&["\"turns\"", "\"candidates\""]) || all(&["\"msgs\"", "\"is_human\""]) {
        return Some(Format::CharacterAi);
    } else if text.starts_with('{') && all(&["\"first_mes\"", "\"name\""]) {
        return Some(Format::Card);
    }
    const CHATS: [&str; 6] =
        ["\"messages\"", "\"conversations\"", "\"instruction\"", "\"prompt\"", "\"chosen\"", "\"rejected\""];
    match (CHATS.into_iter().filter_map(first).min(), first("\"utterances\"")) {
        (Some(messages), utterances) if utterances.is_none_or(|utterances| messages < utterances) => {
            Some(if is_one_a_line(text) { Format::ChatJsonl } else { Format::ChatJson })
        }
        (_, Some(_)) => Some(Format::PersonaChatJson),
        _ => first("\"personality\"").filter(|_| !text.starts_with('[')).map(|_| Format::PersonaChatJson),
    }
}

/// Whether it begins as a chat of Telegram's does, or as all of an account: by a kind of chat before the messages, or whose account it is.
fn is_telegram(text: &str) -> bool {
    const KINDS: [&str; 9] = [
        "personal_chat",
        "bot_chat",
        "saved_messages",
        "private_group",
        "private_supergroup",
        "public_supergroup",
        "private_channel",
        "public_channel",
        "verification_codes",
    ];
    let values = |key: &'static str| {
        text.match_indices(key)
            .filter_map(move |(place, _)| Some(text[place + key.len()..].trim_start().strip_prefix(':')?.trim_start()))
    };
    let kind = values("\"type\"").next().and_then(|value| value.strip_prefix('"'));
    let is_kind = kind.and_then(|kind| kind.split('"').next()).is_some_and(|kind| KINDS.contains(&kind));
    let is_account = values("\"personal_information\"")
        .chain(values("\"chats\""))
        .next()
        .is_some_and(|value| value.starts_with('{'));
    text.starts_with('{') && (is_kind || is_account)
}

/// Whether the first object is on one line. One that is no JSON is taken for a line that cannot be read, except where it only goes
/// on in the next line.
fn is_one_a_line(text: &str) -> bool {
    match (text.starts_with('{'), text.split_once('\n')) {
        (true, Some((line, _))) => !serde_json::from_str::<IgnoredAny>(line).is_err_and(|error| error.is_eof()),
        (is_object, None) => is_object,
        (false, _) => false,
    }
}
