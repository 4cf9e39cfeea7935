//! Generating a reply, told as steps over any language model.

use crate::error::{Error, Result};
use crate::sampling::Sampler;

/// What generation needs of a model: a cache of the tokens it has read, and the logits of what comes next.
pub trait LanguageModel {
    /// The most tokens that the cache holds.
    fn context(&self) -> usize;

    /// The tokens in the cache, oldest first.
    fn cached(&self) -> &[u32];

    /// Forgets all but the first `length` tokens of the cache.
    fn truncate(&mut self, length: usize);

    /// Reads one token or more after those in the cache, and gives the logits \[V\] of the token after them. They must fit
    /// the context.
    ///
    /// # Errors
    /// The model fails; the cache may then be empty.
    fn advance(&mut self, tokens: &[u32]) -> Result<&[f32]>;
}

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    EndOfText,
    /// It has as many tokens as were allowed.
    MaxTokens,
    /// The context is full.
    Context,
    /// The listener asked to stop.
    Stopped,
    /// One of the strings came that end a reply.
    StopString,
}

impl Finish {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end_of_text",
            Self::MaxTokens => "max_tokens",
            Self::Context => "context",
            Self::Stopped => "stopped",
            Self::StopString => "stop_string",
        }
    }
}

/// What a listener says to each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// Go on.
    On,
    /// Stop here.
    Stop,
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its tokens, without the end of text.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// How many tokens of the prompt were read anew; the others were in the cache.
    pub prefilled: usize,
}

/// Generates at most `max_tokens` tokens after `prompt`; `heard` gets each of them, the end of text excepted.
///
/// 1. What the prompt has in common with the cache stays there: in a chat, all but the newest words.
/// 2. Prefill: the rest of the prompt is read in one pass.
/// 3. The next token is drawn.
/// 4. It is the end of text, or it is heard and kept.
/// 5. Decode: it is read, which gives the logits for step 3.
///
/// # Errors
/// The prompt is empty or fills the context; the model fails; its logits are no distribution.
pub fn generate(
    model: &mut impl LanguageModel,
    sampler: &mut Sampler,
    prompt: &[u32],
    end_of_text: u32,
    max_tokens: usize,
    mut heard: impl FnMut(u32) -> Result<Go>,
) -> Result<Reply> {
    let context = model.context();
    if prompt.is_empty() || prompt.len() > context {
        let problem = format!("the prompt has {} tokens, expected 1 to {context}", prompt.len());
        return Err(Error::Impossible(problem));
    }
    // 1. At least one token is read again, since its logits are not kept.
    let common = model.cached().iter().zip(prompt).take_while(|(cached, wanted)| cached == wanted).count();
    let common = common.min(prompt.len() - 1);
    model.truncate(common);
    let rest = prompt.get(common..).unwrap_or_default();
    let mut reply = Reply { tokens: Vec::new(), finish: Finish::MaxTokens, prefilled: rest.len() };
    if max_tokens == 0 {
        return Ok(reply);
    }
    // 2.
    let mut logits = model.advance(rest)?;
    let mut history = prompt.to_vec();
    loop {
        // 3.
        let token = sampler.sample(logits, &history)?;
        // 4.
        if token == end_of_text {
            reply.finish = Finish::EndOfText;
            return Ok(reply);
        }
        reply.tokens.push(token);
        history.push(token);
        if heard(token)? == Go::Stop {
            reply.finish = Finish::Stopped;
            return Ok(reply);
        }
        if reply.tokens.len() == max_tokens {
            return Ok(reply);
        }
        if history.len() > context {
            reply.finish = Finish::Context;
            return Ok(reply);
        }
        // 5.
        logits = model.advance(&[token])?;
    }
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
