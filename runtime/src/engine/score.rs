//! The score graph: log-probabilities of given tokens.

use marionette_dialogues::{Ranking, Sequence};
use marionette_models::bundle;

use super::{Bound, Engine};
use crate::error::Result;
use crate::session::Buffer;

/// One row of tokens and what is asked of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scored {
    /// Token ids \[T\].
    pub ids: Vec<i64>,
    /// Positions \[T\].
    pub positions: Vec<i64>,
    /// Branches \[T\]: token j sees token i iff i <= j and (`branch[i] == 0` or `branch[i] == branch[j]`).
    pub branch: Vec<i64>,
    /// \[N\]: the token of the row from which target n is predicted.
    pub rows: Vec<i64>,
    /// \[N\]: target ids.
    pub targets: Vec<i64>,
}

impl Scored {
    /// Every target of a dialogue.
    pub fn targets_of(sequence: &Sequence) -> Self {
        let mut scored = Self::row(&sequence.ids);
        for (row, id) in sequence.predictions() {
            scored.rows.push(row as i64);
            scored.targets.push(i64::from(id));
        }
        scored
    }

    /// Every candidate's tokens.
    pub fn candidates_of(ranking: &Ranking) -> Self {
        Self {
            ids: wide(&ranking.ids),
            positions: wide(&ranking.positions),
            branch: wide(&ranking.branch),
            rows: wide(&ranking.rows),
            targets: wide(&ranking.targets),
        }
    }

    /// Every token but the first, each given all before it.
    pub fn all(ids: &[i64]) -> Self {
        let length = ids.len() as i64;
        Self {
            ids: ids.to_vec(),
            positions: (0..length).collect(),
            branch: vec![0; ids.len()],
            rows: (0..length - 1).collect(),
            targets: ids.iter().skip(1).copied().collect(),
        }
    }

    fn row(ids: &[u32]) -> Self {
        Self {
            ids: wide(ids),
            positions: (0..ids.len() as i64).collect(),
            branch: vec![0; ids.len()],
            ..Self::default()
        }
    }
}

fn wide(values: &[u32]) -> Vec<i64> {
    values.iter().map(|&value| i64::from(value)).collect()
}

impl Engine {
    /// The log-probability of each of N targets, in nats.
    ///
    /// # Errors
    /// The graph cannot be opened or run.
    pub fn score(&mut self, scored: &Scored) -> Result<Vec<f32>> {
        if scored.targets.is_empty() {
            return Ok(Vec::new());
        }
        let opened = match self.score.take() {
            Some(opened) => opened,
            None => Bound::new(self.open_graph(bundle::SCORE)?),
        };
        let score = self.score.insert(opened);
        score.bind_adapters(&self.table, &self.adapters, self.version)?;
        let (tokens, targets) = ([1, scored.ids.len()], [scored.targets.len()]);
        score.graph.input("input_ids", &tokens, &scored.ids)?;
        score.graph.input("positions", &tokens, &scored.positions)?;
        score.graph.input("branch", &tokens, &scored.branch)?;
        score.graph.input("rows", &targets, &scored.rows)?;
        score.graph.input("targets", &targets, &scored.targets)?;
        let mut log_probs = Buffer::zeros(&targets)?;
        score.graph.output_buffer("log_probs", &mut log_probs)?;
        score.graph.run()?;
        Ok(log_probs.values().to_vec())
    }

    /// The loss as a step sees it: the mean negative log-likelihood over all targets of the sequences, in nats.
    ///
    /// # Errors
    /// As [`Engine::score`].
    pub fn loss(&mut self, sequences: &[Sequence]) -> Result<f64> {
        let (mut sum, mut targets) = (0.0, 0);
        for sequence in sequences {
            let log_probs = self.score(&Scored::targets_of(sequence))?;
            sum -= log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum::<f64>();
            targets += log_probs.len();
        }
        Ok(sum / targets as f64)
    }
}
