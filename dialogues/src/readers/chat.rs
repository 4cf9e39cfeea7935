//! Chats as JSON: messages with roles, a dialogue an object.

use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::bad::Bad;
use super::lines::Lines;
use super::objects::Objects;
use super::turns::{Said, exchanges};
use super::{Found, LeftOut};
use crate::error::{excerpt, without_place};
use crate::{DataError, Dialogue, clean};

#[derive(Deserialize)]
#[serde(expecting = "an object with `messages`")]
struct Chat {
    messages: Vec<Message>,
    #[serde(default)]
    persona: Option<Persona>,
    #[serde(default)]
    personality: Option<Persona>,
}

#[derive(Deserialize)]
#[serde(expecting = "a message with `role` and `content`")]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    weight: Option<f64>,
    #[serde(default)]
    tool_calls: Option<Value>,
    #[serde(default)]
    function_call: Option<Value>,
}

impl Message {
    /// Whether it asks for a tool instead of saying something.
    fn calls(&self) -> bool {
        let is_call = |value: &Value| value.as_array().is_none_or(|calls| !calls.is_empty());
        [&self.tool_calls, &self.function_call].into_iter().flatten().any(is_call)
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`content` is neither a string nor a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`persona` is neither a string nor a list of strings")]
enum Persona {
    One(String),
    Several(Vec<String>),
}

/// Who says a message.
enum Role {
    Partner,
    Persona,
    System,
    Tool,
}

impl Role {
    /// By the names that fine-tuning files have, in any case.
    fn of(name: &str) -> Option<Self> {
        Some(match name.trim().to_ascii_lowercase().as_str() {
            "user" | "human" => Self::Partner,
            "assistant" | "bot" | "gpt" | "model" => Self::Persona,
            "system" | "developer" => Self::System,
            "tool" | "function" => Self::Tool,
            _ => return None,
        })
    }
}

/// What of a file is in no dialogue.
#[derive(Default)]
struct Counts {
    open: usize,
    empty: usize,
    tools: usize,
    parts: usize,
    system: usize,
    surrogates: usize,
    unanswered: usize,
    unlearned: usize,
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.open += more.open;
        self.empty += more.empty;
        self.tools += more.tools;
        self.parts += more.parts;
        self.system += more.system;
        self.surrogates += more.surrogates;
        self.unanswered += more.unanswered;
        self.unlearned += more.unlearned;
    }

    fn left_out(self) -> Vec<LeftOut> {
        let left_out = |what: &str, count| LeftOut { what: what.into(), count };
        vec![
            left_out("closing messages of the user without a reply", self.open),
            left_out("replies without words, with the words before them", self.empty),
            left_out("calls of tools and what they gave", self.tools),
            left_out("parts of messages that are not text", self.parts),
            left_out("system messages within a dialogue, or beside its persona", self.system),
            left_out("halves of surrogate pairs", self.surrogates),
            left_out("dialogues without a reply", self.unanswered),
            left_out("dialogues of which no reply is to be learned", self.unlearned),
        ]
    }
}

const REMEDY: &str = "write each dialogue as `{\"messages\":[{\"role\":\"user\",\"content\":\"…\"},\
                      {\"role\":\"assistant\",\"content\":\"…\"}]}`";

/// A dialogue a line.
pub(super) fn read_lines(path: &Path, reader: impl BufRead) -> Result<Found, DataError> {
    let mut lines = Lines::new(path, reader);
    let mut reading = Chats::default();
    while let Some((line, text)) = lines.next()? {
        if !text.trim().is_empty() {
            reading.see(line, text);
        }
    }
    reading.end(path)
}

/// Objects in a list or one after the other, over several lines or not.
pub(super) fn read_objects(path: &Path, reader: impl BufRead) -> Result<Found, DataError> {
    let mut objects = Objects::new(path, reader);
    let mut reading = Chats::default();
    while let Some((line, text)) = objects.next()? {
        reading.see(line, text);
    }
    reading.end(path)
}

#[derive(Default)]
struct Chats {
    dialogues: Vec<Dialogue>,
    counts: Counts,
    bad: Bad,
    seen: usize,
}

impl Chats {
    fn see(&mut self, line: usize, text: &str) {
        self.seen += 1;
        match self.dialogue(line, text) {
            Ok(dialogue) => self.dialogues.extend(dialogue),
            Err(problem) => self.bad.add(line, problem, REMEDY),
        }
    }

    fn end(self, path: &Path) -> Result<Found, DataError> {
        let Self { dialogues, counts, bad, seen } = self;
        let mut left_out = vec![bad.judge(path, "dialogues", seen)?];
        left_out.extend(counts.left_out());
        if dialogues.is_empty() {
            return Err(DataError::file(path, "has no dialogue with a reply of the assistant to learn from", REMEDY));
        }
        Ok((dialogues, left_out))
    }

    /// The dialogue of an object, where it has something to learn from.
    fn dialogue(&mut self, line: usize, text: &str) -> Result<Option<Dialogue>, String> {
        // A carriage return is a blank, also where JSON would not have it.
        let (text, surrogates) = without_half_surrogates(&text.replace('\r', " "));
        let parsed: Chat = serde_json::from_str(&text).map_err(|error| {
            let place = if error.line() > 1 { format!("line {} of it, ", error.line()) } else { String::new() };
            format!("{} in {place}column {}", without_place(&error), error.column())
        })?;
        let mut counts = Counts { surrogates, ..Counts::default() };
        let mut said = Vec::with_capacity(parsed.messages.len());
        let mut system = Vec::new();
        for (index, message) in (1..).zip(parsed.messages) {
            let Some(role) = Role::of(&message.role) else {
                let role = excerpt(&message.role);
                return Err(format!("message {index} has the role {role}, expected system, user or assistant"));
            };
            let learned = match message.weight {
                None | Some(1.0) => true,
                Some(0.0) => false,
                Some(weight) => return Err(format!("message {index} has the weight {weight}, expected 0 or 1")),
            };
            let calls = message.calls();
            let raw = words(message.content, &mut counts.parts);
            let text = clean(&raw);
            match role {
                Role::Partner => said.push(Said::Partner(text)),
                Role::Persona if !text.is_empty() => said.push(Said::Persona { text, learned }),
                // The words after the call's result are the reply.
                Role::Persona if calls => counts.tools += 1,
                Role::Persona => said.push(Said::Nothing),
                Role::Tool => counts.tools += 1,
                Role::System if said.is_empty() => system.push(raw),
                Role::System => counts.system += 1,
            }
        }
        let persona = match parsed.persona.or(parsed.personality) {
            None => system,
            Some(persona) => {
                counts.system += system.len();
                match persona {
                    Persona::One(text) => vec![text],
                    Persona::Several(texts) => texts,
                }
            }
        };
        let (exchanges, unanswered) = exchanges(said);
        counts.empty = unanswered.empty;
        counts.open = usize::from(unanswered.open && !exchanges.is_empty());
        let dialogue = match exchanges.iter().any(|exchange| exchange.learned) {
            _ if exchanges.is_empty() => {
                counts.unanswered = 1;
                None
            }
            false => {
                counts.unlearned = 1;
                None
            }
            true => {
                let sentences = persona.iter().flat_map(|text| text.lines()).map(clean);
                let persona = sentences.filter(|sentence| !sentence.is_empty()).collect();
                Some(Dialogue { persona, partner_persona: Vec::new(), exchanges, line })
            }
        };
        self.counts.add(&counts);
        Ok(dialogue)
    }
}

/// The text of a message; `others` counts its parts that are no text.
fn words(content: Option<Content>, others: &mut usize) -> String {
    match content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let total = parts.len();
            let texts: Vec<String> = parts.into_iter().filter_map(|part| part.text).collect();
            *others += total - texts.len();
            texts.join("\n")
        }
    }
}

/// JSON whose strings have no escape of half a surrogate pair, which is no character, and how many there were.
fn without_half_surrogates(json: &str) -> (String, usize) {
    let mut whole = String::with_capacity(json.len());
    let (mut rest, mut halves) = (json, 0);
    while let Some(place) = rest.find('\\') {
        let (before, escape) = rest.split_at(place);
        whole.push_str(before);
        let length = match (unit(escape), escape.get(6..).and_then(unit)) {
            (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => 12,
            (Some(0xD800..0xE000), _) => {
                halves += 1;
                rest = &escape[6..];
                continue;
            }
            // A backslash, and what it escapes.
            _ => 1 + escape.chars().nth(1).map_or(0, char::len_utf8),
        };
        whole.push_str(&escape[..length]);
        rest = &escape[length..];
    }
    whole.push_str(rest);
    (whole, halves)
}

/// The UTF-16 unit of an escape at the beginning of a text.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_surrogate_pair_goes_and_a_whole_one_stays() {
        let pair = r#""\ud83d\ude0a\n""#;
        assert_eq!(without_half_surrogates(pair), (pair.to_owned(), 0));
        let (escaped, half) = (r"\\ud83d", r"\ud83d");
        assert_eq!(without_half_surrogates(escaped), (escaped.to_owned(), 0));
        assert_eq!(without_half_surrogates(&format!("a{half}b")), ("ab".to_owned(), 1));
        assert_eq!(without_half_surrogates(&format!("{half}{half}\\ude0a")), (format!("{half}\\ude0a"), 1));
        assert_eq!(without_half_surrogates(r"\ude0a\"), (r"\".to_owned(), 1));
    }
}
