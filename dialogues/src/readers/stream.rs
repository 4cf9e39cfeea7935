//! JSON that is an object with a list of messages somewhere in it, streamed: one message in memory at a time.

use std::cell::Cell;
use std::fmt;
use std::io::{BufRead, Error, Read};
use std::path::Path;
use std::rc::Rc;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::bad::Bad;
use super::guard::{Guard, Piece, explain};
use super::{LeftOut, Source};
use crate::DataError;
use crate::conversation::{About, Message, Sink};
use crate::error::without_place;

/// What a format's objects are made of.
pub(super) trait Shape {
    /// A message as it is written.
    type Written: for<'de> Deserialize<'de>;

    /// The fields with messages.
    const MESSAGES: &'static [&'static str] = &["messages"];
    /// Fields to keep, small ones, of which [`Self::about`] is told.
    const FIELDS: &'static [&'static str];
    /// Fields whose objects, or lists of objects, have messages of their own.
    const WITHIN: &'static [&'static str];
    /// What to do with a file that cannot be read.
    const REMEDY: &'static str;
    /// Whether the last message may stand first, by the times: then all of a list are in memory at once.
    const HELD: bool = false;

    /// What the fields before the messages say of them; of the outer objects too, as far as the inner ones do not say otherwise.
    fn about(fields: &Map<String, Value>) -> About;

    /// The message.
    fn message(written: Self::Written, line: usize) -> Message;
}

/// What a program calls a message by: a number, as such or as text.
pub(super) fn id(written: Option<Value>) -> Option<i64> {
    written.and_then(|written| written.as_i64().or_else(|| written.as_str()?.parse().ok()))
}

struct Reading<'a, S> {
    sink: &'a mut dyn Sink,
    line: Rc<Cell<usize>>,
    bad: Bad,
    seen: usize,
    shape: std::marker::PhantomData<S>,
}

/// An object, or a list of objects.
struct Within<'r, 'a, S>(&'r mut Reading<'a, S>, Map<String, Value>);

/// The messages, and what is known of them.
struct Messages<'r, 'a, S>(&'r mut Reading<'a, S>);

impl<'de, S: Shape> DeserializeSeed<'de> for Within<'_, '_, S> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: Shape> Visitor<'de> for Within<'_, '_, S> {
    type Value = ();
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object with `messages`")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                key if S::MESSAGES.contains(&key) => {
                    self.0.sink.begin(S::about(&self.1));
                    map.next_value_seed(Messages(self.0))?;
                }
                key if S::WITHIN.contains(&key) => map.next_value_seed(Within(self.0, self.1.clone()))?,
                known if S::FIELDS.contains(&known) => {
                    let value = map.next_value()?;
                    self.1.insert(key, value);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Within(self.0, self.1.clone()))?.is_some() {}
        Ok(())
    }
}

impl<'de, S: Shape> DeserializeSeed<'de> for Messages<'_, '_, S> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, S: Shape> Visitor<'de> for Messages<'_, '_, S> {
    type Value = ();
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of messages")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let reading = self.0;
        let mut held = Vec::new();
        // As any JSON first: one that is wrong does not end the others.
        while let Some(value) = list.next_element::<Value>()? {
            let line = reading.line.get();
            reading.seen += 1;
            match serde_json::from_value::<S::Written>(value) {
                Ok(written) if S::HELD => held.push(S::message(written, line)),
                Ok(written) => reading.sink.message(S::message(written, line)),
                Err(error) => reading.bad.add(line, without_place(&error), S::REMEDY),
            }
        }
        let time = |message: Option<&Message>| message.and_then(|message| message.time);
        if time(held.first()) > time(held.last()) {
            held.reverse();
        }
        held.into_iter().for_each(|message| reading.sink.message(message));
        Ok(())
    }
}

/// Reads the messages of a file.
///
/// # Errors
/// [`DataError`].
pub(super) fn read<S: Shape>(path: &Path, source: &Source, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
    let guard = Guard::new(Escapes::new(source.open()?), Piece::JsonString);
    let shape = std::marker::PhantomData::<S>;
    let mut reading = Reading { sink, line: guard.lines(), bad: source.bad(), seen: 0, shape };
    let mut parser = serde_json::Deserializer::from_reader(guard);
    let parsed = Within(&mut reading, Map::new()).deserialize(&mut parser).and_then(|()| parser.end());
    parsed.map_err(|error| match error.io_error_kind() {
        Some(_) => explain(path, &Error::from(error)),
        None => {
            let problem = format!("{} in column {}", without_place(&error), error.column());
            DataError::line(path, error.line(), problem, S::REMEDY)
        }
    })?;
    Ok(vec![reading.bad.judge(path, "messages", reading.seen)?])
}

/// Passes JSON on in which control characters are written as `\x0B`, which JSON does not know: as blanks.
struct Escapes<R> {
    reader: R,
    /// After a backslash that is not itself escaped.
    escaped: bool,
    /// How many of the two digits are still to come.
    digits: u8,
}

impl<R> Escapes<R> {
    fn new(reader: R) -> Self {
        Self { reader, escaped: false, digits: 0 }
    }
}

impl<R: BufRead> Read for Escapes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // `\x0B` becomes `\t  `: an escape of JSON's, and two blanks, in as many bytes.
        let read = self.reader.read(buffer)?;
        for byte in buffer.iter_mut().take(read) {
            match (*byte, self.escaped, self.digits) {
                (digit, _, digits @ 1..) if digit.is_ascii_hexdigit() => {
                    *byte = b' ';
                    self.digits = digits - 1;
                }
                (b'x', true, _) => {
                    *byte = b't';
                    (self.escaped, self.digits) = (false, 2);
                }
                (byte, escaped, _) => (self.escaped, self.digits) = (byte == b'\\' && !escaped, 0),
            }
        }
        Ok(read)
    }
}
