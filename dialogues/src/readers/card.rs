//! Character cards, of version 1 (the fields themselves), 2 and 3 (`spec` and `data`): who somebody is, in words for a prompt, and how they talk.

use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;

use super::lines::LONGEST_LINE;
use super::{LeftOut, Source};
use crate::conversation::{ASSISTANT, About, Message, Sink, USER};
use crate::error::without_place;
use crate::{DataError, clean};

const REMEDY: &str = "export the character again, as JSON";
/// Begins each of the examples.
const START: &str = "<START>";
/// What stands for who reads.
const READER: &str = "you";

#[derive(Deserialize)]
#[serde(untagged)]
enum Card {
    Within { data: Fields },
    Plain(Fields),
}

/// What says who somebody is and how they talk. What is for other readers than a model (`creator_notes`, …) is not here.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Fields {
    name: String,
    description: String,
    personality: String,
    scenario: String,
    first_mes: String,
    mes_example: String,
}

/// Reads the examples of a card as dialogues, and what it says of the character as the persona.
///
/// # Errors
/// [`DataError`].
pub(super) fn read(path: &Path, source: &Source, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
    let mut text = String::new();
    let refuse = |problem: String| DataError::file(path, problem, REMEDY);
    let mut file = source.open()?.take(LONGEST_LINE as u64 + 1);
    file.read_to_string(&mut text).map_err(|error| refuse(format!("cannot be read as text: {error}")))?;
    if text.len() > LONGEST_LINE {
        return Err(refuse(format!("is longer than {LONGEST_LINE} bytes, expected a card")));
    }
    let fields = match serde_json::from_str(&text) {
        Ok(Card::Within { data }) => data,
        Ok(Card::Plain(fields)) => fields,
        Err(error) => return Err(DataError::line(path, error.line(), without_place(&error), REMEDY)),
    };
    let filled = |text: &str| {
        let names =
            [("{{char}}", fields.name.as_str()), ("{{user}}", READER), ("<BOT>", &fields.name), ("<USER>", READER)];
        names.into_iter().fold(text.to_owned(), |text, (mark, name)| text.replace(mark, name))
    };
    let described = [&fields.description, &fields.personality, &fields.scenario];
    let lines = described.iter().flat_map(|text| text.lines());
    let persona: Vec<String> = lines.map(|line| clean(&filled(line))).filter(|line| !line.is_empty()).collect();
    let about = || About { persona: persona.clone(), whole: true, ..About::default() };
    let mut outside = 0;
    let line_of = |place: usize| 1 + text.get(..place).unwrap_or_default().matches('\n').count();
    let line = line_of(text.find("mes_example").unwrap_or(0));
    for example in fields.mes_example.split(START).filter(|example| !example.trim().is_empty()) {
        sink.begin(about());
        // A line without a speaker goes on with the one before it.
        let mut last: Option<Message> = None;
        for words in example.lines() {
            let said = |mark: &str, name: &str| {
                let words = words.trim_start();
                words.strip_prefix(mark).or_else(|| words.strip_prefix(name))?.strip_prefix(':')
            };
            let role = match (said("{{char}}", &fields.name), said("{{user}}", "<USER>")) {
                (Some(words), _) => Some((ASSISTANT, words)),
                (_, Some(words)) => Some((USER, words)),
                _ => None,
            };
            match (role, &mut last) {
                (Some((role, words)), last) => {
                    last.replace(Message::of_role(role, filled(words), line))
                        .into_iter()
                        .for_each(|message| sink.message(message));
                }
                (None, Some(last)) => {
                    last.text.push('\n');
                    last.text.push_str(&filled(words));
                }
                (None, None) => outside += usize::from(!words.trim().is_empty()),
            }
        }
        last.into_iter().for_each(|message| sink.message(message));
    }
    if !fields.first_mes.trim().is_empty() {
        sink.begin(about());
        sink.message(Message::of_role(
            ASSISTANT,
            filled(&fields.first_mes),
            line_of(text.find("first_mes").unwrap_or(0)),
        ));
    }
    Ok(vec![LeftOut { what: "lines of examples that nobody says".into(), count: outside }])
}
