//! The results of a comparison, as they are stored and drawn.

use serde::{Deserialize, Serialize};

/// A comparison of methods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What was compared, in a few words.
    pub title: String,
    /// The base model.
    pub base: String,
    /// The dialogue files.
    pub data: Vec<String>,
    /// How many personas were for what.
    pub personas: Split,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// What candidates were ranked by.
    pub rank_by: String,
    /// The command that was run.
    pub command: String,
    /// The machine that ran it.
    pub machine: String,
    /// The inner loop and the budget, in one line.
    pub recipe: String,
    /// One a method, in the order of the paper's table.
    pub methods: Vec<MethodResult>,
    /// What a reader must know beside.
    pub notes: Vec<String>,
}

/// Numbers of personas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// To train on.
    pub train: usize,
    /// To validate on.
    pub valid: usize,
    /// To test on.
    pub test: usize,
}

/// A row of the paper's table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PaperRow {
    /// The paper's name of the method.
    pub name: String,
    /// Perplexity.
    pub perplexity: Option<f64>,
    /// Hits@1 in per cent.
    pub hits_at_1: Option<f64>,
    /// F1 in per cent.
    pub f1: Option<f64>,
}

/// What a method came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodResult {
    /// Its name on the command line.
    pub method: String,
    /// The paper's row.
    pub paper: Option<PaperRow>,
    /// What its candidates were ranked by, where that is another than the comparison's.
    pub rank_by: Option<String>,
    /// How many parameters it learned.
    pub learned_parameters: usize,
    /// α, in words.
    pub inner_lr: String,
    /// The meta-iterations done, and the best, in words.
    pub iterations: String,
    /// Seconds of training, the mean over seeds.
    pub train_seconds: f64,
    /// Tokens read in training, the mean over seeds.
    pub train_tokens: u64,
    /// One for each K and number of epochs.
    pub cells: Vec<Cell>,
    /// One a seed.
    pub curves: Vec<Curve>,
    /// Replies to the same contexts.
    pub samples: Vec<Sample>,
    /// Why there is no result, or not for every seed.
    pub failure: Option<String>,
}

/// The figures after adapting on K dialogues.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// K.
    pub k: usize,
    /// Passes over them; `None` for the inner loop as it was trained for.
    pub epochs: Option<usize>,
    /// Perplexity a token.
    pub perplexity: Figure,
    /// Perplexity a white-space word.
    pub perplexity_per_word: Figure,
    /// Hits@1 in per cent.
    pub hits_at_1: Option<Figure>,
    /// F1 in per cent.
    pub f1: Option<Figure>,
    /// Replies tested on, over all seeds.
    pub replies: usize,
    /// Personas tested on.
    pub personas: usize,
}

/// A figure over all seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The figure, over the replies of all seeds.
    pub value: f64,
    /// The lower end of its 95 % interval over personas.
    pub low: Option<f64>,
    /// The upper end.
    pub high: Option<f64>,
    /// The figure of each seed.
    pub seeds: Vec<f64>,
}

/// How a training went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The seed.
    pub seed: u64,
    /// In order.
    pub points: Vec<Point>,
}

/// A meta-iteration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Its number; 0 is before the first.
    pub iteration: usize,
    /// Tokens read so far.
    pub tokens: u64,
    /// The loss that training lowers, in nats a token.
    pub train_loss: Option<f64>,
    /// The validation loss before adaptation, in nats a token.
    pub validation_before: Option<f64>,
    /// And after it.
    pub validation_after: Option<f64>,
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The sentences that describe the persona.
    pub persona: Vec<String>,
    /// Partner and persona in turn, the partner last.
    pub context: Vec<String>,
    /// The persona's own reply.
    pub gold: String,
    /// K.
    pub k: usize,
    /// Passes over the K dialogues; `None` for the inner loop as it was trained for.
    pub epochs: Option<usize>,
    /// The reply.
    pub reply: String,
    /// The seed of the training.
    pub seed: u64,
}
