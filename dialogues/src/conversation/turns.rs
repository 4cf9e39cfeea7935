//! Utterances in the order in which they were said, as exchanges.

use crate::Exchange;

/// An utterance, its text [`crate::clean`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Partner(String),
    Persona {
        text: String,
        /// Whether it is learned from.
        learned: bool,
    },
    /// A reply without words: what was said before it has no answer.
    Nothing {
        /// Whether it counts among the empty ones.
        counted: bool,
    },
}

/// What could not be made an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Unanswered {
    /// Replies without words.
    pub(super) empty: usize,
    /// Whether words of the partner without a reply were left out at the end.
    pub(super) open: bool,
}

/// The exchanges of utterances. Utterances of one speaker in a row are joined by a space, except that a reply which is learned from
/// and one which is not stay apart; empty ones of the partner are passed over. Where the persona speaks first, or goes on
/// after a reply that is not of the same kind, the partner's words are empty.
pub(super) fn exchanges(utterances: impl IntoIterator<Item = Said>) -> (Vec<Exchange>, Unanswered) {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut unanswered = Unanswered::default();
    let mut partner = String::new();
    let mut persona_spoke = false;
    for said in utterances {
        match said {
            Said::Partner(text) if text.is_empty() => {}
            Said::Partner(text) => {
                push(&mut partner, &text);
                persona_spoke = false;
            }
            Said::Nothing { counted } => {
                partner.clear();
                unanswered.empty += usize::from(counted);
                persona_spoke = false;
            }
            Said::Persona { text, learned } => {
                match exchanges.last_mut().filter(|last| persona_spoke && last.learned == learned) {
                    Some(last) => push(&mut last.reply, &text),
                    None => exchanges.push(Exchange { learned, ..Exchange::new(std::mem::take(&mut partner), text) }),
                }
                persona_spoke = true;
            }
        }
    }
    unanswered.open = !partner.is_empty();
    (exchanges, unanswered)
}

fn push(words: &mut String, more: &str) {
    if !words.is_empty() {
        words.push(' ');
    }
    words.push_str(more);
}
