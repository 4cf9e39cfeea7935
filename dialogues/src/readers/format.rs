//! Finding out a file's format from its first bytes.

use std::fmt;
use std::path::Path;

use serde::Serialize;

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
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::ConvAi2 => "ConvAI2 text",
            Self::PersonaChatJson => "Hugging Face's personachat JSON",
            Self::SyntheticPersonaChat => "Synthetic-Persona-Chat CSV",
            Self::ChatJsonl => "chat JSONL",
        })
    }
}

const ACCEPTED: &str = "give ConvAI2 text (`1 partner's words<TAB>reply`), chat JSONL (`{\"messages\":[…]}` a line), \
                        Hugging Face's personachat JSON, or Synthetic-Persona-Chat CSV";

/// What archives and tables begin with.
const OTHERS: [(&[u8], &str); 5] = [
    (b"\x1F\x8B", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xB5\x2F\xFD", "a zstd archive"),
    (b"BZh", "a bzip2 archive"),
    (b"PAR1", "a Parquet table"),
];

/// The format of a file that begins with `head`.
pub(super) fn find(path: &Path, head: &[u8]) -> Result<Format, DataError> {
    const AS_UTF8: &str = "save the file as UTF-8 without a byte-order mark";
    if head.starts_with(b"\xFF\xFE") || head.starts_with(b"\xFE\xFF") {
        return Err(DataError::line(path, 1, "the text is UTF-16, expected UTF-8", AS_UTF8));
    }
    if head.starts_with(b"\xEF\xBB\xBF") {
        return Err(DataError::line(path, 1, "the text begins with a byte-order mark", AS_UTF8));
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
        Ok(Format::ConvAi2)
    } else if text.starts_with('{') {
        of_object(text).ok_or_else(|| looks_like(&format!("JSON that begins {}", excerpt(text))))
    } else if text.starts_with('[') {
        Err(looks_like("a JSON list"))
    } else if first_line.contains('\0') {
        Err(looks_like("a binary file, or UTF-16"))
    } else if synthetic::is_header(first_line) {
        Ok(Format::SyntheticPersonaChat)
    } else if first_line.contains(',') && !first_line.contains('\t') {
        Err(synthetic::wrong_columns(path, first_line.split(',')))
    } else {
        Err(looks_like(&format!("text that begins {}", excerpt(first_line))))
    }
}

/// Which format of JSON objects: the one whose key comes first.
fn of_object(text: &str) -> Option<Format> {
    let of = |format: Format, key: &str| {
        let followed_by_colon = |place: &usize| text[place + key.len()..].trim_start().starts_with(':');
        text.match_indices(key).map(|(place, _)| place).find(followed_by_colon).map(|place| (place, format))
    };
    let chat = of(Format::ChatJsonl, "\"messages\"");
    let personality = of(Format::PersonaChatJson, "\"personality\"");
    let utterances = of(Format::PersonaChatJson, "\"utterances\"");
    [chat, personality, utterances].into_iter().flatten().min_by_key(|(place, _)| *place).map(|(_, format)| format)
}
