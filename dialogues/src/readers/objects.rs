//! Objects of JSON in a list or one after the other, each as text, with a bound on the memory that one can take.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::lines::LONGEST_LINE;
use crate::DataError;

const REMEDY: &str = "check that this is a file of dialogues, whole and saved as UTF-8";

/// Gives the objects of a text one after another: what is between braces that belong together. Commas, brackets and blanks
/// around them are passed over, so that one that is no JSON does not hide those after it.
pub(super) struct Objects<R> {
    path: PathBuf,
    reader: R,
    buffer: Vec<u8>,
    line: usize,
}

/// Where in JSON a byte stands.
#[derive(Default)]
struct Place {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Place {
    /// Takes the next byte of an object, and says whether it ends it.
    fn see(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.quoted => self.escaped = true,
            b'"' => self.quoted = !self.quoted,
            _ if self.quoted => {}
            b'{' => self.depth += 1,
            b'}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0 && !self.quoted
    }
}

impl<R: BufRead> Objects<R> {
    pub(super) fn new(path: &Path, reader: R) -> Self {
        Self { path: path.to_path_buf(), reader, buffer: Vec::new(), line: 1 }
    }

    /// The next object with the line, from 1, on which it begins; `None` at the end of the text.
    pub(super) fn next(&mut self) -> Result<Option<(usize, &str)>, DataError> {
        self.buffer.clear();
        let mut place = Place::default();
        let mut first = self.line;
        loop {
            let refuse = |line, problem: String| Err(DataError::line(&self.path, line, problem, REMEDY));
            let read = match self.reader.fill_buf() {
                Ok(read) => read,
                Err(error) => return refuse(self.line, format!("cannot be read: {error}")),
            };
            if read.is_empty() {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => refuse(first, "the object that begins here does not end".into()),
                };
            }
            let (mut used, mut ended) = (0, false);
            for &byte in read {
                used += 1;
                if byte == 0 {
                    return refuse(self.line, "the line has a NUL byte, expected UTF-8 text".into());
                }
                if self.buffer.is_empty() {
                    match byte {
                        b'{' => first = self.line,
                        b'[' | b']' | b',' => continue,
                        b'\n' => {
                            self.line += 1;
                            continue;
                        }
                        byte if byte.is_ascii_whitespace() => continue,
                        byte => {
                            let found = char::from(byte).escape_default();
                            return refuse(
                                self.line,
                                format!("\"{found}\" stands between dialogues, expected objects"),
                            );
                        }
                    }
                }
                self.line += usize::from(byte == b'\n');
                self.buffer.push(byte);
                ended = place.see(byte);
                if ended {
                    break;
                }
                if self.buffer.len() > LONGEST_LINE {
                    return refuse(first, format!("the dialogue is longer than {LONGEST_LINE} bytes"));
                }
            }
            self.reader.consume(used);
            if ended {
                break;
            }
        }
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Some((first, text))),
            Err(_) => Err(DataError::line(&self.path, first, "the object that begins here is not UTF-8", REMEDY)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read as _, repeat};

    use super::*;

    fn objects(text: &[u8]) -> Result<Vec<(usize, String)>, DataError> {
        // A small buffer, so that objects lie over its ends.
        let mut objects = Objects::new(Path::new("x"), BufReader::with_capacity(3, text));
        let mut found = Vec::new();
        while let Some((line, text)) = objects.next()? {
            found.push((line, text.to_owned()));
        }
        Ok(found)
    }

    #[test]
    fn braces_within_strings_and_objects_are_no_ends() {
        let text = b"[ {\"a\": \"}\\\"{\"},\n{\"b\":\n{}}\n]{}";
        let expected = [(1, "{\"a\": \"}\\\"{\"}"), (2, "{\"b\":\n{}}"), (4, "{}")];
        assert_eq!(objects(text).unwrap(), expected.map(|(line, text)| (line, text.to_owned())));
        assert!(objects(b" \n[]").unwrap().is_empty());
    }

    #[test]
    fn what_does_not_end_or_is_no_object_is_refused_with_its_line() {
        for (text, line, problem) in [
            (b"{}\n{\"a\": [".as_slice(), 2, "does not end"),
            (b"{}\n7", 2, "\"7\" stands between"),
            (b"{}\n{\"\0", 2, "NUL"),
            (b"\n{\"\xE9\"}", 2, "not UTF-8"),
        ] {
            let error = objects(text).unwrap_err();
            assert!(error.line == Some(line) && error.problem.contains(problem), "{error}");
        }
    }

    #[test]
    fn an_object_of_100_mb_takes_little_memory() {
        let text = b"{\"".as_slice().chain(repeat(b'x').take(100_000_000));
        let mut objects = Objects::new(Path::new("x"), BufReader::new(text));
        assert!(objects.next().is_err());
        assert!(objects.buffer.capacity() <= 4 * LONGEST_LINE, "{}", objects.buffer.capacity());
    }
}
