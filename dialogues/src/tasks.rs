//! Personas as meta-learning tasks: grouping, splits and K-shot folds.

use std::collections::{HashMap, HashSet};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::Dialogue;
use crate::error::excerpt;
use crate::overlap::said;

/// One persona: what one task of meta-learning is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Every sentence that describes the persona in any of its dialogues, in order of appearance, without repetition.
    pub persona: Vec<String>,
    /// The persona's dialogues in file order; two or more.
    pub dialogues: Vec<Dialogue>,
}

/// What [`group_by_persona`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    /// The personas, ordered by their first dialogue; never empty.
    pub tasks: Vec<Task>,
    /// How many personas, and so dialogues, were left out: personas that have one dialogue only.
    pub dropped_single: usize,
    /// How many dialogues were left out because their persona has one that says the same.
    pub repeated: usize,
    /// The sentence that stands in every dialogue, where there is one: it says nothing about who speaks.
    pub common: Option<String>,
}

impl Grouping {
    /// Whether every dialogue has the common sentence and no other, so that nothing tells one person from another.
    pub fn is_one_for_want_of_others(&self) -> bool {
        self.common.is_some() && self.tasks.iter().all(|task| task.persona.len() == 1)
    }

    /// What a reader should know of it, a line each: what was passed over, and what was left out.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(sentence) = self.common.as_deref().map(excerpt) {
            notes.push(match self.is_one_for_want_of_others() {
                true => format!(
                    "every dialogue has the one persona sentence {sentence}, which says nothing about who speaks: all are taken for one persona"
                ),
                false => format!("{sentence} stands in every dialogue, so it says nothing about who speaks and is passed over"),
            });
        }
        match self.repeated {
            0 => {}
            1 => notes.push("1 dialogue is there twice and is taken once".to_owned()),
            count => notes.push(format!("{count} dialogues are there more than once and are taken once")),
        }
        match self.dropped_single {
            0 => {}
            1 => notes.push("1 persona was left out: it has a single dialogue".to_owned()),
            count => notes.push(format!("{count} personas were left out: they have a single dialogue each")),
        }
        notes
    }

    /// The persona with the most dialogues, and the sentences that most of them have, at most two, each with the number of its
    /// dialogues that have it.
    pub fn largest(&self) -> Option<(&Task, Vec<(&str, usize)>)> {
        let task = self.tasks.iter().rev().max_by_key(|task| task.dialogues.len())?;
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for dialogue in &task.dialogues {
            let own: HashSet<&str> = dialogue.persona.iter().map(String::as_str).collect();
            own.into_iter().for_each(|sentence| *counts.entry(sentence).or_default() += 1);
        }
        let is_common = |sentence: &str| !self.is_one_for_want_of_others() && self.common.as_deref() == Some(sentence);
        let mut joining: Vec<(&str, usize)> =
            counts.into_iter().filter(|(sentence, count)| *count > 1 && !is_common(sentence)).collect();
        joining.sort_by(|(one, many), (other, more)| more.cmp(many).then(one.cmp(other)));
        joining.truncate(2);
        Some((task, joining))
    }
}

/// Why dialogues cannot be made into tasks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TaskError {
    /// A dialogue that belongs to no persona.
    #[error(
        "line {line}: the dialogue that begins here has no persona sentence, so its persona is unknown; give each dialogue sentences that all dialogues of its persona share"
    )]
    NoPersona {
        /// Where the dialogue begins, from 1.
        line: usize,
    },
    /// Nothing to learn from.
    #[error(
        "there is no persona with two dialogues or more ({dropped} with one only); a task needs one to adapt on and one to test on"
    )]
    NoTasks {
        /// How many personas have one dialogue only.
        dropped: usize,
    },
    /// Nothing tells one persona from another.
    #[error(
        "every dialogue has the one persona sentence {sentence:?}, which says nothing about who speaks; give the dialogues of each persona sentences of their own"
    )]
    OnePersona {
        /// The sentence.
        sentence: String,
    },
    /// A split that leaves nothing to train on, or a fraction that is none.
    #[error("cannot hold out {wanted} of {personas} personas; hold out fewer than there are")]
    HoldOut {
        /// What was asked for.
        wanted: String,
        /// How many personas there are.
        personas: usize,
    },
}

/// Groups dialogues by persona. Two dialogues are of the same persona where they share two of its sentences, word for word, or
/// all of them where the shorter list has fewer; so are all that are linked through others. (Persona-Chat's dialogues each show
/// three to five sentences of a persona, some in other words, so that lists need not be equal. One shared sentence is not
/// enough: stock ones such as "i am a mother." chain strangers. Two give 959 personas for the 4,710 dialogues of a quarter of its
/// training data, of which the original has 955 in all, and 68 for the 691 dialogues of a part of ConvAI2's validation set.)
///
/// A sentence that stands in every dialogue, such as a system line, says nothing about who speaks: where it is the only such one, it
/// is passed over in lists that have others. Of dialogues of one persona that say the same, the first is taken. Personas with a
/// single dialogue are left out.
///
/// Takes time in proportion to the pairs of sentences within the lists.
///
/// # Errors
/// [`TaskError::NoPersona`] and [`TaskError::NoTasks`].
pub fn group_by_persona(dialogues: Vec<Dialogue>) -> Result<Grouping, TaskError> {
    let lists = Lists::of(&dialogues.iter().collect::<Vec<_>>())?;
    let common = lists.common.map(str::to_owned);
    let roots = lists.roots();
    let mut tasks: Vec<Task> = Vec::new();
    let mut known: Vec<HashSet<String>> = Vec::new();
    let mut task_of_root: HashMap<usize, usize> = HashMap::new();
    let again = repeated(&dialogues, &roots);
    let repeated = again.iter().filter(|again| **again).count();
    for ((dialogue, root), _) in dialogues.into_iter().zip(roots).zip(again).filter(|(_, again)| !again) {
        let place = *task_of_root.entry(root).or_insert(tasks.len());
        if place == tasks.len() {
            tasks.push(Task { persona: Vec::new(), dialogues: Vec::new() });
            known.push(HashSet::new());
        }
        if let Some((task, known)) = tasks.get_mut(place).zip(known.get_mut(place)) {
            let new = |sentence: &&String| known.insert((*sentence).clone());
            task.persona.extend(dialogue.persona.iter().filter(new).cloned());
            task.dialogues.push(dialogue);
        }
    }
    let found = tasks.len();
    tasks.retain(|task| task.dialogues.len() > 1);
    let dropped_single = found - tasks.len();
    if tasks.is_empty() {
        return Err(TaskError::NoTasks { dropped: dropped_single });
    }
    Ok(Grouping { tasks, dropped_single, repeated, common })
}

/// Of each dialogue, the number of its persona: the first of its dialogues.
///
/// # Errors
/// [`TaskError::NoPersona`].
pub(crate) fn personas_of(dialogues: &[&Dialogue]) -> Result<Vec<usize>, TaskError> {
    Lists::of(dialogues).map(|lists| lists.roots())
}

/// Whether a dialogue says what an earlier one of its persona says: learned from the one, it could not be tested on the other.
fn repeated(dialogues: &[Dialogue], roots: &[usize]) -> Vec<bool> {
    let mut known = HashSet::new();
    dialogues.iter().zip(roots).map(|(dialogue, root)| !known.insert((*root, said(dialogue)))).collect()
}

/// Which sentences each dialogue has, by their numbers.
struct Lists<'text> {
    /// One a dialogue: numbers in ascending order, none twice; never empty. Without the common one, where a list has others.
    lists: Vec<Vec<usize>>,
    /// The sentence that all lists have, where there is exactly one and several dialogues.
    common: Option<&'text str>,
}

impl<'text> Lists<'text> {
    fn of(dialogues: &[&'text Dialogue]) -> Result<Self, TaskError> {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut sentences: Vec<(&str, usize)> = Vec::new();
        let mut lists = Vec::with_capacity(dialogues.len());
        for dialogue in dialogues {
            if dialogue.persona.is_empty() {
                return Err(TaskError::NoPersona { line: dialogue.line });
            }
            let mut list: Vec<usize> = Vec::with_capacity(dialogue.persona.len());
            for sentence in &dialogue.persona {
                let number = *numbers.entry(sentence).or_insert(sentences.len());
                if number == sentences.len() {
                    sentences.push((sentence, 0));
                }
                list.push(number);
            }
            list.sort_unstable();
            list.dedup();
            for &number in &list {
                if let Some((_, dialogues)) = sentences.get_mut(number) {
                    *dialogues += 1;
                }
            }
            lists.push(list);
        }
        let mut everywhere = sentences.iter().enumerate().filter(|(_, (_, count))| *count == dialogues.len());
        let common = match (everywhere.next(), everywhere.next()) {
            (Some((number, (sentence, _))), None) if dialogues.len() > 1 => Some((number, *sentence)),
            _ => None,
        };
        if let Some((common, _)) = common {
            for list in lists.iter_mut().filter(|list| list.len() > 1) {
                list.retain(|&number| number != common);
            }
        }
        Ok(Self { lists, common: common.map(|(_, sentence)| sentence) })
    }
}

impl Lists<'_> {
    /// Of each list, the first one that is joined with it.
    fn roots(&self) -> Vec<usize> {
        let mut groups = DisjointSets::new(self.lists.len());
        for (one, other) in links(&self.lists) {
            groups.join(one, other);
        }
        (0..self.lists.len()).map(|index| groups.root(index)).collect()
    }
}

/// Pairs of lists that share two numbers, or the only one of the shorter list: not all of them, but enough to join all that
/// should be.
fn links(lists: &[Vec<usize>]) -> Vec<(usize, usize)> {
    let numbers = lists.iter().flatten().max().map_or(0, |most| most + 1);
    // Which lists a number is in, ascending.
    let mut within: Vec<Vec<usize>> = vec![Vec::new(); numbers];
    for (index, list) in lists.iter().enumerate() {
        for &number in list {
            within[number].push(index);
        }
    }
    let mut links = Vec::new();
    // For each number, the last one that it was seen beside, and the first list that had both.
    let mut beside: Vec<(usize, usize)> = vec![(usize::MAX, 0); numbers];
    for (one, within) in within.iter().enumerate().filter(|(_, within)| within.len() > 1) {
        let is_whole = within.iter().any(|&index| lists[index].len() == 1);
        for &index in within {
            if is_whole {
                links.push((within[0], index));
                continue;
            }
            let list = &lists[index];
            let after = list.partition_point(|&number| number <= one);
            for &other in &list[after..] {
                if beside[other].0 == one {
                    links.push((beside[other].1, index));
                } else {
                    beside[other] = (one, index);
                }
            }
        }
    }
    links
}

/// Union-find over indices; the root of a set is its smallest member.
struct DisjointSets {
    parent: Vec<usize>,
}

impl DisjointSets {
    fn new(count: usize) -> Self {
        Self { parent: (0..count).collect() }
    }

    fn root(&mut self, mut member: usize) -> usize {
        while self.parent[member] != member {
            self.parent[member] = self.parent[self.parent[member]];
            member = self.parent[member];
        }
        member
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.parent[one.max(other)] = one.min(other);
    }
}

/// How many personas to hold out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// So many personas.
    Count(usize),
    /// This part of them, between 0 and 1, rounded; at least one unless it is 0.
    Fraction(f64),
}

/// The seed by which a run holds personas out: the same for every run, whatever its own seed, so that runs can be compared.
pub const SPLIT_SEED: u64 = 1;

/// Splits personas into those to train on and those held out, chosen by a shuffle with `seed` (ChaCha8); both in their
/// former order.
///
/// # Errors
/// [`TaskError::HoldOut`] where nothing would be left to train on, or the fraction is not between 0 and 1.
pub fn hold_out(tasks: Vec<Task>, share: Share, seed: u64) -> Result<(Vec<Task>, Vec<Task>), TaskError> {
    let personas = tasks.len();
    let refuse = |wanted: String| TaskError::HoldOut { wanted, personas };
    let count = match share {
        Share::Count(count) => count,
        Share::Fraction(fraction) if !(0.0..=1.0).contains(&fraction) => {
            return Err(refuse(fraction.to_string()));
        }
        Share::Fraction(0.0) => 0,
        Share::Fraction(fraction) => ((fraction * personas as f64).round() as usize).max(1),
    };
    if count >= personas {
        return Err(refuse(count.to_string()));
    }
    let mut order: Vec<usize> = (0..personas).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut is_held = vec![false; personas];
    for &index in order.iter().take(count) {
        is_held[index] = true;
    }
    let (held, train): (Vec<_>, Vec<_>) = tasks.into_iter().zip(is_held).partition(|(_, held)| *held);
    let bare = |pairs: Vec<(Task, bool)>| pairs.into_iter().map(|(task, _)| task).collect();
    Ok((bare(train), bare(held)))
}

/// One test of a persona: indices into its task's dialogues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// The dialogue that is tested on and never adapted on.
    pub held_out: usize,
    /// The dialogues that are adapted on, in file order.
    pub support: Vec<usize>,
}

/// Leave-one-out with `shots` dialogues to adapt on: one fold a dialogue, whose support is the first `shots` of the
/// others in file order, or all of them where there are fewer. With 0 shots the support is empty.
pub fn leave_one_out(task: &Task, shots: usize) -> Vec<Fold> {
    let count = task.dialogues.len();
    (0..count)
        .map(|held_out| Fold { held_out, support: (0..count).filter(|&index| index != held_out).take(shots).collect() })
        .collect()
}
