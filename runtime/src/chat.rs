//! A conversation: what was said so far, kept within the model's context.

use marionette_dialogues::{Encoder, Prompt};

use crate::error::Result;
use crate::generate::{self, Finish, Go, LanguageModel};
use crate::sampling::Sampler;

/// A conversation with a persona.
pub struct Conversation<'e> {
    encoder: &'e Encoder,
    persona: Vec<String>,
    /// Oldest first: the user, the persona, the user, …
    history: Vec<String>,
    max_tokens: usize,
}

/// What the persona said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The words.
    pub text: String,
    /// Why they ended.
    pub finish: Finish,
    /// How many utterances were forgotten to make room.
    pub forgotten: usize,
    /// Whether the words themselves are too long for the context, so that only their end was read.
    pub cut: bool,
    /// How many tokens were read before the first word.
    pub prefilled: usize,
}

impl<'e> Conversation<'e> {
    /// A conversation that has not begun. `persona` are the sentences that stand in front where the bundle has persona text.
    pub fn new(encoder: &'e Encoder, persona: Vec<String>, max_tokens: usize) -> Self {
        Self { encoder, persona, history: Vec::new(), max_tokens }
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.history.clear();
    }

    /// Takes the user's words and gives the reply, whose text `heard` gets piece by piece. A reply that ends in an error is
    /// not part of the conversation, nor are the words before it.
    ///
    /// # Errors
    /// The words cannot be encoded; the model fails; the listener fails.
    pub fn say(
        &mut self,
        model: &mut impl LanguageModel,
        sampler: &mut Sampler,
        words: &str,
        mut heard: impl FnMut(&str) -> Result<Go>,
    ) -> Result<Said> {
        self.history.push(words.to_owned());
        let said = self.reply(model, sampler, &mut heard);
        match &said {
            Ok(said) => self.history.push(said.text.clone()),
            Err(_) => drop(self.history.pop()),
        }
        said
    }

    fn reply(
        &mut self,
        model: &mut impl LanguageModel,
        sampler: &mut Sampler,
        heard: &mut impl FnMut(&str) -> Result<Go>,
    ) -> Result<Said> {
        let before = self.history.len();
        let prompt = self.prompt()?;
        let forgotten = before - self.history.len();
        let mut stream = self.encoder.stream();
        let mut text = String::new();
        let mut hear = |piece: Option<String>| match piece {
            None => Ok(Go::On),
            Some(piece) => {
                let piece = printable(&piece);
                text.push_str(&piece);
                heard(&piece)
            }
        };
        let end = self.encoder.end_id();
        let reply =
            generate::generate(model, sampler, &prompt.ids, end, self.max_tokens, |token| hear(stream.push(token)))?;
        hear(stream.finish())?;
        Ok(Said { text, finish: reply.finish, forgotten, cut: prompt.cut > 0, prefilled: reply.prefilled })
    }

    /// The history as tokens, with room for the reply. Once it is too long, the oldest exchanges are forgotten until it fills
    /// half the context: what is left is read anew, which should not happen with every reply.
    fn prompt(&mut self) -> Result<Prompt> {
        let reserve = self.max_tokens.max(self.encoder.n_positions() / 2);
        let mut prompt = self.encoder.prompt(&self.persona, &self.history, self.max_tokens)?;
        if prompt.cut > 0 {
            while self.history.len() > 2 && self.encoder.prompt(&self.persona, &self.history, reserve)?.cut > 0 {
                self.history.drain(..2);
            }
            prompt = self.encoder.prompt(&self.persona, &self.history, self.max_tokens)?;
        }
        Ok(prompt)
    }
}

/// A model may have learned control characters; a terminal must not get them.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
