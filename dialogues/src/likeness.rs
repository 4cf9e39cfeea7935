//! How like a persona generated replies are: whether they have the words that are its own, and whether they are written as it writes.

use std::collections::{BTreeSet, HashMap};

use crate::metrics::{Tally, normalise};
use crate::tasks::Task;

/// The share of the other personas that may have a word which is a persona's own.
const SHARED: f64 = 0.25;

/// What the generated replies of a persona are measured by.
pub struct Person {
    /// Its own words.
    words: BTreeSet<String>,
    /// How it writes, by the replies that are tested.
    profile: Profile,
}

/// The personas that are tested, on so many dialogues each.
pub fn people(tasks: &[Task], folds: usize) -> Vec<Person> {
    let tested = |task: &Task| Profile::of(task.dialogues.iter().take(folds).flat_map(replies));
    own_words(tasks).into_iter().zip(tasks).map(|(words, task)| Person { words, profile: tested(task) }).collect()
}

/// What a dialogue has of the persona's own replies.
fn replies(dialogue: &crate::Dialogue) -> impl Iterator<Item = &str> {
    dialogue.exchanges.iter().filter(|exchange| exchange.learned).map(|exchange| exchange.reply.as_str())
}

fn words(text: &str) -> BTreeSet<String> {
    normalise(text).split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The words that are each persona's own: those of its sentences, or, where it has none, those of its replies in two dialogues or more,
/// which at most a quarter of the other personas have too. So what everybody says is left out by how many say it, in any language
/// (Spärck Jones 1972, "A statistical interpretation of term specificity"), and not by a list. Normalised as for F1.
fn own_words(tasks: &[Task]) -> Vec<BTreeSet<String>> {
    let of_task = |task: &Task| -> BTreeSet<String> {
        if !task.persona.is_empty() {
            return task.persona.iter().flat_map(|sentence| words(sentence)).collect();
        }
        let mut dialogues: HashMap<String, usize> = HashMap::new();
        for dialogue in &task.dialogues {
            for word in replies(dialogue).flat_map(words).collect::<BTreeSet<_>>() {
                *dialogues.entry(word).or_default() += 1;
            }
        }
        dialogues.into_iter().filter(|(_, count)| *count > 1).map(|(word, _)| word).collect()
    };
    let all: Vec<BTreeSet<String>> = tasks.iter().map(of_task).collect();
    let mut personas: HashMap<&str, usize> = HashMap::new();
    for word in all.iter().flatten() {
        *personas.entry(word).or_default() += 1;
    }
    let most = SHARED * all.len().saturating_sub(1) as f64;
    let is_own = |word: &&String| personas.get(word.as_str()).is_some_and(|&count| (count - 1) as f64 <= most);
    all.iter().map(|words| words.iter().filter(is_own).cloned().collect()).collect()
}

/// How often each three characters occur one after the other, a profile of how someone writes (Cavnar & Trenkle 1994; Kešelj et al.
/// 2003, "N-gram-based author profiles"): capitals, stops and slips count.
#[derive(Debug, Default)]
struct Profile(HashMap<[char; 3], f64>);

impl Profile {
    /// Of texts, each with a blank before and after it.
    fn of<'text>(texts: impl IntoIterator<Item = &'text str>) -> Self {
        let mut counts = HashMap::new();
        for text in texts {
            let characters: Vec<char> = std::iter::once(' ').chain(text.chars()).chain([' ']).collect();
            for &three in characters.array_windows() {
                *counts.entry(three).or_default() += 1.0;
            }
        }
        Self(counts)
    }

    /// 1 − cos of the two profiles, between 0 (alike) and 1; `None` where one of them is empty.
    fn distance(&self, other: &Self) -> Option<f64> {
        let product = |one: &Self, other: &Self| -> f64 {
            one.0.iter().filter_map(|(three, count)| Some(count * other.0.get(three)?)).sum()
        };
        let lengths = (product(self, self) * product(other, other)).sqrt();
        (lengths > 0.0).then(|| (1.0 - product(self, other) / lengths).max(0.0))
    }
}

/// Adds to each tested persona's sums how like it its generated replies are. `tested` gives its place among the `people`, its
/// generated replies and its sums.
///
/// *Persona recall* is the share of its own words that they use; beside it the mean of what as many replies generated for each other
/// persona use of them. *Style* is the distance of their profile from that of its replies in the data; beside it the mean of their
/// distances from the other personas' replies.
pub fn measure(people: &[Person], tested: &mut [(usize, Vec<String>, &mut Tally)]) {
    let texts: Vec<(usize, Vec<BTreeSet<String>>)> = tested
        .iter()
        .map(|(person, replies, _)| (*person, replies.iter().map(|reply| words(reply)).collect()))
        .collect();
    let used = |own: &BTreeSet<String>, replies: &[BTreeSet<String>]| {
        own.iter().filter(|word| replies.iter().any(|reply| reply.contains(*word))).count()
    };
    for (at, (index, replies, tally)) in tested.iter_mut().enumerate() {
        let (Some(person), Some((_, own_replies))) = (people.get(*index), texts.get(at)) else { continue };
        if replies.is_empty() {
            continue;
        }
        let others = texts.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, (_, replies))| replies);
        let as_many = others.map(|replies| replies.get(..own_replies.len()).unwrap_or(replies));
        let elsewhere = mean(as_many.map(|replies| used(&person.words, replies) as f64));
        if let Some(elsewhere) = elsewhere.filter(|_| !person.words.is_empty()) {
            tally.own_words += person.words.len();
            tally.recalled += used(&person.words, own_replies);
            tally.recalled_elsewhere += elsewhere;
        }
        let profile = Profile::of(replies.iter().map(String::as_str));
        let others = people.iter().enumerate().filter(|(other, _)| other != index);
        let elsewhere = mean(others.filter_map(|(_, other)| profile.distance(&other.profile)));
        if let Some((own, elsewhere)) = profile.distance(&person.profile).zip(elsewhere) {
            tally.styled += 1;
            tally.style += own;
            tally.style_elsewhere += elsewhere;
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        (sum, count) = (sum + value, count + 1);
    }
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;
    use crate::{Dialogue, Exchange};

    fn task(persona: &[&str], dialogues: &[&[&str]]) -> Task {
        let dialogue = |replies: &&[&str]| Dialogue {
            persona: Vec::new(),
            partner_persona: Vec::new(),
            exchanges: replies.iter().map(|reply| Exchange::new("hi", *reply)).collect(),
            line: 1,
        };
        Task {
            persona: persona.iter().map(|&sentence| sentence.to_owned()).collect(),
            dialogues: dialogues.iter().map(dialogue).collect(),
        }
    }

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn own_words_are_those_that_few_others_have() {
        let of = |sentence: &str| task(&[sentence], &[&["a"], &["b"]]);
        let tasks = [of("I love the dogs."), of("i love cats!"), of("i love dogs"), of("i ski"), of("i love tea")];
        // One of four others has dogs, three have love, all have i.
        let expected = [&["dogs"][..], &["cats"], &["dogs"], &["ski"], &["tea"]].map(set);
        assert_eq!(own_words(&tasks), expected);
        // Without sentences: what is said in two dialogues.
        let tasks = [task(&[], &[&["my boat"], &["boat boat"], &["sun"]]), task(&[], &[&["my hat"], &["my hat"]])];
        assert_eq!(own_words(&tasks), [set(&["boat"]), set(&["hat", "my"])]);
    }

    #[test]
    fn profiles_are_of_three_characters_with_a_blank_at_each_end() {
        let profile = |text| Profile::of([text]);
        // " ab", "ab " and " ac", "ac ": nothing in common. "aaa" has " aa", "aaa", "aa "; "aa" has " aa", "aa ".
        assert_eq!(profile("ab").distance(&profile("ac")), Some(1.0));
        assert_relative_eq!(profile("aaa").distance(&profile("aa")).unwrap(), 1.0 - 2.0 / 6.0_f64.sqrt());
        assert_relative_eq!(profile("Aaa").distance(&profile("aaa")).unwrap(), 1.0 - 1.0 / 3.0);
        assert_eq!(profile("").distance(&profile("aa")), None);
    }

    #[test]
    fn recall_and_style_by_hand() {
        let tasks = [
            task(&["i have a boat and a dog"], &[&["aaa"], &["never tested"]]),
            task(&["i have two cats"], &[&["bbb"], &["c"]]),
            task(&["i have tea"], &[&["ccc"], &["c"]]),
        ];
        // "i have" is everybody's; with two others, a quarter is nobody.
        let people = people(&tasks, 1);
        assert_eq!(people[0].words, set(&["boat", "dog", "and"]));
        let said = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let mut tallies = [Tally::default(); 3];
        let [one, two, three] = &mut tallies;
        // The second has no dialogues enough and is not tested. The third says more than the first, whose number of replies counts.
        let mut tested = [(0, said(&["aaa", "my Dog!"]), one), (2, said(&["boat", "and tea", "dog"]), three)];
        measure(&people, &mut tested);
        assert_eq!(*two, Tally::default());
        let [one, _, three] = tallies;
        assert_eq!((one.own_words, one.recalled, one.recalled_elsewhere), (3, 1, 2.0));
        assert_eq!((three.own_words, three.recalled, three.recalled_elsewhere), (1, 1, 0.0));
        // The first's trigrams: " aa", "aaa", "aa ", " my", "my ", "y D", " Do", "Dog", "og!", "g! "; three of ten are those of "aaa".
        assert_eq!(one.styled, 1);
        assert_relative_eq!(one.style, 1.0 - 3.0 / 30.0_f64.sqrt(), max_relative = 1e-12);
        assert_relative_eq!(one.style_elsewhere, 1.0, max_relative = 1e-12);
        // Nobody alone has others to be told from.
        let mut alone = Tally::default();
        measure(&people[..1], &mut [(0, said(&["dog"]), &mut alone)]);
        assert_eq!(alone, Tally::default());
    }
}
