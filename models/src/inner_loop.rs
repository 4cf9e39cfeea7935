//! The inner loop's recipe: how a persona is learned from its dialogues.

use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, de};

/// The inner loop's recipe, written by the trainer and followed by the device: plain SGD on the mean negative
/// log-likelihood over all reply tokens of a step's batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerLoop {
    /// S, the number of SGD steps.
    #[serde(deserialize_with = "bounded")]
    pub steps: usize,
    /// The number of dialogues in the batch of one step. The steps go through the support dialogues in order and begin
    /// again at the end; a batch never holds a dialogue twice, so fewer dialogues make a smaller batch.
    #[serde(deserialize_with = "bounded")]
    pub dialogues_per_step: usize,
    /// α.
    pub learning_rate: LearningRate,
}

/// What adapters that start at zero learn well with (docs/history.md); other methods have another α.
impl Default for InnerLoop {
    fn default() -> Self {
        Self { steps: 5, dialogues_per_step: 1, learning_rate: LearningRate::Shared(Self::RATE) }
    }
}

/// A number of a file, which nobody may have looked at: more than [`InnerLoop::MOST_STEPS`] are refused.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let number = u64::deserialize(deserializer)?;
    match usize::try_from(number) {
        Ok(number) if number <= InnerLoop::MOST_STEPS => Ok(number),
        _ => {
            let most = InnerLoop::MOST_STEPS;
            Err(de::Error::custom(format!("an inner loop has the number {number}, expected at most {most}")))
        }
    }
}

impl InnerLoop {
    /// The most steps, and dialogues of one, that a file may ask for: days of work on any device.
    pub const MOST_STEPS: usize = 1_000_000;

    /// α of the recipe that is taken where none is given.
    pub const RATE: f32 = 0.3;

    /// The batches of one pass over `support` dialogues, as ranges of them: consecutive ones of `dialogues_per_step`, the last one
    /// possibly smaller.
    pub fn pass(&self, support: usize) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
        let size = self.dialogues_per_step.max(1);
        (0..support).step_by(size).map(move |first| first..first.saturating_add(size).min(support))
    }

    /// The batches of the inner loop, as indices of support dialogues, one entry a step: `steps` walks cyclically through the
    /// batches of [`InnerLoop::pass`].
    pub fn batches(&self, support: usize) -> Vec<Vec<usize>> {
        self.pass(support).cycle().take(self.steps).map(Iterator::collect).collect()
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
    fn numbers_of_a_file_are_bounded() {
        let read = |steps: &str, dialogues: &str| {
            let text = format!(r#"{{"steps":{steps},"dialogues_per_step":{dialogues},"learning_rate":0.1}}"#);
            serde_json::from_str::<InnerLoop>(&text).map_err(|error| error.to_string())
        };
        assert_eq!(read("1000000", "1000000").unwrap().steps, InnerLoop::MOST_STEPS);
        for number in ["1000001", "1000000000000", "9223372036854775808", "18446744073709551615"] {
            for error in [read(number, "1").unwrap_err(), read("1", number).unwrap_err()] {
                assert!(error.contains(number) && error.contains("at most 1000000"), "{error}");
            }
        }
        for number in ["-1", "18446744073709551616", "1.5", "null"] {
            assert!(read(number, "1").is_err(), "{number}");
        }
        // A pass has no batch beyond the dialogues, whatever the size.
        let recipe = InnerLoop { dialogues_per_step: usize::MAX, ..InnerLoop::default() };
        assert!(recipe.pass(3).eq([(0, 3)].map(|(first, end)| first..end)));
    }

    #[test]
    fn learning_rates_are_counted() {
        assert_eq!(LearningRate::Shared(0.5).per_tensor(2), Ok(vec![0.5, 0.5]));
        assert!(LearningRate::PerTensor(vec![0.5]).per_tensor(2).unwrap_err().contains("expected one or 2"));
        assert!(LearningRate::Shared(f32::NAN).per_tensor(2).is_err());
    }
}
