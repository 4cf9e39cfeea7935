//! Personas as meta-learning tasks: grouping, splits and K-shot folds.

use std::collections::HashMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::Dialogue;

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
    /// A split that leaves nothing to train on, or a fraction that is none.
    #[error("cannot hold out {wanted} of {personas} personas; hold out fewer than there are")]
    HoldOut {
        /// What was asked for.
        wanted: String,
        /// How many personas there are.
        personas: usize,
    },
}

/// Groups dialogues by persona as PAML does (Madotto et al. 2019): two dialogues that share a persona sentence, word for
/// word, are of the same persona, and so are all that are linked through others. (ConvAI2's dialogues each show four or
/// five sentences of a persona, some in other words, so that no two lists need be equal: the 691 dialogues of a part of
/// its validation set have 469 different lists, and 66 personas. The 2,000 sides of Synthetic-Persona-Chat's validation
/// set have 541, and 95 personas of 16 to 61, mostly 18 to 22: the chain of shared sentences stays short there too.)
/// Personas with a single dialogue are left out.
///
/// # Errors
/// [`TaskError::NoPersona`] and [`TaskError::NoTasks`].
pub fn group_by_persona(dialogues: Vec<Dialogue>) -> Result<Grouping, TaskError> {
    let mut groups = DisjointSets::new(dialogues.len());
    let mut first_with: HashMap<&str, usize> = HashMap::new();
    for (index, dialogue) in dialogues.iter().enumerate() {
        if dialogue.persona.is_empty() {
            return Err(TaskError::NoPersona { line: dialogue.line });
        }
        for sentence in &dialogue.persona {
            let first = *first_with.entry(sentence).or_insert(index);
            groups.join(first, index);
        }
    }
    let mut tasks: Vec<Task> = Vec::new();
    let mut task_of_root: HashMap<usize, usize> = HashMap::new();
    for (index, dialogue) in dialogues.into_iter().enumerate() {
        let place = *task_of_root.entry(groups.root(index)).or_insert(tasks.len());
        match tasks.get_mut(place) {
            Some(task) => {
                for sentence in &dialogue.persona {
                    if !task.persona.contains(sentence) {
                        task.persona.push(sentence.clone());
                    }
                }
                task.dialogues.push(dialogue);
            }
            None => tasks.push(Task { persona: dialogue.persona.clone(), dialogues: vec![dialogue] }),
        }
    }
    let found = tasks.len();
    tasks.retain(|task| task.dialogues.len() > 1);
    let dropped_single = found - tasks.len();
    if tasks.is_empty() {
        return Err(TaskError::NoTasks { dropped: dropped_single });
    }
    Ok(Grouping { tasks, dropped_single })
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
