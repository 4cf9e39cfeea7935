//! The frozen weights: their digest, and that their numbers are finite, in one reading.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use super::audit::Floats;
use crate::digest::HashingWriter;
use crate::error::{FileError, Result};
use crate::files;

/// How many bytes are looked at together: no number lies in two such parts, since tensors begin at multiples of 4096.
const PART: usize = 1 << 20;

/// The SHA-256 of a file of weights, and what is wrong with the parts of it that are floating-point numbers: the first that is NaN or
/// infinite.
///
/// # Errors
/// It cannot be read.
pub(super) fn digest(path: &Path, floats: &BTreeSet<Floats>) -> Result<(String, Option<FileError>)> {
    let failed = |error: io::Error| FileError::new(path, format!("cannot be read: {error}"));
    let mut file = files::open_regular(path)?;
    let mut hasher = HashingWriter::new(io::sink());
    let mut part = Vec::with_capacity(PART);
    let mut wrong = None;
    let mut waiting = floats.iter().peekable();
    let mut open: Vec<&Floats> = Vec::new();
    loop {
        part.clear();
        let begin = hasher.bytes();
        (&mut file).take(PART as u64).read_to_end(&mut part).map_err(failed)?;
        if part.is_empty() {
            break;
        }
        // Writing to a sink cannot fail.
        let _ = hasher.write_all(&part);
        let end = hasher.bytes();
        while let Some(next) = waiting.next_if(|next| next.offset < end) {
            // Views of one tensor in several graphs.
            if open.last().is_none_or(|last| (last.offset, last.length) != (next.offset, next.length)) {
                open.push(next);
            }
        }
        for floats in &open {
            let place = |at: u64| (at.clamp(begin, end) - begin) as usize;
            let [from, to] = [floats.offset, floats.offset + floats.length].map(place);
            if let (None, Some(index)) = (&wrong, not_finite(&part[from..to], floats.width)) {
                let index = (begin + from as u64 - floats.offset) / floats.width as u64 + index as u64;
                let problem = format!("value {index} is NaN or infinite, expected finite numbers");
                wrong = Some(FileError::new(path, problem).at(&floats.name).remedy("export the model again"));
            }
        }
        open.retain(|floats| floats.offset + floats.length > end);
    }
    Ok((hasher.digest(), wrong))
}

/// The first number whose exponent is all ones: NaN or infinity (IEEE 754-2008, 3.4).
fn not_finite(bytes: &[u8], width: usize) -> Option<usize> {
    const F32: u32 = 0x7f80_0000;
    const F16: u16 = 0x7c00;
    match width {
        4 => bytes.as_chunks::<4>().0.iter().position(|bytes| u32::from_le_bytes(*bytes) & F32 == F32),
        _ => bytes.as_chunks::<2>().0.iter().position(|bytes| u16::from_le_bytes(*bytes) & F16 == F16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_is_found_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.bin");
        let (length, width) = (PART + 8192, 4);
        let floats = |offset: u64, length: u64, width| Floats { offset, length, width, name: format!("at {offset}") };
        let regions = [floats(0, 8, width), floats(4096, PART as u64, width), floats(PART as u64 + 8192 - 4096, 6, 2)];
        let found = |change: &dyn Fn(&mut [u8])| {
            let mut bytes = vec![1; length];
            change(&mut bytes);
            std::fs::write(&path, &bytes).unwrap();
            let (digest, wrong) = digest(&path, &regions.clone().into()).unwrap();
            assert_eq!(digest, crate::digest::sha256(&bytes));
            wrong.map_or(Ok(()), |error| Err(error.to_string()))
        };
        found(&|_| ()).unwrap();
        let nan = |at: usize| move |bytes: &mut [u8]| bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        for (at, name, value) in [
            (4, "at 0", 1),
            (4096, "at 4096", 0),
            (PART, "at 4096", PART / 4 - 1024),
            (PART + 4092, "at 4096", PART / 4 - 1),
        ] {
            let error = found(&nan(at)).unwrap_err();
            assert!(error.contains(name) && error.contains(&format!("value {value} is NaN")), "{at}: {error}");
        }
        // Between the tensors, and beside them.
        for at in [8, 4092, PART + 8188] {
            found(&nan(at)).unwrap();
        }
        let half = PART + 4096;
        let error = found(&|bytes| bytes[half + 4..half + 6].copy_from_slice(&[0, 0x7c])).unwrap_err();
        assert!(error.contains(&format!("at {half}: value 2 is NaN or infinite")), "{error}");
    }
}
