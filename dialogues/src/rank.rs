//! By what the candidates of an exchange are ranked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Ranking;

/// What orders the candidates of an exchange; Hits@1 depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RankBy {
    /// The mean log-probability of a candidate's tokens and its `<eot>`.
    #[default]
    Mean,
    /// Their sum, log p(reply | context).
    Sum,
    /// Pointwise mutual information, log p(reply | context) − log p(reply), p(reply) being the probability after a lone
    /// `<eot>`: it does not favour replies that fit everywhere (Li et al. 2016, "A Diversity-Promoting Objective
    /// Function for Neural Conversation Models").
    Pmi,
    /// The score that the learner itself gives to each candidate.
    Classifier,
    /// Nothing: candidates are not ranked, and there is no Hits@1.
    None,
}

impl RankBy {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Mean, Self::Sum, Self::Pmi, Self::Classifier, Self::None];

    /// As an option names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Sum => "sum",
            Self::Pmi => "pmi",
            Self::Classifier => "classifier",
            Self::None => "none",
        }
    }

    /// In words, as tables have it.
    pub fn description(self) -> &'static str {
        match self {
            Self::Mean => "the mean log-probability of a candidate's tokens",
            Self::Sum => "the sum of the log-probabilities of a candidate's tokens",
            Self::Pmi => "log p(reply | context) - log p(reply)",
            Self::Classifier => "the classifier's score",
            Self::None => "nothing",
        }
    }
}

impl fmt::Display for RankBy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

impl FromStr for RankBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|rank_by| rank_by.name() == text);
        found.ok_or_else(|| format!("{text:?} is no way of ranking, expected mean, sum, pmi or classifier"))
    }
}

/// For each candidate the sum of its targets' log-probabilities (nats) and their number; `None` where the numbers are not
/// as many as the ranking's targets, or a candidate has none.
fn totals(log_probs: &[f32], ranking: &Ranking) -> Option<Vec<(f64, u32)>> {
    if log_probs.len() != ranking.candidate.len() {
        return None;
    }
    let mut totals = vec![(0.0, 0); ranking.candidates];
    for (&log_prob, &owner) in log_probs.iter().zip(&ranking.candidate) {
        let (sum, count) = totals.get_mut(owner as usize)?;
        *sum += f64::from(log_prob);
        *count += 1;
    }
    totals.iter().all(|&(_, count)| count > 0).then_some(totals)
}

/// [`RankBy::Mean`]: a score a candidate, from the log-probability of each of the ranking's targets (nats); `None` where
/// they are not as many, or a candidate has none.
pub fn mean_scores(log_probs: &[f32], ranking: &Ranking) -> Option<Vec<f64>> {
    Some(totals(log_probs, ranking)?.into_iter().map(|(sum, count)| sum / f64::from(count)).collect())
}

/// [`RankBy::Sum`], as [`mean_scores`].
pub fn sum_scores(log_probs: &[f32], ranking: &Ranking) -> Option<Vec<f64>> {
    Some(totals(log_probs, ranking)?.into_iter().map(|(sum, _)| sum).collect())
}

/// [`RankBy::Pmi`]: from the sums of the candidates after their context and of the same candidates without it.
pub fn pmi_scores(conditional: &[f64], unconditional: &[f64]) -> Vec<f64> {
    conditional.iter().zip(unconditional).map(|(with, without)| with - without).collect()
}

/// The candidate with the highest score, the first of equals; not-a-number is never the highest. `None` where there is
/// none.
pub fn best_candidate(scores: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, &score) in scores.iter().enumerate() {
        if !score.is_nan() && best.is_none_or(|(_, highest)| score > highest) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}
