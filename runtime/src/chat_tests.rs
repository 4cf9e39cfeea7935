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

#[test]
fn a_stop_string_ends_a_reply_wherever_tokens_are_cut() {
    let (encoder, mut model, mut sampler) = setting(64, 6);
    let mut chat = Conversation::new(&encoder, vec![], 8);
    // The model says bbbbbb.
    for (stops, text, finish) in [
        (vec!["bbb"], "", Finish::StopString),
        (vec!["c", "bb"], "", Finish::StopString),
        (vec!["bbbbbbb"], "bbbbbb", Finish::EndOfText),
        (vec!["ba", ""], "bbbbbb", Finish::EndOfText),
    ] {
        chat.reset();
        chat.set_stops(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut heard = String::new();
        let said = chat.say(&mut model, &mut sampler, "a", |piece| {
            heard.push_str(piece);
            Ok(Go::On)
        });
        let said = said.unwrap();
        assert_eq!((said.text.as_str(), said.finish), (text, finish), "{stops:?}");
        assert_eq!(heard, text);
    }
    let strings = ["</s>".to_owned(), "you:".to_owned()];
    let mut stops = Stops { strings: &strings, held: String::new() };
    let mut push = |piece: &str| stops.push(piece);
    assert_eq!(push("a <"), ("a ".to_owned(), false));
    assert_eq!(push("b yo"), ("<b ".to_owned(), false));
    assert_eq!(push("yo"), ("yo".to_owned(), false));
    assert_eq!(push("u: x"), (String::new(), true));
}

#[test]
fn the_last_exchange_is_said_again_taken_back_or_corrected() {
    let (encoder, mut model, mut sampler) = setting(64, 3);
    let mut chat = Conversation::new(&encoder, vec![], 8);
    let go = |_: &str| Ok(Go::On);
    assert!(!chat.undo() && !chat.correct("x"));
    assert_eq!(chat.regenerate(&mut model, &mut sampler, go).unwrap(), None);
    chat.say(&mut model, &mut sampler, "a", go).unwrap();
    chat.say(&mut model, &mut sampler, "c", go).unwrap();
    assert!(chat.correct("d e"));
    assert_eq!(chat.history(), ["a", "bbb", "c", "d e"]);
    let again = chat.regenerate(&mut model, &mut sampler, go).unwrap().unwrap();
    assert_eq!((again.text.as_str(), chat.history().last().unwrap().as_str()), ("bbb", "bbb"));
    assert_eq!(chat.exchanges(), [Exchange::new("a", "bbb"), Exchange::new("c", "bbb")]);
    assert!(chat.undo());
    assert_eq!(chat.history(), ["a", "bbb"]);
    chat.resume(["x", "y", "z"].map(String::from).to_vec());
    assert_eq!(chat.history(), ["x", "y"]);
    // What fails leaves the reply as it was.
    let failed = chat.regenerate(&mut model, &mut sampler, |_| Err(Error::Interrupted));
    assert!(failed.is_err() && chat.history() == ["x", "y"]);
}
