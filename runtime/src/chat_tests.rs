use marionette_dialogues::{Tokenizer, train_bpe};
use marionette_models::PromptForm;

use super::*;
use crate::error::Error;
use crate::sampling::Sampling;

/// A model that replies with the letter `b` so many times, and notes how many tokens it reads at once.
struct Parrot {
    letter: u32,
    end: u32,
    times: usize,
    said: usize,
    cached: Vec<u32>,
    logits: Vec<f32>,
    context: usize,
    reads: Vec<usize>,
}

impl LanguageModel for Parrot {
    fn context(&self) -> usize {
        self.context
    }
    fn cached(&self) -> &[u32] {
        &self.cached
    }
    fn truncate(&mut self, length: usize) {
        self.cached.truncate(length);
        self.said = 0;
    }
    fn advance(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.cached.extend_from_slice(tokens);
        assert!(self.cached.len() <= self.context);
        self.reads.push(tokens.len());
        let next = if self.said < self.times { self.letter } else { self.end };
        self.said += 1;
        self.logits.fill(0.0);
        self.logits[next as usize] = 1.0;
        Ok(&self.logits)
    }
}

/// Bytes alone: every letter is a token.
fn letters() -> Tokenizer {
    train_bpe([""], 257).unwrap()
}

fn setting(context: usize, times: usize) -> (Encoder, Parrot, Sampler) {
    let tokenizer = letters();
    let (letter, end) = (tokenizer.encode("b").unwrap()[0], tokenizer.end_of_text_id().unwrap());
    let encoder = Encoder::new(tokenizer, PromptForm::plain(end), context, 257).unwrap();
    let parrot = Parrot { letter, end, times, said: 0, cached: vec![], logits: vec![0.0; 257], context, reads: vec![] };
    (encoder, parrot, Sampler::new(Sampling::GREEDY).unwrap())
}

#[test]
fn later_turns_read_only_what_is_new() {
    let (encoder, mut model, mut sampler) = setting(64, 3);
    let mut chat = Conversation::new(&encoder, vec![], 8);
    let mut streamed = String::new();
    let mut hear = |piece: &str| {
        streamed.push_str(piece);
        Ok(Go::On)
    };
    let said = chat.say(&mut model, &mut sampler, "hello", &mut hear).unwrap();
    assert_eq!((said.text.as_str(), said.finish, said.prefilled), ("bbb", Finish::EndOfText, 6));
    let said = chat.say(&mut model, &mut sampler, "yes", &mut hear).unwrap();
    // The reply's end, the three letters and their end.
    assert_eq!((said.prefilled, said.forgotten), (5, 0));
    assert_eq!(streamed, "bbbbbb");
}

#[test]
fn a_full_context_forgets_the_oldest_and_reads_the_rest_once() {
    let (encoder, mut model, mut sampler) = setting(32, 3);
    let mut chat = Conversation::new(&encoder, vec![], 4);
    let mut full_reads = 0;
    for _ in 0..20 {
        let said = chat.say(&mut model, &mut sampler, "abc", |_| Ok(Go::On)).unwrap();
        assert_eq!(said.text, "bbb");
        assert!(said.forgotten.is_multiple_of(2) && !said.cut);
        full_reads += usize::from(said.forgotten > 0);
    }
    // An exchange takes 8 of 32 tokens, and forgetting leaves at most 16: not every turn may read everything anew.
    assert!((4..=10).contains(&full_reads), "{full_reads}");
    // Words longer than the context are cut, not refused.
    assert!(chat.say(&mut model, &mut sampler, &"long".repeat(50), |_| Ok(Go::On)).unwrap().cut);
}

#[test]
fn words_without_a_reply_are_not_remembered() {
    let (encoder, mut model, mut sampler) = setting(64, 3);
    let mut chat = Conversation::new(&encoder, vec![], 8);
    assert!(chat.say(&mut model, &mut sampler, "hello", |_| Err(Error::Interrupted)).is_err());
    model.truncate(0);
    assert_eq!(chat.say(&mut model, &mut sampler, "you", |_| Ok(Go::On)).unwrap().prefilled, 4);
    chat.reset();
    model.truncate(0);
    assert_eq!(chat.say(&mut model, &mut sampler, "me", |_| Ok(Go::On)).unwrap().prefilled, 3);
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    assert_eq!(printable("a\u{1b}[31mé\n"), "a [31mé ");
}
