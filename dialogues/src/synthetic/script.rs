//! What is talked about in a dialogue, and how the partner leads it.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::persona::{Extras, Persona, Reply};
use super::pick;
use super::tables::{AND_YOU, GREETINGS, Kind, LINKS, REACTIONS};
use crate::{Dialogue, Exchange};

/// What one exchange is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// The first question about a kind.
    Ask(Kind),
    /// A question about what has been told: the kind's follow-up of that number.
    FollowUp(Kind, usize),
}

impl Topic {
    pub fn kind(self) -> Kind {
        match self {
            Topic::Ask(kind) | Topic::FollowUp(kind, _) => kind,
        }
    }
}

/// One exchange, with what it is about.
pub(super) struct Turn {
    pub topic: Topic,
    pub extras: Extras,
    pub partner: String,
    pub reply: String,
}

/// The dialogue that a script says.
pub(super) fn to_dialogue(persona: &Persona, script: &[Turn]) -> Dialogue {
    Dialogue {
        persona: persona.sentences().to_vec(),
        partner_persona: Vec::new(),
        exchanges: script.iter().map(|turn| Exchange::new(turn.partner.clone(), turn.reply.clone())).collect(),
        line: 1,
    }
}

/// `count` dialogues of one persona; each asks for what has been mentioned least so far.
pub(super) fn scripts(persona: &Persona, count: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<Turn>> {
    let mut mentions = [0_usize; Kind::COUNT];
    (0..count)
        .map(|_| {
            let topics = plan(&mentions, rng);
            perform(persona, &topics, &mut mentions, rng)
        })
        .collect()
}

/// The topics of a dialogue: four to six, of which three to five are different kinds of fact or nearly so.
fn plan(mentions: &[usize; Kind::COUNT], rng: &mut ChaCha8Rng) -> Vec<Topic> {
    let length: usize = pick(rng, &[4, 5, 5, 5, 6]);
    let opening = rng.random_bool(0.4);
    let closing = rng.random_bool(0.35);
    let aside = length > 4 && rng.random_bool(0.25);
    let talk = usize::from(opening) + usize::from(closing) + usize::from(aside);
    let follow_up = length - talk > 3 && (length - talk > 5 || rng.random_bool(0.25));

    let kinds = facts(length - talk - usize::from(follow_up), mentions, rng);
    let mut topics: Vec<Topic> = kinds.into_iter().map(Topic::Ask).collect();
    if follow_up {
        let after = rng.random_range(0..topics.len());
        let kind = topics[after].kind();
        let number = rng.random_range(0..kind.table().follow_ups.len());
        topics.insert(after + 1, Topic::FollowUp(kind, number));
    }
    if aside {
        let kind = pick(rng, &[Kind::Weather, Kind::Weekend, Kind::Weekend, Kind::Thanks]);
        let free: Vec<usize> =
            (2..=topics.len()).filter(|&at| !topics.get(at).copied().is_some_and(follows_up)).collect();
        topics.insert(pick(rng, &free), Topic::Ask(kind));
    }
    if opening {
        topics.insert(0, Topic::Ask(Kind::Mood));
    }
    if closing {
        topics.push(Topic::Ask(Kind::Goodbye));
    }
    topics
}

/// Whether a topic must come right after the one before it.
fn follows_up(topic: Topic) -> bool {
    matches!(topic, Topic::FollowUp(..) | Topic::Ask(Kind::PetName))
}

/// `count` (two or more) kinds of fact, the least mentioned ones in random order; a pet's name comes after the pet.
fn facts(count: usize, mentions: &[usize; Kind::COUNT], rng: &mut ChaCha8Rng) -> Vec<Kind> {
    let mut kinds = Kind::FACTS;
    kinds.shuffle(rng);
    kinds.sort_by_key(|&kind| mentions[kind as usize]);
    let mut chosen = kinds[..count].to_vec();
    if let Some(name) = chosen.iter().position(|&kind| kind == Kind::PetName) {
        chosen.remove(name);
        if !chosen.contains(&Kind::Pet) {
            chosen.pop();
            chosen.push(Kind::Pet);
        }
        chosen.shuffle(rng);
        if let Some(pet) = chosen.iter().position(|&kind| kind == Kind::Pet) {
            chosen.insert(pet + 1, Kind::PetName);
        }
    } else {
        chosen.shuffle(rng);
    }
    // People tell their names early.
    if let Some(name) = chosen.iter().position(|&kind| kind == Kind::Name) {
        chosen[..=name].rotate_right(1);
    }
    chosen
}

/// Says the topics, and counts the facts that the persona mentions.
fn perform(
    persona: &Persona,
    topics: &[Topic],
    mentions: &mut [usize; Kind::COUNT],
    rng: &mut ChaCha8Rng,
) -> Vec<Turn> {
    let partner = persona.partner(rng);
    let mut told: Vec<Kind> = topics.iter().map(|topic| topic.kind()).collect();
    let mut turns: Vec<Turn> = Vec::with_capacity(topics.len());
    let mut returned = None;
    for (index, &topic) in topics.iter().enumerate() {
        let kind = topic.kind();
        let leads_in = index == 0 || returned.is_none();
        let tells = leads_in && topic == Topic::Ask(kind) && kind.can_ask_back() && rng.random_bool(0.22);
        let mut utterance = match turns.last() {
            None => pick(rng, GREETINGS).to_string(),
            Some(last) => respond(persona, &partner, last.topic, returned, rng),
        };
        let question = if tells {
            push(&mut utterance, &format!("{} .", partner.short(kind, rng)));
            ask_in_return(kind, rng)
        } else {
            match topic {
                Topic::Ask(_) => pick(rng, kind.table().questions),
                Topic::FollowUp(_, number) => kind.table().follow_ups[number].question,
            }
        };
        if index > 0 && !tells && kind.is_fact() && rng.random_bool(0.12) {
            push(&mut utterance, pick(rng, LINKS));
        }
        push(&mut utterance, &persona.fill(question, kind));

        let next = topics.get(index + 1).copied();
        let second =
            (topic == Topic::Ask(kind) && rng.random_bool(0.35)).then(|| second_fact(kind, &told, mentions)).flatten();
        let extras = Extras {
            second,
            ask_back: topic == Topic::Ask(kind)
                && kind.can_ask_back()
                && !tells
                && next.is_some_and(|next| !matches!(next, Topic::FollowUp(..))),
        };
        let Reply { text, asked_back } = persona.reply(topic, extras, rng);
        returned = asked_back.then_some(kind);
        mentions[kind as usize] += 1;
        if let Some(second) = second.filter(|&second| text.contains(persona.value(second))) {
            mentions[second as usize] += 1;
            told.push(second);
        }
        turns.push(Turn { topic, extras, partner: utterance, reply: text });
    }
    turns
}

/// The least mentioned related kind that this dialogue leaves out otherwise.
fn second_fact(kind: Kind, told: &[Kind], mentions: &[usize; Kind::COUNT]) -> Option<Kind> {
    kind.table()
        .related
        .iter()
        .copied()
        .filter(|related| !told.contains(related))
        .min_by_key(|&related| mentions[related as usize])
}

/// The question after the partner has told its own fact.
fn ask_in_return(kind: Kind, rng: &mut ChaCha8Rng) -> &'static str {
    if rng.random_bool(0.4) { pick(rng, AND_YOU) } else { pick(rng, kind.table().questions) }
}

/// What the partner says to the reply before: its own answer where the question was returned, else perhaps a reaction.
fn respond(persona: &Persona, partner: &Persona, last: Topic, returned: Option<Kind>, rng: &mut ChaCha8Rng) -> String {
    let kind = last.kind();
    if let Some(asked) = returned {
        return format!("{} .", partner.short(asked, rng));
    }
    if matches!(kind, Kind::Thanks) || rng.random_bool(0.4) {
        return String::new();
    }
    let own = kind.table().reactions;
    // "nice ." is no answer to a fear or a bad day.
    let only_own = matches!(kind, Kind::Fear | Kind::Mood | Kind::Weather);
    let first = matches!(last, Topic::Ask(_));
    if only_own || (first && rng.random_bool(0.5)) {
        persona.fill(pick(rng, own), kind)
    } else {
        pick(rng, REACTIONS).to_string()
    }
}

fn push(utterance: &mut String, part: &str) {
    if !utterance.is_empty() {
        utterance.push(' ');
    }
    utterance.push_str(part);
}
