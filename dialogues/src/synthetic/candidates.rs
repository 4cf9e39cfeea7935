//! The candidates that Hits@1 ranks.

use std::collections::BTreeSet;

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::persona::Persona;
use super::pick;
use super::script::{Topic, Turn};
use super::tables::Kind;
use crate::normalise;

/// `count` candidates for one reply, the reply itself last; the others are what `strangers` would say, a third of them
/// to the same question.
pub(super) fn draw(
    persona: &Persona,
    turn: &Turn,
    strangers: &[Persona],
    count: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<String> {
    let kind = turn.topic.kind();
    let mut seen = BTreeSet::from([normalise(&turn.reply)]);
    let mut candidates = Vec::with_capacity(count);
    let hard = (count - 1).div_ceil(3);
    while candidates.len() + 1 < count {
        let stranger = &strangers[rng.random_range(0..strangers.len())];
        let (speaker, topic) = if candidates.len() < hard {
            if stranger.value(kind) == persona.value(kind) {
                continue;
            }
            // A stranger's fish would give its name away where the question is about a dog.
            match kind {
                Kind::PetName => (stranger.with_value_of(Kind::Pet, persona), turn.topic),
                _ => (stranger.clone(), turn.topic),
            }
        } else {
            (stranger.clone(), other_topic(kind, rng))
        };
        let mut extras = turn.extras;
        if topic != turn.topic {
            // A second fact of the kind asked for would answer the question after all.
            let table = topic.kind().table();
            let related: Vec<Kind> = table.related.iter().copied().filter(|&second| second != kind).collect();
            extras.second = extras.second.filter(|_| !related.is_empty()).map(|_| pick(rng, &related));
            extras.ask_back &= topic.kind().can_ask_back();
        }
        let text = speaker.reply(topic, extras, rng).text;
        if seen.insert(normalise(&text)) {
            candidates.push(text);
        }
    }
    candidates.shuffle(rng);
    candidates.push(turn.reply.clone());
    candidates
}

/// A question about another kind: mostly about a fact, as in the dialogues.
fn other_topic(kind: Kind, rng: &mut ChaCha8Rng) -> Topic {
    loop {
        let other = if rng.random_bool(0.8) { pick(rng, &Kind::FACTS) } else { pick(rng, &Kind::SMALL_TALK) };
        if other != kind {
            return Topic::Ask(other);
        }
    }
}
