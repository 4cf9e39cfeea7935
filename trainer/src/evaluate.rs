//! Evaluation of a run on personas that it has not seen: the learner of `marionette-dialogues` on libtorch.

use std::ops::ControlFlow;
use std::path::PathBuf;

use marionette_console::interrupt;
use marionette_dialogues::{
    Context, EvaluateError, Example, Grouping, Learner, Options as Tested, Outcome, Passes, Progress as Heard, RankBy,
    Ranking, Sequence, Task, evaluate as evaluate_learners, read_file, reference,
};
use marionette_models::InnerLoop;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::data;
use crate::error::{Result, TrainError};
use crate::inner::{self, Support};
use crate::model::Model;
use crate::reader::Reader;
use crate::tensors::{self, Choices};
use crate::train::options::MOST_COUNTED;
use crate::trained::Trained;
use crate::workers::Compute;
use marionette_console::Progress;
use marionette_console::options::{MOST_TOKENS, whole};
use marionette_console::say;

/// What to evaluate.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Options {
    /// The run directory
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Where the run's base model lies by now; the same one as ever
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Dialogue files with personas that the run has not seen
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// How to evaluate
    #[command(flatten)]
    pub how: How,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// How to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, clap::Args)]
pub struct How {
    /// The numbers of dialogues to adapt on
    #[arg(long, value_delimiter = ',', default_value = "0,1,5,10", value_name = "K,…", value_parser = whole::<0, MOST_COUNTED>, allow_negative_numbers = true)]
    pub shots: Vec<usize>,
    /// The numbers of passes over them, instead of the steps that the run was trained for
    #[arg(long, value_delimiter = ',', value_name = "E,…", value_parser = whole::<0, MOST_COUNTED>, allow_negative_numbers = true)]
    pub epochs: Vec<usize>,
    /// By what candidates are ranked: the mean or sum of their log-probability, or the sum less that without a context;
    /// transfertransfo always ranks by its classifier. none ranks nothing
    #[arg(long, default_value_t = RankBy::Mean, value_name = "mean|sum|pmi|none")]
    pub rank_by: RankBy,
    /// Only the first so many personas
    #[arg(long, value_name = "N", value_parser = whole::<1, MOST_COUNTED>, allow_negative_numbers = true)]
    pub personas: Option<usize>,
    /// Only the first so many held-out dialogues of each persona
    #[arg(long, value_name = "N", value_parser = whole::<1, MOST_COUNTED>, allow_negative_numbers = true)]
    pub folds: Option<usize>,
    /// The longest reply that is generated for F1, in tokens; 0 generates none
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = whole::<0, MOST_TOKENS>, allow_negative_numbers = true)]
    pub max_tokens: usize,
    /// Dialogues of people who are none of the personas: what is forgotten of them by adapting is measured on the first sixteen
    #[arg(long, value_name = "FILE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<PathBuf>,
    /// Adapt with the trained inner learning rate times this
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_factor: Option<f32>,
    /// Learn nothing: let what is to be adapted on stand in the prompt
    #[arg(long, value_name = "dialogues|persona")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_context: Option<Context>,
}

impl How {
    /// Refuses what cannot be evaluated on these personas.
    ///
    /// # Errors
    /// The option; the personas have too few dialogues.
    pub fn check(&self, tasks: &[Task]) -> Result<()> {
        for (option, count) in [("--personas", self.personas), ("--folds", self.folds)] {
            if count == Some(0) {
                return Err(TrainError::option(option, "is 0, expected 1 or more"));
            }
        }
        if self.shots.is_empty() {
            return Err(TrainError::option("--shots", "is empty, expected numbers such as 0,1,5"));
        }
        if !self.epochs.is_sorted_by(|before, after| before < after) {
            return Err(TrainError::option("--epochs", "is not in ascending order, expected numbers such as 0,1,3"));
        }
        if let Some(factor) = self.rate_factor.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return Err(TrainError::option("--rate-factor", format!("is {factor}, expected a number above 0")));
        }
        if self.rank_by == RankBy::Classifier {
            let problem = "is classifier, which is what transfertransfo ranks by; expected mean, sum or pmi";
            return Err(TrainError::option("--rank-by", problem));
        }
        self.options(self.rank_by, 0).check(tasks).map_err(|error| TrainError::Evaluation(error.to_string()))
    }

    /// The same for the one evaluation.
    fn options(&self, rank_by: RankBy, samples: usize) -> Tested {
        Tested {
            shots: self.shots.clone(),
            epochs: self.epochs.clone(),
            personas: self.personas,
            folds: self.folds,
            max_new_tokens: self.max_tokens,
            rank_by,
            samples,
            reference: Vec::new(),
            in_context: self.in_context,
        }
    }
}

/// A trained model, adapted or not.
pub struct TorchLearner {
    model: Model,
    /// θ_0.
    start: Vec<Tensor>,
    /// θ as it is now.
    parameters: Vec<Tensor>,
    /// The model at θ.
    now: Reader,
    recipe: InnerLoop,
    /// α, one a tensor.
    rates: Vec<f32>,
    /// Passes so far.
    turn: usize,
    threads: usize,
}

impl TorchLearner {
    /// A learner that computes with so many threads, and adapts with the trained learning rates times a factor.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(trained: &Trained, threads: usize, factor: f32) -> Result<Self> {
        let handles = || trained.start.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        Ok(Self {
            model: trained.model.handle(),
            start: handles(),
            parameters: handles(),
            now: Reader::new(trained.model.at(&trained.start)?),
            recipe: trained.recipe.clone(),
            rates: trained.rates.iter().map(|rate| rate * factor).collect(),
            turn: 0,
            threads,
        })
    }

    /// Begins to read with θ as it is now.
    fn renew(&mut self) -> Result<()> {
        self.now = Reader::new(self.model.at(&self.parameters)?);
        Ok(())
    }
}

impl Learner for TorchLearner {
    type Error = TrainError;

    fn reset(&mut self) -> Result<()> {
        // libtorch counts threads for each thread that calls it, and this may be a new one.
        tch::set_num_threads(self.threads as i32);
        self.parameters = self.start.iter().map(Tensor::shallow_clone).collect();
        self.turn = 0;
        self.renew()
    }

    fn adapt(&mut self, support: &[Example], passes: Passes) -> Result<()> {
        let examples: Vec<&Example> = support.iter().collect();
        let per_pass = self.recipe.steps_per_epoch(support.len());
        let (passes, recipe) = match passes {
            Passes::Recipe => (1, self.recipe.for_support(support.len())),
            Passes::Epochs(passes) => (passes, InnerLoop { steps: per_pass, ..self.recipe.clone() }),
        };
        for _ in 0..passes {
            let support = Support::new(&recipe, &examples, self.turn, self.model.device())?;
            self.parameters = inner::adapt(&self.model, &self.parameters, &support, &self.rates)?.parameters;
            self.turn += 1;
        }
        self.renew()
    }

    fn negative_log_likelihood(&mut self, sequence: &Sequence) -> Result<f64> {
        let (rows, targets): (Vec<u32>, Vec<u32>) =
            sequence.predictions().map(|(before, target)| (before as u32, target)).unzip();
        if rows.is_empty() {
            return Ok(0.0);
        }
        let log_probs = self.now.log_probs(&sequence.ids, &rows, &targets, None)?;
        Ok(-log_probs.f_sum(Kind::Double)?.f_double_value(&[])?)
    }

    fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>> {
        let log_probs = self.now.log_probs(&ranking.ids, &ranking.rows, &ranking.targets, Some(ranking))?;
        Ok(tensors::to_host(&log_probs)?.values)
    }

    fn classify(&mut self, ranking: &Ranking) -> Result<Option<Vec<f32>>> {
        if ranking.ends.is_empty() {
            return Ok(None);
        }
        let choices = Choices::new(std::slice::from_ref(ranking), self.model.device())?;
        Ok(Some(tensors::to_host(&no_grad(|| self.now.decoder().classify(&choices))?)?.values))
    }

    fn replies(&mut self, prompts: &[Vec<u32>], end: u32, max_new: usize) -> Result<Vec<Vec<u32>>> {
        self.now.replies(prompts, end, max_new)
    }
}

/// Evaluates a run on the personas of some files.
///
/// # Errors
/// Impossible options, files that cannot be read, an inner loop that diverges.
pub fn evaluate(options: &Options, compute: Compute) -> Result<Outcome> {
    let (Grouping { tasks, .. }, notes) = data::read(&options.data)?;
    notes.iter().for_each(say);
    options.how.check(&tasks)?;
    let trained = Trained::open(&options.run, options.base.as_deref(), compute.device)?;
    match trained.config.data_as_recorded().and_then(data::split) {
        Ok((split, _)) => data::known(&split, &tasks).iter().for_each(say),
        Err(error) => say(format_args!("whether the run was trained on these personas cannot be told: {error}")),
    }
    evaluate_trained(&trained, &tasks, &options.how, 0, compute)
}

/// Evaluates a trained model, leaving one dialogue of each persona out at a time; the replies to one context of each of
/// the first `samples` personas are recorded.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_trained(
    trained: &Trained,
    tasks: &[Task],
    how: &How,
    samples: usize,
    compute: Compute,
) -> Result<Outcome> {
    let classifies = trained.method.classifies() && how.rank_by != RankBy::None;
    let rank_by = if classifies { RankBy::Classifier } else { how.rank_by };
    let mut tested = how.options(rank_by, samples);
    if let Some(file) = &how.reference {
        tested.reference = reference(&trained.encoder, &read_file(file)?.dialogues)?;
    }
    let progress = Progress::new(0, "tests");
    let threads = compute.threads_each();
    let learner = |_| TorchLearner::new(trained, threads, how.rate_factor.unwrap_or(1.0));
    let mut learners = (0..compute.workers.max(1)).map(learner).collect::<Result<Vec<_>>>()?;
    let hear = |at: Heard| {
        progress.at(at.done as u64, at.total as u64, || {
            format!("persona {}/{}, {} shots", at.persona + 1, at.personas, at.shots)
        });
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let result = evaluate_learners(&mut learners, &trained.encoder, tasks, &tested, hear);
    drop(progress);
    result.map_err(|error| match error {
        EvaluateError::Learner(error) => error,
        EvaluateError::Encode(error) => error.into(),
        EvaluateError::Interrupted => TrainError::Interrupted,
        other => TrainError::Evaluation(other.to_string()),
    })
}
