//! Which personas a meta-iteration sees, and which of their dialogues.

use marionette_dialogues::Example;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::data::Persona;

/// The dialogues of one persona, split.
#[derive(Debug)]
pub struct Split<'a> {
    /// What the inner loop learns from: the windows of dialogues.
    pub support: Vec<&'a Example>,
    /// What it is judged by: windows of no dialogue of the support.
    pub query: Vec<&'a Example>,
}

impl<'a> Split<'a> {
    /// The first `shots` of `order` to learn from, but one less than there are, and at most `query` of the others.
    pub fn new(persona: &'a Persona, order: &[usize], shots: usize, query: usize) -> Self {
        let shots = shots.min(order.len().saturating_sub(1));
        let mut dialogues = order.iter().filter_map(|&index| persona.dialogues.get(index));
        Self {
            support: dialogues.by_ref().take(shots).flatten().collect(),
            query: dialogues.take(query).flatten().collect(),
        }
    }
}

/// Draws personas: each one once before any comes again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampler {
    personas: usize,
    waiting: Vec<usize>,
}

impl Sampler {
    /// A sampler over so many personas.
    pub fn new(personas: usize) -> Self {
        Self { personas, waiting: Vec::new() }
    }

    /// The next persona.
    pub fn persona(&mut self, rng: &mut ChaCha8Rng) -> usize {
        if self.waiting.is_empty() {
            self.waiting = (0..self.personas).collect();
            self.waiting.shuffle(rng);
        }
        self.waiting.pop().unwrap_or_default()
    }

    /// A random order of `count` dialogues.
    pub fn order(count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(rng);
        order
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use marionette_dialogues::Sequence;

    #[test]
    fn every_persona_comes_once_a_round() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut sampler = Sampler::new(5);
        for _ in 0..3 {
            let mut round: Vec<usize> = (0..5).map(|_| sampler.persona(&mut rng)).collect();
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn support_and_query_are_apart() {
        let example = |id| Example { sequence: Sequence { ids: vec![id], ..Sequence::default() }, choices: Vec::new() };
        // Dialogue 2 has two windows.
        let windows = |id| if id == 2 { vec![example(id), example(20)] } else { vec![example(id)] };
        let persona = Persona { dialogues: (0..4).map(windows).collect() };
        let ids = |part: &[&Example]| part.iter().map(|example| example.sequence.ids[0]).collect::<Vec<_>>();
        let split = Split::new(&persona, &[2, 0, 3, 1], 2, 1);
        assert_eq!((ids(&split.support), ids(&split.query)), (vec![2, 20, 0], vec![3]));
        // One is always left to judge by.
        let split = Split::new(&persona, &[2, 0, 3, 1], 9, 9);
        assert_eq!((ids(&split.support), ids(&split.query)), (vec![2, 20, 0, 3], vec![1]));
    }
}
