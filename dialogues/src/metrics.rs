//! Perplexity, Hits@1 and F1, as ConvAI2 defines them (Dinan et al. 2019; ParlAI's metrics).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// ConvAI2's normal form of an utterance: lower case; each punctuation character of ASCII a space; the words `a`, `an`
/// and `the` left out; one space between words.
pub fn normalise(text: &str) -> String {
    let spaced: String = text
        .to_lowercase()
        .chars()
        .map(|character| if character.is_ascii_punctuation() { ' ' } else { character })
        .collect();
    // `\b(a|an|the)\b`: a run of word characters that is exactly an article, whatever non-word characters surround it.
    let mut bare = String::with_capacity(spaced.len());
    let mut rest = spaced.as_str();
    while !rest.is_empty() {
        let word_end = rest.find(|character: char| !character.is_alphanumeric()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        bare.push_str(if matches!(word, "a" | "an" | "the") { " " } else { word });
        let next_word = after.find(char::is_alphanumeric).unwrap_or(after.len());
        let (gap, after) = after.split_at(next_word);
        bare.push_str(gap);
        rest = after;
    }
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Unigram F1 of a reply against the gold reply, both normalised: `2PR/(P+R)` over the multiset of words in common,
/// between 0 and 1; 0 where there is none.
pub fn f1(hypothesis: &str, reference: &str) -> f64 {
    let (hypothesis, reference) = (normalise(hypothesis), normalise(reference));
    let mut remaining: HashMap<&str, usize> = HashMap::new();
    for word in reference.split_whitespace() {
        *remaining.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in hypothesis.split_whitespace() {
        if let Some(count) = remaining.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let precision = f64::from(common) / hypothesis.split_whitespace().count() as f64;
    let recall = f64::from(common) / reference.split_whitespace().count() as f64;
    2.0 * precision * recall / (precision + recall)
}

/// Whether the top candidate is the gold reply, both normalised.
pub fn hits_at_1(top: &str, gold: &str) -> bool {
    normalise(top) == normalise(gold)
}

/// Sums from which the metrics follow; sums of parts can be merged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Negative log-likelihood of the target tokens, summed, in nats.
    pub nll: f64,
    /// Target tokens.
    pub tokens: usize,
    /// White-space words of the replies that the targets spell.
    pub words: usize,
    /// Replies whose negative log-likelihood was counted.
    pub replies: usize,
    /// Exchanges whose top candidate was the gold reply.
    pub hits: usize,
    /// Exchanges whose candidates were ranked.
    pub ranked: usize,
    /// F1 of the generated replies, summed.
    pub f1_sum: f64,
    /// Replies that were generated.
    pub generated: usize,
    /// The persona's own words, where replies were generated.
    #[serde(default)]
    pub own_words: usize,
    /// How many of them these replies use.
    #[serde(default)]
    pub recalled: usize,
    /// How many of them as many replies for other personas use, on the average.
    #[serde(default)]
    pub recalled_elsewhere: f64,
    /// Personas whose style was measured.
    #[serde(default)]
    pub styled: usize,
    /// The distance of the generated replies' style from the persona's, summed.
    #[serde(default)]
    pub style: f64,
    /// The same from other personas', on the average of these.
    #[serde(default)]
    pub style_elsewhere: f64,
    /// What a judge made of the generated replies ([`crate::Judge`]), summed.
    #[serde(default)]
    pub consistency: i64,
    /// Replies that it judged.
    #[serde(default)]
    pub judged: usize,
    /// Negative log-likelihood of the replies of people who are none of the personas, summed, in nats.
    #[serde(default)]
    pub reference_nll: f64,
    /// Target tokens of these.
    #[serde(default)]
    pub reference_tokens: usize,
}

impl Tally {
    /// Adds the sums of another part.
    pub fn merge(&mut self, other: &Self) {
        self.nll += other.nll;
        self.tokens += other.tokens;
        self.words += other.words;
        self.replies += other.replies;
        self.hits += other.hits;
        self.ranked += other.ranked;
        self.f1_sum += other.f1_sum;
        self.generated += other.generated;
        self.own_words += other.own_words;
        self.recalled += other.recalled;
        self.recalled_elsewhere += other.recalled_elsewhere;
        self.styled += other.styled;
        self.style += other.style;
        self.style_elsewhere += other.style_elsewhere;
        self.consistency += other.consistency;
        self.judged += other.judged;
        self.reference_nll += other.reference_nll;
        self.reference_tokens += other.reference_tokens;
    }

    /// Nats, and the tokens that they are of: as all that follow a sum and its count, whose quotient is a metric.
    pub(crate) fn nats(&self) -> (f64, usize) {
        (self.nll, self.tokens)
    }

    /// Gold candidates that were the top one, of those ranked.
    pub(crate) fn hit_share(&self) -> (f64, usize) {
        (self.hits as f64, self.ranked)
    }

    /// F1, of the replies that were generated.
    pub(crate) fn f1_share(&self) -> (f64, usize) {
        (self.f1_sum, self.generated)
    }

    /// Own words that the replies use beyond those that other people's use, of all.
    pub(crate) fn recall_share(&self) -> (f64, usize) {
        (self.recalled as f64 - self.recalled_elsewhere, self.own_words)
    }

    /// How much nearer the style is than other people's, of the personas whose style was measured.
    pub(crate) fn style_share(&self) -> (f64, usize) {
        (self.style_elsewhere - self.style, self.styled)
    }

    /// `exp(nll / tokens)`; `None` without tokens.
    pub fn perplexity(&self) -> Option<f64> {
        exp_mean(self.nats())
    }

    /// `exp(nll / words)`, which alone compares between tokenizers; `None` without words.
    pub fn perplexity_per_word(&self) -> Option<f64> {
        exp_mean((self.nll, self.words))
    }

    /// Per cent of the ranked exchanges whose top candidate was the gold; `None` where nothing was ranked.
    pub fn hits_at_1(&self) -> Option<f64> {
        per_cent(self.hit_share())
    }

    /// Mean F1 of the generated replies in per cent; `None` where nothing was generated.
    pub fn f1(&self) -> Option<f64> {
        per_cent(self.f1_share())
    }

    /// Per cent of the persona's own words that the generated replies use, less those that other personas' use; `None` where neither was
    /// measured.
    pub fn recall_margin(&self) -> Option<f64> {
        per_cent(self.recall_share())
    }

    /// How much nearer the generated replies' style is to the persona's than to other personas', a hundredth of the distance of styles
    /// that have nothing in common; `None` where it was not measured.
    pub fn style_margin(&self) -> Option<f64> {
        per_cent(self.style_share())
    }

    /// PAML's consistency of a generated reply (Madotto et al. 2019, equation 5): of the persona's sentences, those that it entails less those
    /// that it contradicts, on the average; `None` where none was judged.
    pub fn consistency(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.consistency as f64 / self.judged as f64)
    }

    /// Perplexity per token of the replies of people who are none of the personas; `None` where there are none.
    pub fn reference_perplexity(&self) -> Option<f64> {
        exp_mean((self.reference_nll, self.reference_tokens))
    }
}

/// Infinity has no JSON, so a mean beyond what a double can exponentiate becomes the largest double.
fn exp_mean((nll, count): (f64, usize)) -> Option<f64> {
    (count > 0).then(|| (nll / count as f64).exp().min(f64::MAX))
}

fn per_cent((sum, count): (f64, usize)) -> Option<f64> {
    (count > 0).then(|| 100.0 * sum / count as f64)
}
