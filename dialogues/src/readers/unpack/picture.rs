//! Pictures of characters: PNG (ISO/IEC 15948) with the card in base64 in a text chunk, as SillyTavern and others write it.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use png::{Decoder, Info, Limits};

use crate::DataError;
use crate::readers::lines::LONGEST_LINE;

/// How a PNG begins.
pub(super) const MAGIC: &[u8] = b"\x89PNG\r\n\x1A\n";

/// The chunks' keywords: of version 3, and of those before, which tools write beside it.
const KEYWORDS: [&str; 2] = ["ccv3", "chara"];

/// The card in a picture, as JSON; nothing where it has none.
///
/// # Errors
/// It is no picture that can be read, or what is in the chunk is no base64.
pub(super) fn card(path: &Path, file: File) -> Result<Option<Vec<u8>>, DataError> {
    let refuse = |problem: String| DataError::file(path, problem, "export the character again, as PNG or JSON");
    // The chunk holds four bytes for each three of the card, and a picture has other chunks.
    let limits = Limits { bytes: 4 * LONGEST_LINE };
    let reader = Decoder::new_with_limits(BufReader::new(file), limits).read_info();
    let mut reader = reader.map_err(|error| refuse(format!("is a picture that cannot be read: {error}")))?;
    // The chunk may stand after the picture itself, which is passed over. Where what follows is broken, it may have come before.
    let read = reader.finish();
    match (text(reader.info()), read) {
        (Some(text), _) => BASE64_STANDARD
            .decode(text.trim())
            .map(Some)
            .map_err(|error| refuse(format!("has a card that is no base64: {error}"))),
        (None, Err(error)) => Err(refuse(format!("is a picture that cannot be read: {error}"))),
        (None, Ok(())) => Ok(None),
    }
}

fn text(info: &Info<'_>) -> Option<String> {
    KEYWORDS.iter().find_map(|keyword| {
        let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == *keyword);
        let packed = info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == *keyword);
        let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == *keyword);
        plain
            .map(|chunk| chunk.text.clone())
            .or_else(|| packed.and_then(|chunk| chunk.get_text().ok()))
            .or_else(|| utf8.and_then(|chunk| chunk.get_text().ok()))
    })
}
