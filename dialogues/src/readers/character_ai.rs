//! Character.AI's chats: of before 2023 `histories` with `msgs`, since then `turns`, each with candidates of which one was taken.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::stream::Shape;
use crate::conversation::{ASSISTANT, About, Message, USER, seconds};

/// A message of either form; what is not named here says nothing of who says what.
#[derive(Deserialize)]
pub(super) struct Written {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    src: Option<Author>,
    #[serde(default)]
    author: Option<Author>,
    #[serde(default)]
    candidates: Vec<Candidate>,
    #[serde(default)]
    primary_candidate_id: Option<String>,
    #[serde(default)]
    create_time: Option<String>,
}

/// Who says it; a character where nothing says that it is a human.
#[derive(Deserialize)]
struct Author {
    #[serde(default)]
    is_human: bool,
}

/// One version of it.
#[derive(Deserialize)]
struct Candidate {
    #[serde(default)]
    candidate_id: String,
    #[serde(default)]
    raw_content: String,
}

/// The format.
pub(super) struct CharacterAi;

impl Shape for CharacterAi {
    type Written = Written;
    const MESSAGES: &'static [&'static str] = &["msgs", "turns"];
    const FIELDS: &'static [&'static str] = &[];
    const WITHIN: &'static [&'static str] = &["histories", "chats"];
    const REMEDY: &'static str = "export the chat again, from Character.AI as JSON";
    // The service gives turns from the last to the first.
    const HELD: bool = true;

    fn about(_: &Map<String, Value>) -> About {
        About { whole: true, ..About::default() }
    }

    fn message(written: Written, line: usize) -> Message {
        let Written { text, src, author, candidates, primary_candidate_id, create_time } = written;
        let is_taken = |one: &Candidate| primary_candidate_id.as_ref().is_some_and(|id| *id == one.candidate_id);
        let place = candidates.iter().position(is_taken).unwrap_or(0);
        let taken = candidates.into_iter().nth(place).map(|one| one.raw_content);
        let is_human = author.or(src).is_some_and(|author| author.is_human);
        let local = |text: &str| text.split(['.', 'Z', '+']).next()?.parse().ok().map(seconds);
        Message {
            time: create_time.as_deref().and_then(local),
            ..Message::of_role(if is_human { USER } else { ASSISTANT }, taken.or(text).unwrap_or_default(), line)
        }
    }
}
