//! A bound on what one piece of a file can take, for formats whose parser is a library.

use std::cell::Cell;
use std::fmt;
use std::io::{Error, ErrorKind, Read};
use std::path::Path;
use std::rc::Rc;

use super::lines::LONGEST_LINE;
use crate::DataError;

/// What must not grow beyond [`LONGEST_LINE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// A string of JSON.
    JsonString,
    /// A record of CSV, which may have line breaks between quotation marks.
    CsvRecord,
}

/// Passes a file on, and refuses NUL bytes and pieces that are too long before a parser can hold them.
pub(super) struct Guard<R> {
    reader: R,
    piece: Piece,
    /// Between quotation marks.
    quoted: bool,
    /// After a backslash, in JSON.
    escaped: bool,
    length: usize,
    line: Rc<Cell<usize>>,
}

/// Why, and on which line; an `io::Error` carries it through the parser.
#[derive(Debug)]
struct Refusal {
    line: usize,
    problem: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.problem)
    }
}

impl std::error::Error for Refusal {}

impl<R: Read> Guard<R> {
    pub(super) fn new(reader: R, piece: Piece) -> Self {
        Self { reader, piece, quoted: false, escaped: false, length: 0, line: Rc::new(Cell::new(1)) }
    }

    /// The line on which the reading stands, from 1, wherever the guard goes.
    pub(super) fn lines(&self) -> Rc<Cell<usize>> {
        Rc::clone(&self.line)
    }

    fn see(&mut self, byte: u8) -> Result<(), Refusal> {
        let refuse = |problem| Err(Refusal { line: self.line.get(), problem });
        if byte == 0 {
            return refuse("the line has a NUL byte, expected UTF-8 text".into());
        }
        if self.length > LONGEST_LINE {
            let what = match self.piece {
                Piece::JsonString => "string",
                Piece::CsvRecord => "record",
            };
            return refuse(format!("the {what} here is longer than {LONGEST_LINE} bytes"));
        }
        self.length += 1;
        match self.piece {
            Piece::JsonString if self.escaped => self.escaped = false,
            Piece::JsonString if self.quoted && byte == b'\\' => self.escaped = true,
            _ if byte == b'"' => self.quoted = !self.quoted,
            _ => {}
        }
        let ends = match self.piece {
            Piece::JsonString => !self.quoted,
            Piece::CsvRecord => !self.quoted && byte == b'\n',
        };
        if ends {
            self.length = 0;
        }
        self.line.set(self.line.get() + usize::from(byte == b'\n'));
        Ok(())
    }
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        for &byte in buffer.iter().take(read) {
            self.see(byte).map_err(|refusal| Error::new(ErrorKind::InvalidData, refusal))?;
        }
        Ok(read)
    }
}

/// What a parser's `io::Error` means.
pub(super) fn explain(path: &Path, error: &Error) -> DataError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>()) {
        Some(Refusal { line, problem }) => {
            DataError::line(path, *line, problem, "check that this is a file of dialogues, whole and saved as UTF-8")
        }
        None => DataError::file(path, format!("cannot be read: {error}"), "check that it is a readable file"),
    }
}
