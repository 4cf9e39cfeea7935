//! Evaluating on the device: the dialogues crate's one evaluation, with ONNX Runtime as the learner.

use marionette_dialogues::{Example, Learner, Passes, Ranking, Sequence};
use marionette_models::Tensors;

use crate::adapt::{self, Recipe};
use crate::engine::{Engine, Scored};
use crate::error::{Error, Result};
use crate::generate::{self, Go};
use crate::plan::Plan;
use crate::sampling::{Sampler, Sampling};

/// An engine that adapts and is tested. Replies are greedy.
pub struct DeviceLearner<'e> {
    engine: &'e mut Engine,
    start: Tensors,
    learning_rate: Option<f32>,
}

impl<'e> DeviceLearner<'e> {
    /// A learner that begins at the engine's present adapters and follows the bundle's inner loop, with another α for all
    /// tensors where one is given.
    pub fn new(engine: &'e mut Engine, learning_rate: Option<f32>) -> Self {
        let start = engine.adapters();
        Self { engine, start, learning_rate }
    }
}

impl Learner for DeviceLearner<'_> {
    type Error = Error;

    fn reset(&mut self) -> Result<()> {
        self.engine.set_adapters(&self.start)
    }

    fn adapt(&mut self, support: &[Example], passes: Passes) -> Result<()> {
        let epochs = match passes {
            Passes::Recipe => None,
            Passes::Epochs(epochs) => Some(epochs),
        };
        let recipe = Recipe { epochs, learning_rate: self.learning_rate };
        let inner = recipe.inner_loop(&self.engine.manifest().inner_loop, support.len());
        let support: Vec<Sequence> = support.iter().map(|example| example.sequence.clone()).collect();
        let plan = Plan::new(self.engine, &support, &[], inner, None)?;
        adapt::follow(self.engine, &plan, |_, _| Ok(Go::On)).map(drop)
    }

    fn negative_log_likelihood(&mut self, sequence: &Sequence) -> Result<f64> {
        let log_probs = self.engine.score(&Scored::targets_of(sequence))?;
        Ok(-log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum::<f64>())
    }

    fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>> {
        self.engine.score(&Scored::candidates_of(ranking))
    }

    fn replies(&mut self, prompts: &[Vec<u32>], end: u32, max_new: usize) -> Result<Vec<Vec<u32>>> {
        let mut reply = |prompt: &Vec<u32>| {
            let mut sampler = Sampler::new(Sampling::GREEDY)?;
            Ok(generate::generate(self.engine, &mut sampler, prompt, end, max_new, |_| Ok(Go::On))?.tokens)
        };
        prompts.iter().map(&mut reply).collect()
    }
}
