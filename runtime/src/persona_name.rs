//! The names of personas, which become the names of folders.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::UnicodeNormalization as _;

/// The longest name, in bytes of UTF-8: file systems take 255, of which some are for what stands around it.
const LONGEST: usize = 200;

/// A name that is a plain file name on every system, in any script.
///
/// Letters, marks and digits of Unicode, blanks, `-`, `_`, `.` and the two joiners that some scripts need; the first one a letter or
/// digit, the last one no dot, blank or joiner; at most 200 bytes; not a name that Windows keeps for devices, with or without an extension. It is
/// normalised (NFC): what looks alike and is typed otherwise is one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonaName(String);

/// A persona, or one version of it: `ann`, `ann@2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonaRef {
    /// The persona.
    pub name: PersonaName,
    /// The version; the current one where none is named.
    pub version: Option<usize>,
}

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

    /// The name in small letters: two that differ only in case have the same, and some file systems take them for one.
    pub(crate) fn folded(&self) -> String {
        self.0.to_lowercase().nfc().collect()
    }
}

impl fmt::Display for PersonaRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => self.name.fmt(f),
        }
    }
}

impl FromStr for PersonaRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((name, version)) = text.split_once('@') else {
            return Ok(Self { name: text.parse()?, version: None });
        };
        let number = version.parse().ok().filter(|&number: &usize| number > 0);
        let wrong = || NameError::new(text, "after the @ stands the number of a version, from 1");
        Ok(Self { name: name.parse()?, version: Some(number.ok_or_else(wrong)?) })
    }
}

impl fmt::Display for PersonaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PersonaName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name: String = text.nfc().collect();
        match problem(&name) {
            None => Ok(Self(name)),
            Some(problem) => Err(NameError::new(text, problem)),
        }
    }
}

impl NameError {
    fn new(name: &str, problem: &'static str) -> Self {
        Self { name: name.chars().take(LONGEST + 1).collect(), problem }
    }
}

fn problem(name: &str) -> Option<&'static str> {
    // The pattern is a constant: were it wrong, every name would be.
    static ALLOWED: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^[\p{L}\p{M}\p{N}\-_. \u{200c}\u{200d}]*$").ok());
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > LONGEST {
        return Some("it is longer than 200 bytes");
    }
    if !ALLOWED.as_ref().is_some_and(|allowed| allowed.is_match(name)) {
        return Some("only letters, digits, blanks, \"-\", \"_\" and \".\" may be in it");
    }
    if !name.starts_with(char::is_alphanumeric) {
        return Some("it must begin with a letter or digit");
    }
    if name.ends_with(['.', ' ', '\u{200c}', '\u{200d}']) {
        return Some("it must not end with a dot or a blank");
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
        let long = "x".repeat(200);
        for name in [
            "ann",
            "Ann-2",
            "a",
            "0",
            "a.b_c",
            "console",
            "com",
            "COM10",
            "nul-l",
            "Ole K",
            "zoë",
            "Владимир",
            "山田 太郎",
            "علی\u{200c}رضا",
            "देवी",
            "พิม",
            long.as_str(),
        ] {
            assert_eq!(name.parse::<PersonaName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn one_name_however_it_is_typed() {
        let [composed, apart]: [PersonaName; 2] = ["Zo\u{eb}", "Zoe\u{308}"].map(|name| name.parse().unwrap());
        assert_eq!(composed, apart);
        assert_eq!(composed.folded(), "zoë");
        assert_eq!("ΣΊΣΥΦΟΣ".parse::<PersonaName>().unwrap().folded(), "σίσυφος");
    }

    #[test]
    fn a_version_is_named_after_an_at_sign() {
        let parse = |text: &str| text.parse::<PersonaRef>();
        assert_eq!(parse("Ole K@12").unwrap(), PersonaRef { name: "Ole K".parse().unwrap(), version: Some(12) });
        assert_eq!(parse("ann").unwrap().version, None);
        assert_eq!(parse("ann@2").unwrap().to_string(), "ann@2");
        for wrong in ["ann@", "ann@0", "ann@-1", "ann@x", "@1", "ann@1@2", "ann@99999999999999999999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_others_are_refused_in_one_line() {
        let (long, wide) = ("x".repeat(201), "山".repeat(67));
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
            " a",
            "a ",
            "a\u{200d}",
            "\u{308}a",
            "a@1",
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
            "a\u{202e}b",
            "a\u{200b}b",
            "*",
            long.as_str(),
            wide.as_str(),
        ] {
            let error = name.parse::<PersonaName>().unwrap_err().to_string();
            assert!(!error.contains(['\n', '\0']), "{error}");
        }
    }
}
