//! Reading dialogues from files.

mod convai2;
mod lines;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use crate::{DataError, Dialogue};

pub use convai2::{SILENCE, write_convai2};

/// Reads the dialogues of a file in ConvAI2's text format, in file order; never an empty list.
///
/// ```text
/// 1 your persona: i like to ski.
/// 2 partner's persona: i have two cats.
/// 3 hello , how are you ?<TAB>fine , just back from the slopes .<TAB><TAB>no idea .|fine , just back from the slopes .
/// ```
///
/// A line's number restarting at 1 begins a new dialogue. Of an exchange's four fields (partner, reply, reward,
/// candidates separated by `|`) the last two may be missing; the reward is not kept. `__SILENCE__` in the place of the
/// partner's words means that the persona spoke first: it becomes an empty utterance.
///
/// # Errors
/// [`DataError`] naming the line and what was expected, for a file that is missing, empty, not UTF-8 without a
/// byte-order mark, or not in this format; and for a line longer than 1 MiB, which is never held in memory whole.
pub fn read_dialogues(path: impl AsRef<Path>) -> Result<Vec<Dialogue>, DataError> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|error| {
        DataError::file(path, format!("cannot be opened: {error}"), "check the name of the dialogue file")
    })?;
    convai2::read(path, BufReader::new(file))
}

/// A dialogue file's path, and the part of it that is named after a `#` where there is no file of the whole name.
pub fn file_and_part(path: &Path) -> (PathBuf, Option<String>) {
    if !path.exists()
        && let Some((file, part)) = path.to_str().and_then(|text| text.rsplit_once('#'))
    {
        return (file.into(), Some(part.to_owned()));
    }
    (path.to_owned(), None)
}
