//! What should not be learned from chats, and what stands in its place: of links, addresses, numbers and chosen words.

mod numbers;
mod replaced;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::iter;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde::Serialize;

pub(crate) use replaced::Redactions;
pub use replaced::{Redaction, Replaced};

/// What was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Redacted {
    /// An e-mail address: what people write of RFC 5321 and 6531 (letters of any script, no quoted local parts, no
    /// address literals, an ending of at least two letters).
    Email,
    /// A link: `scheme://…` (RFC 3986), `www.…`, and a bare domain that has a well-known ending, or a path behind an
    /// ending of two letters. An ending that is also a common word (`it`, `in`, `me`) needs the path.
    Link,
    /// A phone number of 7 to 15 digits (ITU-T E.164): behind `+`, `00` or `0`, with an area in brackets, or grouped as
    /// in the United States, Brazil, India and a few more countries. Other numbers that are grouped by hyphens in the
    /// same way (a social security number, a ZIP+4) are taken for one. Dates, times, prices, amounts and versions are
    /// not.
    Phone,
    /// A payment card's number (ISO/IEC 7812-1): 13 to 19 digits, with single blanks or hyphens between groups or
    /// without, from 2 to 6 on, with the right check digit.
    Card,
    /// An account's number: an IBAN (ISO 13616) with the right check digits, grouped by blanks or not, and every other
    /// run of 8 or more digits that is neither a price nor the fraction of a decimal. So a phone number that nothing
    /// marks as one (`5551234567`), or a card's with a wrong check digit, is replaced as an account's.
    Account,
    /// A word or phrase of the block list.
    Blocked,
}

impl Redacted {
    /// What stands in its place.
    pub fn placeholder(self) -> &'static str {
        match self {
            Self::Email => "[email]",
            Self::Link => "[link]",
            Self::Phone => "[phone]",
            Self::Card => "[card]",
            Self::Account => "[account]",
            Self::Blocked => "[blocked]",
        }
    }
}

/// The plural, for people.
impl fmt::Display for Redacted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Email => "e-mail addresses",
            Self::Link => "links",
            Self::Phone => "phone numbers",
            Self::Card => "card numbers",
            Self::Account => "account numbers",
            Self::Blocked => "blocked words",
        })
    }
}

/// Where something stands in a text, in bytes.
type Place = (Range<usize>, Redacted);

static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| compile(r"\[(?:email|link|phone|card|account|blocked)\]"));
static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    let (local, label) = (r"[\p{L}\p{N}_][\p{L}\p{M}\p{N}_.%+'-]*", r"[\p{L}\p{N}][\p{L}\p{M}\p{N}-]*");
    compile(&format!(r"(?i){local}@(?:{label}\.)+(?:xn--[a-z0-9-]+|\p{{L}}[\p{{L}}\p{{M}}]+)"))
});
/// What a link is made of; brackets and punctuation at its end are looked at later.
const IN_LINK: &str = r#"[^\s\p{C}<>"«»“”„|`，。、！？；：（）「」【】]"#;
static LINK: LazyLock<Regex> = LazyLock::new(|| compile(&format!(r"(?i)(?:[a-z][a-z0-9+.-]*://|\bwww\.){IN_LINK}+")));
static DOMAIN: LazyLock<Regex> = LazyLock::new(|| {
    let label = r"[\p{L}\p{N}][\p{L}\p{M}\p{N}_-]*";
    compile(&format!(r"({label}(?:\.{label})+)((?::[0-9]{{1,5}})?(?:[/?#]{IN_LINK}*)?)"))
});
static TOKEN: LazyLock<Regex> = LazyLock::new(|| compile(r"(?s)\w+|\s+|."));

#[allow(clippy::expect_used, reason = "the patterns stand in these files, and every text meets all of them")]
fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is well formed")
}

/// Finds and replaces what should not be learned from chats: see [`Redacted`] for what that is.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    /// The block list as a tree: its words have numbers, and a node and a word lead to a node. The root is 0.
    words: HashMap<String, usize>,
    steps: HashMap<(usize, usize), usize>,
    ends: HashSet<usize>,
}

impl Redactor {
    /// With a block list of words and phrases. They are found as whole words (Unicode's `\w`; so not inside a run of a
    /// script that is written without blanks), in either case (`ß` is `SS`), with any whitespace where they have some.
    /// Letters with accents are found as they are composed in the list. Empty phrases are ignored.
    pub fn new<S: AsRef<str>>(blocked: &[S]) -> Self {
        let mut redactor = Self::default();
        for phrase in blocked {
            let mut node = 0;
            for (_, token) in tokens(phrase.as_ref().trim()) {
                let word = redactor.words.len();
                let word = *redactor.words.entry(token).or_insert(word);
                let next = redactor.steps.len() + 1;
                node = *redactor.steps.entry((node, word)).or_insert(next);
            }
            if node > 0 {
                redactor.ends.insert(node);
            }
        }
        redactor
    }

    /// The text with placeholders in place of what is found; `found` hears of each, in the order of the text, with what
    /// stood there. What starts first is taken, of two with the same start the longer one. Placeholders stay as they
    /// are, so there is nothing to be found in what this returns.
    pub fn redact<'t>(&self, text: &'t str, found: &mut dyn FnMut(Redacted, &'t str)) -> Cow<'t, str> {
        let mut taken: Vec<Place> = Vec::new();
        let mut pieces: Vec<Range<usize>> = Vec::new();
        let standing = PLACEHOLDER.find_iter(text).map(|place| place.range());
        push_gaps(&mut pieces, 0..text.len(), standing);
        // What is beside something taken is searched anew: it may have been a part of something that is no more.
        while let Some(piece) = pieces.pop() {
            let Some(part) = text.get(piece.clone()) else { continue };
            let places = self.search(part);
            if places.is_empty() {
                continue;
            }
            let in_text = |(place, kind): Place| (piece.start + place.start..piece.start + place.end, kind);
            let places: Vec<Place> = places.into_iter().map(in_text).collect();
            push_gaps(&mut pieces, piece.clone(), places.iter().map(|(place, _)| place.clone()));
            taken.extend(places);
        }
        if taken.is_empty() {
            return Cow::Borrowed(text);
        }
        taken.sort_unstable_by_key(|(place, _)| place.start);
        let mut redacted = String::with_capacity(text.len());
        let mut at = 0;
        for (place, kind) in taken {
            redacted.push_str(text.get(at..place.start).unwrap_or_default());
            redacted.push_str(kind.placeholder());
            found(kind, text.get(place.clone()).unwrap_or_default());
            at = place.end;
        }
        redacted.push_str(text.get(at..).unwrap_or_default());
        Cow::Owned(redacted)
    }

    /// What is found in a text by itself, in its order, without overlaps.
    fn search(&self, text: &str) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        places.extend(EMAIL.find_iter(text).map(|place| (place.range(), Redacted::Email)));
        for link in LINK.find_iter(text) {
            let kept = trim_link(link.as_str());
            let rest = kept.split_once("://").or(kept.split_once('.')).map_or("", |(_, rest)| rest);
            if rest.contains(char::is_alphanumeric) {
                places.push((link.start()..link.start() + kept.len(), Redacted::Link));
            }
        }
        for domain in DOMAIN.captures_iter(text) {
            if let (Some(host), Some(rest)) = (domain.get(1), domain.get(2))
                && let Some(length) = domain_length(host.as_str(), rest.as_str())
            {
                let kept = text.get(host.start()..host.start() + length).map_or(length, |link| trim_link(link).len());
                places.push((host.start()..host.start() + kept, Redacted::Link));
            }
        }
        numbers::search(text, &mut places);
        self.search_blocked(text, &mut places);
        places.sort_unstable_by_key(|(place, kind)| (place.start, Reverse(place.end), *kind));
        let mut end = 0;
        places.retain(|(place, _)| {
            let free = place.start >= end;
            end = if free { place.end } else { end };
            free
        });
        places
    }

    fn search_blocked(&self, text: &str, places: &mut Vec<Place>) {
        if self.ends.is_empty() {
            return;
        }
        let tokens: Vec<_> = tokens(text).map(|(place, token)| (place, self.words.get(&token))).collect();
        let mut at = 0;
        while let Some(rest) = tokens.get(at..)
            && let Some((first, _)) = rest.first()
        {
            let (mut node, mut longest, mut count) = (0, None, 1);
            for (n, (place, word)) in rest.iter().enumerate() {
                let Some(&next) = word.and_then(|&word| self.steps.get(&(node, word))) else { break };
                node = next;
                if self.ends.contains(&node) {
                    (longest, count) = (Some(place.end), n + 1);
                }
            }
            if let Some(end) = longest {
                places.push((first.start..end, Redacted::Blocked));
            }
            at += count;
        }
    }
}

/// Adds what the places leave of a range.
fn push_gaps(gaps: &mut Vec<Range<usize>>, within: Range<usize>, places: impl Iterator<Item = Range<usize>>) {
    let mut start = within.start;
    for place in places.chain(iter::once(within.end..within.end)) {
        if start < place.start {
            gaps.push(start..place.start);
        }
        start = place.end;
    }
}

/// Words, runs of whitespace, and other characters one by one, so that what is equal but for case is the same.
fn tokens(text: &str) -> impl Iterator<Item = (Range<usize>, String)> {
    TOKEN.find_iter(text).map(|token| {
        let blank = token.as_str().starts_with(char::is_whitespace);
        // By way of capitals, so that ß is as SS, and a sigma at the end of a word as any other.
        (token.range(), if blank { " ".into() } else { token.as_str().to_uppercase().to_lowercase() })
    })
}

/// A link without the punctuation behind it, and without brackets that were opened before it.
fn trim_link(mut link: &str) -> &str {
    const BRACKETS: [(char, char); 3] = [('(', ')'), ('[', ']'), ('{', '}')];
    let mut open = BRACKETS.map(|(opens, closes)| {
        link.chars().map(|character| i64::from(character == opens) - i64::from(character == closes)).sum::<i64>()
    });
    while let Some(last) = link.chars().next_back() {
        let mut goes = matches!(last, '.' | ',' | ';' | ':' | '!' | '?' | '\'' | '’' | '‘' | '…' | '*' | '_');
        for ((opens, closes), open) in BRACKETS.into_iter().zip(&mut open) {
            if last == opens {
                (goes, *open) = (true, *open - 1);
            } else if last == closes && *open < 0 {
                (goes, *open) = (true, *open + 1);
            }
        }
        if !goes {
            break;
        }
        link = link.strip_suffix(last).unwrap_or_default();
    }
    link
}

/// How much of a host and what follows it is a link, if any of it.
fn domain_length(host: &str, rest: &str) -> Option<usize> {
    let (name, ending) = host.rsplit_once('.')?;
    let short = ending.len() == 2 && ending.bytes().all(|byte| byte.is_ascii_alphabetic());
    let path = rest.trim_start_matches(|character: char| character == ':' || character.is_ascii_digit());
    if well_known(host) || (short && path.starts_with('/') && name.contains(char::is_alphabetic)) {
        return Some(host.len() + rest.len());
    }
    // A sentence may go on behind it without a blank.
    host.rmatch_indices('.').map(|(end, _)| end).find(|&end| host.get(..end).is_some_and(well_known))
}

/// Whether a domain has an ending that is hardly the first word of a sentence.
fn well_known(host: &str) -> bool {
    const ENDINGS: &str =
        " app biz br ch cn com cz de dev dk edu fr gov info int io jp kr mil net nl org pl ru uk xyz ";
    const SECOND: &str = " ac co com edu gov net org ";
    let listed = |label: &str, list: &str| list.contains(&format!(" {} ", label.to_ascii_lowercase()));
    let mut labels = host.rsplit('.');
    let (Some(last), Some(second)) = (labels.next(), labels.next()) else { return false };
    listed(last, ENDINGS) || (last.len() == 2 && listed(second, SECOND) && labels.next().is_some())
}
