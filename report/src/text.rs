//! Numbers and foreign text, made fit to be shown.

use crate::comparison::{Comparison, Difference, MethodResult, Sample};
use crate::paper::PaperRow;

/// Stands where there is no number.
pub const DASH: &str = "—";

/// `value` with that many decimals; a dash where it is not finite.
pub fn fixed(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        DASH.to_owned()
    } else if value.abs() >= 1e5 {
        format!("{value:.1e}")
    } else {
        format!("{value:.decimals$}")
    }
}

/// [`fixed`], or a dash.
pub fn optional(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| DASH.to_owned(), |value| fixed(value, decimals))
}

/// The same with its sign.
pub fn signed(value: f64, decimals: usize) -> String {
    let text = fixed(value.abs(), decimals);
    let is_zero = !text.contains(|c: char| ('1'..='9').contains(&c));
    match value {
        _ if is_zero => text,
        value if value < 0.0 => format!("−{text}"),
        _ => format!("+{text}"),
    }
}

/// 1234567 as `1,234,567`.
pub fn count(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// [`count`], or a dash.
pub fn count_or_dash(value: Option<usize>) -> String {
    value.map_or_else(|| DASH.to_owned(), count)
}

/// A length of time in its two largest units.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return DASH.to_owned();
    }
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{} h {} min", whole / 3600, whole % 3600 / 60)
    }
}

/// Text of others: line breaks and tabs become spaces; control characters, characters that reorder their
/// surroundings, and code points that are no characters become `U+FFFD`.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            '\u{feff}' | '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Text inside a Markdown line or table cell: what CommonMark or GitHub's dialect would read as markup, HTML, mathematics,
/// a link or a mention is escaped.
pub fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let rest = text.get(at..).unwrap_or_default();
        let item = out.trim_start().chars().all(|c| c.is_ascii_digit());
        let escape = match c {
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '<' | '>' | '&' | '|' | '~' | '#' | '$' | '@' => true,
            '+' | '-' | '=' => out.trim_start().is_empty(),
            '.' | ')' if item && !out.is_empty() => true,
            '.' => out.to_ascii_lowercase().ends_with("www"),
            ':' => rest.starts_with("://"),
            _ => false,
        };
        if escape {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

impl Comparison {
    /// The same comparison, with every text [`clean`].
    pub(crate) fn cleaned(&self) -> Self {
        Self {
            title: clean(&self.title),
            base: clean(&self.base),
            data: clean_all(&self.data),
            personas: self.personas,
            seeds: self.seeds.clone(),
            rank_by: clean(&self.rank_by),
            command: clean(&self.command),
            machine: clean(&self.machine),
            recipe: clean(&self.recipe),
            methods: self.methods.iter().map(MethodResult::cleaned).collect(),
            differences: self.differences.iter().map(Difference::cleaned).collect(),
            notes: clean_all(&self.notes),
        }
    }
}

impl Difference {
    fn cleaned(&self) -> Self {
        Self { method: clean(&self.method), from: clean(&self.from), ..self.clone() }
    }
}

impl MethodResult {
    fn cleaned(&self) -> Self {
        Self {
            method: clean(&self.method),
            paper: self.paper.as_ref().map(|row| PaperRow { name: clean(&row.name), ..row.clone() }),
            rank_by: self.rank_by.as_deref().map(clean),
            inner_lr: clean(&self.inner_lr),
            samples: self.samples.iter().map(Sample::cleaned).collect(),
            failure: self.failure.as_deref().map(clean),
            cells: self.cells.clone(),
            curves: self.curves.clone(),
            tried: self.tried.clone(),
            ..*self
        }
    }
}

impl Sample {
    fn cleaned(&self) -> Self {
        Self {
            persona: clean_all(&self.persona),
            context: clean_all(&self.context),
            gold: clean(&self.gold),
            reply: clean(&self.reply),
            ..*self
        }
    }
}

fn clean_all(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| clean(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_plainly() {
        assert_eq!(fixed(13.214, 2), "13.21");
        assert_eq!(fixed(f64::NAN, 2), DASH);
        assert_eq!(fixed(f64::INFINITY, 1), DASH);
        assert_eq!(fixed(1.25e9, 2), "1.2e9");
        assert_eq!([-1.254, 0.5, -0.001].map(|value| signed(value, 2)), ["−1.25", "+0.50", "0.00"]);
        assert_eq!(signed(f64::NAN, 2), DASH);
        assert_eq!([count(7), count(999), count(1_000), count(124_439_808)], ["7", "999", "1,000", "124,439,808"]);
        assert_eq!(
            [duration(3.25), duration(61.0), duration(7384.0), duration(f64::NAN)],
            ["3.2 s", "1 min 1 s", "2 h 3 min", DASH]
        );
    }

    #[test]
    fn hostile_text_is_made_harmless() {
        assert_eq!(clean("a\0b\u{1b}[31m\nc\u{202e}d\u{2067}e"), "a\u{fffd}b\u{fffd}[31m c\u{fffd}d\u{fffd}e");
        assert_eq!(clean("I'm fine 👩‍🌾"), "I'm fine 👩‍🌾");
        assert_eq!(markdown("<b>*x*</b> | a_b [l](u) $x$ @me"), r"\<b\>\*x\*\</b\> \| a\_b \[l\](u) \$x\$ \@me");
        assert_eq!(markdown("- i like 3.5 dogs"), r"\- i like 3.5 dogs");
        assert_eq!(markdown("1. see www.x.y or http://z"), r"1\. see www\.x.y or http\://z");
    }
}
