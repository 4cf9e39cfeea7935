//! Dialogue to token ids: the one definition for trainer and device.
//!
//! What stands around the utterances is the model's own [`PromptForm`]: `u1 <eot> r1 <eot> …`, `<eot>` being `<|endoftext|>`, for
//! GPT-2, and for a model with a chat template its turns. Targets are the tokens of the persona's own replies and the one
//! that ends each. Empty words of the partner (the persona spoke first) are what stands around them alone.
//!
//! A dialogue longer than the context is read in windows: each reply is a target once, after as much history as fits. Of the
//! history before a reply that is to come (a prompt, candidates) the oldest utterances are cut, whole; only one that the context
//! could not hold by itself, or the newest one where it does not fit, is cut within, at its oldest tokens.

mod candidates;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use marionette_models::{ModelConfig, PromptForm, Turn};

use crate::chat_template::prompt_form;
use crate::{Dialogue, EncodeError, Exchange, Prompt, Sequence, StreamDecoder, Tokenizer, clean, load_tokenizer};

/// What turns dialogues into token ids for one model.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    form: PromptForm,
    /// The token that ends a reply.
    end: u32,
    /// The tokens that no text may become.
    controls: Vec<u32>,
    n_positions: usize,
    persona_text: bool,
    choices: usize,
}

/// An utterance and what stands around it.
struct Utterance {
    ids: Vec<u32>,
    /// Where its own tokens begin.
    first: usize,
    /// How many they are.
    own: usize,
}

impl Utterance {
    /// Cuts its oldest tokens: its own first, and what stands around it where they are not enough.
    fn cut(&mut self, excess: usize) {
        let own = excess.min(self.own);
        self.ids.drain(self.first..self.first + own);
        self.own -= own;
        self.ids.drain(..excess - own);
        self.first = self.first.saturating_sub(excess - own);
    }

    /// Where its own tokens end, and the one that ends it comes.
    fn end(&self) -> usize {
        self.first + self.own
    }
}

/// All tokens of a dialogue.
#[derive(Default)]
struct Stream {
    ids: Vec<u32>,
    /// Whether each is a target.
    target: Vec<bool>,
    /// Where utterances begin, and how many tokens of each come before its own.
    starts: Vec<(usize, usize)>,
    /// Where exchanges end.
    ends: Vec<usize>,
    /// The targets of each reply that is learned, and its exchange.
    replies: Vec<(Range<usize>, usize)>,
}

/// A part of a dialogue that fits the context.
struct Window {
    sequence: Sequence,
    /// The exchanges whose replies end in it.
    exchanges: Vec<usize>,
}

impl Stream {
    fn push(&mut self, utterance: Utterance) {
        self.starts.push((self.ids.len(), utterance.first));
        self.ids.extend(utterance.ids);
    }

    /// Where the window whose first target may be token `begun` ends: as many whole exchanges as fit `room` where none is before
    /// them, else half of it, but at least one; a part of one that does not fit at all.
    fn window_end(&self, begun: usize, room: usize) -> usize {
        let half = (room / 2).max(1);
        let last_until = |most: usize| {
            let reached = self.ends.partition_point(|&end| end <= begun + most);
            self.ends.get(..reached).and_then(<[usize]>::last).copied().filter(|&end| end > begun)
        };
        // A reply at the beginning would have nothing before it.
        let is_start =
            self.starts.binary_search_by_key(&begun, |&(start, _)| start).is_ok_and(|at| at.is_multiple_of(2));
        let usual = if begun == 0 { room } else { half };
        let whole = last_until(usual).or_else(|| last_until(room).filter(|_| is_start));
        whole.unwrap_or_else(|| (begun + usual).min(self.ids.len()))
    }

    /// Tokens `begun..ended` and as much before them as fits `room`, behind `front`. History begins with an utterance; where the only
    /// one that reaches into it is too long, with what stands around that one and the newest of its own.
    fn window(&self, begun: usize, ended: usize, room: usize, front: &[u32]) -> Window {
        let from = ended.saturating_sub(room);
        let next = self.starts.partition_point(|&(start, _)| start < from);
        let mut around = 0..0;
        // A reply that is the first in the window has words before it, if only the end of some.
        let has_words = |&&(start, _): &&(usize, usize)| start < begun || (start == begun && next.is_multiple_of(2));
        let first = match self.starts.get(next).filter(has_words) {
            Some(&(start, _)) => start,
            None => {
                let cut = next.checked_sub(1).and_then(|index| self.starts.get(index));
                let (start, before) = cut.copied().unwrap_or_default();
                if from + before <= begun {
                    around = start..start + before;
                }
                from + around.len()
            }
        };
        let of = |range: Range<usize>| self.ids.get(range).unwrap_or_default();
        let ids = [front, of(around), of(first..ended)].concat();
        let mut target = vec![false; ids.len()];
        let targets = self.target.get(begun..ended).unwrap_or_default();
        let given = ids.len() - targets.len();
        target.splice(given.., targets.iter().copied());
        // Nothing stands before the first token of all, so nothing predicts it.
        target.iter_mut().take(1).for_each(|first| *first = false);
        Window { sequence: Sequence { ids, target, ..Sequence::default() }, exchanges: Vec::new() }
    }
}

impl Encoder {
    /// An encoder for a model with `n_positions` positions and `vocab_size` embedding rows, whose dialogues have this form.
    ///
    /// # Errors
    /// Where the tokenizer does not fit the model: [`EncodeError::VocabularyTooLarge`], [`EncodeError::NoEndOfText`],
    /// [`EncodeError::TextAsControl`]; [`EncodeError::NoRoom`] for fewer positions than a token and its target take with what
    /// stands around them.
    pub fn new(
        tokenizer: Tokenizer,
        form: PromptForm,
        n_positions: usize,
        vocab_size: usize,
    ) -> Result<Self, EncodeError> {
        let largest = tokenizer.largest_id();
        if largest as usize >= vocab_size {
            return Err(EncodeError::VocabularyTooLarge { largest, vocab_size });
        }
        let end = form.end().ok_or(EncodeError::NoEndOfText { id: u32::MAX })?;
        if let Some(id) = form.tokens().find(|&id| tokenizer.id_to_token(id).is_none()) {
            return Err(EncodeError::NoEndOfText { id });
        }
        let mut controls: Vec<u32> = form.tokens().filter(|&id| id == end || tokenizer.is_added(id)).collect();
        controls.sort_unstable();
        controls.dedup();
        // Beside what stands around them, a token of the partner's and one of the reply's; of GPT-2 a token and its target.
        if n_positions < form.overhead().max(2) {
            return Err(EncodeError::NoRoom { n_positions, wanted: "a token and its target".into() });
        }
        let encoder =
            Self { tokenizer: Arc::new(tokenizer), form, end, controls, n_positions, persona_text: false, choices: 0 };
        for &control in &encoder.controls {
            encoder.text(&encoder.tokenizer.id_to_token(control).unwrap_or_default())?;
        }
        Ok(encoder)
    }

    /// An encoder for the model of a folder in Hugging Face's layout: with its tokenizer, in the form of its chat template, or where
    /// it has none with utterances that the model's end of text ends.
    ///
    /// # Errors
    /// As [`Encoder::new`] and [`load_tokenizer`]; the chat template is not one of turns.
    pub fn from_folder(folder: impl AsRef<Path>, config: &ModelConfig) -> Result<Self, EncodeError> {
        let tokenizer = load_tokenizer(&folder)?;
        let form = prompt_form(folder.as_ref(), &tokenizer, config.eos_token_id)?;
        Self::new(tokenizer, form, config.n_positions, config.vocab_size)
    }

    /// How a dialogue becomes tokens.
    pub fn form(&self) -> &PromptForm {
        &self.form
    }

    /// Whether the persona's sentences, joined by spaces, stand in front of every dialogue (as an utterance for GPT-2, as the system's
    /// turn in a chat template), never a target and never cut away (but within, where they would fill more than half the
    /// context). Off at first.
    #[must_use]
    pub fn with_persona_text(mut self, persona_text: bool) -> Self {
        self.persona_text = persona_text;
        self
    }

    /// How many candidates the choices of [`Encoder::examples`] have at most, the gold one included (Wolf et al. 2019 take
    /// 2 to 4); below 2 there are no choices. None at first. With choices, every [`crate::Ranking`] has the closing
    /// token of its candidates in its row, where a classifier reads the candidate's state.
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

    /// The token that ends a reply.
    pub fn end_id(&self) -> u32 {
        self.end
    }

    /// The most tokens that the model's context holds.
    pub fn n_positions(&self) -> usize {
        self.n_positions
    }

    /// A dialogue as sequences of at most `n_positions` tokens: one, where it fits; else windows. The first window begins with the
    /// dialogue and ends with the last reply that fits; each further one has the next replies, up to half the context, and before
    /// them as much history as fits, none of it a target. A reply longer than half the context is divided. Windows without a
    /// target are left out.
    ///
    /// # Errors
    /// Where the tokenizer fails.
    pub fn windows(&self, dialogue: &Dialogue) -> Result<Vec<Sequence>, EncodeError> {
        Ok(self.divided(dialogue)?.into_iter().map(|window| window.sequence).collect())
    }

    /// The windows of a dialogue, each with the exchanges whose replies end in it.
    fn divided(&self, dialogue: &Dialogue) -> Result<Vec<Window>, EncodeError> {
        let stream = self.whole(dialogue)?;
        let (front, persona_cut) = self.begin(&dialogue.persona)?;
        let (room, length) = (self.n_positions - front.len(), stream.ids.len());
        let mut windows = Vec::new();
        let mut begun = 0;
        while begun < length {
            let ended = stream.window_end(begun, room);
            let mut window = stream.window(begun, ended, room, &front);
            window.sequence.cut = persona_cut;
            window.sequence.again = if begun == 0 { 0 } else { window.sequence.ids.len() - (ended - begun) };
            for (reply, index) in stream.replies.iter().filter(|(reply, _)| (begun..ended).contains(&(reply.end - 1))) {
                let own = stream.ids.get(reply.start..reply.end - 1).unwrap_or_default();
                window.sequence.words += self.decode(own).split_whitespace().count();
                window.sequence.replies += 1;
                window.exchanges.push(*index);
            }
            if window.sequence.targets() > 0 {
                windows.push(window);
            }
            begun = ended;
        }
        Ok(windows)
    }

    /// All tokens of a dialogue, one after the other, but for what stands before the first utterance.
    fn whole(&self, dialogue: &Dialogue) -> Result<Stream, EncodeError> {
        let mut stream = Stream::default();
        for (index, Exchange { partner, reply, learned, .. }) in dialogue.exchanges.iter().enumerate() {
            stream.push(self.of_partner(partner)?);
            let first = stream.ids.len();
            let reply = self.reply(reply)?;
            // What stands before a reply is given, what comes after its end is too.
            let own = first + reply.first..first + reply.end() + 1;
            stream.push(reply);
            stream.ends.push(stream.ids.len());
            if *learned {
                stream.replies.push((own, index));
            }
        }
        stream.target = vec![false; stream.ids.len()];
        for (own, _) in &stream.replies {
            stream.target.get_mut(own.clone()).into_iter().for_each(|own| own.fill(true));
        }
        Ok(stream)
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
        let (mut ids, persona_cut) = self.begin(persona)?;
        let asked = &self.form.reply.before;
        let taken = ids.len() + asked.len() + max_new;
        let Some(room) = self.n_positions.checked_sub(taken).filter(|room| *room > 0) else {
            return Err(EncodeError::NoRoom {
                n_positions: self.n_positions,
                wanted: format!("a history and {max_new} new tokens"),
            });
        };
        let mut utterances = self.utterances(history)?;
        if utterances.is_empty() {
            utterances.push(self.of_partner("")?);
        }
        let (kept, cut) = self.fit(utterances, room);
        ids.extend(kept.into_iter().flat_map(|utterance| utterance.ids));
        ids.extend(asked);
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

    /// The ids of a text, none of which controls anything. Whoever it comes from, it is cleaned: what is typed must give the tokens
    /// that it gave in training.
    fn text(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let ids = self.tokenizer.encode(&clean(text))?;
        if ids.iter().any(|id| self.controls.contains(id)) {
            return Err(EncodeError::TextAsControl { text: text.to_owned() });
        }
        Ok(ids)
    }

    /// A text with what stands around it.
    fn turn(&self, text: &str, turn: &Turn) -> Result<Utterance, EncodeError> {
        let own = self.text(text)?;
        let ids = [&turn.before[..], &own, &turn.after].concat();
        Ok(Utterance { ids, first: turn.before.len(), own: own.len() })
    }

    fn of_partner(&self, text: &str) -> Result<Utterance, EncodeError> {
        self.turn(text, &self.form.partner)
    }

    fn reply(&self, text: &str) -> Result<Utterance, EncodeError> {
        self.turn(text, &self.form.reply)
    }

    /// Utterances in turn, the last one the partner's.
    fn utterances<Text: AsRef<str>>(&self, texts: &[Text]) -> Result<Vec<Utterance>, EncodeError> {
        let from_last = |index: usize| texts.len() - 1 - index;
        let encode = |(index, text): (usize, &Text)| match from_last(index) % 2 {
            0 => self.of_partner(text.as_ref()),
            _ => self.reply(text.as_ref()),
        };
        texts.iter().enumerate().map(encode).collect()
    }

    /// What stands before the first utterance: the persona's sentences, at most half the context, where there are any, and how
    /// many utterances that cut (0 or 1).
    fn begin(&self, sentences: &[String]) -> Result<(Vec<u32>, usize), EncodeError> {
        if !self.persona_text || sentences.is_empty() {
            return Ok((self.form.begin.clone(), 0));
        }
        let mut persona = self.turn(&sentences.join(" "), &self.form.persona)?;
        let excess = persona.ids.len().saturating_sub(self.n_positions / 2);
        persona.cut(excess);
        Ok((persona.ids, usize::from(excess > 0)))
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
                    utterance.cut(excess);
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
