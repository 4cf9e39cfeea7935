//! imessage-exporter's text: a time, who, what, and a blank line. What is indented is said elsewhere: reactions, and replies that stand
//! under what they reply to and again in their place.

use std::path::Path;

use jiff::civil::DateTime;

use super::lines::{LONGEST_LINE, Lines};
use super::{LeftOut, Source};
use crate::DataError;
use crate::conversation::{About, Mark, Message, Sink, Speaker, seconds};

/// Whose export it is.
const OWNER: &str = "Me";
/// Lines of a message that the exporter writes, and nobody says.
const REMARKS: [&str; 2] = ["Tapbacks:", "This message responded to an earlier message."];

/// Whether a line begins a message.
pub(super) fn is_header(line: &str) -> bool {
    stamp(line).is_some()
}

/// The time at the beginning of a line, in seconds since 1970 by the writer's clock, and what follows it.
fn stamp(line: &str) -> Option<(i64, &str)> {
    let end = [" AM", " PM"].iter().filter_map(|half| line.find(half)).min()? + 3;
    let (time, rest) = line.split_at_checked(end)?;
    let time = time.split_whitespace().collect::<Vec<_>>().join(" ");
    let time = DateTime::strptime("%b %d, %Y %I:%M:%S %p", time).ok()?;
    Some((seconds(time), rest))
}

/// Reads the messages of a file.
///
/// # Errors
/// [`DataError`].
pub(super) fn read(path: &Path, source: &Source, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
    let mut lines = Lines::new(path, source.open()?);
    sink.begin(About { owner: Some(OWNER.to_owned()), ..About::default() });
    let mut open: Option<Open> = None;
    while let Some((line, text)) = lines.next()? {
        match stamp(text) {
            Some((time, rest)) => {
                open.take().into_iter().for_each(|open| sink.message(open.message()));
                let rest = rest.trim();
                // `(Read by you after 2 seconds)` says nothing; other words are the program's: `Ada named the conversation Bees`.
                match rest.is_empty() || rest.starts_with('(') {
                    true => {
                        open = Some(Open { time, line, who: None, text: String::new(), media: false, deleted: false })
                    }
                    false => {
                        let notice = Message::of(Speaker { name: String::new(), id: None }, rest.to_owned(), line);
                        sink.message(Message { time: Some(time), mark: Some(Mark::Notice), ..notice });
                    }
                }
            }
            None => open.iter_mut().for_each(|open| open.see(text)),
        }
    }
    open.into_iter().for_each(|open| sink.message(open.message()));
    Ok(Vec::new())
}

/// The message that is being read.
struct Open {
    time: i64,
    line: usize,
    who: Option<String>,
    text: String,
    media: bool,
    deleted: bool,
}

impl Open {
    fn see(&mut self, line: &str) {
        if self.who.is_none() {
            self.who = Some(line.trim().to_owned());
        } else if line.starts_with("    ") || REMARKS.contains(&line.trim()) {
        } else if line.starts_with("This message was deleted")
            || line.contains(" unsent a message")
            || line.contains("unsent this message")
        {
            self.deleted = true;
        } else if is_file(line) {
            self.media = true;
        } else if let Some((_, text)) = line.strip_prefix("Edited ").and_then(|line| line.split_once(" later: ")) {
            // The last version is what was meant.
            self.text = text.to_owned();
        } else if self.text.len() < LONGEST_LINE {
            self.text.push('\n');
            self.text.push_str(line);
        }
    }

    fn message(self) -> Message {
        let Self { time, line, who, text, media, deleted } = self;
        let mark = match text.trim().is_empty() {
            true if deleted => Some(Mark::Deleted),
            true if media => Some(Mark::Media),
            _ => None,
        };
        let speaker = Speaker { name: who.unwrap_or_default(), id: None };
        Message { time: Some(time), mark, ..Message::of(speaker, text, line) }
    }
}

/// Whether a line is the place of a picture or the like.
fn is_file(line: &str) -> bool {
    let places = ["attachments/", "/Users/", "/private/", "~/Library/", "Library/"];
    places.iter().any(|place| line.starts_with(place))
        || line.contains("MobileSync/Backup/")
        || line == "Attachment missing!"
}
