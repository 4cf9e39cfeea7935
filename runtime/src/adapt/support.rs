//! What is learned from, and by what it is judged.

use marionette_dialogues::{Dialogue, Encoder, Exchange, Sequence, TaskError, group_by_persona};
use marionette_models::digest;

use super::Recipe;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::Plan;

/// A persona's dialogues: those to learn from, and those after them by which it is judged what was learned.
#[derive(Debug)]
pub struct Support<'d> {
    dialogues: &'d [Dialogue],
    /// How many of the dialogues are learned from.
    learned: usize,
    /// The windows of the dialogues to learn from, in their order.
    windows: Vec<Sequence>,
    /// Those of the held-out ones.
    held_out: Vec<Sequence>,
    /// How many dialogues have more than one.
    long: usize,
    /// Where they come from: all of the record that is known before the first step.
    pub(super) sha256: String,
    pub(super) sentences: Vec<String>,
}

/// How many of `there` dialogues are used, and how many of these, the last ones, are held out. With `shots` so many are learned from, and those
/// after them held out; without `holdout` one is, where there are three or more.
///
/// # Errors
/// There are not as many, or none would be left to learn from.
pub fn divide(there: usize, shots: Option<usize>, holdout: Option<usize>) -> Result<(usize, usize)> {
    let impossible = |problem: String| Err(Error::Impossible(problem));
    let learned = match (shots, holdout) {
        (Some(shots), _) if shots > there => {
            return impossible(format!("--shots asks for {shots} of {there} dialogues"));
        }
        (Some(shots), _) => shots,
        (None, Some(holdout)) if holdout >= there => {
            return impossible(format!("--holdout asks for {holdout} of {there} dialogues, and one is to be learned"));
        }
        (None, Some(holdout)) => there - holdout,
        (None, None) => there - usize::from(there >= LEAST_TO_HOLD_OUT),
    };
    let rest = there - learned;
    let holdout = match holdout {
        Some(holdout) if holdout > rest => {
            return impossible(format!(
                "--holdout asks for {holdout} of the {rest} dialogues after the first {learned}"
            ));
        }
        Some(holdout) => holdout,
        None => usize::from(rest > 0 && learned + 1 >= LEAST_TO_HOLD_OUT),
    };
    Ok((learned + holdout, holdout))
}

/// Of fewer dialogues none is held out unless asked for: each is worth more for learning.
const LEAST_TO_HOLD_OUT: usize = 3;

impl<'d> Support<'d> {
    /// Encodes dialogues, of which the last `holdout` are not learned from.
    ///
    /// # Errors
    /// There are no others to learn from; the tokenizer fails.
    pub fn new(encoder: &Encoder, dialogues: &'d [Dialogue], holdout: usize) -> Result<Self> {
        let Some(learned) = dialogues.len().checked_sub(holdout).filter(|&learned| learned > 0) else {
            let problem = format!("{} dialogues, of which {holdout} are held out: nothing is left", dialogues.len());
            return Err(Error::Impossible(problem));
        };
        let (support, rest) = dialogues.split_at(learned);
        let (mut windows, mut long) = (Vec::new(), 0);
        let mut sentences: Vec<String> = Vec::new();
        for dialogue in support {
            let of_dialogue = encoder.windows(dialogue)?;
            long += usize::from(of_dialogue.len() > 1);
            windows.extend(of_dialogue);
            for sentence in &dialogue.persona {
                if !sentences.contains(sentence) {
                    sentences.push(sentence.clone());
                }
            }
        }
        let held_out: Vec<Vec<Sequence>> =
            rest.iter().map(|dialogue| encoder.windows(dialogue)).collect::<Result<_, _>>()?;
        let held_out = held_out.concat();
        Ok(Self { dialogues, learned, windows, held_out, long, sha256: sha256(support), sentences })
    }

    /// All dialogues, the held-out ones last.
    pub fn dialogues(&self) -> &'d [Dialogue] {
        self.dialogues
    }

    /// The dialogues that are learned from.
    pub fn learned(&self) -> &'d [Dialogue] {
        self.dialogues.get(..self.learned).unwrap_or_default()
    }

    /// Those by which it is judged.
    pub fn held_out(&self) -> &'d [Dialogue] {
        self.dialogues.get(self.learned..).unwrap_or_default()
    }

    /// The windows of the dialogues to learn from, each of which a step learns from as from a dialogue.
    pub fn windows(&self) -> &[Sequence] {
        &self.windows
    }

    /// How many dialogues are longer than the context, and in how many windows they are learned.
    pub fn long(&self) -> Option<(usize, usize)> {
        (self.long > 0).then(|| (self.long, self.windows.len() - (self.learned - self.long)))
    }

    /// An inner loop over them.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self, engine: &mut Engine, recipe: &Recipe, memory_limit: Option<u64>) -> Result<Plan> {
        let inner = recipe.inner_loop(&engine.manifest().inner_loop, self.windows.len());
        Plan::new(engine, &self.windows, &self.held_out, inner, memory_limit)
    }
}

/// The digest of what is learned from: of each dialogue the persona's sentences, and who says what, as JSON.
fn sha256(dialogues: &[Dialogue]) -> String {
    let of = |Dialogue { persona, exchanges, .. }: &Dialogue| {
        let said = exchanges.iter().map(|Exchange { partner, reply, learned, .. }| (partner, reply, learned));
        serde_json::json!({ "persona": persona, "exchanges": said.collect::<Vec<_>>() })
    };
    digest::sha256(serde_json::Value::from(dialogues.iter().map(of).collect::<Vec<_>>()).to_string().as_bytes())
}

/// How many personas the dialogues are of, as far as their persona sentences say: a file is learned as one persona whatever
/// it holds, and more than one is worth a warning.
pub fn personas_in(dialogues: &[Dialogue]) -> usize {
    match group_by_persona(dialogues.to_vec()) {
        Ok(grouping) => grouping.tasks.len() + grouping.dropped_single,
        Err(TaskError::NoTasks { dropped }) => dropped,
        Err(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_three_dialogues_is_held_out() {
        for (there, shots, holdout, expected) in [
            (1, None, None, (1, 0)),
            (2, None, None, (2, 0)),
            (3, None, None, (3, 1)),
            (9, None, None, (9, 1)),
            (9, None, Some(0), (9, 0)),
            (2, None, Some(1), (2, 1)),
            (9, None, Some(3), (9, 3)),
            (9, Some(5), None, (6, 1)),
            (9, Some(5), Some(4), (9, 4)),
            (9, Some(5), Some(0), (5, 0)),
            (5, Some(5), None, (5, 0)),
            (5, Some(1), None, (1, 0)),
        ] {
            let found = divide(there, shots, holdout).unwrap();
            assert_eq!(found, expected, "{there} dialogues, {shots:?} shots, {holdout:?} held out");
        }
        for (there, shots, holdout) in
            [(3, Some(4), None), (3, None, Some(3)), (0, None, Some(0)), (5, Some(4), Some(2))]
        {
            assert!(divide(there, shots, holdout).is_err(), "{there} dialogues, {shots:?}, {holdout:?}");
        }
    }
}
