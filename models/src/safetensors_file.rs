//! Safetensors files, read strictly and one tensor at a time, written atomically and with the same bytes every time.
//!
//! The format: 8 bytes, the header's length; the header, JSON; the tensors' bytes without gaps. The `safetensors` crate
//! checks offsets, shapes and overflow; on top of it a header over 100 MB, a duplicate key and trailing bytes are refused
//! before anything large is allocated.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};

use crate::error::{FileError, Result};
use crate::params::HostTensor;
use crate::{files, json};

/// A header of more than this many bytes is refused.
const MAX_HEADER: u64 = 100_000_000;
/// The one key of the metadata under which ours lies as JSON: the crate keeps metadata in a hash map, and two keys would be
/// written in an order that differs from run to run.
const METADATA_KEY: &str = "marionette";

/// A tensor as it lies in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct RawTensor {
    /// Its type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes, little-endian, row-major.
    pub bytes: Vec<u8>,
}

impl RawTensor {
    /// An f32 tensor.
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// An f16 tensor, rounded to nearest.
    pub fn f16(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        Self { dtype: Dtype::F16, shape: shape.to_vec(), bytes }
    }

    /// An i64 tensor.
    pub fn i64(shape: &[usize], values: &[i64]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::I64, shape: shape.to_vec(), bytes }
    }

    /// The values as f32; F32, F16 and BF16 are understood.
    ///
    /// # Errors
    /// Another type, or a value that is NaN or infinite.
    pub fn to_f32(&self) -> Result<HostTensor, String> {
        let values: Vec<f32> = match self.dtype {
            Dtype::F32 => self.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Dtype::F16 => {
                self.bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()
            }
            Dtype::BF16 => {
                self.bytes.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()
            }
            other => return Err(format!("has type {other:?}, expected F32, F16 or BF16")),
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(format!("value {index} is {}, expected finite numbers", values[index])),
            None => Ok(HostTensor { shape: self.shape.clone(), values }),
        }
    }

    /// The values of an I64 tensor.
    ///
    /// # Errors
    /// Another type.
    pub fn to_i64(&self) -> Result<Vec<i64>, String> {
        match self.dtype {
            Dtype::I64 => Ok(self.bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()),
            other => Err(format!("has type {other:?}, expected I64")),
        }
    }
}

/// An open safetensors file whose header was checked; tensors come one at a time.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    /// Name, type, shape and length in bytes, in the order of the file.
    entries: std::vec::IntoIter<(String, Dtype, Vec<usize>, usize)>,
    metadata: BTreeMap<String, String>,
}

impl Reader {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// The file is no safetensors file, is cut, has trailing bytes, a duplicate key, or offsets that do not fit the shapes.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |problem: String| {
            FileError::new(path, problem).remedy("expected a whole safetensors file; copy or make it again")
        };
        let file = files::open_regular(path)?;
        let length = file.metadata().map_err(|error| FileError::new(path, format!("cannot be read: {error}")))?.len();
        let mut file = BufReader::with_capacity(1 << 18, file);
        if file.fill_buf().is_ok_and(files::is_lfs_pointer) {
            return Err(files::lfs_pointer(path));
        }
        let mut prefix = [0; 8];
        if length < 8 || file.read_exact(&mut prefix).is_err() {
            return Err(wrong(format!("holds {length} bytes, too few for a header")));
        }
        let header_length = u64::from_le_bytes(prefix);
        if header_length > MAX_HEADER || header_length > length - 8 {
            return Err(wrong(format!("claims a header of {header_length} bytes, the file holds {length}")));
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header).map_err(|error| wrong(format!("the header cannot be read: {error}")))?;
        let metadata: Metadata =
            json::from_slice(&header).map_err(|error| wrong(format!("the header is wrong: {error}")))?;
        if 8 + header_length + metadata.data_len() as u64 != length {
            let expected = 8 + header_length + metadata.data_len() as u64;
            return Err(wrong(format!("holds {length} bytes where its header describes {expected}")));
        }
        // The crate returns names in offset order; a tensor without values may share its offset with the next.
        let entries: Vec<_> = metadata
            .offset_keys()
            .into_iter()
            .filter_map(|name| {
                let info = metadata.info(&name)?;
                Some((name, info.dtype, info.shape.clone(), info.data_offsets.1 - info.data_offsets.0))
            })
            .collect();
        let ours = metadata.metadata().as_ref().and_then(|all| all.get(METADATA_KEY));
        let metadata = match ours {
            None => BTreeMap::new(),
            Some(text) => json::from_slice(text.as_bytes())
                .map_err(|error| wrong(format!("the metadata \"{METADATA_KEY}\" is wrong: {error}")))?,
        };
        Ok(Self { path: path.to_owned(), file, entries: entries.into_iter(), metadata })
    }

    /// What [`write()`] was given as metadata; empty for a file of others.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl Iterator for Reader {
    type Item = Result<(String, RawTensor)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (name, dtype, shape, length) = self.entries.next()?;
        let mut bytes = vec![0; length];
        Some(match self.file.read_exact(&mut bytes) {
            Ok(()) => Ok((name, RawTensor { dtype, shape, bytes })),
            Err(error) => Err(FileError::new(&self.path, format!("cannot be read: {error}")).at(name)),
        })
    }
}

/// Reads a small file whole.
///
/// # Errors
/// As [`Reader::open`].
pub fn read(path: &Path) -> Result<(BTreeMap<String, RawTensor>, BTreeMap<String, String>)> {
    let mut reader = Reader::open(path)?;
    let metadata = std::mem::take(&mut reader.metadata);
    Ok((reader.collect::<Result<_>>()?, metadata))
}

/// The metadata of a file that is written.
pub enum FileMetadata<'a> {
    /// Ours: any keys and values.
    Ours(&'a BTreeMap<String, String>),
    /// The one entry that Hugging Face transformers asks of a model's file.
    HuggingFace,
}

/// Writes a file atomically; the bytes depend on the arguments alone.
///
/// # Errors
/// A tensor's bytes do not fit its shape, or writing fails.
pub fn write(path: &Path, tensors: &BTreeMap<String, RawTensor>, metadata: FileMetadata<'_>) -> Result<()> {
    let header = header(tensors, metadata).map_err(|error| FileError::new(path, error))?;
    files::write_atomic(path, |writer| {
        writer.write_all(&header)?;
        stored(tensors).try_for_each(|(_, tensor)| writer.write_all(&tensor.bytes))
    })
}

/// The bytes of a file as [`write()`] writes it.
///
/// # Errors
/// A tensor's bytes do not fit its shape.
pub fn to_bytes(tensors: &BTreeMap<String, RawTensor>, metadata: FileMetadata<'_>) -> Result<Vec<u8>, String> {
    let mut bytes = header(tensors, metadata)?;
    stored(tensors).for_each(|(_, tensor)| bytes.extend_from_slice(&tensor.bytes));
    Ok(bytes)
}

/// The tensors in the order in which they lie in a file: the widest type first, so that each is aligned, then by name.
fn stored(tensors: &BTreeMap<String, RawTensor>) -> impl Iterator<Item = (&String, &RawTensor)> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by(|(one, left), (other, right)| right.dtype.cmp(&left.dtype).then(one.cmp(other)));
    order.into_iter()
}

/// All that lies before the tensors' bytes: the header's length, and the header, filled up with spaces to a multiple of 8.
fn header(tensors: &BTreeMap<String, RawTensor>, metadata: FileMetadata<'_>) -> Result<Vec<u8>, String> {
    let (key, text) = match metadata {
        FileMetadata::HuggingFace => ("format", "pt".to_owned()),
        FileMetadata::Ours(entries) => {
            (METADATA_KEY, serde_json::to_string(entries).map_err(|error| error.to_string())?)
        }
    };
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, tensor) in stored(tensors) {
        TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)
            .map_err(|error| format!("{name}: {error}"))?;
        let begin = end;
        end += tensor.bytes.len();
        infos.push((
            name.clone(),
            TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (begin, end) },
        ));
    }
    let metadata =
        Metadata::new(Some(HashMap::from([(key.to_owned(), text)])), infos).map_err(|error| error.to_string())?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let length = json.len() as u64;
    Ok([length.to_le_bytes().to_vec(), json].concat())
}
