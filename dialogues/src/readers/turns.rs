//! Utterances in the order in which they were said, as exchanges.

use crate::Exchange;

/// One line of text: no line break, tab or other control character, nothing around it.
pub(super) fn one_line(text: &str) -> String {
    let separates = |character: char| character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
    let parts = text.split(separates).map(str::trim).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

/// The exchanges of utterances (whether the persona said it, and what), and whether words of the partner without a
/// reply were left out at the end. Utterances of one speaker in a row are joined by a space; empty ones are passed
/// over. Where the persona speaks first, the partner's words are empty.
pub(super) fn exchanges(utterances: impl IntoIterator<Item = (bool, String)>) -> (Vec<Exchange>, bool) {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut partner = String::new();
    let mut persona_spoke = false;
    for (is_persona, text) in utterances {
        if text.is_empty() {
            continue;
        }
        match exchanges.last_mut() {
            Some(exchange) if is_persona && persona_spoke => {
                exchange.reply.push(' ');
                exchange.reply.push_str(&text);
            }
            _ if is_persona => {
                exchanges.push(Exchange { partner: std::mem::take(&mut partner), reply: text, candidates: Vec::new() })
            }
            _ => {
                if !partner.is_empty() {
                    partner.push(' ');
                }
                partner.push_str(&text);
            }
        }
        persona_spoke = is_persona;
    }
    (exchanges, !partner.is_empty())
}
