//! Finding out a file's format from its first bytes.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde::de::IgnoredAny;

use super::synthetic;
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
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::ConvAi2 => "ConvAI2 text",
            Self::PersonaChatJson => "Hugging Face's personachat JSON",
            Self::SyntheticPersonaChat => "Synthetic-Persona-Chat CSV",
            Self::ChatJsonl => "chat JSONL",
            Self::ChatJson => "chat JSON",
        })
    }
}

const ACCEPTED: &str = "give ConvAI2 text (`1 partner's words<TAB>reply`), chat JSONL or JSON (`{\"messages\":[…]}`, a line each or in a list), \
                        Hugging Face's personachat JSON, or Synthetic-Persona-Chat CSV";

/// What archives and tables begin with.
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
    match (first("\"messages\""), first("\"utterances\"")) {
        (Some(messages), utterances) if utterances.is_none_or(|utterances| messages < utterances) => {
            Some(if is_one_a_line(text) { Format::ChatJsonl } else { Format::ChatJson })
        }
        (_, Some(_)) => Some(Format::PersonaChatJson),
        _ => first("\"personality\"").filter(|_| !text.starts_with('[')).map(|_| Format::PersonaChatJson),
    }
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
