//! What the personas of a run are for.

use crate::tasks::{SPLIT_SEED, Share, Task, TaskError, hold_out};

/// The personas of a run by what they are for.
#[derive(Debug, Clone, PartialEq)]
pub struct PersonaSplit {
    /// To train on.
    pub train: Vec<Task>,
    /// To validate on.
    pub valid: Vec<Task>,
    /// To test on, which no training sees.
    pub test: Vec<Task>,
}

impl PersonaSplit {
    /// Splits the personas of the training files. What is kept for testing is held out first, so that it does not depend on
    /// how the validation is done; then those to validate on, unless there are others for that (`valid`). Both parts are
    /// drawn with [`SPLIT_SEED`].
    ///
    /// # Errors
    /// As [`hold_out`].
    pub fn new(
        tasks: Vec<Task>,
        valid: Option<Vec<Task>>,
        test_part: f64,
        hold_out_part: f64,
    ) -> Result<Self, TaskError> {
        let (rest, test) = hold_out(tasks, Share::Fraction(test_part), SPLIT_SEED)?;
        let (train, valid) = match valid {
            Some(valid) => (rest, valid),
            None => hold_out(rest, Share::Fraction(hold_out_part), SPLIT_SEED)?,
        };
        Ok(Self { train, valid, test })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_for_testing_does_not_depend_on_the_validation() {
        let task = |number: usize| Task { persona: vec![number.to_string()], dialogues: Vec::new() };
        let tasks = || (0..10).map(task).collect::<Vec<_>>();
        let split = |valid, test_part, part| PersonaSplit::new(tasks(), valid, test_part, part).unwrap();
        let one = split(None, 0.2, 0.5);
        assert_eq!((one.train.len(), one.valid.len(), one.test.len()), (4, 4, 2));
        let other = split(Some(vec![task(77)]), 0.2, 0.5);
        assert_eq!((other.train.len(), &other.valid, &other.test), (8, &vec![task(77)], &one.test));
        assert!(split(None, 0.0, 0.1).test.is_empty());
        let mut all = [one.train, one.valid, one.test].concat();
        all.sort_by(|one, other| one.persona.cmp(&other.persona));
        assert_eq!(all, tasks());
        assert!(PersonaSplit::new(tasks(), None, 0.0, 1.0).is_err());
    }
}
