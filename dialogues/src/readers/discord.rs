//! DiscordChatExporter's JSON: a channel, or a conversation of two.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::stream::{self, Shape};
use crate::conversation::{About, Mark, Message, Speaker};

/// A message as it is written; what is not named here says nothing of who says what.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Written {
    r#type: String,
    #[serde(default)]
    id: Option<Value>,
    /// What a reply is to.
    #[serde(default)]
    reference: Option<Value>,
    #[serde(default)]
    timestamp: Option<String>,
    #[serde(default)]
    content: String,
    author: Author,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Author {
    #[serde(default)]
    id: Option<String>,
    name: String,
    #[serde(default)]
    nickname: Option<String>,
    #[serde(default)]
    is_bot: bool,
}

/// The format.
pub(super) struct Discord;

impl Shape for Discord {
    type Written = Written;
    const FIELDS: &'static [&'static str] = &[];
    const WITHIN: &'static [&'static str] = &[];
    const REMEDY: &'static str = "export the channel again, with DiscordChatExporter as JSON";

    fn about(_: &Map<String, Value>) -> About {
        About::default()
    }

    fn message(written: Written, line: usize) -> Message {
        let Written { r#type, id: own, reference, timestamp, content, author } = written;
        let Author { id, name, nickname, is_bot } = author;
        let mark = match r#type.as_str() {
            _ if is_bot => Some(Mark::Bot),
            "Default" | "Reply" if content.trim().is_empty() => Some(Mark::Media),
            "Default" | "Reply" => None,
            // Pins, joins, calls.
            _ => Some(Mark::Notice),
        };
        let time = timestamp.and_then(|time| time.parse::<jiff::Timestamp>().ok()).map(jiff::Timestamp::as_second);
        let name = nickname.filter(|name| !name.is_empty()).unwrap_or(name);
        let to = reference.and_then(|mut reference| reference.get_mut("messageId").map(Value::take));
        let speaker = Speaker { name, id };
        Message { time, id: stream::id(own), replies_to: stream::id(to), mark, ..Message::of(speaker, content, line) }
    }
}
