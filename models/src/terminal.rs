//! What reaches a terminal. Names, errors of libraries and a model's replies come from files that may be hostile: their control
//! characters would move the cursor, change what is shown, or answer as if somebody had typed.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A text as it may be shown: control characters but line feeds and tabs, and characters that turn the direction of what follows
/// (Unicode's bidirectional overrides, embeddings and isolates), are spelled out as `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    spelled(text, |c| matches!(c, '\n' | '\t'))
}

/// The same as one line.
pub fn printable_line(text: &str) -> Cow<'_, str> {
    spelled(text, |_| false)
}

fn spelled(text: &str, allowed: impl Fn(char) -> bool) -> Cow<'_, str> {
    let hidden =
        |c: char| (c.is_control() && !allowed(c)) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if hidden(c) {
            // Writing to a string cannot fail.
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_terminal_is_spelled_out() {
        let hostile = "\u{1b}]0;x\u{7}a\r\nb\u{9b}31m\u{202e}\u{2069}\0\tzoë";
        let shown = r"\u{1b}]0;x\u{7}a\u{d}";
        let rest = r"b\u{9b}31m\u{202e}\u{2069}\u{0}";
        assert_eq!(printable(hostile), format!("{shown}\n{rest}\tzoë"));
        assert_eq!(printable_line(hostile), format!("{shown}\\u{{a}}{rest}\\u{{9}}zoë"));
        assert!(matches!(printable("a b\n"), Cow::Borrowed(_)));
    }
}
