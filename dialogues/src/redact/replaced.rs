//! What was replaced in dialogues, counted.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Redacted, Redactor};
use crate::Dialogue;

/// The most different texts that are remembered to be shown.
const MOST: usize = 10_000;

/// That something is to be replaced in dialogues.
#[derive(Debug, Clone, Default)]
pub struct Redaction {
    /// What finds it.
    pub redactor: Redactor,
    /// Whether what was replaced is to be shown, and so kept.
    pub shown: bool,
}

/// What of one kind was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replaced {
    /// The kind.
    pub what: Redacted,
    /// How often.
    pub count: usize,
    /// The different texts with how often each was there, where they are to be shown: at most 10,000 of a file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<(String, usize)>,
}

/// Replaces and counts.
pub(crate) struct Redactions<'a> {
    redaction: &'a Redaction,
    found: BTreeMap<Redacted, (usize, BTreeMap<String, usize>)>,
    texts: usize,
}

impl<'a> Redactions<'a> {
    pub(crate) fn new(redaction: &'a Redaction) -> Self {
        Self { redaction, found: BTreeMap::new(), texts: 0 }
    }

    /// Replaces it in all that a dialogue says.
    pub(crate) fn apply(&mut self, dialogue: &mut Dialogue) {
        let Dialogue { persona, partner_persona, exchanges, .. } = dialogue;
        persona.iter_mut().chain(partner_persona).for_each(|text| self.replace(text));
        for exchange in exchanges {
            self.replace(&mut exchange.partner);
            self.replace(&mut exchange.reply);
            exchange.candidates.iter_mut().for_each(|text| self.replace(text));
        }
    }

    fn replace(&mut self, text: &mut String) {
        let Self { redaction: Redaction { redactor, shown }, found, texts } = self;
        let replaced = redactor.redact(text, &mut |what, piece| {
            let (count, pieces) = found.entry(what).or_default();
            *count += 1;
            if *shown && (*texts < MOST || pieces.contains_key(piece)) {
                let times = pieces.entry(piece.to_owned()).or_default();
                *texts += usize::from(*times == 0);
                *times += 1;
            }
        });
        if let std::borrow::Cow::Owned(replaced) = replaced {
            *text = replaced;
        }
    }

    /// What was replaced.
    pub(crate) fn end(self) -> Vec<Replaced> {
        let of = |(what, (count, texts)): (_, (_, BTreeMap<String, usize>))| {
            let mut texts: Vec<(String, usize)> = texts.into_iter().collect();
            texts.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
            Replaced { what, count, texts }
        };
        self.found.into_iter().map(of).collect()
    }
}
