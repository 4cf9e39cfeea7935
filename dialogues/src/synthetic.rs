//! The generator behind the bundled dialogues: personas with facts and a manner of speaking, in Persona-Chat's style.
//!
//! A persona has one value for every [`Kind`] and one [`Manner`]. The partner asks; the persona's replies follow from
//! its facts, in its manner, so that a model that has learned from a few of its dialogues can answer the others. The
//! same seed gives the same bytes.
//!
//! ```
//! use marionette_dialogues::synthetic::{Generator, Kind};
//!
//! let mut generator = Generator::new(7);
//! let persona = generator.persona();
//! assert!(!persona.value(Kind::Work).is_empty());
//! let dialogues = generator.corpus(3, 2, 20);
//! assert_eq!(dialogues.len(), 6);
//! ```

mod candidates;
mod persona;
mod script;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Dialogue;

pub use persona::{Manner, Persona};
pub use tables::Kind;

/// How many personas speak the wrong candidates of one corpus.
const STRANGERS: usize = 300;

/// Draws personas, no two alike, and their dialogues.
#[derive(Debug, Clone)]
pub struct Generator {
    rng: ChaCha8Rng,
    facts: BTreeSet<Vec<&'static str>>,
    sentences: BTreeSet<String>,
}

impl Generator {
    /// A generator of which everything follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), facts: BTreeSet::new(), sentences: BTreeSet::new() }
    }

    /// A persona whose facts no earlier persona of this generator has, and none of whose persona sentences any has:
    /// [`crate::group_by_persona`] joins dialogues that share sentences.
    pub fn persona(&mut self) -> Persona {
        loop {
            let persona = Persona::draw(&mut self.rng, &mut self.sentences);
            if self.facts.insert(persona.facts().collect()) {
                return persona;
            }
        }
    }

    /// `dialogues_each` dialogues of each of `personas` new personas, persona after persona. With `candidates` above 1,
    /// each reply comes with so many, all different in ConvAI2's normal form and the gold reply last: a third of the
    /// wrong ones answer the same question with another value, the rest answer other questions. They are said by
    /// personas that occur in no corpus of this generator. (Meant for some tens: there is no end to a search for more
    /// different answers than there are.)
    pub fn corpus(&mut self, personas: usize, dialogues_each: usize, candidates: usize) -> Vec<Dialogue> {
        let strangers: Vec<Persona> =
            if candidates > 1 { (0..STRANGERS).map(|_| self.persona()).collect() } else { Vec::new() };
        let mut corpus = Vec::with_capacity(personas * dialogues_each);
        for _ in 0..personas {
            let persona = self.persona();
            for script in script::scripts(&persona, dialogues_each, &mut self.rng) {
                let mut dialogue = script::to_dialogue(&persona, &script);
                if candidates > 1 {
                    for (exchange, turn) in dialogue.exchanges.iter_mut().zip(&script) {
                        exchange.candidates = candidates::draw(&persona, turn, &strangers, candidates, &mut self.rng);
                    }
                }
                corpus.push(dialogue);
            }
        }
        corpus
    }
}

/// [`Generator::corpus`] of a new generator.
pub fn corpus(seed: u64, personas: usize, dialogues_each: usize, candidates: usize) -> Vec<Dialogue> {
    Generator::new(seed).corpus(personas, dialogues_each, candidates)
}

/// One of `items`, which must not be empty.
fn pick<T: Copy>(rng: &mut ChaCha8Rng, items: &[T]) -> T {
    items[rng.random_range(0..items.len())]
}
