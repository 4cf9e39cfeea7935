//! Zip archives (PKWARE's APPNOTE 6.3): what phones export a chat as, and `.charx`.

use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read, Seek as _, SeekFrom};
use std::path::Path;

use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::{TEXTS, ending};
use crate::DataError;
use crate::readers::source::unreadable;

/// How an archive begins; an empty one is its end alone.
pub(super) const MAGIC: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];

const REMEDY: &str = "unpack it, and give the files in it";
/// What is read of a character's archive; all else in it is pictures and sounds.
const CARD: &str = "card.json";
/// How often its packed size a text may have: chats have five times, what is packed to fill a disk a thousand.
const MOST_TIMES: u64 = 200;

/// Where in an archive a text is, and how.
#[derive(Debug, Clone, Copy)]
pub(in crate::readers) struct Entry {
    start: u64,
    packed: u64,
    size: u64,
    deflated: bool,
}

/// What is in an archive.
pub(super) struct Entries {
    /// Texts with their names, in the order of these.
    pub texts: Vec<(String, Entry)>,
    /// The names of what else there is.
    pub others: Vec<String>,
}

/// What is in the archive.
///
/// # Errors
/// It is not whole; a text is encrypted, or packed as nothing here unpacks.
pub(super) fn entries(path: &Path, file: File) -> Result<Entries, DataError> {
    let refuse = |problem: String| DataError::file(path, problem, REMEDY);
    let broken = |error| refuse(format!("is a zip archive that cannot be read: {error}"));
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let is_character = archive.index_for_name(CARD).is_some();
    let (mut texts, mut others) = (Vec::new(), Vec::new());
    for index in 0..archive.len() {
        let found = archive.by_index_raw(index).map_err(broken)?;
        let name = found.name().to_owned();
        if found.is_dir() || name.split(['/', '\\']).any(|part| part.starts_with('.') || part == "__MACOSX") {
            continue;
        }
        let is_text = match is_character {
            true => name == CARD,
            false => ending(Path::new(&name)).is_some_and(|ending| TEXTS.contains(&ending.as_str())),
        };
        if !is_text {
            others.push(name);
            continue;
        }
        if found.encrypted() {
            return Err(refuse(format!("has {name:?} encrypted")));
        }
        let deflated = match found.compression() {
            CompressionMethod::Deflated => true,
            CompressionMethod::Stored => false,
            other => return Err(refuse(format!("has {name:?} packed by {other}, expected deflate"))),
        };
        let start = found.data_start().ok_or_else(|| refuse(format!("does not say where {name:?} is")))?;
        let (packed, size) = (found.compressed_size(), found.size());
        if size / MOST_TIMES > packed {
            return Err(refuse(format!("has {name:?}, {size} bytes packed in {packed}: no text is packed so small")));
        }
        texts.push((name, Entry { start, packed, size, deflated }));
    }
    texts.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(Entries { texts, others })
}

impl Entry {
    /// The text from its beginning, of as many bytes as the archive says.
    ///
    /// # Errors
    /// The archive cannot be read.
    pub(super) fn open(self, mut archive: File, path: &Path) -> Result<Box<dyn Read>, DataError> {
        archive.seek(SeekFrom::Start(self.start)).map_err(|error| unreadable(path, &error))?;
        let packed = BufReader::new(archive).take(self.packed);
        Ok(match self.deflated {
            true => Box::new(Whole { text: DeflateDecoder::new(packed), left: self.size }),
            false => Box::new(Whole { text: packed, left: self.size }),
        })
    }
}

/// A text of a known size.
struct Whole<R> {
    text: R,
    left: u64,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.text.read(buffer)?;
        match (read as u64, self.left) {
            (0, 1..) if !buffer.is_empty() => Err(Error::new(ErrorKind::UnexpectedEof, "the archive is cut short")),
            (more, left) if more > left => Err(Error::new(ErrorKind::InvalidData, "the archive says less than it has")),
            (more, left) => {
                self.left = left - more;
                Ok(read)
            }
        }
    }
}
