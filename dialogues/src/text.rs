//! What becomes of a text before it is a text of a dialogue: the one place for what is read and for what is typed.

/// A text as one line: line breaks, tabs and other control characters become blanks, with no more than one in the place of
/// several and none at the ends; byte-order marks go. Everything else stays as it is.
pub fn clean(text: &str) -> String {
    const MARK: char = '\u{FEFF}';
    let separates = |character: char| character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
    let text: String = text.chars().filter(|&character| character != MARK).collect();
    let parts = text.split(separates).map(str::trim).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_text_becomes_a_blank_or_goes() {
        assert_eq!(clean("  a  b "), "a  b");
        assert_eq!(clean("a\r\n\tb\u{1b}[0m\rc\0"), "a b [0m c");
        assert_eq!(clean("\u{feff}a\u{feff}b\u{2028}\u{85} c\n"), "ab c");
        assert_eq!(clean(" \u{feff}\n "), "");
        for text in ["a\r \nb", "x", "\u{feff} a  b"] {
            assert_eq!(clean(&clean(text)), clean(text));
        }
    }
}
