//! A conversation: what was said so far, kept within the model's context.

use std::cell::Cell;

use marionette_dialogues::{Encoder, Exchange, Prompt};

use crate::error::Result;
use crate::generate::{self, Finish, Go, LanguageModel};
use crate::sampling::Sampler;

/// A conversation with a persona.
pub struct Conversation<'e> {
    encoder: &'e Encoder,
    persona: Vec<String>,
    /// Oldest first: the user, the persona, the user, …
    history: Vec<String>,
    /// How many of these no longer fit the context.
    forgotten: usize,
    max_tokens: usize,
    stops: Vec<String>,
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
    /// How many tokens were generated.
    pub tokens: usize,
}

impl<'e> Conversation<'e> {
    /// A conversation that has not begun. `persona` are the sentences that stand in front where the bundle has persona text.
    pub fn new(encoder: &'e Encoder, persona: Vec<String>, max_tokens: usize) -> Self {
        Self { encoder, persona, history: Vec::new(), forgotten: 0, max_tokens, stops: Vec::new() }
    }

    /// The sentences that describe the persona.
    pub fn persona(&self) -> &[String] {
        &self.persona
    }

    /// The most tokens of a reply.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// What ends a reply before it would end.
    pub fn stops(&self) -> &[String] {
        &self.stops
    }

    /// Makes the persona another one; what was said stays.
    pub fn set_persona(&mut self, persona: Vec<String>) {
        self.persona = persona;
    }

    /// Limits replies to so many tokens.
    pub fn set_max_tokens(&mut self, max_tokens: usize) {
        self.max_tokens = max_tokens;
    }

    /// Ends replies before any of these strings. Empty ones end nothing.
    pub fn set_stops(&mut self, stops: Vec<String>) {
        self.stops = stops;
        self.stops.retain(|stop| !stop.is_empty());
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.resume(Vec::new());
    }

    /// What was said, oldest first: the user, the persona, the user, …
    pub fn history(&self) -> &[String] {
        &self.history
    }

    /// Goes on from what was said elsewhere: the user, the persona, and so on, a reply last.
    pub fn resume(&mut self, history: Vec<String>) {
        self.history = history;
        self.history.truncate(self.history.len() / 2 * 2);
        self.forgotten = 0;
    }

    /// What was said, as exchanges.
    pub fn exchanges(&self) -> Vec<Exchange> {
        let pairs = self.history.chunks_exact(2);
        pairs.filter_map(|pair| Some(Exchange::new(pair.first()?.clone(), pair.get(1)?.clone()))).collect()
    }

    /// Takes the last exchange back; false where there is none.
    pub fn undo(&mut self) -> bool {
        let there = self.history.len() >= 2;
        self.history.truncate(self.history.len().saturating_sub(2));
        self.forgotten = self.forgotten.min(self.history.len());
        there
    }

    /// Puts other words in the place of the last reply; false where there is none.
    pub fn correct(&mut self, words: &str) -> bool {
        match self.history.last_mut() {
            Some(reply) => {
                words.clone_into(reply);
                true
            }
            None => false,
        }
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

    /// Another reply in the place of the last one; `None` where there is none. After an error the last one is still there.
    ///
    /// # Errors
    /// As [`Conversation::say`].
    pub fn regenerate(
        &mut self,
        model: &mut impl LanguageModel,
        sampler: &mut Sampler,
        mut heard: impl FnMut(&str) -> Result<Go>,
    ) -> Result<Option<Said>> {
        let Some(last) = self.history.pop() else { return Ok(None) };
        let said = self.reply(model, sampler, &mut heard);
        self.history.push(said.as_ref().map_or(last, |said| said.text.clone()));
        said.map(Some)
    }

    fn reply(
        &mut self,
        model: &mut impl LanguageModel,
        sampler: &mut Sampler,
        heard: &mut impl FnMut(&str) -> Result<Go>,
    ) -> Result<Said> {
        let before = self.forgotten;
        let prompt = self.prompt()?;
        let forgotten = self.forgotten - before;
        let mut stream = self.encoder.stream();
        let mut text = String::new();
        let mut stops = Stops { strings: &self.stops, held: String::new() };
        let mut tell = |piece: String| {
            if piece.is_empty() {
                return Ok(Go::On);
            }
            let piece = printable(&piece);
            text.push_str(&piece);
            heard(&piece)
        };
        let stopped = Cell::new(false);
        let mut hear = |piece: Option<String>| {
            let Some(piece) = piece else { return Ok(Go::On) };
            let (free, is_end) = stops.push(&piece);
            stopped.set(stopped.get() || is_end);
            let go = tell(free)?;
            Ok(if is_end { Go::Stop } else { go })
        };
        let end = self.encoder.end_id();
        let reply =
            generate::generate(model, sampler, &prompt.ids, end, self.max_tokens, |token| hear(stream.push(token)))?;
        if !stopped.get() {
            hear(stream.finish())?;
        }
        if !stopped.get() {
            tell(stops.held)?;
        }
        let finish = if stopped.get() { Finish::StopString } else { reply.finish };
        let (prefilled, tokens) = (reply.prefilled, reply.tokens.len());
        Ok(Said { text, finish, forgotten, cut: prompt.cut > 0, prefilled, tokens })
    }

    /// The history as tokens, with room for the reply. Once it is too long, the oldest exchanges are forgotten until it fills
    /// half the context: what is left is read anew, which should not happen with every reply.
    fn prompt(&mut self) -> Result<Prompt> {
        let reserve = self.max_tokens.max(self.encoder.n_positions() / 2);
        let encode = |first: usize, room: usize| {
            self.encoder.prompt(&self.persona, self.history.get(first..).unwrap_or_default(), room)
        };
        let mut first = self.forgotten;
        let mut prompt = encode(first, self.max_tokens)?;
        if prompt.cut > 0 {
            while self.history.len() - first > 2 && encode(first, reserve)?.cut > 0 {
                first += 2;
            }
            prompt = encode(first, self.max_tokens)?;
        }
        self.forgotten = first;
        Ok(prompt)
    }
}

/// Words as they come, held back as long as they may be the beginning of a string that ends the reply.
struct Stops<'a> {
    strings: &'a [String],
    held: String,
}

impl Stops<'_> {
    /// What may be heard once `piece` is there too, and whether a string ended the reply.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.strings.iter().filter_map(|string| self.held.find(string.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let held = self.held.len();
        let may_begin = |at: &usize| {
            let rest = self.held.get(*at..).unwrap_or_default();
            self.strings.iter().any(|string| string.starts_with(rest))
        };
        let kept = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(held);
        let rest = self.held.split_off(kept);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

/// A model may have learned control characters; a terminal must not get them.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
