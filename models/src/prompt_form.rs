//! How a dialogue becomes tokens: the one definition for trainer and device, which a bundle carries.

use serde::{Deserialize, Serialize};

/// What stands around the utterances of a dialogue, as token ids.
///
/// A dialogue is `begin` (or, with persona sentences, `persona` around them), then `partner` and `reply` around each utterance in turn.
/// The first token after a reply ends it: the model predicts it, generation stops at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptForm {
    /// Before the first utterance, where no persona sentences are.
    pub begin: Vec<u32>,
    /// Around the persona's sentences.
    pub persona: Turn,
    /// Around what the partner says.
    pub partner: Turn,
    /// Around what the persona says.
    pub reply: Turn,
}

/// What stands around an utterance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Before it.
    pub before: Vec<u32>,
    /// After it.
    pub after: Vec<u32>,
}

impl PromptForm {
    /// Utterances that each end with `end`, and nothing else: `u1 <end> r1 <end> …` (DialoGPT, Zhang et al. 2020).
    pub fn plain(end: u32) -> Self {
        let turn = || Turn { before: Vec::new(), after: vec![end] };
        Self { begin: Vec::new(), persona: turn(), partner: turn(), reply: turn() }
    }

    /// The token that ends a reply; none in a form that [`PromptForm::validate`] refuses.
    pub fn end(&self) -> Option<u32> {
        self.reply.after.first().copied()
    }

    /// All its tokens.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        let turns = [&self.persona, &self.partner, &self.reply].into_iter();
        self.begin.iter().chain(turns.flat_map(|turn| turn.before.iter().chain(&turn.after))).copied()
    }

    /// How many tokens the form puts before the first utterance and around one of the partner and its reply.
    pub fn overhead(&self) -> usize {
        let [partner, reply] = [&self.partner, &self.reply].map(|turn| turn.before.len() + turn.after.len());
        self.begin.len() + partner + reply
    }

    /// Checks that a reply has an end, and that an embedding of `vocab_size` rows has all tokens.
    ///
    /// # Errors
    /// The field, and what is wrong with it.
    pub fn validate(&self, vocab_size: usize) -> Result<(), (&'static str, String)> {
        if self.reply.after.is_empty() {
            return Err(("prompt.reply.after", "is empty, expected the token that ends a reply".to_owned()));
        }
        match self.tokens().find(|&token| token as usize >= vocab_size) {
            Some(token) => Err(("prompt", format!("has the token {token}, beyond vocab_size = {vocab_size}"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_without_an_end_or_with_an_unknown_token_is_refused() {
        let form = PromptForm::plain(7);
        assert_eq!((form.end(), form.overhead(), form.validate(8)), (Some(7), 2, Ok(())));
        assert!(form.validate(7).unwrap_err().1.contains("token 7"));
        assert_eq!(PromptForm { reply: Turn::default(), ..form }.validate(8).unwrap_err().0, "prompt.reply.after");
    }
}
