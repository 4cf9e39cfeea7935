//! A file that can be read from its beginning more than once.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use marionette_models::files;

use super::format::{self, Format};
use super::lines::{LONGEST_LINE, ReturnsAsFeeds};
use crate::DataError;

const MARK: &[u8] = b"\xEF\xBB\xBF";

/// How much of a file is looked at to find out its format, in bytes, and the most where that says nothing.
const HEADS: [usize; 2] = [1 << 16, LONGEST_LINE + 1];

/// A file, and how its text begins.
pub(super) struct Source {
    path: PathBuf,
    marked: bool,
    only_returns: bool,
}

impl Source {
    /// Looks at a file's beginning: what is it?
    ///
    /// # Errors
    /// It cannot be read, or is no file of dialogues.
    pub(super) fn of(path: &Path) -> Result<(Self, Format), DataError> {
        let mut file = open(path)?;
        let mut head = Vec::new();
        let mut found = None;
        for most in HEADS {
            let more = (most - head.len()) as u64;
            let read = (&mut file).take(more).read_to_end(&mut head).map_err(|error| unreadable(path, &error))?;
            let is_all = (read as u64) < more || most == HEADS[1];
            found = format::find(path, head.strip_prefix(MARK).unwrap_or(&head), is_all)?;
            if found.is_some() {
                break;
            }
        }
        let source = Self {
            path: path.to_path_buf(),
            marked: head.starts_with(MARK),
            only_returns: head.contains(&b'\r') && !head.contains(&b'\n'),
        };
        // Not found without an error: that cannot be, as there was no more to see.
        Ok((source, found.unwrap_or(Format::ChatJsonl)))
    }

    /// Its text from the beginning, without a byte-order mark, and with line feeds where carriage returns alone end lines.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn open(&self) -> Result<Box<dyn BufRead>, DataError> {
        let path = &self.path;
        let mut file = open(path)?;
        if self.marked {
            file.seek(SeekFrom::Start(MARK.len() as u64)).map_err(|error| unreadable(path, &error))?;
        }
        let text = BufReader::new(file);
        Ok(match self.only_returns {
            true => Box::new(BufReader::new(ReturnsAsFeeds(text))),
            false => Box::new(text),
        })
    }
}

fn open(path: &Path) -> Result<File, DataError> {
    files::open_regular(path)
        .map_err(|error| DataError::file(path, error.problem, "check the name of the dialogue file"))
}

fn unreadable(path: &Path, error: &std::io::Error) -> DataError {
    DataError::file(path, format!("cannot be read: {error}"), "check that it is a readable file")
}
