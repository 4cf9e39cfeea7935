//! `message_1.json` of Instagram and Messenger: newest first, and in UTF-8 that was read as Latin-1.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::stream::Shape;
use crate::conversation::{About, Mark, Message, Speaker};

/// A message as it is written; what is not named here says nothing of who says what.
#[derive(Deserialize)]
pub(super) struct Written {
    sender_name: String,
    #[serde(default)]
    timestamp_ms: Option<i64>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    is_unsent: Option<bool>,
    /// Somebody else's words.
    #[serde(default)]
    share: Option<IgnoredAny>,
}

/// The format.
pub(super) struct Instagram;

impl Shape for Instagram {
    type Written = Written;
    const FIELDS: &'static [&'static str] = &[];
    const WITHIN: &'static [&'static str] = &[];
    const REMEDY: &'static str = "download the messages again, as JSON";
    const HELD: bool = true;

    fn about(_: &Map<String, Value>) -> About {
        About::default()
    }

    fn message(written: Written, line: usize) -> Message {
        let Written { sender_name, timestamp_ms, content, is_unsent, share } = written;
        let text = repaired(content.unwrap_or_default());
        let mark = if is_unsent == Some(true) {
            Some(Mark::Deleted)
        } else if is_notice(&text) {
            Some(Mark::Notice)
        } else if text.trim().is_empty() || (share.is_some() && text.starts_with("http")) {
            Some(Mark::Media)
        } else {
            None
        };
        let speaker = Speaker { name: repaired(sender_name), id: None };
        Message { time: timestamp_ms.map(|time| time.div_euclid(1000)), mark, ..Message::of(speaker, text, line) }
    }
}

/// Whether the program says it, in the sender's name.
fn is_notice(text: &str) -> bool {
    let text = text.trim();
    (text.starts_with("Reacted ") && text.ends_with(" to your message"))
        || text == "Liked a message"
        || text.ends_with(" sent an attachment.")
}

/// Text whose bytes were taken for characters, as text again; other text as it is.
fn repaired(text: String) -> String {
    let bytes: Option<Vec<u8>> = text.chars().map(|one| u8::try_from(u32::from(one)).ok()).collect();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_misread_is_repaired() {
        for (text, right) in [
            ("caf\u{C3}\u{A9} \u{F0}\u{9F}\u{98}\u{8A}", "café 😊"),
            ("plain", "plain"),
            ("café", "café"),
            ("Größe 😊", "Größe 😊"),
        ] {
            assert_eq!(repaired(text.to_owned()), right);
        }
    }
}
