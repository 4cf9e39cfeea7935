//! Synthetic-Persona-Chat (Jandaghi et al. 2023): CSV, one conversation of two users a record.

use std::path::Path;

use csv::{ErrorKind, ReaderBuilder};

use super::guard::{Guard, Piece, explain};
use super::{LeftOut, Source};
use crate::conversation::{ASSISTANT, About, Message, Sink, USER};
use crate::error::excerpt;
use crate::{DataError, clean};

const COLUMNS: [&str; 3] = ["user 1 personas", "user 2 personas", "Best Generated Conversation"];
/// What to do with a file that cannot be read.
pub(super) const REMEDY: &str = "use the file as Synthetic-Persona-Chat distributes it";
/// How a problem of one record begins.
const RECORD: &str = "the record that begins here";

/// Whether a line can be this format's header: it has one of the columns.
pub(super) fn is_header(line: &str) -> bool {
    line.split(',').any(|name| COLUMNS.iter().any(|column| is_column(name, column)))
}

fn is_column(name: &str, column: &str) -> bool {
    name.trim().trim_matches('"').trim().eq_ignore_ascii_case(column)
}

/// The columns are others.
pub(super) fn wrong_columns<'name>(path: &Path, found: impl IntoIterator<Item = &'name str>) -> DataError {
    const SHOWN: usize = 8;
    let mut names: Vec<String> = found.into_iter().map(excerpt).collect();
    if names.len() > SHOWN {
        names.truncate(SHOWN);
        names.push("…".into());
    }
    let expected = COLUMNS.map(excerpt).join(", ");
    let problem = format!("this CSV has the columns {}, expected {expected}", names.join(", "));
    DataError::line(path, 1, problem, "name the columns so, or give the dialogues in another of the known formats")
}

/// A conversation of two, from either side.
///
/// # Errors
/// [`DataError`].
pub(super) fn read(path: &Path, source: &Source, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
    let mut reader = ReaderBuilder::new().from_reader(Guard::new(source.open()?, Piece::CsvRecord));
    let header = reader.headers().map_err(|error| refuse(path, error))?.clone();
    let places = COLUMNS.map(|column| header.iter().position(|name| is_column(name, column)));
    let [Some(first), Some(second), Some(conversation)] = places else {
        return Err(wrong_columns(path, &header));
    };
    let (mut bad, mut records) = (source.bad(), 0);
    let (mut directions, mut ownerless) = (0, 0);
    for record in reader.into_records() {
        records += 1;
        let record = match record.map_err(|error| refuse(path, error)) {
            Ok(record) => record,
            // The records after one that is wrong by itself can be read.
            Err(DataError { line: Some(line), problem, .. }) if problem.starts_with(RECORD) => {
                bad.add(line, problem, REMEDY);
                continue;
            }
            Err(error) => return Err(error),
        };
        let line = record.position().map_or(0, |position| position.line() as usize);
        let field = |place: usize| record.get(place).unwrap_or_default();
        let said = conversation_of(field(conversation), &mut directions, &mut ownerless);
        for (speaker, own, other) in [(1, first, second), (2, second, first)] {
            let (persona, partner_persona) = (sentences(field(own)), sentences(field(other)));
            sink.begin(About { persona, partner_persona, whole: true, ..About::default() });
            for (who, text) in &said {
                let role = if *who == speaker { ASSISTANT } else { USER };
                // A line with a speaker alone says nothing, also in the place of a reply.
                if !text.is_empty() {
                    sink.message(Message::of_role(role, text.clone(), line));
                }
            }
        }
    }
    let left_out = |what: &str, count| LeftOut { what: what.into(), count };
    Ok(vec![
        bad.judge(path, "records", records)?,
        left_out("stage directions, lines in brackets or asterisks", directions),
        left_out("lines before the first speaker", ownerless),
    ])
}

fn sentences(field: &str) -> Vec<String> {
    field.lines().map(clean).filter(|sentence| !sentence.is_empty()).collect()
}

/// Who says what, line by line: `User 1: Hi!`.
fn conversation_of(text: &str, directions: &mut usize, ownerless: &mut usize) -> Vec<(u8, String)> {
    let mut said: Vec<(u8, String)> = Vec::new();
    for line in text.split(['\n', '\r']).map(str::trim) {
        // Some conversations set speakers or whole lines in asterisks, as Markdown's emphasis.
        let starred = line.starts_with('*') && line.ends_with('*');
        let bare = line.trim_matches(|character: char| character == '*' || character.is_whitespace());
        if bare.is_empty() {
            continue;
        }
        let speaker = |name| bare.strip_prefix(name).and_then(|rest: &str| rest.strip_prefix(':'));
        let spoken = speaker("User 1").map(|words| (1, words)).or_else(|| speaker("User 2").map(|words| (2, words)));
        if let Some((who, words)) = spoken {
            let words = words.trim_start_matches(|character: char| character == '*' || character.is_whitespace());
            said.push((who, clean(words)));
        } else if starred
            || (line.starts_with('[') && line.ends_with(']'))
            || (line.starts_with('(') && line.ends_with(')'))
        {
            *directions += 1;
        } else if let Some((_, words)) = said.last_mut() {
            // What follows a line break is of the same utterance: a list, a second paragraph.
            if !words.is_empty() {
                words.push(' ');
            }
            words.push_str(&clean(line));
        } else {
            *ownerless += 1;
        }
    }
    said
}

fn refuse(path: &Path, error: csv::Error) -> DataError {
    let line = |position: Option<&csv::Position>| position.map(|position| position.line() as usize);
    let at = |line, problem: String| DataError { line, ..DataError::file(path, problem, REMEDY) };
    match error.kind() {
        ErrorKind::Io(error) => explain(path, error),
        ErrorKind::Utf8 { pos, .. } => at(line(pos.as_ref()), format!("{RECORD} is not UTF-8")),
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            at(line(pos.as_ref()), format!("{RECORD} has {len} fields, expected {expected_len}"))
        }
        _ => at(None, format!("is not CSV: {error}")),
    }
}
