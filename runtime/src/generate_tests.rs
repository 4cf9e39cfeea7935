use super::*;
use crate::sampling::Sampling;

const END: u32 = 9;

/// A model of ten tokens that always continues with the next number after the last token it read, and notes what it reads.
struct Counting {
    cached: Vec<u32>,
    context: usize,
    logits: Vec<f32>,
    reads: Vec<Vec<u32>>,
}

impl Counting {
    fn new(context: usize) -> Self {
        Self { cached: Vec::new(), context, logits: vec![0.0; 10], reads: Vec::new() }
    }
}

impl LanguageModel for Counting {
    fn context(&self) -> usize {
        self.context
    }
    fn cached(&self) -> &[u32] {
        &self.cached
    }
    fn truncate(&mut self, length: usize) {
        self.cached.truncate(length);
    }
    fn advance(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.cached.extend_from_slice(tokens);
        assert!(self.cached.len() <= self.context, "read beyond the context");
        self.reads.push(tokens.to_vec());
        self.logits.fill(0.0);
        self.logits[(tokens[tokens.len() - 1] as usize + 1) % 10] = 1.0;
        Ok(&self.logits)
    }
}

fn greedy(model: &mut Counting, prompt: &[u32], max_tokens: usize) -> Reply {
    let mut sampler = Sampler::new(Sampling::GREEDY).unwrap();
    let mut heard = Vec::new();
    let reply = generate(model, &mut sampler, prompt, END, max_tokens, |token| {
        heard.push(token);
        Ok(Go::On)
    })
    .unwrap();
    assert_eq!(heard, reply.tokens);
    reply
}

#[test]
fn a_reply_ends_with_the_end_of_text() {
    let mut model = Counting::new(100);
    let reply = greedy(&mut model, &[1, 4], 50);
    assert_eq!(reply, Reply { tokens: vec![5, 6, 7, 8], finish: Finish::EndOfText, prefilled: 2 });
    // One pass for the prompt, one a token.
    assert_eq!(model.reads, [vec![1, 4], vec![5], vec![6], vec![7], vec![8]]);
}

#[test]
fn a_reply_has_at_most_as_many_tokens_as_allowed() {
    let mut model = Counting::new(100);
    let reply = greedy(&mut model, &[0], 3);
    assert_eq!((reply.tokens.as_slice(), reply.finish), ([1, 2, 3].as_slice(), Finish::MaxTokens));
    // The last token is not read: nobody asks what comes after it.
    assert_eq!(model.cached, [0, 1, 2]);
    assert!(greedy(&mut model, &[0], 0).tokens.is_empty());
}

#[test]
fn a_conversation_reads_only_what_is_new() {
    let mut model = Counting::new(100);
    let reply = greedy(&mut model, &[5], 50);
    assert_eq!(reply.tokens, [6, 7, 8]);
    model.reads.clear();
    // The prompt, the reply, its end, and new words.
    let reply = greedy(&mut model, &[5, 6, 7, 8, END, 2], 2);
    assert_eq!((reply.tokens.as_slice(), reply.prefilled), ([3, 4].as_slice(), 2));
    assert_eq!(model.reads, [vec![END, 2], vec![3]]);
}

#[test]
fn a_prompt_that_is_in_the_cache_reads_its_last_token_again() {
    let mut model = Counting::new(100);
    greedy(&mut model, &[1, 2, 3], 4);
    assert_eq!(greedy(&mut model, &[1, 2, 3], 4).prefilled, 1);
    assert_eq!(
        greedy(&mut model, &[1, 2], 4),
        Reply { tokens: vec![3, 4, 5, 6], finish: Finish::MaxTokens, prefilled: 1 }
    );
}

#[test]
fn a_prompt_that_differs_early_is_read_anew_from_there() {
    let mut model = Counting::new(100);
    greedy(&mut model, &[1, 2, 3, 4], 1);
    model.reads.clear();
    greedy(&mut model, &[1, 7, 3, 4], 1);
    assert_eq!(model.reads, [vec![7, 3, 4]]);
    assert_eq!(model.cached, [1, 7, 3, 4]);
}

#[test]
fn the_context_is_filled_and_never_overrun() {
    let mut model = Counting::new(4);
    let reply = greedy(&mut model, &[1, 2], 50);
    // Two tokens are read, the third is predicted from a full context.
    assert_eq!((reply.tokens.as_slice(), reply.finish), ([3, 4, 5].as_slice(), Finish::Context));
    let mut model = Counting::new(2);
    assert_eq!(greedy(&mut model, &[1, 2], 50).tokens, [3]);
}

#[test]
fn impossible_prompts_are_refused() {
    let mut sampler = Sampler::new(Sampling::GREEDY).unwrap();
    for prompt in [&[][..], &[1, 2, 3]] {
        let result = generate(&mut Counting::new(2), &mut sampler, prompt, END, 5, |_| Ok(Go::On));
        assert!(result.unwrap_err().to_string().contains("expected 1 to 2"));
    }
}

#[test]
fn a_listener_can_stop_or_fail() {
    let mut sampler = Sampler::new(Sampling::GREEDY).unwrap();
    let mut model = Counting::new(100);
    let stop_at_3 = |token| Ok(if token == 3 { Go::Stop } else { Go::On });
    let reply = generate(&mut model, &mut sampler, &[1], END, 50, stop_at_3).unwrap();
    assert_eq!((reply.tokens.as_slice(), reply.finish), ([2, 3].as_slice(), Finish::Stopped));
    let fail = |_| Err(Error::Interrupted);
    assert!(generate(&mut model, &mut sampler, &[1], END, 50, fail).is_err());
}
