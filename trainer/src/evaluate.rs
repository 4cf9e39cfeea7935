//! Evaluation of a run on personas that it has not seen: the learner of `marionette-dialogues` on libtorch.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use marionette_dialogues::{
    Batch, Encoder, EvaluateError, Evaluation, Learner, Options as Tested, Ranking, Sequence,
    evaluate as evaluate_learner,
};
use marionette_models::checkpoint::read_adapters;
use marionette_models::params;
use marionette_models::run::{ADAPTERS, RunModel, Which, checkpoint};
use marionette_models::{FileError, InnerLoop};
use tch::{Device, Kind, Tensor, no_grad};

use crate::error::{Result, TrainError};
use crate::gpt2::{Adapters, Cache, Gpt2, Layout};
use crate::inner::{self, Support};
use crate::progress::Progress;
use crate::tensors::{self, TokenBatch};
use crate::train::read_base;
use crate::{data, interrupt};

/// What to evaluate.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Options {
    /// The run directory
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Dialogue files with personas that the run has not seen
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// The numbers of dialogues to adapt on
    #[arg(long, value_delimiter = ',', default_value = "0,1,5,10", value_name = "K,…")]
    pub shots: Vec<usize>,
    /// Only the first so many personas
    #[arg(long, value_name = "N")]
    pub personas: Option<usize>,
    /// Only the first so many held-out dialogues of each persona
    #[arg(long, value_name = "N")]
    pub folds: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A run's model, adapted or not.
pub struct TorchLearner {
    model: Gpt2,
    /// Φ as it was meta-learned.
    start: Vec<Tensor>,
    adapters: Adapters,
    recipe: InnerLoop,
    /// α, one a tensor.
    rates: Vec<f32>,
    end_of_text: i64,
    n_positions: usize,
}

impl TorchLearner {
    /// The best adapters of a run on its base, and the encoder that fits them.
    ///
    /// # Errors
    /// A file of the run or its base is missing or wrong.
    pub fn open(run: &Path, device: Device) -> Result<(Self, Encoder)> {
        let settings = RunModel::read(run)?;
        let base = read_base(&settings)?;
        let path = checkpoint(run, Which::Best)?.join(ADAPTERS);
        let (host, _) = read_adapters(&path, &base.config, &settings.adapter)?;
        let config = &base.config;
        let encoder = Encoder::from_folder(&settings.base, config.eos_token_id, config.n_positions, config.vocab_size)?
            .with_persona_text(settings.persona_text);
        let table = params::adapter_table(config, &settings.adapter);
        let rates = settings.inner_loop.learning_rate.per_tensor(table.len()).map_err(|problem| {
            FileError::new(&run.join(marionette_models::run::CONFIG_TOML), problem).at("inner_loop.learning_rate")
        })?;
        let start = table.iter().filter_map(|spec| host.get(&spec.name));
        let start = start.map(|tensor| tensors::to_torch(tensor, Kind::Float, device)).collect::<Result<Vec<_>>>()?;
        let model = Gpt2::new(config, &tensors::all_to_torch(&base.tensors, Kind::Float, device)?)?;
        let mut learner = Self {
            model,
            start,
            adapters: Adapters { tensors: Vec::new() },
            recipe: settings.inner_loop,
            rates,
            end_of_text: i64::from(config.eos_token_id),
            n_positions: config.n_positions,
        };
        learner.reset()?;
        Ok((learner, encoder))
    }
}

impl Learner for TorchLearner {
    type Error = TrainError;

    fn reset(&mut self) -> Result<()> {
        self.adapters.tensors = self.start.iter().map(Tensor::shallow_clone).collect();
        Ok(())
    }

    fn adapt(&mut self, support: &[Sequence]) -> Result<()> {
        let recipe = self.recipe.for_support(support.len());
        let support = Support::new(&recipe, &support.iter().collect::<Vec<_>>(), self.model.device())?;
        let trajectory = inner::adapt(&self.model, &self.adapters.tensors, &support, &self.rates)?;
        self.adapters.tensors = trajectory.last().iter().map(Tensor::shallow_clone).collect();
        Ok(())
    }

    fn negative_log_likelihood(&mut self, sequence: &Sequence) -> Result<f64> {
        let batch = TokenBatch::new(&Batch::new([sequence])?, self.model.device())?;
        Ok(inner::loss(&self.model, &self.adapters.tensors, &batch)? * batch.targets() as f64)
    }

    fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>> {
        let tensor = |values: &[u32]| -> Result<Tensor> {
            let values: Vec<i64> = values.iter().map(|&value| i64::from(value)).collect();
            Ok(Tensor::f_from_slice(&values)?.f_to_device(self.model.device())?)
        };
        let row = |values: &[u32]| -> Result<Tensor> { Ok(tensor(values)?.f_unsqueeze(0)?) };
        let (ids, positions, branch) = (row(&ranking.ids)?, row(&ranking.positions)?, row(&ranking.branch)?);
        let layout = Layout { positions: Some(&positions), branch: Some(&branch) };
        let log_probs = no_grad(|| -> Result<Tensor> {
            let logits = self.model.forward(Some(&self.adapters), &ids, layout, Some(&tensor(&ranking.rows)?))?;
            let targets = tensor(&ranking.targets)?.f_unsqueeze(1)?;
            Ok(logits.f_log_softmax(-1, Kind::Float)?.f_gather(1, &targets, false)?)
        })?;
        Ok(tensors::to_host(&log_probs)?.values)
    }

    fn reply(&mut self, prompt: &[u32], max_new: usize) -> Result<Vec<u32>> {
        let mut cache = Cache::default();
        let mut input: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
        let mut reply = Vec::new();
        // Greedy: the most likely token each time.
        while reply.len() < max_new && prompt.len() + reply.len() < self.n_positions {
            let ids = Tensor::f_from_slice(&input)?.f_unsqueeze(0)?.f_to_device(self.model.device())?;
            let logits = no_grad(|| self.model.step(Some(&self.adapters), &ids, &mut cache))?;
            let next = logits.f_argmax(-1, false)?.f_int64_value(&[0])?;
            if next == self.end_of_text {
                break;
            }
            reply.push(next as u32);
            input = vec![next];
        }
        Ok(reply)
    }
}

/// Evaluates a run, leaving one dialogue of each persona out at a time.
///
/// # Errors
/// Impossible options, files that cannot be read, an inner loop that diverges.
pub fn evaluate(options: &Options, device: Device) -> Result<Evaluation> {
    for (option, count) in [("--personas", options.personas), ("--folds", options.folds)] {
        if count == Some(0) {
            return Err(TrainError::option(option, "is 0, expected 1 or more"));
        }
    }
    if options.shots.is_empty() {
        return Err(TrainError::option("--shots", "is empty, expected numbers such as 0,1,5"));
    }
    let tasks = data::read_tasks(&options.data)?;
    let most = tasks.iter().map(|task| task.dialogues.len()).max().unwrap_or(0);
    if options.shots.iter().all(|&shots| shots >= most) {
        let problem = format!("has no number below {most}, the most dialogues that a persona has");
        return Err(TrainError::option("--shots", problem));
    }
    let (mut learner, encoder) = TorchLearner::open(&options.run, device)?;
    let tested =
        Tested { shots: options.shots.clone(), personas: options.personas, folds: options.folds, ..Tested::default() };
    let personas = options.personas.unwrap_or(usize::MAX).min(tasks.len());
    let folds = |task: &marionette_dialogues::Task| options.folds.unwrap_or(usize::MAX).min(task.dialogues.len());
    let total: usize = tasks.iter().take(personas).map(folds).sum::<usize>() * options.shots.len();
    let progress = Progress::new(total as u64, "folds");
    let result = evaluate_learner(&mut learner, &encoder, &tasks, &tested, |at| {
        progress.step(|| format!("persona {}/{}, {} shots", at.persona + 1, at.personas, at.shots));
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(progress);
    result.map_err(|error| match error {
        EvaluateError::Learner(error) => error,
        EvaluateError::Encode(error) => error.into(),
        EvaluateError::Interrupted => TrainError::Interrupted,
        other => TrainError::Evaluation(other.to_string()),
    })
}
