//! Dialogue to token ids: the one definition for trainer and device.
//!
//! `u1 <eot> r1 <eot> u2 <eot> r2 <eot> …`, `<eot>` being `<|endoftext|>`. Targets are the tokens of the persona's own
//! replies and the `<eot>` after each. Empty words of the partner (the persona spoke first) are their `<eot>` alone.
//!
//! What exceeds the context is cut at the oldest utterance, whole; only an utterance that the context could not hold by
//! itself, or the newest one where it does not fit, is cut within, at its oldest tokens.

mod candidates;

use std::path::Path;
use std::sync::Arc;

use crate::{Dialogue, EncodeError, Exchange, Prompt, Sequence, StreamDecoder, Tokenizer, load_tokenizer};

/// What turns dialogues into token ids for one model.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    end_of_text: u32,
    n_positions: usize,
    persona_text: bool,
    choices: usize,
}

/// An utterance with its `<eot>`.
struct Utterance {
    ids: Vec<u32>,
    reply: bool,
}

impl Encoder {
    /// An encoder for a model with `n_positions` positions and `vocab_size` embedding rows, whose utterances end with
    /// token `end_of_text_id`.
    ///
    /// # Errors
    /// Where the tokenizer does not fit the model: [`EncodeError::VocabularyTooLarge`], [`EncodeError::NoEndOfText`],
    /// [`EncodeError::TextAsControl`]; [`EncodeError::NoRoom`] for fewer than two positions.
    pub fn new(
        tokenizer: Tokenizer,
        end_of_text_id: u32,
        n_positions: usize,
        vocab_size: usize,
    ) -> Result<Self, EncodeError> {
        let largest = tokenizer.largest_id();
        if largest as usize >= vocab_size {
            return Err(EncodeError::VocabularyTooLarge { largest, vocab_size });
        }
        let Some(spelled) = tokenizer.id_to_token(end_of_text_id) else {
            return Err(EncodeError::NoEndOfText { id: end_of_text_id });
        };
        if n_positions < 2 {
            return Err(EncodeError::NoRoom { n_positions, wanted: "a token and its target".into() });
        }
        let encoder = Self {
            tokenizer: Arc::new(tokenizer),
            end_of_text: end_of_text_id,
            n_positions,
            persona_text: false,
            choices: 0,
        };
        encoder.text(&spelled)?;
        Ok(encoder)
    }

    /// As [`Encoder::new`], with the tokenizer of a folder in Hugging Face's layout.
    ///
    /// # Errors
    /// As [`Encoder::new`] and [`load_tokenizer`].
    pub fn from_folder(
        folder: impl AsRef<Path>,
        end_of_text_id: u32,
        n_positions: usize,
        vocab_size: usize,
    ) -> Result<Self, EncodeError> {
        Self::new(load_tokenizer(folder)?, end_of_text_id, n_positions, vocab_size)
    }

    /// Whether the persona's sentences, joined by spaces, stand in front of every dialogue as an utterance that is
    /// never a target and never cut away (but within, where it would fill more than half the context). Off at first.
    #[must_use]
    pub fn with_persona_text(mut self, persona_text: bool) -> Self {
        self.persona_text = persona_text;
        self
    }

    /// How many candidates the choices of [`Encoder::example`] have at most, the gold one included (Wolf et al. 2019 take
    /// 2 to 4); below 2 there are no choices. None at first. With choices, every [`crate::Ranking`] has the closing
    /// `<eot>` of its candidates in its row, where a classifier reads the candidate's state.
    #[must_use]
    pub fn with_choices(mut self, candidates: usize) -> Self {
        self.choices = if candidates < 2 { 0 } else { candidates };
        self
    }

    /// How many candidates a choice has at most; 0 where there are none.
    pub fn choices(&self) -> usize {
        self.choices
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The token that ends every utterance.
    pub fn end_of_text_id(&self) -> u32 {
        self.end_of_text
    }

    /// The most tokens that the model's context holds.
    pub fn n_positions(&self) -> usize {
        self.n_positions
    }

    /// A whole dialogue, at most `n_positions` tokens.
    ///
    /// # Errors
    /// Where the tokenizer fails.
    pub fn sequence(&self, dialogue: &Dialogue) -> Result<Sequence, EncodeError> {
        let mut utterances = Vec::with_capacity(2 * dialogue.exchanges.len());
        for Exchange { partner, reply, .. } in &dialogue.exchanges {
            utterances.push(Utterance { ids: self.utterance(partner)?, reply: false });
            utterances.push(Utterance { ids: self.utterance(reply)?, reply: true });
        }
        let (persona, persona_cut) = self.persona(&dialogue.persona)?;
        let (kept, cut) = self.fit(utterances, self.n_positions - persona.len());
        let mut sequence = Sequence {
            target: vec![false; persona.len()],
            ids: persona,
            cut: cut + persona_cut,
            ..Sequence::default()
        };
        for utterance in kept {
            // Nothing stands before the first token of all, so nothing predicts it.
            let unpredicted = usize::from(sequence.ids.is_empty());
            if utterance.reply && utterance.ids.len() > unpredicted {
                sequence.replies += 1;
                sequence.words += self.decode(&utterance.ids).split_whitespace().count();
            }
            let target = (0..utterance.ids.len()).map(|token| utterance.reply && token >= unpredicted);
            sequence.target.extend(target);
            sequence.ids.extend(utterance.ids);
        }
        Ok(sequence)
    }

    /// A history of utterances, oldest first, the last one the partner's, cut so that `max_new` tokens fit after it.
    /// `persona` is the persona's sentences, used where the encoder has persona text.
    ///
    /// # Errors
    /// [`EncodeError::NoRoom`] where `max_new` leaves no position for the history; where the tokenizer fails.
    pub fn prompt<Text: AsRef<str>>(
        &self,
        persona: &[String],
        history: &[Text],
        max_new: usize,
    ) -> Result<Prompt, EncodeError> {
        let (mut ids, persona_cut) = self.persona(persona)?;
        let Some(room) = self.n_positions.checked_sub(ids.len() + max_new).filter(|room| *room > 0) else {
            return Err(EncodeError::NoRoom {
                n_positions: self.n_positions,
                wanted: format!("a history and {max_new} new tokens"),
            });
        };
        let mut utterances = self.utterances(history)?;
        if utterances.is_empty() {
            utterances.push(Utterance { ids: self.utterance("")?, reply: false });
        }
        let (kept, cut) = self.fit(utterances, room);
        ids.extend(kept.into_iter().flat_map(|utterance| utterance.ids));
        Ok(Prompt { ids, cut: cut + persona_cut })
    }

    /// The text of ids, without control tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids)
    }

    /// A decoder for a reply that is printed while it is generated.
    pub fn stream(&self) -> StreamDecoder {
        StreamDecoder::new(Arc::clone(&self.tokenizer))
    }

    /// The ids of a text, none of which is the end of text.
    fn text(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let ids = self.tokenizer.encode(text)?;
        if ids.contains(&self.end_of_text) {
            return Err(EncodeError::TextAsControl { text: text.to_owned() });
        }
        Ok(ids)
    }

    fn utterance(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids = self.text(text)?;
        ids.push(self.end_of_text);
        Ok(ids)
    }

    fn utterances<Text: AsRef<str>>(
        &self,
        texts: impl IntoIterator<Item = Text>,
    ) -> Result<Vec<Utterance>, EncodeError> {
        let encode = |text: Text| Ok(Utterance { ids: self.utterance(text.as_ref())?, reply: false });
        texts.into_iter().map(encode).collect()
    }

    /// The persona's sentences as an utterance, at most half the context, and how many utterances that cut (0 or 1).
    fn persona(&self, sentences: &[String]) -> Result<(Vec<u32>, usize), EncodeError> {
        if !self.persona_text || sentences.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let mut ids = self.utterance(&sentences.join(" "))?;
        let excess = ids.len().saturating_sub(self.n_positions / 2);
        ids.drain(..excess);
        Ok((ids, usize::from(excess > 0)))
    }

    /// Keeps the newest utterances that fit `room` tokens, and says how many were cut.
    fn fit(&self, utterances: Vec<Utterance>, mut room: usize) -> (Vec<Utterance>, usize) {
        let total = utterances.len();
        let mut kept = Vec::with_capacity(total);
        let mut partly = 0;
        for mut utterance in utterances.into_iter().rev() {
            let excess = utterance.ids.len().saturating_sub(room);
            if excess > 0 {
                let divisible = kept.is_empty() || utterance.ids.len() > self.n_positions;
                if divisible && room > 0 {
                    utterance.ids.drain(..excess);
                    kept.push(utterance);
                    partly = 1;
                }
                break;
            }
            room -= utterance.ids.len();
            kept.push(utterance);
        }
        kept.reverse();
        let cut = total - kept.len() + partly;
        (kept, cut)
    }
}
