//! Perplexity, Hits@1 and F1, as ConvAI2 defines them (Dinan et al. 2019; ParlAI's metrics), and the report of an
//! evaluation.

use std::collections::HashMap;
use std::fmt;

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

/// The candidate with the highest mean log-probability, the first of equals; `None` where there is no candidate, or one
/// of them has no log-probability at all.
///
/// `log_probs[n]` (nats) belongs to candidate `candidate[n]`, which is less than `candidates`.
pub fn best_candidate(log_probs: &[f32], candidate: &[u32], candidates: usize) -> Option<usize> {
    let mut sums = vec![(0.0_f64, 0_u32); candidates];
    for (&log_prob, &owner) in log_probs.iter().zip(candidate) {
        let (sum, count) = sums.get_mut(owner as usize)?;
        *sum += f64::from(log_prob);
        *count += 1;
    }
    let mut best: Option<(usize, f64)> = None;
    for (index, (sum, count)) in sums.into_iter().enumerate() {
        if count == 0 {
            return None;
        }
        let mean = sum / f64::from(count);
        if best.is_none_or(|(_, highest)| mean > highest) {
            best = Some((index, mean));
        }
    }
    best.map(|(index, _)| index)
}

/// Sums from which the metrics follow; sums of parts can be merged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
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
    }

    /// `exp(nll / tokens)`; `None` without tokens.
    pub fn perplexity(&self) -> Option<f64> {
        exp_mean(self.nll, self.tokens)
    }

    /// `exp(nll / words)`, which alone compares between tokenizers; `None` without words.
    pub fn perplexity_per_word(&self) -> Option<f64> {
        exp_mean(self.nll, self.words)
    }

    /// Per cent of the ranked exchanges whose top candidate was the gold; `None` where nothing was ranked.
    pub fn hits_at_1(&self) -> Option<f64> {
        (self.ranked > 0).then(|| 100.0 * self.hits as f64 / self.ranked as f64)
    }

    /// Mean F1 of the generated replies in per cent; `None` where nothing was generated.
    pub fn f1(&self) -> Option<f64> {
        (self.generated > 0).then(|| 100.0 * self.f1_sum / self.generated as f64)
    }
}

/// Infinity has no JSON, so a mean beyond what a double can exponentiate becomes the largest double.
fn exp_mean(nll: f64, count: usize) -> Option<f64> {
    (count > 0).then(|| (nll / count as f64).exp().min(f64::MAX))
}

/// The metrics after adapting on K dialogues.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShotResult {
    /// K, the dialogues adapted on; personas with fewer use all they have.
    pub k: usize,
    /// Perplexity per token of the replies.
    pub perplexity: f64,
    /// Perplexity per white-space word of the replies.
    pub perplexity_per_word: f64,
    /// Hits@1 in per cent, where the data has candidates.
    pub hits_at_1: Option<f64>,
    /// F1 in per cent, where replies were generated.
    pub f1: Option<f64>,
    /// Replies tested on.
    pub replies: usize,
    /// Personas tested on.
    pub personas: usize,
}

impl ShotResult {
    /// The metrics of a tally; `None` where it counted no tokens or no words.
    pub fn new(k: usize, tally: &Tally, personas: usize) -> Option<Self> {
        Some(Self {
            k,
            perplexity: tally.perplexity()?,
            perplexity_per_word: tally.perplexity_per_word()?,
            hits_at_1: tally.hits_at_1(),
            f1: tally.f1(),
            replies: tally.replies,
            personas,
        })
    }
}

/// What `evaluate --json` prints: one result for each K. `Display` prints it as an aligned table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// One result for each K, in the order asked for.
    pub shots: Vec<ShotResult>,
    /// Wall-clock seconds that the evaluation took.
    pub seconds: f64,
}

impl fmt::Display for Evaluation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:>5}  {:>10}  {:>12}  {:>7}  {:>6}  {:>7}  {:>8}",
            "shots", "perplexity", "ppl per word", "Hits@1", "F1", "replies", "personas"
        )?;
        let or_dash = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        for shot in &self.shots {
            writeln!(
                out,
                "{:>5}  {:>10.2}  {:>12.2}  {:>7}  {:>6}  {:>7}  {:>8}",
                shot.k,
                shot.perplexity,
                shot.perplexity_per_word,
                or_dash(shot.hits_at_1),
                or_dash(shot.f1),
                shot.replies,
                shot.personas
            )?;
        }
        write!(out, "{:.1} s", self.seconds)
    }
}
