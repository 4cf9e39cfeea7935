//! ConvAI2's text format (Zhang et al. 2018, as ParlAI distributes it), both ways.

use std::io::{BufRead, Error, ErrorKind, Write};
use std::path::Path;

use super::lines::Lines;
use crate::error::excerpt;
use crate::{DataError, Dialogue, Exchange};

/// What stands in the place of the partner's words when the persona speaks first.
pub const SILENCE: &str = "__SILENCE__";

const YOURS: &str = "your persona: ";
const PARTNERS: &str = "partner's persona: ";

/// One line after its number.
enum Content {
    Persona(String),
    PartnerPersona(String),
    Exchange(Exchange),
}

pub(super) fn read(path: &Path, reader: impl BufRead) -> Result<Vec<Dialogue>, DataError> {
    let mut lines = Lines::new(path, reader);
    let mut dialogues: Vec<Dialogue> = Vec::new();
    let mut previous = 0;
    while let Some((line, text)) = lines.next()? {
        let refuse = |(problem, remedy): (String, &str)| DataError::line(path, line, problem, remedy);
        let (number, text) = numbered(text).map_err(refuse)?;
        match (number, dialogues.last()) {
            (1, last) => {
                if let Some(last) = last {
                    with_exchanges(path, last)?;
                }
                dialogues.push(Dialogue {
                    persona: Vec::new(),
                    partner_persona: Vec::new(),
                    exchanges: Vec::new(),
                    line,
                });
            }
            (_, None) => {
                return Err(refuse((
                    format!("the first line has number {number}, expected 1"),
                    "begin the file with a dialogue's first line",
                )));
            }
            (_, Some(_)) if number != previous + 1 => {
                return Err(refuse((
                    format!("number {number} follows {previous}, expected {} or 1", previous + 1),
                    "number a dialogue's lines from 1 without gaps",
                )));
            }
            _ => {}
        }
        previous = number;
        let Some(dialogue) = dialogues.last_mut() else {
            continue;
        };
        let begun = !dialogue.exchanges.is_empty();
        match content(text).map_err(refuse)? {
            Content::Persona(_) | Content::PartnerPersona(_) if begun => {
                return Err(refuse((
                    "a persona line follows the first exchange".into(),
                    "put the persona lines first, and begin each dialogue at number 1",
                )));
            }
            Content::Persona(sentence) => dialogue.persona.push(sentence),
            Content::PartnerPersona(sentence) => dialogue.partner_persona.push(sentence),
            Content::Exchange(exchange) => dialogue.exchanges.push(exchange),
        }
    }
    match dialogues.last() {
        Some(last) => with_exchanges(path, last)?,
        None => return Err(DataError::line(path, 1, "the file is empty, expected dialogues", "give dialogues")),
    }
    Ok(dialogues)
}

fn with_exchanges(path: &Path, dialogue: &Dialogue) -> Result<(), DataError> {
    if dialogue.exchanges.is_empty() {
        return Err(DataError::line(
            path,
            dialogue.line,
            "the dialogue that begins here has no exchange, expected at least one",
            "remove the dialogue or complete it",
        ));
    }
    Ok(())
}

/// Splits `N text`.
fn numbered(line: &str) -> Result<(u32, &str), (String, &'static str)> {
    line.split_once(' ')
        .filter(|(number, _)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|(number, text)| Some((number.parse().ok()?, text)))
        .filter(|(number, _)| *number > 0)
        .ok_or_else(|| {
            (
                format!("{} is not ConvAI2 text, expected a line number, a space and text", excerpt(line)),
                "write each line as `N text`, numbered from 1 in every dialogue",
            )
        })
}

fn content(text: &str) -> Result<Content, (String, &'static str)> {
    let mut fields = text.split('\t');
    let partner = fields.next().unwrap_or_default();
    let Some(reply) = fields.next() else {
        let sentence = |prefix| text.strip_prefix(prefix).map(str::trim).filter(|sentence: &&str| !sentence.is_empty());
        if let Some(sentence) = sentence(YOURS) {
            return Ok(Content::Persona(sentence.to_owned()));
        }
        if let Some(sentence) = sentence(PARTNERS) {
            return Ok(Content::PartnerPersona(sentence.to_owned()));
        }
        return Err((
            format!("{} is an exchange without a reply, expected a tab and the persona's reply", excerpt(text)),
            "write an exchange as partner, tab, reply",
        ));
    };
    if partner.trim().is_empty() {
        return Err((
            "the partner's words are missing before the tab".into(),
            "write `__SILENCE__` where the persona speaks first",
        ));
    }
    if reply.trim().is_empty() {
        return Err(("the reply after the tab is empty".into(), "write an exchange as partner, tab, reply"));
    }
    let _reward = fields.next();
    let candidates: Vec<String> = match fields.next() {
        Some(list) if !list.is_empty() => list.split('|').map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    if fields.next().is_some() {
        return Err((
            "the exchange has more than four fields, expected partner, reply, reward, candidates".into(),
            "remove the tabs that are not between fields",
        ));
    }
    if !candidates.is_empty() && !candidates.iter().any(|candidate| candidate == reply) {
        return Err((
            format!("the reply {} is not among its candidates", excerpt(reply)),
            "put the reply itself among the candidates, or leave them all out",
        ));
    }
    let partner = if partner == SILENCE { "" } else { partner };
    Ok(Content::Exchange(Exchange { partner: partner.to_owned(), reply: reply.to_owned(), candidates }))
}

/// Writes dialogues in ConvAI2's text format, so that [`crate::read_dialogues`] gives them back.
///
/// # Errors
/// Of kind `InvalidInput` for text that the format cannot hold (a tab or line break anywhere, `|` in a candidate, an
/// empty reply, a reply that is not among its candidates, a dialogue without exchanges); else what the writer says.
pub fn write_convai2(writer: &mut impl Write, dialogues: &[Dialogue]) -> std::io::Result<()> {
    for dialogue in dialogues {
        if dialogue.exchanges.is_empty() {
            return Err(unwritable("a dialogue has no exchanges"));
        }
        let mut number = 0;
        let personas = dialogue.persona.iter().map(|sentence| (YOURS, sentence));
        let partners = dialogue.partner_persona.iter().map(|sentence| (PARTNERS, sentence));
        for (prefix, sentence) in personas.chain(partners) {
            number += 1;
            writeln!(writer, "{number} {prefix}{}", plain(sentence.trim())?)?;
        }
        for exchange in &dialogue.exchanges {
            number += 1;
            let partner = if exchange.partner.is_empty() { SILENCE } else { &exchange.partner };
            write!(writer, "{number} {}\t{}", plain(partner)?, plain(&exchange.reply)?)?;
            if !exchange.candidates.is_empty() {
                if !exchange.candidates.contains(&exchange.reply) {
                    return Err(unwritable("a reply is not among its candidates"));
                }
                for (index, candidate) in exchange.candidates.iter().enumerate() {
                    if candidate.contains(['\t', '\n', '\r', '\0', '|']) {
                        return Err(unwritable("a candidate has a tab, a line break, a NUL or `|`"));
                    }
                    write!(writer, "{}{candidate}", if index == 0 { "\t\t" } else { "|" })?;
                }
            }
            writeln!(writer)?;
        }
    }
    Ok(())
}

fn plain(text: &str) -> std::io::Result<&str> {
    if text.trim().is_empty() || text.contains(['\t', '\n', '\r', '\0']) {
        return Err(unwritable("a text is empty or has a tab, a line break or a NUL"));
    }
    Ok(text)
}

fn unwritable(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("ConvAI2's text format cannot hold this: {problem}"))
}
