//! WhatsApp's exports: `[3/11/25, 18:02:11] Ada: text` (iOS), `03/11/2025, 18:04 - Ada: text` (Android), in the forms of their
//! languages. A line without such a beginning goes on with the message before it.

mod header;

use std::collections::HashMap;
use std::io::BufRead;
use std::path::Path;

use super::lines::Lines;
use super::{LeftOut, Source};
use crate::DataError;
use crate::conversation::{About, Mark, Message, Sink, Speaker};

use header::{Orders, header};

pub(super) use header::is_header;

/// A name and what it begins with are shorter, in bytes.
const LONGEST_NAME: usize = 160;
/// The most names that are looked at.
const MOST_NAMES: usize = 100_000;
/// The longest text between angle brackets that is a remark of the program, in characters.
const LONGEST_REMARK: usize = 48;
/// On iOS it stands before what the program says in the place of words: media, notices.
const LEFT_TO_RIGHT: char = '\u{200E}';

/// Marks of the direction of writing, which are no text.
fn is_mark(character: char) -> bool {
    matches!(character, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

/// What has to be known of the whole file before its messages can be read.
#[derive(Default)]
struct Survey {
    orders: Orders,
    /// Of each name that ends at a first `: `, in how many messages it does, and how it goes on to another where it does so alike in
    /// all of them.
    names: HashMap<String, (usize, Option<String>)>,
}

impl Survey {
    fn see(&mut self, rest: &str) {
        let Some((name, text)) = rest.split_once(": ") else { return };
        let next = text.split_once(": ").map(|(next, _)| next);
        let is_full = self.names.len() >= MOST_NAMES;
        match self.names.get_mut(name) {
            Some((count, known)) => {
                *count += 1;
                known.take_if(|known| Some(known.as_str()) != next);
            }
            // A file with more names is no chat.
            None if is_full => {}
            None => {
                self.names.insert(name.to_owned(), (1, next.map(str::to_owned)));
            }
        }
    }

    /// Who says a message, and what; `None` where the program says it.
    fn split<'r>(&self, rest: &'r str) -> Option<(&'r str, &'r str)> {
        let (name, text) = rest.split_once(": ").or_else(|| Some((rest.strip_suffix(':')?, "")))?;
        // Notices quote what they name: `Ada changed the subject to "Trip: Rome"`.
        if name.len() > LONGEST_NAME || name.contains(['"', '“', '„', '«', '”']) {
            return None;
        }
        // A name may have a colon of its own: then all its messages go on alike.
        match self.names.get(name) {
            Some((3.., Some(more))) => {
                let whole = name.len() + 2 + more.len();
                Some((rest.get(..whole)?, rest.get(whole + 2..)?))
            }
            _ => Some((name, text)),
        }
    }
}

/// Reads the messages of a file.
///
/// # Errors
/// [`DataError`].
pub(super) fn read(path: &Path, source: &Source, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
    let mut survey = Survey::default();
    let mut lines = Lines::new(path, source.open()?);
    while let Some((_, line)) = lines.next()? {
        if let Some((header, rest)) = header(line) {
            survey.orders.see(&header);
            survey.see(rest);
        }
    }
    sink.begin(About::default());
    let ownerless = messages(path, source.open()?, &survey, sink)?;
    Ok(vec![LeftOut { what: "lines before the first message".into(), count: ownerless }])
}

fn messages(path: &Path, reader: impl BufRead, survey: &Survey, sink: &mut dyn Sink) -> Result<usize, DataError> {
    let order = survey.orders.order();
    let mut lines = Lines::new(path, reader);
    let (mut open, mut ownerless) = (None::<Message>, 0);
    while let Some((line, text)) = lines.next()? {
        match header(text) {
            Some((header, rest)) => {
                open.replace(message(survey, header.time(order), rest, line))
                    .map(finished)
                    .into_iter()
                    .for_each(|message| sink.message(message));
            }
            None => match &mut open {
                // No message is longer than a line may be.
                Some(message) if message.text.len() < super::lines::LONGEST_LINE => {
                    message.text.push('\n');
                    message.text.push_str(text);
                }
                Some(_) => {}
                None => ownerless += usize::from(!text.trim().is_empty()),
            },
        }
    }
    open.map(finished).into_iter().for_each(|message| sink.message(message));
    Ok(ownerless)
}

fn message(survey: &Survey, time: Option<i64>, rest: &str, line: usize) -> Message {
    let of = |name: &str, text: &str, mark| {
        // iOS puts a tilde before a name that is in nobody's contacts.
        let name = bare(bare(name).trim_start_matches('~'));
        let speaker = Speaker { name: name.to_owned(), id: None };
        Message { time, mark, ..Message::of(speaker, text.to_owned(), line) }
    };
    match survey.split(rest) {
        // On iOS a group's notices are in the group's name.
        Some((name, text)) => of(name, text, None),
        None => of("", rest, Some(Mark::Notice)),
    }
}

/// A message whose lines are all there: what the program put into it goes.
fn finished(mut message: Message) -> Message {
    if message.mark.is_some() {
        return message;
    }
    let (mut words, mut remarks) = (Vec::new(), Vec::new());
    for line in message.text.split('\n') {
        let (own, remark) = split_remark(line);
        remarks.extend(remark.map(bare));
        words.push(bare(own));
    }
    let text = words.join("\n").trim().to_owned();
    let is_deleted = |text: &str| DELETED.contains(&text.trim_end_matches('.').to_lowercase().as_str());
    if is_deleted(&text) || (text.is_empty() && remarks.iter().any(|remark| is_deleted(remark))) {
        message.mark = Some(Mark::Deleted);
    } else if text.is_empty() && !remarks.is_empty() {
        message.mark = Some(Mark::Media);
    }
    message.text = text;
    message
}

fn bare(text: &str) -> &str {
    text.trim_matches(|character: char| is_mark(character) || character.is_whitespace())
}

/// A line's own words, and what the program put after them or in their place.
fn split_remark(line: &str) -> (&str, Option<&str>) {
    // iOS: a mark, then `image omitted` as a line of its own, `<attached: 1.jpg>` or `<This message was edited>` after words.
    if let Some((own, remark)) = line.split_once(LEFT_TO_RIGHT)
        && (bare(own).is_empty() || bare(remark).starts_with('<'))
    {
        return (own, Some(remark));
    }
    // Android: `<Media omitted>`, `words <This message was edited>`, `IMG-1.jpg (file attached)`, `null` for what it cannot show.
    let words = bare(line);
    let is_remark = |text: &str| {
        let inner = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or_default();
        (4..=LONGEST_REMARK).contains(&inner.chars().count())
            && !inner.contains(['<', '>', '/', '='])
            && inner.chars().any(char::is_alphabetic)
    };
    let is_file = |text: &str| {
        let named = text.strip_suffix(')').and_then(|text| text.split_once(" ("));
        named.is_some_and(|(file, remark)| {
            let extension = file.rsplit_once('.').map(|(_, extension)| extension).unwrap_or_default();
            (2..=4).contains(&extension.len())
                && extension.chars().all(|one| one.is_ascii_alphanumeric())
                && !file.contains(char::is_whitespace)
                && !remark.contains(['(', ')'])
        })
    };
    if words == "null" || is_remark(words) || is_file(words) {
        return ("", Some(words));
    }
    match words.rfind(" <").map(|at| words.split_at(at)) {
        Some((own, remark)) if is_remark(remark.trim()) && remark.trim().contains(' ') => (own, Some(remark)),
        _ => (line, None),
    }
}

/// What stands for a message that was taken back, in the languages whose speakers write the most.
const DELETED: [&str; 26] = [
    "this message was deleted",
    "you deleted this message",
    "diese nachricht wurde gelöscht",
    "du hast diese nachricht gelöscht",
    "se eliminó este mensaje",
    "este mensaje fue eliminado",
    "eliminaste este mensaje",
    "ce message a été supprimé",
    "vous avez supprimé ce message",
    "questo messaggio è stato eliminato",
    "hai eliminato questo messaggio",
    "esta mensagem foi apagada",
    "mensagem apagada",
    "você apagou esta mensagem",
    "apagou esta mensagem",
    "dit bericht is verwijderd",
    "je hebt dit bericht verwijderd",
    "bu mesaj silindi",
    "bu mesajı sildiniz",
    "данное сообщение удалено",
    "вы удалили данное сообщение",
    "ta wiadomość została usunięta",
    "このメッセージは削除されました",
    "此消息已删除",
    "此消息已被删除",
    "이 메시지는 삭제되었습니다",
];
