//! Safetensors files, read strictly and one tensor at a time, written atomically and with the same bytes every time.
//!
//! The format: 8 bytes, the header's length; the header, JSON; the tensors' bytes without gaps
//! (<https://huggingface.co/docs/safetensors>). A reader says what the header holds, and reads a tensor only after it was judged by
//! that, so no more memory is taken than a caller expects. A file of ours carries a checksum over all that is in it.

mod checksum;
mod header;
mod reader;

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

use self::checksum::Checksum;
use self::header::{Header, bytes_of};
use crate::error::{FileError, Result};
use crate::files;
use crate::params::HostTensor;

pub use self::header::Entry;
pub(crate) use self::header::{MAX_ENTRIES, Unique};
pub use self::reader::{Reader, TensorReader, TensorsInPlace};

/// The key of the metadata under which ours lies as JSON.
const METADATA_KEY: &str = "marionette";
/// The key of the metadata under which the checksum of a file of ours lies; those of former versions have none.
const CHECKSUM_KEY: &str = "marionette_sha256";
/// What [`read`] takes for a small file, in bytes.
const MAX_SMALL: u64 = 1 << 28;

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

/// Reads a small file whole, whatever it holds; one of more than 256 MiB is refused.
///
/// # Errors
/// As [`Reader::open`]; the file is too large, or was changed since it was written.
pub fn read(path: &Path) -> Result<(BTreeMap<String, RawTensor>, BTreeMap<String, String>)> {
    let reader = Reader::open(path)?;
    let bytes: u64 = reader.entries().iter().map(|entry| entry.bytes as u64).sum();
    if bytes > MAX_SMALL {
        return Err(FileError::new(path, format!("has tensors of {bytes} bytes, expected at most {MAX_SMALL}")));
    }
    let metadata = reader.metadata().clone();
    Ok((reader.tensors(|_| Ok(true))?.collect::<Result<_>>()?, metadata))
}

/// The metadata of a file that is written.
pub enum FileMetadata<'a> {
    /// Ours: any keys and values. The file gets a checksum.
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
        stored(tensors).into_iter().try_for_each(|(_, tensor)| writer.write_all(&tensor.bytes))
    })
}

/// The bytes of a file as [`write()`] writes it.
///
/// # Errors
/// A tensor's bytes do not fit its shape.
pub fn to_bytes(tensors: &BTreeMap<String, RawTensor>, metadata: FileMetadata<'_>) -> Result<Vec<u8>, String> {
    let mut bytes = header(tensors, metadata)?;
    stored(tensors).into_iter().for_each(|(_, tensor)| bytes.extend_from_slice(&tensor.bytes));
    Ok(bytes)
}

/// The tensors in the order in which they lie in a file: the widest type first, so that each is aligned, then by name.
fn stored(tensors: &BTreeMap<String, RawTensor>) -> Vec<(&String, &RawTensor)> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by(|(one, left), (other, right)| right.dtype.cmp(&left.dtype).then(one.cmp(other)));
    order
}

/// All that lies before the tensors' bytes.
fn header(tensors: &BTreeMap<String, RawTensor>, metadata: FileMetadata<'_>) -> Result<Vec<u8>, String> {
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, tensor) in stored(tensors) {
        let RawTensor { dtype, shape, bytes } = tensor;
        if bytes_of(*dtype, shape) != Some(bytes.len()) {
            return Err(format!("{name}: {} bytes are not {dtype:?} of shape {shape:?}", bytes.len()));
        }
        entries.push(Entry { name: name.clone(), dtype: *dtype, shape: shape.clone(), bytes: bytes.len() });
    }
    let metadata = match metadata {
        FileMetadata::HuggingFace => BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
        FileMetadata::Ours(metadata) => {
            let text = serde_json::to_string(metadata).map_err(|error| error.to_string())?;
            let mut checksum = Checksum::new(&text);
            for entry in in_order_of_places(&entries) {
                checksum.tensor(entry);
                checksum.bytes(tensors.get(&entry.name).map_or(&[], |tensor| &tensor.bytes));
            }
            BTreeMap::from([(METADATA_KEY.to_owned(), text), (CHECKSUM_KEY.to_owned(), checksum.digest())])
        }
    };
    Header { entries, metadata }.to_bytes()
}

/// The entries as they are read: those without values share their place with what follows, and are told apart by name.
fn in_order_of_places(entries: &[Entry]) -> Vec<&Entry> {
    let mut end = 0;
    let mut order: Vec<_> = entries
        .iter()
        .map(|entry| {
            let first = end;
            end += entry.bytes;
            (first, end, entry)
        })
        .collect();
    order.sort_by(|one, other| (one.0, one.1, &one.2.name).cmp(&(other.0, other.1, &other.2.name)));
    order.into_iter().map(|(_, _, entry)| entry).collect()
}
