//! A text that can be read from its beginning more than once.

use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::bad::Bad;
use super::format::{self, Format};
use super::lines::{LONGEST_LINE, ReturnsAsFeeds};
use super::unpack::Text;
use crate::DataError;

const MARK: &[u8] = b"\xEF\xBB\xBF";

/// How much of a text is looked at to find out its format, in bytes, and the most where that says nothing.
const HEADS: [usize; 2] = [1 << 16, LONGEST_LINE + 1];

/// A text, and how it begins.
pub(super) struct Source {
    path: PathBuf,
    text: Text,
    marked: bool,
    only_returns: bool,
    strict: bool,
}

impl Source {
    /// Looks at a text's beginning: what is it? Errors call it `path`.
    ///
    /// # Errors
    /// It cannot be read, or is none of dialogues.
    pub(super) fn of(path: &Path, text: Text, strict: bool) -> Result<(Self, Format), DataError> {
        let mut open = text.open(path)?;
        let mut head = Vec::new();
        let mut found = None;
        for most in HEADS {
            let more = (most - head.len()) as u64;
            let read = (&mut open).take(more).read_to_end(&mut head).map_err(|error| unreadable(path, &error))?;
            let is_all = (read as u64) < more || most == HEADS[1];
            found = format::find(path, head.strip_prefix(MARK).unwrap_or(&head), is_all)?;
            if found.is_some() {
                break;
            }
        }
        let source = Self {
            path: path.to_path_buf(),
            text,
            marked: head.starts_with(MARK),
            only_returns: head.contains(&b'\r') && !head.contains(&b'\n'),
            strict,
        };
        // Not found without an error: that cannot be, as there was no more to see.
        Ok((source, found.unwrap_or(Format::ChatJsonl)))
    }

    /// It from the beginning, without a byte-order mark, and with line feeds where carriage returns alone end lines.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn open(&self) -> Result<Box<dyn BufRead>, DataError> {
        let mut text = BufReader::new(self.text.open(&self.path)?);
        if self.marked {
            let mut mark = [0; MARK.len()];
            text.read_exact(&mut mark).map_err(|error| unreadable(&self.path, &error))?;
        }
        Ok(match self.only_returns {
            true => Box::new(BufReader::new(ReturnsAsFeeds(text))),
            false => Box::new(text),
        })
    }

    /// What counts its pieces that cannot be read.
    pub(super) fn bad(&self) -> Bad {
        Bad::new(self.strict)
    }
}

/// What cannot be read to its end.
pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> DataError {
    DataError::file(path, format!("cannot be read: {error}"), "check that it is a readable file")
}
