//! A persona: what it is and how it speaks.

use std::collections::BTreeSet;

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::pick;
use super::script::{self, Topic};
use super::tables::{ASK_BACK, CLOSERS, Kind, OPENERS, article, noun, verb_phrase};
use crate::Dialogue;

/// A reply has at most so many words, marks included.
const LONGEST_REPLY: usize = 14;

/// A value for every kind, a manner of speaking, and the sentences that describe the persona.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persona {
    values: Vec<&'static str>,
    manner: Manner,
    sentences: Vec<String>,
}

/// How a persona speaks, whatever it speaks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manner {
    /// What its replies may begin with: `honestly ,`.
    pub opener: Option<&'static str>,
    /// What its replies may end with: `, my friend`.
    pub closer: Option<&'static str>,
    /// The mark at the end of its statements.
    pub mark: &'static str,
    /// How it returns a question.
    pub ask_back: Option<&'static str>,
    /// Whether the closer addresses the partner, so fits a farewell too.
    vocative: bool,
    /// Chooses among the answers that would contradict each other.
    bent: usize,
}

/// What a persona said.
pub(super) struct Reply {
    pub text: String,
    pub asked_back: bool,
}

/// What a reply may hold beside the answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extras {
    /// A second fact to mention.
    pub second: Option<Kind>,
    /// Whether the question may be returned.
    pub ask_back: bool,
}

impl Persona {
    /// A persona, whose sentences are none of `taken`; they are added there.
    pub(super) fn draw(rng: &mut ChaCha8Rng, taken: &mut BTreeSet<String>) -> Self {
        let mut persona = Self {
            values: Kind::all().map(|kind| pick(rng, &kind.table().values())).collect(),
            manner: Manner::draw(rng),
            sentences: Vec::new(),
        };
        let mut kinds = Kind::FACTS;
        kinds.shuffle(rng);
        let count = rng.random_range(4..=6);
        let mut pairs = kinds.chunks_exact(2);
        while persona.sentences.len() < count {
            let Some(pair) = pairs.next() else { break };
            let facts: Vec<String> = pair.iter().map(|&kind| persona.short(kind, rng)).collect();
            let sentence = format!("{} .", facts.join(" and "));
            if taken.insert(sentence.clone()) {
                persona.sentences.push(sentence);
            }
        }
        persona
    }

    /// The value of one kind, as a noun or phrase: `baker`, `two sisters`.
    pub fn value(&self, kind: Kind) -> &'static str {
        noun(self.values[kind as usize])
    }

    /// The values of the kinds of fact, in the order of [`Kind::FACTS`].
    pub fn facts(&self) -> impl Iterator<Item = &'static str> + '_ {
        Kind::FACTS.into_iter().map(|kind| self.value(kind))
    }

    /// How it speaks.
    pub fn manner(&self) -> &Manner {
        &self.manner
    }

    /// The sentences that describe it, two facts in each; four to six, of which no other persona has any.
    pub fn sentences(&self) -> &[String] {
        &self.sentences
    }

    /// `count` dialogues, without candidates, over which the facts are spread evenly.
    pub fn dialogues(&self, count: usize, rng: &mut ChaCha8Rng) -> Vec<Dialogue> {
        script::scripts(self, count, rng).iter().map(|script| script::to_dialogue(self, script)).collect()
    }

    /// The same persona with another value of `kind`: one that `other` has.
    pub(super) fn with_value_of(&self, kind: Kind, other: &Persona) -> Self {
        let mut changed = self.clone();
        changed.values[kind as usize] = other.values[kind as usize];
        changed
    }

    /// A persona for the partner: another value for every kind.
    pub(super) fn partner(&self, rng: &mut ChaCha8Rng) -> Self {
        let values = Kind::all()
            .map(|kind| {
                let values = kind.table().values();
                loop {
                    let value = pick(rng, &values);
                    if value != self.values[kind as usize] {
                        return value;
                    }
                }
            })
            .collect();
        Self { values, manner: self.manner.clone(), sentences: Vec::new() }
    }

    /// A template with this persona's value of `kind`.
    pub(super) fn fill(&self, template: &str, kind: Kind) -> String {
        let value = self.values[kind as usize];
        let (word, verb) = (noun(value), verb_phrase(value));
        template
            .replace("{a}", &format!("{} {word}", article(word)))
            .replace("{v}", verb)
            .replace("{pet}", self.value(Kind::Pet))
            .replace("{x}", word)
    }

    /// A short statement of one fact.
    pub(super) fn short(&self, kind: Kind, rng: &mut ChaCha8Rng) -> String {
        self.fill(pick(rng, kind.table().short), kind)
    }

    /// What this persona replies about `topic`.
    pub(super) fn reply(&self, topic: Topic, extras: Extras, rng: &mut ChaCha8Rng) -> Reply {
        let kind = topic.kind();
        let table = kind.table();
        let manner = &self.manner;
        let answer = match topic {
            Topic::Ask(_) => pick(rng, table.replies),
            Topic::FollowUp(_, number) => {
                let replies = table.follow_ups[number].replies;
                replies[manner.bent % replies.len()]
            }
        };
        let mut body = self.fill(answer, kind);
        let mut room = LONGEST_REPLY.saturating_sub(words(&body) + 1);
        let mut afford = |part: &str| {
            let fits = words(part) <= room;
            room -= if fits { words(part) } else { 0 };
            fits
        };
        if let Some(second) = extras.second {
            let second = match second {
                Kind::PetName => format!(" , and its name is {}", self.value(Kind::PetName)),
                other => format!(" , and {}", self.short(other, rng)),
            };
            if afford(&second) {
                body.push_str(&second);
            }
        }
        let farewell = matches!(kind, Kind::Thanks | Kind::Goodbye);
        if let Some(opener) = manner.opener.filter(|_| !farewell)
            && rng.random_bool(0.6)
            && afford(opener)
        {
            body = format!("{opener} {body}");
        }
        if let Some(closer) = manner.closer.filter(|_| !farewell || manner.vocative)
            && rng.random_bool(0.5)
            && afford(closer)
        {
            body = format!("{body} {closer}");
        }
        body = format!("{body} {}", manner.mark);
        let mut asked_back = false;
        if let Some(question) = manner.ask_back.filter(|_| extras.ask_back)
            && rng.random_bool(0.5)
            && afford(question)
        {
            body = format!("{body} {question}");
            asked_back = true;
        }
        Reply { text: body, asked_back }
    }
}

impl Manner {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let (closer, vocative) = pick(rng, CLOSERS);
        Self {
            opener: rng.random_bool(0.75).then(|| pick(rng, OPENERS)),
            closer: rng.random_bool(0.5).then_some(closer),
            mark: if rng.random_bool(0.4) { "!" } else { "." },
            ask_back: rng.random_bool(0.5).then(|| pick(rng, ASK_BACK)),
            vocative,
            bent: rng.random_range(0..60),
        }
    }
}

/// How many words, as Persona-Chat's spacing separates them.
fn words(text: &str) -> usize {
    text.split_whitespace().count()
}
