//! ConvAI2's text format (Zhang et al. 2018, as ParlAI distributes it), both ways.

use std::io::{Error, ErrorKind, Write};
use std::path::Path;

use super::bad::Bad;
use super::lines::Lines;
use super::{LeftOut, Source};
use crate::conversation::Sink;
use crate::error::excerpt;
use crate::{DataError, Dialogue, Exchange, clean};

/// What stands in the place of the partner's words when the persona speaks first.
pub const SILENCE: &str = "__SILENCE__";

const YOURS: &str = "your persona: ";
const PARTNERS: &str = "partner's persona: ";

/// One line after its number.
enum Content {
    Persona(String),
    PartnerPersona(String),
    Exchange(Exchange),
    /// Words of the partner without a reply.
    Partner(String),
}

/// What is wrong with a line, and the remedy.
type Problem = (String, &'static str);

/// The dialogue that is being read.
struct Open {
    dialogue: Dialogue,
    /// Words of the partner that have no reply yet.
    partner: String,
    /// The number of the line before; none after one that could not be read.
    previous: Option<u32>,
    /// Whether a line of it could not be read: it is left out.
    broken: bool,
}

/// What was read so far.
struct Read<'a> {
    sink: &'a mut dyn Sink,
    bad: Bad,
    lines: usize,
    broken: usize,
    unanswered: usize,
}

/// Reads the dialogues of a file: the format has exchanges, not messages.
///
/// # Errors
/// [`DataError`].
pub(super) fn read(path: &Path, source: &Source, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
    let mut lines = Lines::new(path, source.open()?);
    let (mut read, mut open) = (Read { sink, bad: source.bad(), lines: 0, broken: 0, unanswered: 0 }, None);
    while let Some((line, text)) = lines.next()? {
        for text in at_returns(text, &open) {
            if !text.trim().is_empty() {
                read.line(line, &text, &mut open);
            }
        }
    }
    read.close(open);
    let Read { bad, lines, broken, unanswered, .. } = read;
    let left_out = |what: &str, count| LeftOut { what: what.into(), count };
    Ok(vec![
        bad.judge(path, "lines", lines)?,
        left_out("dialogues with such a line", broken),
        left_out("closing words without a reply", unanswered),
    ])
}

/// A line whole, or cut at carriage returns that end lines: those with the number of a next line after them. Others are blanks.
fn at_returns(line: &str, open: &Option<Open>) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut previous = open.as_ref().and_then(|open| open.previous);
    for part in line.split('\r') {
        let number = numbered(part).ok().map(|(number, _)| number);
        let begins = number.is_some_and(|number| number == 1 || previous.is_some_and(|before| number == before + 1));
        match parts.last_mut().filter(|_| !begins) {
            Some(last) => {
                last.push(' ');
                last.push_str(part);
            }
            None => {
                parts.push(part.to_owned());
                previous = number;
            }
        }
    }
    parts
}

impl Read<'_> {
    fn line(&mut self, line: usize, text: &str, open: &mut Option<Open>) {
        self.lines += 1;
        if let Err((problem, remedy)) = self.take(line, text, open) {
            self.bad.add(line, problem, remedy);
            if let Some(open) = open {
                open.broken = true;
            }
        }
    }

    fn take(&mut self, line: usize, text: &str, open: &mut Option<Open>) -> Result<(), Problem> {
        let numbered = numbered(text);
        if let (Err(_), Some(open)) = (&numbered, open.as_mut()) {
            open.previous = None;
        }
        let (number, text) = numbered?;
        if number == 1 {
            self.close(open.take());
            let dialogue = Dialogue { persona: Vec::new(), partner_persona: Vec::new(), exchanges: Vec::new(), line };
            *open = Some(Open { dialogue, partner: String::new(), previous: None, broken: false });
        }
        let Some(open) = open else {
            let problem = format!("the first line has number {number}, expected 1");
            return Err((problem, "begin the file with a dialogue's first line"));
        };
        if let Some(previous) = open.previous.replace(number)
            && number != previous + 1
        {
            let problem = format!("number {number} follows {previous}, expected {} or 1", previous + 1);
            return Err((problem, "number a dialogue's lines from 1 without gaps"));
        }
        let begun = !open.dialogue.exchanges.is_empty();
        match content(text)? {
            Content::Persona(_) | Content::PartnerPersona(_) if begun => {
                let problem = "a persona line follows the first exchange".into();
                return Err((problem, "put the persona lines first, and begin each dialogue at number 1"));
            }
            Content::Persona(sentence) => open.dialogue.persona.push(sentence),
            Content::PartnerPersona(sentence) => open.dialogue.partner_persona.push(sentence),
            Content::Partner(words) => append(&mut open.partner, &words),
            Content::Exchange(mut exchange) => {
                append(&mut open.partner, &exchange.partner);
                exchange.partner = std::mem::take(&mut open.partner);
                open.dialogue.exchanges.push(exchange);
            }
        }
        Ok(())
    }

    /// Ends a dialogue.
    fn close(&mut self, open: Option<Open>) {
        match open {
            None => {}
            Some(Open { broken: true, .. }) => self.broken += 1,
            Some(Open { dialogue, .. }) if dialogue.exchanges.is_empty() => {
                let problem = "the dialogue that begins here has no exchange, expected at least one".into();
                self.bad.add(
                    dialogue.line,
                    problem,
                    "remove the dialogue or complete it: write an exchange as partner, tab, reply",
                );
            }
            Some(Open { dialogue, partner, .. }) => {
                self.unanswered += usize::from(!partner.is_empty());
                self.sink.dialogue(dialogue);
            }
        }
    }
}

fn append(words: &mut String, more: &str) {
    if !words.is_empty() && !more.is_empty() {
        words.push(' ');
    }
    words.push_str(more);
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

fn content(text: &str) -> Result<Content, Problem> {
    let mut fields = text.split('\t');
    let partner = clean(fields.next().unwrap_or_default());
    let Some(reply) = fields.next().map(clean) else {
        for (prefix, of) in [(YOURS, Content::Persona as fn(String) -> Content), (PARTNERS, Content::PartnerPersona)] {
            match partner.strip_prefix(prefix.trim_end()).map(str::trim) {
                Some("") => {
                    return Err(("a persona line without a sentence".into(), "write the sentence, or remove the line"));
                }
                Some(sentence) => return Ok(of(sentence.to_owned())),
                None => {}
            }
        }
        return Ok(Content::Partner(if partner == SILENCE { String::new() } else { partner }));
    };
    if partner.is_empty() {
        return Err((
            "the partner's words are missing before the tab".into(),
            "write `__SILENCE__` where the persona speaks first",
        ));
    }
    if reply.is_empty() {
        return Err(("the reply after the tab is empty".into(), "write an exchange as partner, tab, reply"));
    }
    let _reward = fields.next();
    let candidates: Vec<String> = match fields.next().map(str::trim) {
        Some(list) if !list.is_empty() => list.split('|').map(clean).collect(),
        _ => Vec::new(),
    };
    if fields.next().is_some() {
        return Err((
            "the exchange has more than four fields, expected partner, reply, reward, candidates".into(),
            "remove the tabs that are not between fields",
        ));
    }
    if !candidates.is_empty() && !candidates.contains(&reply) {
        return Err((
            format!("the reply {} is not among its candidates", excerpt(&reply)),
            "put the reply itself among the candidates, or leave them all out",
        ));
    }
    let partner = if partner == SILENCE { String::new() } else { partner };
    Ok(Content::Exchange(Exchange { candidates, ..Exchange::new(partner, reply) }))
}

/// Writes dialogues in ConvAI2's text format, so that [`crate::read_dialogues`] gives them back.
///
/// # Errors
/// Of kind `InvalidInput` for text that the format cannot hold (a tab or line break anywhere, `|` in a candidate, an
/// empty reply, a reply that is not learned from or not among its candidates, a dialogue without exchanges); else what the
/// writer says.
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
            if !exchange.learned {
                return Err(unwritable("a reply is not learned from"));
            }
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
