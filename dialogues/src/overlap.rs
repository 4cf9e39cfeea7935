//! Whether personas that a model is tested on are among those that it learned from: by what the dialogues say, not by their files.

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;

use crate::Dialogue;
use crate::tasks::{Task, personas_of};

/// How much of what is tested was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Overlap {
    /// Personas that are known: one of their dialogues is, or they share sentences with a known one as the dialogues of one persona do
    /// ([`crate::group_by_persona`]).
    pub personas: usize,
    /// All personas.
    pub of_personas: usize,
    /// Dialogues that are known word for word.
    pub dialogues: usize,
    /// All dialogues.
    pub of_dialogues: usize,
}

impl Overlap {
    /// Compares what is tested with what is known.
    pub fn of<'task>(known: impl IntoIterator<Item = &'task Task>, tested: &'task [Task]) -> Self {
        let known: Vec<&Dialogue> = known.into_iter().flat_map(|task| &task.dialogues).collect();
        let said: HashSet<_> = known.iter().map(|dialogue| said(dialogue)).collect();
        let all: Vec<&Dialogue> = known.iter().copied().chain(tested.iter().flat_map(|task| &task.dialogues)).collect();
        // Data without persona sentences have no personas to compare.
        let personas = personas_of(&all).unwrap_or_else(|_| (0..all.len()).collect());
        let known_personas: HashSet<usize> = personas.iter().take(known.len()).copied().collect();
        let mut places = personas.iter().skip(known.len());
        let mut overlap =
            Self { personas: 0, of_personas: tested.len(), dialogues: 0, of_dialogues: all.len() - known.len() };
        for task in tested {
            let mut is_known = false;
            for (dialogue, persona) in task.dialogues.iter().zip(places.by_ref().take(task.dialogues.len())) {
                let same = said.contains(&self::said(dialogue));
                overlap.dialogues += usize::from(same);
                is_known |= same || known_personas.contains(persona);
            }
            overlap.personas += usize::from(is_known);
        }
        overlap
    }

    /// Whether there is any.
    pub fn is_none(&self) -> bool {
        self.personas == 0
    }
}

/// As `12 of 16 personas and 80 of 128 dialogues`.
impl fmt::Display for Overlap {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { personas, of_personas, dialogues, of_dialogues } = self;
        write!(out, "{personas} of {of_personas} personas and {dialogues} of {of_dialogues} dialogues")
    }
}

/// What a dialogue says.
pub(crate) fn said(dialogue: &Dialogue) -> Vec<(&str, &str)> {
    dialogue.exchanges.iter().map(|exchange| (exchange.partner.as_str(), exchange.reply.as_str())).collect()
}
