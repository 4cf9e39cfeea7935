//! The GGUF container (version 2 and 3, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): metadata, a list of tensors, and
//! their values in blocks. Nothing that a header says is believed before it is checked against the file's length.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use marionette_models::{FileError, HostTensor, files};

/// The most bytes of a key or a tensor's name.
const LONGEST_NAME: u64 = 65_535;
/// Tensors begin at multiples of this unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;
/// Arrays of arrays are not nested deeper.
const DEEPEST: usize = 2;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An integer.
    Integer(i128),
    /// A number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

/// Where a tensor lies, and as what.
#[derive(Debug, Clone)]
struct Tensor {
    /// Outermost dimension first.
    shape: Vec<usize>,
    dtype: GgmlDType,
    /// In the file.
    offset: u64,
    bytes: u64,
}

/// An open GGUF file whose header is checked.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
}

/// The type of blocks that a number stands for (`ggml_type` in ggml.h), of those that can be read.
fn dtype(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// Reads a header, counting what is left of the file.
struct Header<'a> {
    path: &'a Path,
    reader: BufReader<&'a File>,
    length: u64,
    at: u64,
}

impl Header<'_> {
    fn refuse(&self, problem: impl std::fmt::Display) -> FileError {
        FileError::new(self.path, problem).at(format!("byte {}", self.at)).remedy("copy the GGUF file again")
    }

    fn left(&self) -> u64 {
        self.length.saturating_sub(self.at)
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, FileError> {
        if count > self.left() {
            return Err(self.refuse(format!("asks for {count} bytes, but the file has {} more", self.left())));
        }
        let mut bytes = vec![0; count as usize];
        self.reader.read_exact(&mut bytes).map_err(|error| self.refuse(format!("cannot be read: {error}")))?;
        self.at += count;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], FileError> {
        let bytes = self.bytes(N as u64)?;
        bytes.try_into().map_err(|_| self.refuse("cannot be read"))
    }

    fn u32(&mut self) -> Result<u32, FileError> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    fn u64(&mut self) -> Result<u64, FileError> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    fn text(&mut self, longest: u64) -> Result<String, FileError> {
        let length = self.u64()?;
        if length > longest {
            return Err(self.refuse(format!("has a text of {length} bytes, expected at most {longest}")));
        }
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).map_err(|_| self.refuse("has a text that is not UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, FileError> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.number()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.number()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.number()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.number()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.number()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.number()?).into()),
            7 => match self.number::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.refuse(format!("has {other} for true or false"))),
            },
            8 => Value::Text(self.text(u64::MAX)?),
            9 if depth < DEEPEST => {
                let (kind, count) = (self.u32()?, self.u64()?);
                // Every element takes a byte or more.
                if count > self.left() {
                    return Err(self.refuse(format!("has an array of {count}, but {} more bytes", self.left())));
                }
                let mut values = Vec::new();
                for _ in 0..count {
                    values.push(self.value(kind, depth + 1)?);
                }
                Value::Array(values)
            }
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.number()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.number()?)),
            _ => return Err(self.refuse(format!("has a value of the unknown type {kind}"))),
        })
    }

    /// A tensor's name, and where it lies from the first one's place on.
    fn tensor(&mut self) -> Result<(String, Tensor), FileError> {
        let name = self.text(LONGEST_NAME)?;
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(self.refuse(format!("{name} has {dimensions} dimensions, expected 1 to 4")));
        }
        let mut shape = Vec::with_capacity(4);
        for _ in 0..dimensions {
            shape.push(self.u64()?);
        }
        let number = self.u32()?;
        let Some(dtype) = dtype(number) else {
            let problem = format!("{name} is of the type {number}, which cannot be read");
            return Err(FileError::new(self.path, problem)
                .remedy("use a file of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or the K-quants"));
        };
        let offset = self.u64()?;
        let elements = shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
        let (block, size) = (dtype.block_size() as u64, dtype.type_size() as u64);
        let bytes = match (elements, shape[0].is_multiple_of(block)) {
            (Some(elements), true) if elements > 0 => (elements / block).checked_mul(size),
            _ => None,
        };
        let Some(bytes) = bytes.filter(|bytes| *bytes <= self.length) else {
            return Err(self.refuse(format!("{name} has the shape {shape:?}, which the file cannot hold")));
        };
        // Innermost first in the file.
        let shape = shape.iter().rev().map(|&size| size as usize).collect();
        Ok((name, Tensor { shape, dtype, offset, bytes }))
    }
}

impl Gguf {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// It is no GGUF file, is cut, or says what cannot be.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = files::open_regular(path)?;
        let length = file.metadata().map_err(|error| FileError::new(path, format!("cannot be read: {error}")))?.len();
        let mut header = Header { path, reader: BufReader::new(&file), length, at: 0 };
        if header.number::<4>().ok() != Some(*b"GGUF") {
            return Err(FileError::new(path, "is not a GGUF file").remedy("give a file that begins with GGUF"));
        }
        let version = header.u32()?;
        if !(2..=3).contains(&version) {
            return Err(header.refuse(format!("is of version {version}, expected 2 or 3")));
        }
        let (tensor_count, entries) = (header.u64()?, header.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..entries {
            let key = header.text(LONGEST_NAME)?;
            let kind = header.u32()?;
            let value = header.value(kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(header.refuse(format!("has {key} twice")));
            }
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, tensor) = header.tensor()?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(header.refuse(format!("has {name} twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Integer(alignment)) if (1..=1 << 20).contains(alignment) => *alignment as u64,
            Some(_) => return Err(FileError::new(path, "expected 1 to 1048576").at("general.alignment")),
        };
        let start = header.at.next_multiple_of(alignment);
        for (name, tensor) in &mut tensors {
            let end = start.checked_add(tensor.offset).and_then(|offset| offset.checked_add(tensor.bytes));
            if !tensor.offset.is_multiple_of(alignment) || end.is_none_or(|end| end > length) {
                let problem = format!("lies at {} of {} bytes, beyond the end of the file", tensor.offset, length);
                return Err(FileError::new(path, problem).at(name).remedy("copy the GGUF file again"));
            }
            tensor.offset += start;
        }
        Ok(Self { path: path.to_owned(), file, metadata, tensors })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A value of the metadata.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| &tensor.shape[..])
    }

    /// The values of a tensor.
    ///
    /// # Errors
    /// There is none of that name; the file cannot be read.
    pub fn read(&self, name: &str) -> Result<HostTensor, FileError> {
        let refuse = |problem: String| FileError::new(&self.path, problem).at(name);
        let tensor = self.tensors.get(name).ok_or_else(|| refuse("is missing".into()))?;
        let mut bytes = vec![0; tensor.bytes as usize];
        (&self.file)
            .seek(SeekFrom::Start(tensor.offset))
            .and_then(|_| (&self.file).read_exact(&mut bytes))
            .map_err(|error| refuse(format!("cannot be read: {error}")))?;
        let values = qtensor_from_ggml(tensor.dtype, &bytes, tensor.shape.clone(), &Device::Cpu)
            .and_then(|blocks| blocks.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1())
            .map_err(|error| refuse(error.to_string()))?;
        Ok(HostTensor { shape: tensor.shape.clone(), values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

    #[test]
    fn blocks_are_those_of_the_gguf_package() {
        let file = Gguf::open(&Path::new(FIXTURES).join("blocks.gguf")).unwrap();
        let (expected, _) =
            marionette_models::safetensors_file::read(&Path::new(FIXTURES).join("blocks.safetensors")).unwrap();
        assert_eq!(file.names().count(), expected.len());
        for (name, expected) in expected {
            let (found, expected) = (file.read(&name).unwrap(), expected.to_f32().unwrap());
            assert_eq!(found.shape, expected.shape, "{name}");
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            let differ = found.values.iter().zip(&expected.values).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            println!("{name}: {differ} of {} values differ", expected.values.len());
            assert_eq!(bits(&found.values), bits(&expected.values), "{name}");
        }
    }

    /// A header with one entry and one tensor of two f32, as `change` leaves its parts: counts, entry, tensor, values.
    fn refusal(change: impl FnOnce(&mut [Vec<u8>; 4])) -> String {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let counts = [1_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat();
        let entry = [text("a.key"), 8_u32.to_le_bytes().to_vec(), text("value")].concat();
        let tensor =
            [text("t"), 1_u32.to_le_bytes().to_vec(), 2_u64.to_le_bytes().to_vec(), vec![0; 4], vec![0; 8]].concat();
        let mut parts = [counts, entry, tensor, [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat()];
        change(&mut parts);
        let mut bytes = [b"GGUF".to_vec(), 3_u32.to_le_bytes().to_vec(), parts[..3].concat()].concat();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&parts[3]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, bytes).unwrap();
        match Gguf::open(&path) {
            Ok(file) => {
                assert_eq!(file.get("a.key"), Some(&Value::Text("value".into())));
                assert_eq!(file.read("t").unwrap(), HostTensor { shape: vec![2], values: vec![1.5, -2.0] });
                String::new()
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn headers_that_lie_are_refused() {
        assert_eq!(refusal(|_| {}), "");
        let put = |part: usize, at: usize, bytes: &'static [u8]| {
            move |parts: &mut [Vec<u8>; 4]| parts[part][at..at + bytes.len()].copy_from_slice(bytes)
        };
        const HUGE: &[u8] = &[0xff; 8];
        for (problem, expected) in [
            (refusal(put(0, 0, HUGE)), "copy the GGUF file again"),
            (refusal(put(0, 8, HUGE)), "copy the GGUF file again"),
            (refusal(put(1, 0, HUGE)), "a text of 18446744073709551615 bytes"),
            (refusal(put(1, 13, &[99])), "unknown type 99"),
            // An array of as many arrays.
            (refusal(put(1, 13, &[9, 0, 0, 0, 9, 0, 0, 0, 255, 255, 255, 255])), "an array of"),
            (refusal(put(1, 17, HUGE)), "asks for 18446744073709551615 bytes"),
            (refusal(put(2, 9, &[5])), "5 dimensions"),
            (refusal(put(2, 13, HUGE)), "cannot hold"),
            (refusal(put(2, 13, &[0])), "cannot hold"),
            (refusal(put(2, 21, &[9])), "type 9, which cannot be read"),
            (refusal(put(2, 25, &[32])), "beyond the end"),
            (refusal(put(2, 25, &[7])), "beyond the end"),
            (refusal(put(2, 25, HUGE)), "beyond the end"),
            (refusal(|parts| parts[3].truncate(7)), "beyond the end"),
        ] {
            assert!(problem.contains("m.gguf") && problem.contains(expected), "{expected}: {problem}");
            assert_eq!(problem.lines().count(), 1);
        }
    }
}
