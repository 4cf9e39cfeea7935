//! Lines of plain UTF-8 text, read with a bound on the memory that one line can take.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use crate::DataError;

/// The longest line that is accepted, in bytes: a hundred times a long ConvAI2 line with its candidates.
pub(super) const LONGEST_LINE: usize = 1 << 20;

/// Gives the lines of a text one after another, without their line ends (a line feed, and carriage returns before it), refusing
/// everything that is not plain UTF-8.
pub(super) struct Lines<R> {
    path: PathBuf,
    reader: R,
    buffer: Vec<u8>,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(path: &Path, reader: R) -> Self {
        Self { path: path.to_path_buf(), reader, buffer: Vec::new(), number: 0 }
    }

    /// The next line with its number from 1, or `None` at the end of the text.
    pub(super) fn next(&mut self) -> Result<Option<(usize, &str)>, DataError> {
        self.buffer.clear();
        self.number += 1;
        let number = self.number;
        let path = self.path.as_path();
        let refuse = |problem: String, remedy: &str| DataError::line(path, number, problem, remedy);
        let read = (&mut self.reader)
            .take(LONGEST_LINE as u64 + 2)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| refuse(format!("cannot be read: {error}"), "check that it is a readable file"))?;
        if read == 0 {
            return Ok(None);
        }
        let mut line = self.buffer.as_slice();
        line = line.strip_suffix(b"\n").unwrap_or(line);
        while let Some(shorter) = line.strip_suffix(b"\r") {
            line = shorter;
        }
        if line.len() > LONGEST_LINE {
            return Err(refuse(
                format!("the line is longer than {LONGEST_LINE} bytes"),
                "check that this is a dialogue file with one exchange a line",
            ));
        }
        const AS_UTF8: &str = "save the file as UTF-8";
        if line.contains(&0) {
            return Err(refuse("the line has a NUL byte, expected UTF-8 text".into(), AS_UTF8));
        }
        match std::str::from_utf8(line) {
            Ok(text) => Ok(Some((number, text))),
            Err(error) => Err(refuse(format!("byte {} of the line is not UTF-8", error.valid_up_to() + 1), AS_UTF8)),
        }
    }
}

/// Passes a text on in which carriage returns are the only line ends, as line feeds.
pub(super) struct ReturnsAsFeeds<R>(pub(super) R);

impl<R: Read> Read for ReturnsAsFeeds<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(buffer)?;
        buffer.iter_mut().take(read).filter(|byte| **byte == b'\r').for_each(|byte| *byte = b'\n');
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, repeat};

    use super::*;

    #[test]
    fn a_line_of_100_mb_takes_little_memory() {
        let mut lines = Lines::new(Path::new("x"), BufReader::new(repeat(b'x').take(100_000_000)));
        assert!(lines.next().is_err());
        assert!(lines.buffer.capacity() <= 4 * LONGEST_LINE, "{}", lines.buffer.capacity());
    }
}
