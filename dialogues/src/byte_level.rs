//! The alphabet in which byte-level BPE spells bytes (Radford et al. 2019, `bytes_to_unicode` in GPT-2's encoder).

/// The byte that a character of a token stands for: bytes that are printable in Latin-1 stand for themselves, the
/// others are numbered from U+0100 in ascending order.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => is_itself(byte).then_some(byte),
        Err(_) => {
            let place = usize::try_from(code - 0x100).ok()?;
            (0..=u8::MAX).filter(|&byte| !is_itself(byte)).nth(place)
        }
    }
}

fn is_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}
