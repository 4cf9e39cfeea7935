//! Adapting without learning: the dialogues stand in the prompt (in-context learning, Brown et al. 2020).

use std::collections::VecDeque;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Encoder, Example, Learner, Passes, Ranking, Sequence};

/// What stands in the prompt, where a model adapts by reading alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Context {
    /// The dialogues to adapt on, as many as fit.
    Dialogues,
    /// The same, and then the persona's sentences.
    Persona,
}

impl Context {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Dialogues, Self::Persona];

    /// As an option names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dialogues => "dialogues",
            Self::Persona => "persona",
        }
    }

    /// The encoder of what stands there.
    pub fn encoder(self, encoder: &Encoder) -> Encoder {
        match self {
            Self::Dialogues => encoder.clone(),
            Self::Persona => encoder.clone().with_persona_text(true),
        }
    }
}

impl FromStr for Context {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|context| context.name() == text);
        found.ok_or_else(|| format!("{text:?} is nothing to read, expected dialogues or persona"))
    }
}

/// A learner that reads the dialogues to adapt on before everything else, instead of learning from them: as many as fit into the
/// context with what is asked of it, the last ones.
#[derive(Debug)]
pub struct InContext<L> {
    learner: L,
    /// The most tokens that it sees.
    n_positions: usize,
    /// The tokens of each dialogue.
    dialogues: Vec<Vec<u32>>,
}

impl<L> InContext<L> {
    /// A learner that sees `n_positions` tokens.
    pub fn new(learner: L, n_positions: usize) -> Self {
        Self { learner, n_positions, dialogues: Vec::new() }
    }

    /// The dialogues to read before so many other tokens, one after the other.
    fn before(&self, tokens: usize) -> Vec<u32> {
        let mut room = self.n_positions.saturating_sub(tokens);
        let mut chosen = VecDeque::new();
        for dialogue in self.dialogues.iter().rev() {
            let Some(left) = room.checked_sub(dialogue.len()) else { break };
            room = left;
            chosen.push_front(dialogue);
        }
        chosen.into_iter().flatten().copied().collect()
    }

    /// A prompt with them in front, and room for a reply.
    fn after(&self, prompt: &[u32], max_new: usize) -> Vec<u32> {
        let mut ids = self.before(prompt.len().saturating_add(max_new));
        ids.extend(prompt);
        ids
    }

    /// A ranking whose history has them in front.
    fn after_dialogues(&self, ranking: &Ranking) -> Ranking {
        // Branches share positions: what counts is the last one.
        let last = ranking.positions.iter().max().map_or(0, |&last| last as usize + 1);
        let before = self.before(last.max(ranking.ids.len()));
        let number = before.len() as u32;
        let moved = |places: &[u32]| places.iter().map(|place| place + number).collect::<Vec<_>>();
        Ranking {
            ids: before.iter().chain(&ranking.ids).copied().collect(),
            positions: (0..number).chain(moved(&ranking.positions)).collect(),
            branch: vec![0; before.len()].into_iter().chain(ranking.branch.iter().copied()).collect(),
            rows: moved(&ranking.rows),
            ends: moved(&ranking.ends),
            ..ranking.clone()
        }
    }
}

impl<L: Learner> Learner for InContext<L> {
    type Error = L::Error;

    fn reset(&mut self) -> Result<(), L::Error> {
        self.dialogues.clear();
        self.learner.reset()
    }

    /// Passes make no difference: what is read again is read already.
    fn adapt(&mut self, support: &[Example], _: Passes) -> Result<(), L::Error> {
        // Of a dialogue in windows each has again what the former ends with.
        let new = |example: &Example| example.sequence.ids.iter().skip(example.sequence.again).copied().collect();
        self.dialogues = support.iter().map(new).collect();
        Ok(())
    }

    fn negative_log_likelihood(&mut self, sequence: &Sequence) -> Result<f64, L::Error> {
        let mut ids = self.before(sequence.ids.len());
        let mut target = vec![false; ids.len()];
        ids.extend(&sequence.ids);
        target.extend(&sequence.target);
        self.learner.negative_log_likelihood(&Sequence { ids, target, ..sequence.clone() })
    }

    fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>, L::Error> {
        self.learner.rank(&self.after_dialogues(ranking))
    }

    fn classify(&mut self, ranking: &Ranking) -> Result<Option<Vec<f32>>, L::Error> {
        self.learner.classify(&self.after_dialogues(ranking))
    }

    fn replies(&mut self, prompts: &[Vec<u32>], end: u32, max_new: usize) -> Result<Vec<Vec<u32>>, L::Error> {
        let prompts: Vec<_> = prompts.iter().map(|prompt| self.after(prompt, max_new)).collect();
        self.learner.replies(&prompts, end, max_new)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Hears what it is asked.
    #[derive(Default)]
    struct Hears {
        asked: Vec<Vec<u32>>,
        ranked: Vec<Ranking>,
    }

    impl Learner for Hears {
        type Error = Infallible;

        fn reset(&mut self) -> Result<(), Infallible> {
            Ok(())
        }

        fn adapt(&mut self, _: &[Example], _: Passes) -> Result<(), Infallible> {
            panic!("it learns nothing");
        }

        fn negative_log_likelihood(&mut self, sequence: &Sequence) -> Result<f64, Infallible> {
            self.asked.push(sequence.predictions().flat_map(|(before, id)| [sequence.ids[before], id]).collect());
            Ok(sequence.ids.len() as f64)
        }

        fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>, Infallible> {
            self.ranked.push(ranking.clone());
            Ok(Vec::new())
        }

        fn replies(&mut self, prompts: &[Vec<u32>], _: u32, _: usize) -> Result<Vec<Vec<u32>>, Infallible> {
            self.asked.extend_from_slice(prompts);
            Ok(vec![Vec::new(); prompts.len()])
        }
    }

    fn example(ids: &[u32], again: usize) -> Example {
        let sequence = Sequence { ids: ids.to_vec(), target: vec![false; ids.len()], again, ..Sequence::default() };
        Example { sequence, choices: Vec::new() }
    }

    #[test]
    fn dialogues_stand_before_all_that_is_asked_as_many_as_fit() {
        let mut reader = InContext::new(Hears::default(), 12);
        reader.reset().unwrap();
        // The last one is a window that begins with a token of the one before it.
        let support = [example(&[1, 2, 3, 4], 0), example(&[5, 6, 7], 0), example(&[7, 8], 1)];
        reader.adapt(&support, Passes::Recipe).unwrap();
        reader.adapt(&support, Passes::Epochs(3)).unwrap();
        let asked = Sequence {
            ids: vec![20, 21, 22],
            target: vec![false, true, true],
            words: 2,
            replies: 1,
            ..Sequence::default()
        };
        // 4 + 3 + 1 + 3 = 11 fit into 12.
        assert_eq!(reader.negative_log_likelihood(&asked).unwrap(), 11.0);
        // The same targets after the same tokens: nothing of the dialogues is one.
        assert_eq!(reader.learner.asked.pop().unwrap(), [20, 21, 21, 22]);
        // With room for a reply, the first dialogue has none; so it is with several prompts.
        reader.replies(&[vec![20, 21], vec![22]], 0, 5).unwrap();
        assert_eq!(reader.learner.asked.pop().unwrap(), [5, 6, 7, 8, 22]);
        assert_eq!(reader.learner.asked.pop().unwrap(), [5, 6, 7, 8, 20, 21]);
        reader.replies(&[vec![20, 21]], 0, 5).unwrap();
        assert_eq!(reader.learner.asked.pop().unwrap(), [5, 6, 7, 8, 20, 21]);
        reader.replies(&[vec![20; 12]], 0, 5).unwrap();
        assert_eq!(reader.learner.asked.pop().unwrap(), [20; 12]);
        // Another persona knows nothing of them.
        reader.reset().unwrap();
        reader.replies(&[vec![20]], 0, 5).unwrap();
        assert_eq!(reader.learner.asked.pop().unwrap(), [20]);
    }

    #[test]
    fn rankings_keep_their_branches_behind_the_dialogues() {
        let ranking = Ranking {
            ids: vec![20, 21, 30, 31, 40],
            positions: vec![0, 1, 2, 3, 2],
            branch: vec![0, 0, 1, 1, 2],
            rows: vec![1, 2, 1],
            targets: vec![30, 31, 40],
            candidate: vec![0, 0, 1],
            ends: vec![3, 4],
            candidates: 2,
            cut: 0,
        };
        let mut reader = InContext::new(Hears::default(), 9);
        reader.adapt(&[example(&[1, 2, 3], 0), example(&[5, 6, 7], 0)], Passes::Recipe).unwrap();
        reader.rank(&ranking).unwrap();
        let found = reader.learner.ranked.pop().unwrap();
        let expected = Ranking {
            ids: vec![5, 6, 7, 20, 21, 30, 31, 40],
            positions: vec![0, 1, 2, 3, 4, 5, 6, 5],
            branch: vec![0, 0, 0, 0, 0, 1, 1, 2],
            rows: vec![4, 5, 4],
            ends: vec![6, 7],
            ..ranking
        };
        assert_eq!(found, expected);
    }
}
