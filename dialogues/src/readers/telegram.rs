//! Telegram's `result.json`: one chat, or all of an account.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::stream::{self, Shape};
use crate::conversation::{About, Mark, Message, Speaker, seconds};

/// A message as Telegram writes it; what is not named here says nothing of who says what.
#[derive(Deserialize)]
pub(super) struct Written {
    r#type: String,
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    reply_to_message_id: Option<Value>,
    #[serde(default)]
    date: Option<String>,
    #[serde(default)]
    date_unixtime: Option<String>,
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    from_id: Option<Id>,
    #[serde(default)]
    text: Text,
    #[serde(default)]
    forwarded_from: Option<IgnoredAny>,
    /// What is forwarded from a deleted account has no name.
    #[serde(default)]
    forwarded_from_id: Option<IgnoredAny>,
}

/// `"user123"`; a number in exports of before 2021.
#[derive(Deserialize)]
#[serde(untagged, expecting = "`from_id` is neither a string nor a number")]
enum Id {
    Text(String),
    Number(u64),
}

impl Id {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text.strip_prefix("user").map(str::to_owned).unwrap_or(text),
            Self::Number(number) => number.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`text` is neither a string nor a list of strings and objects with `text`")]
enum Text {
    Plain(String),
    Parts(Vec<Part>),
}

impl Default for Text {
    fn default() -> Self {
        Self::Plain(String::new())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Part {
    Plain(String),
    Entity { text: String },
}

/// The format.
pub(super) struct Telegram;

impl Shape for Telegram {
    type Written = Written;
    const FIELDS: &'static [&'static str] = &["name", "type", "personal_information"];
    const WITHIN: &'static [&'static str] = &["chats", "left_chats", "list"];
    const REMEDY: &'static str = "export the chat again, from Telegram Desktop as JSON";

    fn about(fields: &Map<String, Value>) -> About {
        let owner = fields.get("personal_information").and_then(|person| Id::deserialize(person.get("user_id")?).ok());
        // Such a chat is called by the one whom its owner talks with.
        let alone = fields.get("type").is_some_and(|kind| kind == "personal_chat");
        let partner = fields.get("name").and_then(Value::as_str).filter(|_| alone).map(str::to_owned);
        About { owner: owner.map(Id::text), partner, ..About::default() }
    }

    fn message(written: Written, line: usize) -> Message {
        let text = match written.text {
            Text::Plain(text) => text,
            Text::Parts(parts) => parts
                .into_iter()
                .map(|part| match part {
                    Part::Plain(text) | Part::Entity { text } => text,
                })
                .collect(),
        };
        let mark = match written.r#type.as_str() {
            "message" if written.forwarded_from.is_some() || written.forwarded_from_id.is_some() => {
                Some(Mark::Forwarded)
            }
            // A picture without a caption has a text that is empty.
            "message" if text.trim().is_empty() => Some(Mark::Media),
            "message" => None,
            _ => Some(Mark::Notice),
        };
        let time = written.date_unixtime.and_then(|seconds| seconds.parse().ok());
        let local = || Some(seconds(written.date.as_deref()?.parse().ok()?));
        let speaker = Speaker { name: written.from.unwrap_or_default(), id: written.from_id.map(Id::text) };
        let (id, replies_to) = (stream::id(written.id), stream::id(written.reply_to_message_id));
        Message { time: time.or_else(local), id, replies_to, mark, ..Message::of(speaker, text, line) }
    }
}
