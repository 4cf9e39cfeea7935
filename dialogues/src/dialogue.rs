//! The data as every reader gives it and every task uses it.

/// One turn of each speaker: what the partner said and what the persona replied. Texts are [`crate::clean`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Exchange {
    /// The partner's utterance, plain text; empty where the persona spoke first.
    pub partner: String,
    /// The persona's own reply, plain text.
    pub reply: String,
    /// Whether the reply is learned from and tested; else it is history for those after it.
    pub learned: bool,
    /// The candidates that Hits@1 ranks, the gold reply among them (in ConvAI2, last). Empty where the data has none.
    pub candidates: Vec<String>,
}

impl Exchange {
    /// An exchange that is learned from, without candidates.
    pub fn new(partner: impl Into<String>, reply: impl Into<String>) -> Self {
        Self { partner: partner.into(), reply: reply.into(), learned: true, candidates: Vec::new() }
    }
}

/// One dialogue of one persona, from the persona's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// The sentences that describe the persona, as far as the data has them.
    pub persona: Vec<String>,
    /// The sentences that describe the partner, as far as the data has them.
    pub partner_persona: Vec<String>,
    /// The exchanges in order; at least one that is learned from.
    pub exchanges: Vec<Exchange>,
    /// The line of the file on which the dialogue begins, from 1; in Hugging Face's JSON, which is one line, its number.
    pub line: usize,
}

impl Dialogue {
    /// Whether one of `others` holds the same exchanges, wherever it comes from.
    pub fn is_among(&self, others: &[Self]) -> bool {
        others.iter().any(|other| other.exchanges == self.exchanges)
    }
}
