//! Messages that stand word for word in many dialogues: what a program says in somebody's name.

use std::collections::{HashMap, HashSet};

use super::{Message, hashed};
use crate::clean;

/// In how many dialogues it must be.
const LEAST: u32 = 5;
/// And in one of so many.
const ONE_IN: u32 = 5;
/// Of so many words, unless it stands in brackets: people say "good morning" every day, and nobody every day the same long sentence.
const WORDS: usize = 6;
/// So many messages are remembered; those that came up least are forgotten when there are more.
const MOST: usize = 1 << 18;

/// Counts in how many dialogues each message is, in bounded memory (lossy counting, Manku & Motwani 2002): a message of one dialogue in
/// [`ONE_IN`] is found as long as the forgotten ones came up less often than that.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    seen: HashMap<u64, Seen>,
    dialogues: u32,
    last: Option<i64>,
    forgotten: u32,
}

#[derive(Debug)]
struct Seen {
    dialogues: u32,
    /// The last one.
    last: u32,
}

impl Repeats {
    /// Another conversation begins.
    pub fn begin(&mut self) {
        self.dialogues = self.dialogues.saturating_add(1);
        self.last = None;
    }

    /// The next message; after a pause of more than `silence` seconds it is of another dialogue.
    pub fn see(&mut self, message: &Message, silence: u64) {
        if self.last.zip(message.time).is_some_and(|(last, time)| time.abs_diff(last) > silence) {
            self.begin();
        }
        self.last = message.time.or(self.last);
        if message.mark.is_some() {
            return;
        }
        let Some(key) = key(&clean(&message.text)) else { return };
        // Dialogues are counted from 1, as every reader begins with one.
        let seen = self.seen.entry(key).or_insert(Seen { dialogues: 0, last: 0 });
        if seen.last != self.dialogues {
            *seen = Seen { dialogues: seen.dialogues + 1, last: self.dialogues };
        }
        while self.seen.len() > MOST {
            self.forgotten += 1;
            let forgotten = self.forgotten;
            self.seen.retain(|_, seen| seen.dialogues > forgotten);
        }
    }

    /// The [`key`]s of those that are to be dropped.
    pub fn found(self) -> HashSet<u64> {
        let least = LEAST.max(self.dialogues.div_ceil(ONE_IN));
        self.seen.into_iter().filter(|(_, seen)| seen.dialogues >= least).map(|(key, _)| key).collect()
    }
}

/// What stands for the text of a message, [`clean`]; nothing, where people say the like often.
pub(super) fn key(text: &str) -> Option<u64> {
    const BRACKETS: [(char, char); 6] = [('<', '>'), ('[', ']'), ('(', ')'), ('{', '}'), ('«', '»'), ('【', '】')];
    let in_brackets = BRACKETS.iter().any(|&(open, close)| text.starts_with(open) && text.ends_with(close));
    let is_long = || text.split(' ').nth(WORDS - 1).is_some();
    (in_brackets || is_long()).then(|| hashed(text))
}
