//! Hugging Face's `personachat_self_original.json` (Wolf et al. 2019), streamed: one dialogue in memory at a time, and
//! of each history its last utterance.

use std::fmt;
use std::io::{BufReader, Error};
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::guard::{Guard, Piece, explain};
use super::{LeftOut, Source};
use crate::conversation::Sink;
use crate::error::without_place;
use crate::{DataError, Dialogue, Exchange, SILENCE, clean};

/// [`SILENCE`] as it comes out of a tokenizer.
const SPACED_SILENCE: &str = "__ SILENCE __";

#[derive(Deserialize)]
struct Entry {
    personality: Vec<String>,
    utterances: Vec<Utterance>,
}

#[derive(Deserialize)]
struct Utterance {
    candidates: Vec<String>,
    history: Last,
}

/// The last string of a list, where it has one.
struct Last(Option<String>);

impl<'de> Deserialize<'de> for Last {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keep;
        impl<'de> Visitor<'de> for Keep {
            type Value = Last;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list of utterances")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Last, A::Error> {
                let mut last = None;
                while let Some(next) = list.next_element::<String>()? {
                    last = Some(next);
                }
                Ok(Last(last))
            }
        }
        deserializer.deserialize_seq(Keep)
    }
}

/// What to do with a file that cannot be read.
pub(super) const REMEDY: &str = "use the file as Hugging Face distributes it, copied whole";

/// All parts, or the one that is wanted.
struct Parts<'a> {
    wanted: Option<&'a str>,
    names: Vec<String>,
    sink: &'a mut dyn Sink,
    /// Dialogues so far.
    read: usize,
}

/// The dialogues of one part.
struct Part<'a> {
    name: &'a str,
    sink: &'a mut dyn Sink,
    read: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for &mut Parts<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Parts<'_> {
    type Value = ();
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object of parts, such as \"train\" and \"valid\"")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if self.wanted.is_none_or(|wanted| wanted == name) {
                map.next_value_seed(Part { name: &name, sink: self.sink, read: &mut self.read })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            self.names.push(name);
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = ();
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of dialogues")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(entry) = list.next_element::<Entry>()? {
            number += 1;
            let name = self.name;
            let wrong = |problem: &str| A::Error::custom(format!("dialogue {number} of {name:?} {problem}"));
            let mut exchanges = Vec::with_capacity(entry.utterances.len());
            for Utterance { candidates, history } in entry.utterances {
                let Some(partner) = history.0.map(|text| clean(&text)) else {
                    return Err(wrong("has an empty history, expected the partner's words at its end"));
                };
                let mut candidates: Vec<String> = candidates.iter().map(|text| clean(text)).collect();
                let Some(reply) = candidates.last().filter(|reply| !reply.is_empty()).cloned() else {
                    return Err(wrong("has no candidates, expected the reply as the last one"));
                };
                if candidates.len() == 1 {
                    candidates.clear();
                }
                let is_silence = partner == SILENCE || partner == SPACED_SILENCE;
                let partner = if is_silence { String::new() } else { partner };
                exchanges.push(Exchange { candidates, ..Exchange::new(partner, reply) });
            }
            let sentences = entry.personality.iter().map(|sentence| clean(sentence));
            let persona: Vec<String> = sentences.filter(|sentence| !sentence.is_empty()).collect();
            if persona.is_empty() {
                return Err(wrong("has an empty personality, expected the persona's sentences"));
            }
            if exchanges.is_empty() {
                return Err(wrong("has no utterances, expected at least one"));
            }
            *self.read += 1;
            self.sink.dialogue(Dialogue { persona, partner_persona: Vec::new(), exchanges, line: *self.read });
        }
        Ok(())
    }
}

/// The dialogues of all parts, or of the one called `part`. The file may be a single line, so a dialogue's `line` is its
/// number.
///
/// # Errors
/// [`DataError`].
pub(super) fn read(
    path: &Path,
    source: &Source,
    sink: &mut dyn Sink,
    part: Option<&str>,
) -> Result<Vec<LeftOut>, DataError> {
    let mut parts = Parts { wanted: part, names: Vec::new(), sink, read: 0 };
    let guarded = BufReader::with_capacity(1 << 16, Guard::new(source.open()?, Piece::JsonString));
    let mut deserializer = serde_json::Deserializer::from_reader(guarded);
    let parsed = (&mut parts).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    parsed.map_err(|error| {
        if error.is_io() {
            return explain(path, &Error::from(error));
        }
        let problem = format!("{} in column {}", without_place(&error), error.column());
        DataError::line(path, error.line(), problem, REMEDY)
    })?;
    if let Some(part) = part.filter(|part| parts.names.iter().all(|name| name != part)) {
        let names: Vec<String> = parts.names.iter().map(|name| format!("`#{name}`")).collect();
        return Err(DataError::file(path, format!("has no part {part:?}"), format!("choose {}", names.join(" or "))));
    }
    Ok(Vec::new())
}
