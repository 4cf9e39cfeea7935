//! What a file holds: a text; or an archive, a picture or a table in which texts are.

mod archive;
mod picture;
mod table;

use std::fs::File;
use std::io::{self, Cursor, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use marionette_models::files;

use super::source::unreadable;
use crate::DataError;
use archive::{Entries, Entry};

/// How the names of texts end, in an archive or a folder.
pub(super) const TEXTS: [&str; 4] = ["txt", "json", "jsonl", "csv"];
/// How those of files end in which texts are.
pub(super) const CONTAINERS: [&str; 4] = ["zip", "charx", "png", "parquet"];

/// How a name ends, in small letters; nothing, where it has no ending.
pub(super) fn ending(name: &Path) -> Option<String> {
    name.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase())
}

/// What stands for standard input where a file is named.
const STANDARD_INPUT: &str = "-";

/// Where a text is. It can be read more than once, one reading after the other.
#[derive(Clone)]
pub(super) enum Text {
    /// A file with a name.
    File(PathBuf),
    /// One without, which is gone when nobody reads it any more.
    Spooled(Rc<File>),
    /// In an archive, which is one of the above.
    Entry(Rc<Text>, Entry),
    /// In memory.
    Held(Rc<[u8]>),
}

impl Text {
    /// It from its beginning. Errors call it `path`.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn open(&self, path: &Path) -> Result<Box<dyn Read>, DataError> {
        Ok(match self {
            Self::File(_) | Self::Spooled(_) => Box::new(self.file(path)?),
            Self::Entry(archive, entry) => entry.open(archive.file(path)?, path)?,
            Self::Held(bytes) => Box::new(Cursor::new(Rc::clone(bytes))),
        })
    }

    /// The file that holds it, from its beginning.
    fn file(&self, path: &Path) -> Result<File, DataError> {
        match self {
            Self::File(file) => files::open_regular(file)
                .map_err(|error| DataError::file(path, error.problem, "check the name of the dialogue file")),
            Self::Spooled(file) => file
                .try_clone()
                .and_then(|mut file| file.seek(SeekFrom::Start(0)).map(|_| file))
                .map_err(|error| unreadable(path, &error)),
            Self::Entry(archive, _) => archive.file(path),
            // Nothing asks for it.
            Self::Held(_) => Err(unreadable(path, &io::ErrorKind::Unsupported.into())),
        }
    }
}

/// What a file holds.
pub(super) enum Unpacked {
    /// It is a text itself, or has one.
    One(PathBuf, Text),
    /// Texts of an archive with their names, `ARCHIVE#NAME`, and names of what are none.
    Several(Vec<(PathBuf, Text)>, Vec<String>),
    /// A picture without a text.
    Picture,
}

/// The texts of a file; of an archive, those that may be chats by their names.
///
/// # Errors
/// It cannot be read; it is a picture without a text, or a table without dialogues.
pub(super) fn unpack(path: &Path) -> Result<Unpacked, DataError> {
    let (path, whole) = match path == Path::new(STANDARD_INPUT) {
        // What comes that way comes once, and is read more often than that.
        true => {
            let path = Path::new("standard input");
            let spooled = spool(|file| io::copy(&mut io::stdin().lock(), file).map(drop));
            (path, spooled.map_err(|error| unreadable(path, &error))?)
        }
        false => (path, Text::File(path.to_path_buf())),
    };
    let mut head = Vec::new();
    whole.open(path)?.take(8).read_to_end(&mut head).map_err(|error| unreadable(path, &error))?;
    if archive::MAGIC.iter().any(|magic| head.starts_with(magic)) {
        let Entries { texts, others } = archive::entries(path, whole.file(path)?)?;
        let whole = Rc::new(whole);
        let named = |(name, entry)| {
            let path = PathBuf::from(format!("{}#{name}", path.display()));
            (path, Text::Entry(Rc::clone(&whole), entry))
        };
        return Ok(Unpacked::Several(texts.into_iter().map(named).collect(), others));
    }
    if head.starts_with(picture::MAGIC) {
        return Ok(match picture::card(path, whole.file(path)?)? {
            Some(card) => Unpacked::One(path.to_path_buf(), Text::Held(card.into())),
            None => Unpacked::Picture,
        });
    }
    let text = if head.starts_with(table::MAGIC) { table::lines(path, whole.file(path)?)? } else { whole };
    Ok(Unpacked::One(path.to_path_buf(), text))
}

/// What `write` writes, in a file that nobody else sees.
fn spool(write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<Text> {
    let mut file = tempfile::tempfile()?;
    write(&mut file)?;
    Ok(Text::Spooled(Rc::new(file)))
}
