//! The inner loop's recipe: how a persona is learned from its dialogues.

use serde::{Deserialize, Serialize};

/// The inner loop's recipe, written by the trainer and followed by the device: plain SGD on the mean negative
/// log-likelihood over all reply tokens of a step's batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerLoop {
    /// S, the number of SGD steps.
    pub steps: usize,
    /// The number of dialogues in the batch of one step. The steps go through the support dialogues in order and begin
    /// again at the end; a batch never holds a dialogue twice, so fewer dialogues make a smaller batch.
    pub dialogues_per_step: usize,
    /// α.
    pub learning_rate: LearningRate,
}

/// What adapters that start at zero learn well with (docs/results.md); other methods have another α.
impl Default for InnerLoop {
    fn default() -> Self {
        Self { steps: 5, dialogues_per_step: 1, learning_rate: LearningRate::Shared(Self::RATE) }
    }
}

impl InnerLoop {
    /// α of the recipe that is taken where none is given.
    pub const RATE: f32 = 0.3;

    /// The batches of the inner loop, as indices of support dialogues, one entry a step. `support` dialogues are cut into
    /// consecutive batches of `dialogues_per_step`, the last one possibly smaller, and `steps` walks through them cyclically.
    pub fn batches(&self, support: usize) -> Vec<Vec<usize>> {
        let size = self.dialogues_per_step.max(1);
        let one_pass: Vec<Vec<usize>> =
            (0..support).step_by(size).map(|first| (first..(first + size).min(support)).collect()).collect();
        one_pass.iter().cycle().take(if support == 0 { 0 } else { self.steps }).cloned().collect()
    }

    /// The recipe for `support` dialogues: S steps, or as many as one pass takes where that is more. Somebody who gives ten
    /// dialogues expects all ten to be learned from, also where S was meta-learned with five.
    #[must_use]
    pub fn for_support(&self, support: usize) -> Self {
        Self { steps: self.steps.max(self.steps_per_epoch(support)), ..self.clone() }
    }

    /// The number of steps that make one epoch: one pass over the support dialogues.
    pub fn steps_per_epoch(&self, support: usize) -> usize {
        support.div_ceil(self.dialogues_per_step.max(1))
    }
}

/// α, the inner loop's learning rate: one for all adapter tensors, or one a tensor in the order of the adapter table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LearningRate {
    /// The same for every tensor.
    Shared(f32),
    /// One a tensor.
    PerTensor(Vec<f32>),
}

impl LearningRate {
    /// One value a tensor.
    ///
    /// # Errors
    /// There are not as many values as tensors, or one is not a finite number.
    pub fn per_tensor(&self, tensors: usize) -> Result<Vec<f32>, String> {
        let rates = match self {
            Self::Shared(rate) => vec![*rate; tensors],
            Self::PerTensor(rates) if rates.len() == tensors => rates.clone(),
            Self::PerTensor(rates) => return Err(format!("has {} values, expected one or {tensors}", rates.len())),
        };
        match rates.iter().find(|rate| !rate.is_finite()) {
            Some(rate) => Err(format!("is {rate}, expected a finite number")),
            None => Ok(rates),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cycle_through_the_support_dialogues() {
        let recipe = InnerLoop { steps: 4, dialogues_per_step: 2, learning_rate: LearningRate::Shared(0.1) };
        assert_eq!(recipe.batches(5), vec![vec![0, 1], vec![2, 3], vec![4], vec![0, 1]]);
        assert_eq!(recipe.batches(1), vec![vec![0]; 4]);
        assert!(recipe.batches(0).is_empty());
        assert_eq!(recipe.steps_per_epoch(5), 3);
        assert_eq!((recipe.for_support(5).steps, recipe.for_support(11).steps), (4, 6));
    }

    #[test]
    fn learning_rates_are_counted() {
        assert_eq!(LearningRate::Shared(0.5).per_tensor(2), Ok(vec![0.5, 0.5]));
        assert!(LearningRate::PerTensor(vec![0.5]).per_tensor(2).unwrap_err().contains("expected one or 2"));
        assert!(LearningRate::Shared(f32::NAN).per_tensor(2).is_err());
    }
}
