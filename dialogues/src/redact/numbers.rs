//! Numbers of phones, cards and accounts, told from the numbers of ordinary talk.

use std::sync::LazyLock;

use regex::Regex;

use super::{Place, Redacted, compile};

/// Between the groups of a phone number; stands as `~` in the patterns.
const SEPARATOR: &str = "(?: ?[-./] ?| )";
/// Behind a number: no letter, and no digit, nor one behind a separator. A phone's extension may follow (`x12`).
const END: &str = r"(?:$|X\d|[^A-Z0-9_.:/-]|[.:/-](?:[^0-9]|$))";
/// The same where a number behind a comma or a blank would be of this one. For what is left only: a number that is
/// taken only if none follows would be found after the next one is, then the one before it, with a search of the text
/// for each.
const ALONE: &str = r"(?:$|[^A-Z0-9_ .,:/-]|[ .,:/-](?:[^0-9]|$))";

/// One way of writing a number, or something that only looks like one.
struct Form {
    /// None: leave it.
    kind: Option<Redacted>,
    /// Its first group is the number.
    pattern: Regex,
    /// Judges what the pattern found, and then all that is shorter by groups; without it the pattern is enough.
    fits: Option<fn(&str) -> bool>,
}

/// In the order in which they are tried where a number starts. Numbers of ordinary talk come before phones. Repetitions
/// of groups are bounded, so that a long row of numbers is not read anew from each of them.
static FORMS: LazyLock<Vec<Form>> = LazyLock::new(|| {
    let expand = |pattern: &str| pattern.replace('~', SEPARATOR).replace(r"\d", "[0-9]");
    let form = |kind, pattern: &str, end: &str| {
        let pattern = compile(&expand(&format!("^({pattern}){end}")));
        Form { kind, pattern, fits: None }
    };
    let left = |pattern: &str, end: &str| form(None, pattern, end);
    let phone = |pattern: &str, end: &str| form(Some(Redacted::Phone), pattern, end);
    let judged =
        |kind, pattern: &str, fits: fn(&str) -> bool| Form { fits: Some(fits), ..form(Some(kind), pattern, "") };
    let date =
        r"(?:[12]\d{3}[-./][01]?\d[-./][0-3]?\d|[0-3]?\d(?:-[0-3]?\d-|\. ?[0-3]?\d\. ?|/[0-3]?\d/)(?:[12]\d{3}|\d\d))";
    let month = r"[01]?\d[-./][12]\d{3}";
    let year = r"(?:1\d|2[01])\d\d";
    vec![
        judged(Redacted::Account, r"[A-Z]{2}\d\d(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,4})?)", is_iban),
        // Dates, alone and from one to another, and with the time as ISO 8601 has it.
        left(&format!(r"{date}(?: ?- ?{date}|T\d\d:?\d\d(?::?\d\d)?(?:[.,]\d+)?(?:Z|[-+]\d\d:?\d\d)?)?"), END),
        left(r"[0-3]?\d [01]?\d (?:19|20)\d\d", ALONE),
        left(&format!("{month} ?- ?{month}"), END),
        left(&format!("{year}(?: ?[-/] ?| ){year}"), ALONE),
        left(r"\d{1,2}[:.]\d\d ?- ?\d{1,2}[:.]\d\d", END),
        // Addresses of the internet and versions.
        left(r"\d{1,3}(?:\.\d{1,3}){3}", ALONE),
        judged(Redacted::Card, r"[2-6]\d{3,18}(?:[- ]\d{2,15}){0,7}(?:[- ]\d)?", is_card),
        // What would be a card's number but for its check digit is not a phone's, nor is any part of it.
        left(r"[1-9]\d{3}(?:(?:[- ]\d{4}){2,3}(?:[- ]\d{1,4})?|[- ]\d{6}[- ]\d{5})", ALONE),
        // Large numbers, decimals and prices.
        left(r"[1-9]\d{0,2}(?:(?:\.\d{3}){1,6}(?:,\d+)?|(?:,\d{3}){1,6}(?:\.\d+)?|(?: \d{3}){1,6}(?:[.,]\d+)?)", ALONE),
        left(r"(?:0|[1-9]\d*)[.,]\d+", ALONE),
        left(r"\$ ?\d{1,12}(?:[.,]\d+){0,4}", END),
        left(r"[1-9]\d{0,11}(?:[.,]\d+){0,4} ?\$", r"(?:$|[^A-Z0-9_])"),
        judged(
            Redacted::Phone,
            r"(?:\(\+[1-9]\d{0,3}\)|(?:\+|00) ?[1-9]\d{0,14})(?:~?\(\d{1,5}\))?(?:~?\d{1,14}){0,8}",
            is_phone,
        ),
        judged(Redacted::Phone, r"0[1-9]\d{0,13}(?:~\d{1,14}){0,7}", is_phone),
        judged(Redacted::Phone, r"(?:[178][- ]?)?\(\d{2,5}\)(?:~?\d{1,14}){1,6}", is_phone),
        // The United States and Canada, with and without the area; China; numbers without charge.
        phone(r"(?:1~)?[2-9]\d\d~\d{3}~\d{4}", END),
        phone(r"[2-9]\d\d[- ](?:[03-9]\d|1[0-8]|2[1-9])(?:\d[1-9]|[1-9]\d)", END),
        phone(r"1\d\d[- ]\d{4}[- ]\d{4}", END),
        phone(r"1[38]00[- ]\d{3}[- ]\d{3,4}", END),
        // By hyphens, in Poland, Russia and elsewhere.
        phone(r"\d{3}-(?:\d{3}-(?:\d{3,4}|\d\d-\d\d)|\d\d-\d{2,4})", END),
        // Brazil, India, British mobile phones.
        phone(r"(?:[1-9]\d[- ])?(?:9[- ])?\d{4,5}-\d{4}", END),
        phone(r"[1-9]\d 9\d{4} \d{4}|[6-9]\d{4}[- ]\d{5}|7\d{3} \d{3} ?\d{3}", END),
    ]
});

impl Form {
    /// Where the number ends that starts at a place.
    fn end(&self, shape: &str, start: usize) -> Option<usize> {
        let number = self.pattern.captures(shape.get(start..)?)?.get(1)?.as_str();
        let Some(fits) = self.fits else {
            // Round numbers are of amounts, not of phones.
            let fits = self.kind.is_none() || groups(number).any(|group| !group.ends_with("00"));
            return fits.then_some(start + number.len());
        };
        let shorter = (1..=number.len()).rev().filter_map(|length| number.get(..length));
        let mut fitting = shorter.filter(|number| ends_well(shape, start + number.len()) && fits(number));
        fitting.next().map(|number| start + number.len())
    }
}

/// Adds the numbers of a text that are replaced. Digits may be ASCII's, fullwidth, Arabic-Indic (both kinds),
/// Devanagari or Bengali; letters in an IBAN ASCII's only.
pub(super) fn search(text: &str, places: &mut Vec<Place>) {
    // The patterns see a text of ASCII, one byte a character, so that they stay small.
    let shape: String = text.chars().map(shape_of).collect();
    if !shape.bytes().any(|byte| byte.is_ascii_digit()) {
        return;
    }
    let offsets: Vec<usize> = text.char_indices().map(|(offset, _)| offset).chain([text.len()]).collect();
    let bytes = shape.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let within = match bytes.get(..at) {
            Some([.., digit, b'.' | b':' | b'/' | b'-']) => digit.is_ascii_digit(),
            Some([.., last]) => is_word(*last),
            _ => false,
        };
        let starts = match byte {
            b'0'..=b'9' | b'+' | b'(' | b'$' => true,
            // As an IBAN does.
            b'A'..=b'Z' => bytes.get(at + 2).is_some_and(u8::is_ascii_digit),
            _ => false,
        };
        let run = bytes.iter().skip(at).take_while(|byte| byte.is_ascii_digit()).count();
        let number = (starts && !within)
            .then(|| FORMS.iter().find_map(|form| Some((form.end(&shape, at)?, form.kind))))
            .flatten()
            .or_else(|| (run >= 8).then_some((at + run, Some(Redacted::Account))));
        let (end, kind) = number.unwrap_or((at + run.max(1), None));
        if let (Some(kind), Some(&start), Some(&end)) = (kind, offsets.get(at), offsets.get(end)) {
            places.push((start..end, kind));
        }
        at = end;
    }
}

/// A character as the patterns see it: digits and marks of numbers as ASCII's, ASCII's letters as capitals, other
/// letters as `_`, currencies as `$`, the rest as `?`.
fn shape_of(character: char) -> char {
    const ZEROS: [u32; 6] = [0x30, 0x660, 0x6F0, 0x966, 0x9E6, 0xFF10];
    let digit = ZEROS.iter().find_map(|zero| u32::from(character).checked_sub(*zero).filter(|digit| *digit < 10));
    if let Some(digit) = digit.and_then(|digit| char::from_digit(digit, 10)) {
        return digit;
    }
    match character {
        'A'..='Z' | 'a'..='z' | '.' | ',' | ':' | '/' | '+' | '-' | '(' | ')' | '_' => character.to_ascii_uppercase(),
        '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{FF0D}' => '-',
        '\u{FF0B}' => '+',
        '\u{FF08}' => '(',
        '\u{FF09}' => ')',
        '$' | '£' | '¥' | '\u{20A0}'..='\u{20C0}' => '$',
        _ if character.is_whitespace() && !character.is_control() => ' ',
        _ if character.is_alphanumeric() => '_',
        _ => '?',
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// What [`END`] says, for numbers that are judged at several lengths.
fn ends_well(shape: &str, end: usize) -> bool {
    match shape.as_bytes().get(end..) {
        Some([b'.' | b':' | b'/' | b'-', next, ..]) => !next.is_ascii_digit(),
        Some([b'X', next, ..]) => next.is_ascii_digit(),
        Some([next, ..]) => !is_word(*next),
        _ => true,
    }
}

fn groups(number: &str) -> impl Iterator<Item = &str> {
    number.split(|character: char| !character.is_ascii_digit()).filter(|group| !group.is_empty())
}

/// 7 to 15 digits (E.164) without a `00` for the `+` and a trunk's `(0)`; not one alone behind a blank, which counts
/// something else, and only as many pairs as a French number has, as fewer are a date or a time.
fn is_phone(number: &str) -> bool {
    let digits: usize = groups(number).map(str::len).sum();
    let extra = if number.starts_with("00") { 2 } else { 0 } + usize::from(number.contains("(0)"));
    let longest = groups(number).map(str::len).max().unwrap_or(0);
    let whole = match number.as_bytes() {
        [.., before, last] => last.is_ascii_digit() && (before.is_ascii_digit() || *before == b'-'),
        _ => false,
    };
    (7..=15).contains(&digits.saturating_sub(extra)) && (longest > 2 || digits >= 10) && whole
}

/// 13 to 19 digits with the check digit of ISO/IEC 7812-1 (Luhn's formula): every second digit from the right counts
/// twice, as the sum of its digits, and all together divide by ten.
fn is_card(number: &str) -> bool {
    let digits: Vec<u32> = number.chars().filter_map(|character| character.to_digit(10)).collect();
    let doubled = |digit: u32| if digit > 4 { 2 * digit - 9 } else { 2 * digit };
    let counted = digits.iter().rev().enumerate().map(|(n, &digit)| if n % 2 == 1 { doubled(digit) } else { digit });
    (13..=19).contains(&digits.len()) && counted.sum::<u32>() % 10 == 0
}

/// 15 to 34 characters that leave 1 when they are divided by 97 as ISO 13616 has it (ISO/IEC 7064, MOD 97-10): with the
/// first four at the end, and letters as 10 to 35. Every country's has some digits, which words have not.
fn is_iban(number: &str) -> bool {
    let values: Vec<u32> = number.chars().filter_map(|character| character.to_digit(36)).collect();
    let add = |rest: u32, &value: &u32| (rest * if value > 9 { 100 } else { 10 } + value) % 97;
    let rest = values.iter().skip(4).chain(values.iter().take(4)).fold(0, add);
    (15..=34).contains(&values.len()) && values.iter().filter(|value| **value < 10).count() >= 8 && rest == 1
}
