//! The result of a comparison, as `comparison.json` holds it.
//!
//! JSON has no NaN and no infinity: a number that is not finite is written as `null`, and `null` is read as NaN. The
//! report shows such a number as a dash.

use serde::{Deserialize, Deserializer, Serialize};

use crate::paper::PaperRow;

/// Several methods on the same base model, data, budget and seeds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Comparison {
    /// The heading of the page.
    pub title: String,
    /// The base model as it was named on the command line.
    pub base: String,
    /// The data files.
    pub data: Vec<String>,
    /// How many personas were trained on, chosen by, and tested on.
    pub personas: Split,
    /// One run of every method for each.
    pub seeds: Vec<u64>,
    /// What the candidates were ranked by: `mean`, `sum` or `pmi`.
    pub rank_by: String,
    /// The command that makes this comparison again.
    pub command: String,
    /// Processor or accelerator, threads, precision.
    pub machine: String,
    /// The inner loop and the budget, in one line.
    pub recipe: String,
    /// One entry a method, in the order in which they ran.
    pub methods: Vec<MethodResult>,
    /// Methods against each other on the same replies, and each against itself before adapting.
    #[serde(default)]
    pub differences: Vec<Difference>,
    /// What a reader must know: dropped personas, cut dialogues, differences from the paper.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Numbers of personas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Split {
    /// Meta-trained on.
    pub train: usize,
    /// Which checkpoint is the best was decided by these.
    pub valid: usize,
    /// Every figure of the report is of these.
    pub test: usize,
}

/// One method, over all seeds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MethodResult {
    /// Its name on the command line, such as `extra-place`.
    pub method: String,
    /// The row of the paper's table that it repeats, see [`crate::paper_row`].
    #[serde(default)]
    pub paper: Option<PaperRow>,
    /// What its candidates were ranked by, where that differs from [`Comparison::rank_by`].
    #[serde(default)]
    pub rank_by: Option<String>,
    /// How many numbers learn.
    pub learned_parameters: usize,
    /// α of the inner loop, in words: a number, or `learned`.
    pub inner_lr: String,
    /// Steps of the outer loop, for one seed; what training took is `None` where a run does not say.
    #[serde(default)]
    pub iterations: Option<usize>,
    /// Seconds of training, mean over seeds.
    #[serde(default)]
    pub train_seconds: Option<f64>,
    /// Tokens that training read, mean over seeds.
    #[serde(default)]
    pub train_tokens: Option<usize>,
    /// The evaluation, one entry for each K and number of epochs.
    #[serde(default)]
    pub cells: Vec<Cell>,
    /// What was tried on the validation personas before the tests, K by K for each seed.
    #[serde(default)]
    pub tried: Vec<Tried>,
    /// Learning curves, one a seed.
    #[serde(default)]
    pub curves: Vec<Curve>,
    /// Replies to the contexts that every method answers.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// What went wrong, such as `seed 2 diverged at iteration 120`. It is shown beside what there is of the method.
    #[serde(default)]
    pub failure: Option<String>,
}

/// A way of adapting that was tried on the validation personas.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Tried {
    /// The run's seed.
    pub seed: u64,
    /// Dialogues adapted on.
    pub k: usize,
    /// What the trained inner learning rate was multiplied by.
    #[serde(deserialize_with = "number")]
    pub factor: f64,
    /// Passes over the dialogues; `None` is the recipe's own number of steps.
    #[serde(default)]
    pub epochs: Option<usize>,
    /// Of the validation personas; `None` where it diverged.
    #[serde(default)]
    pub perplexity: Option<f64>,
    /// Whether the tests were made so, being the best for its K.
    #[serde(default)]
    pub chosen: bool,
}

/// How one method at one K differs from another, or from itself at another K, on the same replies.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Difference {
    /// The one method.
    pub method: String,
    /// Its K.
    pub k: usize,
    /// The other, which is subtracted.
    pub from: String,
    /// Its K.
    pub from_k: usize,
    /// Perplexity, in per cent of the other's.
    #[serde(default)]
    pub perplexity: Option<Figure>,
    /// Hits@1, in points of a per cent.
    #[serde(default)]
    pub hits_at_1: Option<Figure>,
    /// F1, in points of a per cent.
    #[serde(default)]
    pub f1: Option<Figure>,
}

/// One evaluation: K dialogues of each test persona to adapt on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Cell {
    /// Dialogues to adapt on; 0 is the model as it was trained.
    pub k: usize,
    /// Passes over the K dialogues; `None` is the recipe's own number of steps.
    #[serde(default)]
    pub epochs: Option<usize>,
    /// exp of the mean negative log-likelihood of the reply tokens.
    pub perplexity: Figure,
    /// The same sum over the count of white-space words, which alone compares between tokenizers.
    pub perplexity_per_word: Figure,
    /// Per cent.
    #[serde(default)]
    pub hits_at_1: Option<Figure>,
    /// Per cent.
    #[serde(default)]
    pub f1: Option<Figure>,
    /// Per cent of the personas' own words that the replies use, less what replies for others use of them.
    #[serde(default)]
    pub recall: Option<Figure>,
    /// How much nearer the replies' style is to the persona's than to others', in hundredths.
    #[serde(default)]
    pub style: Option<Figure>,
    /// Perplexity of a token of people who are none of the personas.
    #[serde(default)]
    pub reference: Option<Figure>,
    /// Seconds that one adaptation took.
    #[serde(default)]
    pub adapt_seconds: Option<f64>,
    /// Milliseconds that a generated token took, what it follows included.
    #[serde(default)]
    pub token_ms: Option<f64>,
    /// Replies that were scored, for one seed.
    pub replies: usize,
    /// Personas that were scored, for one seed.
    pub personas: usize,
}

/// A mean and how sure it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Figure {
    /// The mean over personas and seeds.
    #[serde(deserialize_with = "number")]
    pub value: f64,
    /// Lower end of the 95 % interval over personas.
    #[serde(default)]
    pub low: Option<f64>,
    /// Upper end of the 95 % interval over personas.
    #[serde(default)]
    pub high: Option<f64>,
    /// The value of each seed, in the order of [`Comparison::seeds`].
    #[serde(default, deserialize_with = "numbers")]
    pub seeds: Vec<f64>,
}

/// The learning curve of one seed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Curve {
    /// The seed.
    pub seed: u64,
    /// In order of the iteration.
    pub points: Vec<Point>,
}

/// Losses at one iteration of the outer loop, in nats a token.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Point {
    /// Iterations done.
    pub iteration: usize,
    /// Tokens read so far.
    pub tokens: usize,
    /// Loss of the training objective.
    #[serde(default)]
    pub train_loss: Option<f64>,
    /// Loss of the validation personas without adaptation.
    #[serde(default)]
    pub validation_before: Option<f64>,
    /// Loss of the validation personas after the inner loop.
    #[serde(default)]
    pub validation_after: Option<f64>,
}

/// A generated reply.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// The sentences that describe the persona.
    pub persona: Vec<String>,
    /// The dialogue so far: partner and persona take turns, and the last utterance is the partner's.
    pub context: Vec<String>,
    /// What the persona says in the data.
    pub gold: String,
    /// Dialogues adapted on.
    pub k: usize,
    /// Passes over them.
    #[serde(default)]
    pub epochs: Option<usize>,
    /// What the model says.
    pub reply: String,
    /// The run's seed.
    pub seed: u64,
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Option<f64>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}
