//! Reading: what a file holds is known, and was judged, before a tensor of it is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::checksum::Checksum;
use super::header::{Header, MAX_HEADER, Unique};
use super::{CHECKSUM_KEY, Entry, METADATA_KEY, RawTensor};
use crate::error::{FileError, Result};
use crate::files;

/// What is read at once of a tensor that is only part of a checksum.
const PIECE: usize = 1 << 16;

/// An open safetensors file whose header was checked, and of which nothing else was read.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    entries: Vec<Entry>,
    metadata: BTreeMap<String, String>,
    /// What the checksum has to be, and what it is by now, where there is one.
    checksum: Option<(String, Checksum)>,
}

impl Reader {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// The file is no safetensors file, is cut, has trailing bytes, a header of more than 25 MB or 100,000 entries, a duplicate key,
    /// offsets that do not fit the shapes, or something beside what we write in a file of ours.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |problem: String| {
            FileError::new(path, problem).remedy("expected a whole safetensors file; copy or make it again")
        };
        let file = files::open_regular(path)?;
        let length = file.metadata().map_err(|error| FileError::new(path, format!("cannot be read: {error}")))?.len();
        let mut file = BufReader::new(file);
        if file.fill_buf().is_ok_and(files::is_lfs_pointer) {
            return Err(files::lfs_pointer(path));
        }
        let mut prefix = [0; 8];
        if length < 8 || file.read_exact(&mut prefix).is_err() {
            return Err(wrong(format!("holds {length} bytes, too few for a header")));
        }
        let header_length = u64::from_le_bytes(prefix);
        if header_length > length - 8 {
            return Err(wrong(format!("claims a header of {header_length} bytes, the file holds {length}")));
        }
        if header_length > MAX_HEADER {
            return Err(wrong(format!("has a header of {header_length} bytes, expected at most {MAX_HEADER}")));
        }
        let mut json = vec![0; header_length as usize];
        file.read_exact(&mut json).map_err(|error| wrong(format!("the header cannot be read: {error}")))?;
        let header = Header::parse(&json).map_err(|error| wrong(format!("the header is wrong: {error}")))?;
        let expected = 8 + header_length + header.data_bytes();
        if expected != length {
            return Err(wrong(format!("holds {length} bytes where its header describes {expected}")));
        }
        let Header { entries, metadata: mut all } = header;
        let (text, digest) = (all.remove(METADATA_KEY), all.remove(CHECKSUM_KEY));
        let Some(text) = text else {
            return match digest {
                None => Ok(Self { path: path.to_owned(), file, entries, metadata: BTreeMap::new(), checksum: None }),
                Some(_) => Err(wrong(format!("the metadata has \"{CHECKSUM_KEY}\", but not \"{METADATA_KEY}\""))),
            };
        };
        // A checksum under another name would be none.
        if let Some(other) = all.keys().next() {
            return Err(wrong(format!("the metadata has \"{other}\" beside \"{METADATA_KEY}\"")));
        }
        let Unique(metadata) = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("the metadata \"{METADATA_KEY}\" is wrong: {error}")))?;
        let checksum = digest.map(|digest| (digest, Checksum::new(&text)));
        Ok(Self { path: path.to_owned(), file, entries, metadata, checksum })
    }

    /// What [`super::write()`] was given as metadata; empty for a file of others.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What the header says of the tensors, in the order of the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensors, to be read in any order; a file of ours is read through once before, whether it was changed since it was written.
    ///
    /// # Errors
    /// It was, or cannot be read.
    pub fn in_place(mut self) -> Result<TensorsInPlace> {
        let path = self.path.clone();
        let failed = |error| FileError::new(&path, format!("cannot be read: {error}"));
        let mut at = self.file.stream_position().map_err(failed)?;
        let file = self.file.get_ref().try_clone().map_err(failed)?;
        let mut entries = BTreeMap::new();
        for entry in &self.entries {
            entries.insert(entry.name.clone(), (entry.clone(), at));
            at += entry.bytes as u64;
        }
        if self.checksum.is_some() {
            self.tensors(|_| Ok(false))?.try_for_each(|tensor| tensor.map(drop))?;
        }
        Ok(TensorsInPlace { path, file: Mutex::new(file), entries })
    }

    /// The tensors that are `wanted`, which is asked of all of them before one is read. The others are passed over.
    ///
    /// # Errors
    /// What `wanted` says.
    pub fn tensors(self, mut wanted: impl FnMut(&Entry) -> Result<bool>) -> Result<TensorReader> {
        let Self { path, file, entries, metadata: _, checksum } = self;
        let judged: Vec<_> =
            entries.into_iter().map(|entry| wanted(&entry).map(|wanted| (entry, wanted))).collect::<Result<_>>()?;
        Ok(TensorReader { path, file, entries: judged.into_iter(), checksum })
    }
}

/// The tensors of a file, in whatever order they are asked for.
#[derive(Debug)]
pub struct TensorsInPlace {
    path: PathBuf,
    file: Mutex<File>,
    entries: BTreeMap<String, (Entry, u64)>,
}

impl TensorsInPlace {
    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the header says of a tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name).map(|(entry, _)| entry)
    }

    /// What the header says of all.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().map(|(entry, _)| entry)
    }

    /// A tensor.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn read(&self, name: &str) -> Result<RawTensor> {
        let Some((entry, at)) = self.entries.get(name) else {
            return Err(FileError::new(&self.path, "is missing").at(name));
        };
        let mut bytes = vec![0; entry.bytes];
        // What a thread that panicked has left is a place in the file.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(*at)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|error| FileError::new(&self.path, format!("cannot be read: {error}")).at(name))?;
        Ok(RawTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }
}

/// The wanted tensors of a file, one at a time in the order of the file, with their names. After the last one comes an error where
/// the file is ours and was changed since it was written.
pub struct TensorReader {
    path: PathBuf,
    file: BufReader<File>,
    entries: std::vec::IntoIter<(Entry, bool)>,
    checksum: Option<(String, Checksum)>,
}

impl TensorReader {
    fn read(&mut self, entry: &Entry) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; entry.bytes];
        self.file.read_exact(&mut bytes)?;
        if let Some((_, checksum)) = &mut self.checksum {
            checksum.tensor(entry);
            checksum.bytes(&bytes);
        }
        Ok(bytes)
    }

    fn pass_over(&mut self, entry: &Entry) -> io::Result<()> {
        let Some((_, checksum)) = &mut self.checksum else {
            return self.file.seek_relative(i64::try_from(entry.bytes).map_err(io::Error::other)?);
        };
        checksum.tensor(entry);
        let mut piece = vec![0; PIECE.min(entry.bytes)];
        let mut left = entry.bytes;
        while left > 0 {
            let piece = &mut piece[..PIECE.min(left)];
            self.file.read_exact(piece)?;
            checksum.bytes(piece);
            left -= piece.len();
        }
        Ok(())
    }

    /// Whether what was read is what was written.
    fn verify(&mut self) -> Result<()> {
        match self.checksum.take() {
            Some((expected, checksum)) if checksum.digest() != expected => {
                Err(FileError::new(&self.path, "was changed since it was written")
                    .remedy("restore it from a copy, or make it again"))
            }
            _ => Ok(()),
        }
    }
}

impl Iterator for TensorReader {
    type Item = Result<(String, RawTensor)>;

    fn next(&mut self) -> Option<Self::Item> {
        let failed = |path: &Path, name: &str, error| FileError::new(path, format!("cannot be read: {error}")).at(name);
        while let Some((entry, wanted)) = self.entries.next() {
            if wanted {
                return Some(match self.read(&entry) {
                    Ok(bytes) => Ok((entry.name, RawTensor { dtype: entry.dtype, shape: entry.shape, bytes })),
                    Err(error) => Err(failed(&self.path, &entry.name, error)),
                });
            }
            if let Err(error) = self.pass_over(&entry) {
                return Some(Err(failed(&self.path, &entry.name, error)));
            }
        }
        self.verify().err().map(Err)
    }
}
