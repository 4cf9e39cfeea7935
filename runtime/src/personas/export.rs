//! A version's adapters as files of others.

use std::io::{self, Write as _};
use std::path::Path;

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use marionette_models::onnx::data_type;
use marionette_models::{FileError, HostTensor, Tensors, files, safetensors_file};
use zip::result::ZipResult;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{PersonaError, Store};
use crate::persona_name::PersonaName;

/// How adapters are written for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The file as it is kept, which another marionette takes back: safetensors, with what is known of it in the metadata.
    Safetensors,
    /// What ONNX Runtime loads as an adapter (`LoraAdapter`, `RunOptions::add_adapter`), for the graphs of the bundle.
    OnnxAdapter,
    /// Arrays for NumPy.
    Npz,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Safetensors, Self::OnnxAdapter, Self::Npz];

    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::OnnxAdapter => "onnx_adapter",
            Self::Npz => "npz",
        }
    }
}

/// ONNX Runtime's `onnxruntime/lora/adapter_format_version.h`.
const ADAPTER_FORMAT: i32 = 1;
/// The identifier of the schema `onnxruntime/lora/adapter_format/adapter_schema.fbs`.
const ADAPTER_IDENTIFIER: &str = "TORT";

impl Store {
    /// The adapters of a version, the current one where none is named, whatever base they belong to.
    ///
    /// # Errors
    /// As [`Store::version`]; the adapters' file was changed since it was written.
    pub fn tensors(&self, name: &PersonaName, version: Option<usize>) -> Result<Tensors, PersonaError> {
        Ok(tensors(&self.adapters(name, version)?.1)?)
    }

    /// Writes the adapters of a version, the current one where none is named, to a file, whole or not at all.
    ///
    /// # Errors
    /// As [`Store::version`]; the adapters' file was changed since it was written; `out` cannot be written.
    pub fn export(
        &self,
        name: &PersonaName,
        version: Option<usize>,
        format: Format,
        out: &Path,
    ) -> Result<(), PersonaError> {
        let (version, path) = self.adapters(name, version)?;
        // Read whole, whatever the format, so that no broken file is passed on.
        let tensors = tensors(&path)?;
        match format {
            Format::Safetensors => {
                let mut file = files::open_regular(&path)?;
                files::write_atomic(out, |writer| io::copy(&mut file, writer).map(drop))?;
            }
            Format::OnnxAdapter => {
                let bytes = adapter(&tensors, version);
                files::write_atomic(out, |writer| writer.write_all(&bytes))?;
            }
            Format::Npz => {
                let bytes = npz(&tensors).map_err(|error| FileError::new(out, format!("cannot be made: {error}")))?;
                files::write_atomic(out, |writer| writer.write_all(&bytes))?;
            }
        }
        Ok(())
    }
}

/// The tensors of an adapters' file, whatever base it belongs to.
pub(super) fn tensors(path: &Path) -> Result<Tensors, FileError> {
    let (tensors, _) = safetensors_file::read(path)?;
    tensors
        .into_iter()
        .map(|(name, tensor)| match tensor.to_f32() {
            Ok(tensor) => Ok((name, tensor)),
            Err(problem) => Err(FileError::new(path, problem).at(name)),
        })
        .collect()
}

/// The flat buffer of ONNX Runtime's schema:
///
/// ```text
/// table Parameter { name: string; dims: [int64]; data_type: int32; raw_data: [uint8] (force_align: 8); }
/// table Adapter { format_version: int; adapter_version: int; model_version: int; parameters: [Parameter]; }
/// ```
fn adapter(tensors: &Tensors, version: usize) -> Vec<u8> {
    /// Where the n-th field of a table stands in its table of offsets.
    const fn slot(field: u16) -> u16 {
        4 + 2 * field
    }
    let mut builder = FlatBufferBuilder::new();
    let mut parameters = Vec::with_capacity(tensors.len());
    for (name, HostTensor { shape, values }) in tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        // A buffer grows from its end: what is there already and these bytes must be whole multiples of 8.
        while !(builder.unfinished_data().len() + bytes.len()).is_multiple_of(8) {
            builder.push(0_u8);
        }
        let data = builder.create_vector(&bytes);
        let dims: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let dims = builder.create_vector(&dims);
        let name = builder.create_string(name);
        let table = builder.start_table();
        builder.push_slot_always::<WIPOffset<_>>(slot(0), name);
        builder.push_slot_always::<WIPOffset<_>>(slot(1), dims);
        builder.push_slot_always(slot(2), data_type::FLOAT);
        builder.push_slot_always::<WIPOffset<_>>(slot(3), data);
        parameters.push(builder.end_table(table));
    }
    let parameters = builder.create_vector(&parameters);
    let table = builder.start_table();
    builder.push_slot_always(slot(0), ADAPTER_FORMAT);
    builder.push_slot_always(slot(1), i32::try_from(version).unwrap_or(i32::MAX));
    builder.push_slot_always(slot(2), ADAPTER_FORMAT);
    builder.push_slot_always::<WIPOffset<_>>(slot(3), parameters);
    let root = builder.end_table(table);
    builder.finish(root, Some(ADAPTER_IDENTIFIER));
    builder.finished_data().to_vec()
}

/// NumPy's archive: a file NAME.npy of format 1.0 a tensor (NEP 1), in a zip without compression.
fn npz(tensors: &Tensors) -> ZipResult<Vec<u8>> {
    // The archive's directory is written by going back: into memory first.
    let mut archive = ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, HostTensor { shape, values }) in tensors {
        archive.start_file(
            format!("{name}.npy"),
            SimpleFileOptions::DEFAULT.compression_method(CompressionMethod::Stored),
        )?;
        archive.write_all(&npy_header(shape))?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        archive.write_all(&bytes)?;
    }
    Ok(archive.finish()?.into_inner())
}

/// What stands in front of f32 values in row-major order: a magic string, the version, the length of what follows, and a literal of Python that
/// blanks and a line feed fill up to a whole multiple of 64 bytes.
fn npy_header(shape: &[usize]) -> Vec<u8> {
    const BEFORE: usize = 10;
    let sizes: String = shape.iter().map(|size| format!("{size},")).collect();
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sizes}), }}");
    let whole = (BEFORE + text.len() + 1).next_multiple_of(64);
    text.extend(std::iter::repeat_n(' ', whole - BEFORE - text.len() - 1));
    text.push('\n');
    let length = (text.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00".as_slice(), &length, text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `numpy.save` of NumPy 2 writes the same for arrays of these shapes.
    #[test]
    fn the_header_is_numpys() {
        for (shape, text) in [
            (&[3, 4][..], "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }"),
            (&[5][..], "{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }"),
            (&[][..], "{'descr': '<f4', 'fortran_order': False, 'shape': (), }"),
        ] {
            let header = npy_header(shape);
            assert!(header.starts_with(b"\x93NUMPY\x01\x00\x76\x00{") && header.len() == 128, "{header:?}");
            let literal = String::from_utf8(header[10..].to_vec()).unwrap();
            let plain = |text: &str| text.replace([' ', '\n'], "").replace(",)", ")");
            assert_eq!(plain(&literal), plain(text));
        }
    }
}
