//! The SHA-256 over what is in a file of ours.

use std::io::{self, Write as _};

use super::Entry;
use crate::digest::HashingWriter;

/// SHA-256 (FIPS 180-4) over the metadata as it is written and then, in the order of the file, of each tensor its name, type and
/// shape, on a line of their own, and its bytes. Type and shape say how many bytes follow, so no two files give the same text.
pub(super) struct Checksum(HashingWriter<io::Sink>);

impl Checksum {
    /// Begins with the metadata.
    pub(super) fn new(metadata: &str) -> Self {
        let mut checksum = Self(HashingWriter::new(io::sink()));
        checksum.bytes(metadata.as_bytes());
        checksum
    }

    /// Goes on with a tensor, whose bytes come next.
    pub(super) fn tensor(&mut self, entry: &Entry) {
        // The name as a Rust string literal, so that no name ends the line. Writing to a sink cannot fail.
        let _ = write!(self.0, "\n{:?} {:?} {:?}\n", entry.name, entry.dtype, entry.shape);
    }

    /// Goes on with bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// As 64 lower-case hexadecimal digits.
    pub(super) fn digest(&self) -> String {
        self.0.digest()
    }
}
