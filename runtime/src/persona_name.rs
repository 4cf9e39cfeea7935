//! The names of personas, which become the names of files.

use std::fmt;
use std::str::FromStr;

/// The longest name, in characters.
const LONGEST: usize = 64;

/// A name that is a plain file name on every system.
///
/// One to 64 letters (A–Z, a–z), digits, `-`, `_` and `.`; the first one a letter or digit, the last one no dot; not a name
/// that Windows keeps for devices, with or without an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonaName(String);

/// Why something is no name for a persona.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no name for a persona: {problem}")]
pub struct NameError {
    name: String,
    problem: &'static str,
}

impl PersonaName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PersonaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PersonaName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        match problem(name) {
            None => Ok(Self(name.to_owned())),
            Some(problem) => Err(NameError { name: name.chars().take(LONGEST + 1).collect(), problem }),
        }
    }
}

fn problem(name: &str) -> Option<&'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.chars().count() > LONGEST {
        return Some("it is longer than 64 characters");
    }
    if !name.chars().all(allowed) {
        return Some("only the letters a-z and A-Z, digits, \"-\", \"_\" and \".\" may be in it");
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Some("it must begin with a letter or digit");
    }
    if name.ends_with('.') {
        return Some("it must not end with a dot");
    }
    if is_device(name) {
        return Some("Windows keeps this name for a device");
    }
    None
}

/// CON, PRN, AUX, NUL, COM0–COM9, LPT0–LPT9, also with an extension (Microsoft, "Naming Files, Paths, and Namespaces").
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().to_ascii_uppercase();
    let numbered = |prefix| {
        stem.strip_prefix(prefix).is_some_and(|rest| rest.len() == 1 && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL") || numbered("COM") || numbered("LPT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_plain_file_names_everywhere() {
        for name in ["ann", "Ann-2", "a", "0", "a.b_c", "console", "com", "COM10", "nul-l", &"x".repeat(64)] {
            assert_eq!(name.parse::<PersonaName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn all_others_are_refused_in_one_line() {
        let long = "x".repeat(65);
        for name in [
            "",
            "../x",
            "a/b",
            "a\\b",
            ".",
            "..",
            ".hidden",
            "-rf",
            "_a",
            "a.",
            "a b",
            "a\0b",
            "a\nb",
            "CON",
            "con",
            "nul.txt",
            "Com1",
            "lpt9.x.y",
            "AUX",
            "prn",
            "C:",
            "zoë",
            "a\u{202e}b",
            "*",
            long.as_str(),
        ] {
            let error = name.parse::<PersonaName>().unwrap_err().to_string();
            assert!(!error.contains(['\n', '\0']), "{error}");
        }
    }
}
