//! Who speaks in a file, and which of them is the persona.

use std::collections::HashMap;
use std::path::Path;

use super::{About, Found, Message, Rules, Sink, Speaker, Speakers};
use crate::{DataError, Dialogue, clean};

/// How many speakers an error names.
const SHOWN: usize = 12;
/// The most speakers that are told apart: a file with more is no chat.
const MOST: usize = 100_000;

/// Counts the messages with words of each speaker.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// With how many messages, and the place among speakers.
    counts: HashMap<Speaker, (usize, usize)>,
    owners: Vec<String>,
    partners: Vec<String>,
    span: Option<[i64; 2]>,
    /// Messages, with words or without.
    pub seen: usize,
}

/// Whose messages are the persona's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Me {
    names: Vec<String>,
    ids: Vec<String>,
}

impl Me {
    /// A role.
    pub fn role(name: &str) -> Self {
        Self { names: vec![name.to_owned()], ids: Vec::new() }
    }

    /// Whether the persona says it.
    pub fn is(&self, speaker: &Speaker) -> bool {
        match &speaker.id {
            Some(id) => self.ids.contains(id),
            None => self.names.contains(&speaker.name),
        }
    }
}

impl Sink for Census {
    fn begin(&mut self, about: About) {
        self.owners.extend(about.owner);
        self.partners.extend(about.partner);
    }

    fn dialogue(&mut self, _: Dialogue) {}

    fn message(&mut self, message: Message) {
        self.seen += 1;
        if let Some(time) = message.time {
            let [first, last] = self.span.get_or_insert([time, time]);
            (*first, *last) = ((*first).min(time), (*last).max(time));
        }
        if message.mark.is_some() || clean(&message.text).is_empty() {
            return;
        }
        let place = self.counts.len();
        if place < MOST || self.counts.contains_key(&message.speaker) {
            self.counts.entry(message.speaker).or_insert((0, place)).0 += 1;
        }
    }
}

impl Census {
    /// All who speak, the ones with the most messages first. Of an id with several names it is one person.
    fn people(&self) -> Vec<Person<'_>> {
        let mut speakers: Vec<(&Speaker, usize, usize)> =
            self.counts.iter().map(|(speaker, &(count, place))| (speaker, count, place)).collect();
        speakers.sort_by_key(|&(_, count, place)| (std::cmp::Reverse(count), place));
        let mut people: Vec<Person<'_>> = Vec::new();
        let mut of_id: HashMap<&str, usize> = HashMap::new();
        for (Speaker { name, id }, count, place) in speakers {
            let known = id.as_deref().and_then(|id| of_id.get(id)).and_then(|&at| people.get_mut(at));
            match known {
                Some(person) => {
                    person.names.push(name);
                    person.count += count;
                    person.place = person.place.min(place);
                }
                None => {
                    of_id.extend(id.as_deref().map(|id| (id, people.len())));
                    people.push(Person { names: vec![name], id: id.as_deref(), count, place });
                }
            }
        }
        people.sort_by_key(|person| (std::cmp::Reverse(person.count), person.place));
        people
    }

    /// Who is the persona: whoever is named, else whose file it is, else of two the one who answers the other.
    ///
    /// # Errors
    /// Nobody of that name speaks; nobody is named and it cannot be told.
    pub fn choose(&self, rules: &Rules, path: &Path) -> Result<(Me, Speakers), DataError> {
        let people = self.people();
        if people.is_empty() {
            let problem = format!("has {} messages and none of them has words of a person", self.seen);
            return Err(DataError::file(path, problem, "export the chat again, with its text"));
        }
        let refuse = |problem: String| {
            let listed = people.iter().take(SHOWN).map(|person| format!("{} ({})", person.shown(), person.count));
            let mut listed: Vec<String> = listed.collect();
            if people.len() > SHOWN {
                listed.push(format!("and {} others", people.len() - SHOWN));
            }
            let problem = format!("{problem}; who speaks, with so many messages: {}", listed.join(", "));
            let remedy = "say whose words are to be learned: `marionette dialogues FILE --me NAME` shows what comes of it, \
                          and writes it with --out";
            Err(DataError::file(path, problem, remedy))
        };
        let mut mine: Vec<&Person<'_>> = Vec::new();
        let owned = || people.iter().filter(|person| self.owners.iter().any(|owner| person.is(owner)));
        let partner = |person: &Person<'_>| self.partners.iter().any(|partner| person.is(partner));
        let found = match (rules.me.as_slice(), people.as_slice()) {
            ([], _) if owned().next().is_some() => {
                mine.extend(owned());
                Found::Owner
            }
            ([], [one, other]) if partner(one) != partner(other) => {
                mine.push(if partner(one) { other } else { one });
                Found::Owner
            }
            ([], [one, other]) => {
                mine.push(if one.place < other.place { other } else { one });
                Found::Answers
            }
            ([], _) => return refuse("whose words are to be learned is not said".to_owned()),
            (names, _) => {
                for wanted in names {
                    let before = mine.len();
                    mine.extend(people.iter().filter(|person| person.is(wanted)));
                    if mine.len() == before {
                        let wanted = wanted.to_lowercase();
                        mine.extend(
                            people.iter().filter(|one| one.names.iter().any(|name| name.to_lowercase() == wanted)),
                        );
                    }
                    if mine.len() == before {
                        return refuse(format!("nobody in it is called {wanted:?}"));
                    }
                }
                Found::Named
            }
        };
        let mut me = Me::default();
        for person in &mine {
            match person.id {
                Some(id) => me.ids.push(id.to_owned()),
                None => me.names.extend(person.names.iter().map(|&name| name.to_owned())),
            }
        }
        let mut names: Vec<String> = mine.iter().map(|person| person.shown()).collect();
        names.dedup();
        let messages = people.iter().map(|person| (person.shown(), person.count)).collect();
        Ok((me, Speakers { me: names, found, messages, span: self.span }))
    }
}

/// Who speaks under one name or id.
struct Person<'a> {
    /// The most used first.
    names: Vec<&'a str>,
    id: Option<&'a str>,
    count: usize,
    /// The order in which people speak first.
    place: usize,
}

impl Person<'_> {
    fn is(&self, wanted: &str) -> bool {
        self.id == Some(wanted) || self.names.contains(&wanted)
    }

    /// The name, or the id where there is none.
    fn shown(&self) -> String {
        let name = self.names.iter().map(|name| clean(name)).find(|name| !name.is_empty());
        name.or_else(|| self.id.map(clean)).unwrap_or_default()
    }
}
