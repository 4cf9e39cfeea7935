//! SHA-256 of files and of tensors.
//!
//! What they protect, all of it against faults and none of it against who may write the files: every file of a bundle by the manifest, the
//! manifest by `SHA256SUMS` beside it; a persona and every other safetensors file of ours by a checksum in its metadata; the files of a
//! checkpoint, with the settings that it was made with, by its `SHA256SUMS`; a run's metrics by the checkpoint's state. `config.toml` by
//! nothing, since it may be edited. A persona and a run name the digest of the base that they belong to.

use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::config::ModelConfig;
use crate::error::{FileError, Result};
use crate::files;
use crate::params::{self, HostTensor, Tensors};

/// SHA-256 (FIPS 180-4) as 64 lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 and the length of all that `reader` gives.
///
/// # Errors
/// What reading says.
pub fn sha256_reader(reader: &mut impl Read) -> io::Result<(String, u64)> {
    let mut hasher = HashingWriter::new(io::sink());
    let bytes = io::copy(reader, &mut io::BufWriter::with_capacity(1 << 18, &mut hasher))?;
    Ok((hasher.digest(), bytes))
}

/// The SHA-256 of a regular file.
///
/// # Errors
/// It is none, or cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let failed = |error: io::Error| FileError::new(path, format!("cannot be read: {error}"));
    Ok(sha256_reader(&mut files::open_regular(path)?).map_err(failed)?.0)
}

/// The digest that says which frozen parameters φ something belongs to: over the configuration and, in the order of the
/// parameter table, each tensor's name, shape and values as little-endian f32. It does not depend on how a file stores them.
pub fn base_sha256(config: &ModelConfig, base: &Tensors) -> String {
    let mut hasher = BaseHasher::new(config);
    for spec in params::base_table(config) {
        base.get(&spec.name).into_iter().for_each(|tensor| hasher.tensor(&spec.name, tensor));
    }
    hasher.digest()
}

/// The same of tensors that come one by one, in the order of the parameter table.
pub(crate) struct BaseHasher(HashingWriter<io::Sink>);

impl BaseHasher {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let mut hasher = HashingWriter::new(io::sink());
        // Writing to a sink cannot fail.
        let _ = hasher.write_all(&config.family.plug().identity(config));
        Self(hasher)
    }

    pub(crate) fn tensor(&mut self, name: &str, tensor: &HostTensor) {
        let _ = write!(self.0, "\n{name} {:?}\n", tensor.shape);
        let _ = tensor.write_le(&mut self.0);
    }

    pub(crate) fn digest(self) -> String {
        self.0.digest()
    }
}

/// A writer that passes everything on and knows its SHA-256.
pub struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Wraps `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// Goes on with what is in a file already, from its beginning, as far as `bytes` where there is as much.
    ///
    /// # Errors
    /// What reading says.
    pub fn resume(mut inner: W, bytes: u64) -> io::Result<Self>
    where
        W: Read,
    {
        let mut read = HashingWriter::new(io::sink());
        io::copy(&mut (&mut inner).take(bytes), &mut io::BufWriter::with_capacity(1 << 18, &mut read))?;
        Ok(Self { inner, hasher: read.hasher, bytes: read.bytes })
    }

    /// The digest of what was written so far.
    pub fn digest(&self) -> String {
        hex(&self.hasher.clone().finalize())
    }

    /// How many bytes were written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it wraps.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn sha256_of_abc_is_fips_180_4_appendix_b1() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::sha256(b"abc"), expected);
        assert_eq!(super::sha256_reader(&mut &b"abc"[..]).unwrap(), (expected.to_owned(), 3));
    }
}
