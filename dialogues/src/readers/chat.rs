//! Chat JSONL: a dialogue a line, messages with roles.

use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;

use super::lines::Lines;
use super::turns::{exchanges, one_line};
use super::{Found, LeftOut};
use crate::error::{excerpt, without_place};
use crate::{DataError, Dialogue};

#[derive(Deserialize)]
#[serde(expecting = "an object with `messages`")]
struct Line {
    messages: Vec<Message>,
    #[serde(default)]
    persona: Option<Persona>,
}

#[derive(Deserialize)]
#[serde(expecting = "a message with `role` and `content`")]
struct Message {
    role: String,
    content: String,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`persona` is neither a string nor a list of strings")]
enum Persona {
    One(String),
    Several(Vec<String>),
}

pub(super) fn read(path: &Path, reader: impl BufRead) -> Result<Found, DataError> {
    const REMEDY: &str = "write each dialogue as `{\"messages\":[{\"role\":\"user\",\"content\":\"…\"},\
                          {\"role\":\"assistant\",\"content\":\"…\"}]}` on one line";
    let mut lines = Lines::new(path, reader);
    let mut dialogues = Vec::new();
    let mut unanswered = 0;
    while let Some((line, text)) = lines.next()? {
        if text.trim().is_empty() {
            continue;
        }
        let refuse = |problem: String| DataError::line(path, line, problem, REMEDY);
        let parsed: Line = serde_json::from_str(text)
            .map_err(|error| refuse(format!("{} in column {}", without_place(&error), error.column())))?;
        let mut said = Vec::with_capacity(parsed.messages.len());
        let mut system = Vec::new();
        for (index, Message { role, content }) in (1..).zip(parsed.messages) {
            match role.as_str() {
                "user" => said.push((false, one_line(&content))),
                "assistant" => said.push((true, one_line(&content))),
                "system" => system.push(content),
                _ => {
                    let role = excerpt(&role);
                    return Err(refuse(format!(
                        "message {index} has the role {role}, expected system, user or assistant"
                    )));
                }
            }
        }
        let persona = match parsed.persona {
            Some(Persona::One(text)) => vec![text],
            Some(Persona::Several(texts)) => texts,
            None => system,
        };
        let (exchanges, open) = exchanges(said);
        if exchanges.is_empty() {
            return Err(refuse("no message of the dialogue is the assistant's, expected at least one".into()));
        }
        unanswered += usize::from(open);
        let sentences = persona.iter().flat_map(|text| text.lines()).map(one_line);
        dialogues.push(Dialogue {
            persona: sentences.filter(|sentence| !sentence.is_empty()).collect(),
            partner_persona: Vec::new(),
            exchanges,
            line,
        });
    }
    Ok((dialogues, vec![LeftOut { what: "closing messages of the user without a reply".into(), count: unanswered }]))
}
