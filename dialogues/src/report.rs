//! What an evaluation gives: sums a persona, samples, and the summary that is printed.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::distractors::DISTRACTORS;
use crate::interval::ratio_interval;
use crate::metrics::Tally;
use crate::rank::RankBy;

/// Where the candidates of Hits@1 are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidates {
    /// The data has them.
    Stored,
    /// They are drawn from the replies of other personas.
    Drawn,
    /// There are none, so there is no Hits@1.
    None,
}

/// What adapting and talking took, summed over a cell's tests.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Wall-clock seconds of adapting, from the state before any.
    pub adapt_seconds: f64,
    /// How often that was done.
    pub adaptations: usize,
    /// Wall-clock seconds of generating replies, what they follow included.
    pub reply_seconds: f64,
    /// Tokens that were generated, the one that ends a reply included.
    pub reply_tokens: usize,
}

impl Cost {
    /// Adds that of another test.
    pub fn merge(&mut self, other: &Self) {
        self.adapt_seconds += other.adapt_seconds;
        self.adaptations += other.adaptations;
        self.reply_seconds += other.reply_seconds;
        self.reply_tokens += other.reply_tokens;
    }

    /// Seconds of one adaptation; `None` where there was none.
    pub fn adaptation(&self) -> Option<f64> {
        (self.adaptations > 0).then(|| self.adapt_seconds / self.adaptations as f64)
    }

    /// Milliseconds of a generated token; `None` where none was.
    pub fn token(&self) -> Option<f64> {
        (self.reply_tokens > 0).then(|| 1e3 * self.reply_seconds / self.reply_tokens as f64)
    }
}

/// The tests after one K and one number of epochs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// K, the dialogues adapted on.
    pub k: usize,
    /// The passes over them; `None` for the inner loop as it was meta-learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// One tally a persona, summed over its folds, in the order of the personas; none for those with too few dialogues.
    pub personas: Vec<Tally>,
    /// How many personas do not have K dialogues beside the one that is tested on.
    #[serde(default)]
    pub too_few: usize,
    /// What they took.
    #[serde(default)]
    pub cost: Cost,
}

impl Cell {
    /// The sums over all personas.
    pub fn total(&self) -> Tally {
        self.personas.iter().fold(Tally::default(), |mut total, tally| {
            total.merge(tally);
            total
        })
    }

    /// The 95 % intervals over personas.
    pub fn intervals(&self) -> Intervals {
        let over = |pair: fn(&Tally) -> (f64, usize)| {
            ratio_interval(self.personas.iter().map(pair).map(|(y, x)| (y, x as f64)))
        };
        let per_cent = |[low, high]: [f64; 2]| [(100.0 * low).max(0.0), (100.0 * high).min(100.0)];
        Intervals {
            perplexity: over(Tally::nats).map(|ends| ends.map(|end| end.exp().min(f64::MAX))),
            hits_at_1: over(Tally::hit_share).map(per_cent),
            f1: over(Tally::f1_share).map(per_cent),
        }
    }
}

/// A reply that was generated in a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The sentences that describe the persona.
    pub persona: Vec<String>,
    /// The gold history, the partner's words last.
    pub context: Vec<String>,
    /// The gold reply.
    pub gold: String,
    /// K.
    pub k: usize,
    /// The passes over the K dialogues; `None` for the inner loop as it was meta-learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// What the learner replied.
    pub reply: String,
}

/// All that [`crate::evaluate`] counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What ranked the candidates.
    pub rank_by: RankBy,
    /// Where they are from.
    pub candidates: Candidates,
    /// One for each K and number of epochs, K by K in the order asked for.
    pub cells: Vec<Cell>,
    /// Samples, persona by persona, each for every cell.
    pub samples: Vec<Sample>,
    /// Wall-clock seconds that the evaluation took.
    pub seconds: f64,
}

impl Outcome {
    /// The summary. A cell for which no persona has enough dialogues, or without a token or a word to predict, is left out.
    pub fn evaluation(&self) -> Evaluation {
        let shots = self.cells.iter().filter_map(ShotResult::new).collect();
        let few = self.cells.iter().filter(|cell| cell.too_few > 0);
        let mut too_few: Vec<TooFew> = few
            .map(|cell| TooFew { k: cell.k, personas: cell.too_few, of: cell.too_few + cell.personas.len() })
            .collect();
        too_few.dedup();
        let costs = self.cells.iter().map(|cell| ShotCost {
            k: cell.k,
            epochs: cell.epochs,
            adapt_seconds: cell.cost.adaptation(),
            token_ms: cell.cost.token(),
        });
        let costs = costs.filter(|cost| cost.adapt_seconds.is_some() || cost.token_ms.is_some()).collect();
        Evaluation { rank_by: self.rank_by, candidates: self.candidates, shots, too_few, costs, seconds: self.seconds }
    }

    /// Every K, from the smallest.
    pub fn ks(&self) -> BTreeSet<usize> {
        self.cells.iter().map(|cell| cell.k).collect()
    }

    /// The cell that stands for K: that of the inner loop as it was meta-learned, or else of the most epochs.
    pub fn at(&self, k: usize) -> Option<&Cell> {
        self.cells.iter().filter(|cell| cell.k == k).max_by_key(|cell| cell.epochs.unwrap_or(usize::MAX))
    }

    /// The same personas tested several times, as after training with several seeds: each persona's sums are added, so
    /// that a persona stays one cluster of the intervals. The samples are the first outcome's. `None` where there is no
    /// outcome, or they differ in their ranking, cells or number of personas.
    pub fn pooled<'outcome>(outcomes: impl IntoIterator<Item = &'outcome Self>) -> Option<Self> {
        let mut outcomes = outcomes.into_iter();
        let mut pooled = outcomes.next()?.clone();
        for other in outcomes {
            if (pooled.rank_by, pooled.cells.len()) != (other.rank_by, other.cells.len()) {
                return None;
            }
            for (cell, more) in pooled.cells.iter_mut().zip(&other.cells) {
                if (cell.k, cell.epochs, cell.personas.len()) != (more.k, more.epochs, more.personas.len()) {
                    return None;
                }
                for (tally, more) in cell.personas.iter_mut().zip(&more.personas) {
                    tally.merge(more);
                }
                cell.cost.merge(&more.cost);
            }
            pooled.seconds += other.seconds;
        }
        Some(pooled)
    }
}

/// 95 % intervals over personas ([`ratio_interval`]), each `[low, high]`; `None` with one persona or where there is no
/// such figure.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Intervals {
    /// Of the perplexity per token: the interval of the mean negative log-likelihood, exponentiated.
    pub perplexity: Option<[f64; 2]>,
    /// Of Hits@1 in per cent, cut at 0 and 100.
    pub hits_at_1: Option<[f64; 2]>,
    /// Of F1 in per cent, cut at 0 and 100.
    pub f1: Option<[f64; 2]>,
}

/// The metrics after adapting on K dialogues, over all replies and tokens of all personas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShotResult {
    /// K, the dialogues adapted on.
    pub k: usize,
    /// The passes over them, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Perplexity per token of the replies.
    pub perplexity: f64,
    /// Perplexity per white-space word of the replies.
    pub perplexity_per_word: f64,
    /// Hits@1 in per cent, where the data has candidates.
    pub hits_at_1: Option<f64>,
    /// F1 in per cent, where replies were generated.
    pub f1: Option<f64>,
    /// Replies tested on.
    pub replies: usize,
    /// Personas tested on.
    pub personas: usize,
    /// The intervals around them.
    pub intervals: Intervals,
    /// How like the personas the generated replies are, where there are others to tell them from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub likeness: Option<Likeness>,
    /// Perplexity per token of the replies of people who are none of the personas, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_perplexity: Option<f64>,
    /// PAML's consistency of a generated reply, where a judge was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<f64>,
}

/// What the tests after one K and one number of epochs took; of another run of the same evaluation alone it is another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ShotCost {
    /// K, the dialogues adapted on.
    pub k: usize,
    /// The passes over them, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Seconds that one adaptation took, where there were any.
    pub adapt_seconds: Option<f64>,
    /// Milliseconds that a generated token took, what it follows included, where replies were generated.
    pub token_ms: Option<f64>,
}

/// Persona recall and style of generated replies, with 95 % intervals over personas.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Likeness {
    /// Per cent of the personas' own words that the replies use.
    pub recall: f64,
    /// That, less what replies for other personas use of them, in points.
    pub recall_margin: f64,
    /// The margin's interval.
    pub recall_interval: Option<[f64; 2]>,
    /// How much nearer their style is to the persona's than to others', in hundredths of the distance of styles that have nothing in
    /// common.
    pub style_margin: f64,
    /// Its interval.
    pub style_interval: Option<[f64; 2]>,
}

impl Likeness {
    fn of(cell: &Cell) -> Option<Self> {
        let total = cell.total();
        let over = |pair: fn(&Tally) -> (f64, usize)| {
            ratio_interval(cell.personas.iter().map(pair).map(|(y, x)| (100.0 * y, x as f64)))
        };
        Some(Self {
            recall: 100.0 * total.recalled as f64 / total.own_words as f64,
            recall_margin: total.recall_margin()?,
            recall_interval: over(Tally::recall_share),
            style_margin: total.style_margin()?,
            style_interval: over(Tally::style_share),
        })
    }
}

impl ShotResult {
    /// The metrics of a cell; `None` where it counted no tokens or no words.
    pub fn new(cell: &Cell) -> Option<Self> {
        let total = cell.total();
        Some(Self {
            k: cell.k,
            epochs: cell.epochs,
            perplexity: total.perplexity()?,
            perplexity_per_word: total.perplexity_per_word()?,
            hits_at_1: total.hits_at_1(),
            f1: total.f1(),
            replies: total.replies,
            personas: cell.personas.len(),
            intervals: cell.intervals(),
            likeness: Likeness::of(cell),
            reference_perplexity: total.reference_perplexity(),
            consistency: total.consistency(),
        })
    }
}

/// Personas that could not be tested for a K.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooFew {
    /// K.
    pub k: usize,
    /// How many have no K dialogues beside the one that is tested on.
    pub personas: usize,
    /// How many there are.
    pub of: usize,
}

impl fmt::Display for TooFew {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { k, personas, of } = self;
        match personas == of {
            true => write!(out, "no row for {k} shots: no persona has {k} dialogues beside the one that is tested on"),
            false => write!(out, "{k} shots: {personas} of {of} personas left out, which have no {k} other dialogues"),
        }
    }
}

/// What `evaluate --json` prints: one result for each K and number of epochs. `Display` prints it as an aligned table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What ranked the candidates.
    pub rank_by: RankBy,
    /// Where they are from.
    pub candidates: Candidates,
    /// One result for each K and number of epochs, in the order asked for, as far as a persona has so many dialogues.
    pub shots: Vec<ShotResult>,
    /// The K for which personas have too few dialogues.
    pub too_few: Vec<TooFew>,
    /// What adapting and talking took.
    #[serde(default)]
    pub costs: Vec<ShotCost>,
    /// Wall-clock seconds that the evaluation took.
    pub seconds: f64,
}

impl fmt::Display for Evaluation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with_epochs = self.shots.iter().any(|shot| shot.epochs.is_some());
        let epochs = |text: &str| if with_epochs { format!("{text:>6}  ") } else { String::new() };
        writeln!(
            out,
            "{:>5}  {}{:>10} {:<16} {:>8}  {:>13}  {:>13}  {:>7}  {:>8}",
            "shots",
            epochs("epochs"),
            "perplexity",
            "[95 % interval]",
            "per word",
            "Hits@1 (95 %)",
            "F1 (95 %)",
            "replies",
            "personas"
        )?;
        for shot in &self.shots {
            let [low, high] = shot.intervals.perplexity.map_or([None; 2], |ends| ends.map(Some));
            let interval = match (low, high) {
                (Some(low), Some(high)) => format!("[{}, {}]", short(low), short(high)),
                _ => String::new(),
            };
            writeln!(
                out,
                "{:>5}  {}{:>10} {interval:<16} {:>8}  {:>13}  {:>13}  {:>7}  {:>8}",
                shot.k,
                epochs(&shot.epochs.map_or_else(String::new, |epochs| epochs.to_string())),
                short(shot.perplexity),
                short(shot.perplexity_per_word),
                with_half_width(shot.hits_at_1, shot.intervals.hits_at_1),
                with_half_width(shot.f1, shot.intervals.f1),
                shot.replies,
                shot.personas
            )?;
        }
        self.write_more(out)?;
        if self.shots.iter().any(|shot| shot.hits_at_1.is_some()) {
            writeln!(out, "Hits@1 ranks by {}: {}", self.rank_by, self.rank_by.description())?;
        }
        if self.candidates == Candidates::Drawn {
            writeln!(out, "candidates are drawn: the reply and {DISTRACTORS} replies of other personas")?;
        }
        for few in &self.too_few {
            writeln!(out, "{few}")?;
        }
        write!(out, "{:.1} s", self.seconds)
    }
}

impl Evaluation {
    /// What else was measured: a table of the columns that have a figure.
    fn write_more(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        type Column = (&'static str, fn(&ShotResult, &ShotCost) -> Option<String>);
        const COLUMNS: [Column; 7] = [
            ("own words %", |shot, _| shot.likeness.map(|found| short(found.recall))),
            ("beyond others'", |shot, _| {
                shot.likeness.map(|found| with_half_width(Some(found.recall_margin), found.recall_interval))
            }),
            ("nearer style", |shot, _| {
                shot.likeness.map(|found| with_half_width(Some(found.style_margin), found.style_interval))
            }),
            ("consistency", |shot, _| shot.consistency.map(short)),
            ("others", |shot, _| shot.reference_perplexity.map(short)),
            ("s to adapt", |_, cost| cost.adapt_seconds.map(short)),
            ("ms/token", |_, cost| cost.token_ms.map(short)),
        ];
        let rows: Vec<(&ShotResult, ShotCost)> = self
            .shots
            .iter()
            .map(|shot| {
                let none = ShotCost { k: shot.k, epochs: shot.epochs, adapt_seconds: None, token_ms: None };
                let found = self.costs.iter().find(|cost| (cost.k, cost.epochs) == (shot.k, shot.epochs));
                (shot, found.copied().unwrap_or(none))
            })
            .collect();
        let has = |column: &Column| rows.iter().any(|(shot, cost)| (column.1)(shot, cost).is_some());
        let columns: Vec<Column> = COLUMNS.into_iter().filter(has).collect();
        if columns.is_empty() {
            return Ok(());
        }
        let with_epochs = self.shots.iter().any(|shot| shot.epochs.is_some());
        let mut lines = vec![(format!("{:>5}", "shots"), "epochs".to_owned(), Vec::new())];
        lines.extend(rows.iter().map(|(shot, _)| {
            let epochs = shot.epochs.map_or_else(String::new, |epochs| epochs.to_string());
            (format!("{:>5}", shot.k), epochs, Vec::new())
        }));
        for (head, figure) in columns {
            let figures = rows.iter().map(|(shot, cost)| figure(shot, cost).unwrap_or_else(|| "-".to_owned()));
            let cells: Vec<String> = std::iter::once(head.to_owned()).chain(figures).collect();
            let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
            for ((.., line), cell) in lines.iter_mut().zip(cells) {
                line.push(format!("{cell:>width$}"));
            }
        }
        for (shots, epochs, cells) in lines {
            let epochs = if with_epochs { format!("  {epochs:>6}") } else { String::new() };
            writeln!(out, "{shots}{epochs}  {}", cells.join("  "))?;
        }
        if self.shots.iter().any(|shot| shot.likeness.is_some()) {
            writeln!(
                out,
                "own words: those that few other personas have; beyond others': more than replies for them use, points\n\
                 nearer style: how much nearer character trigrams are to the persona's than to others', hundredths"
            )?;
        }
        if self.shots.iter().any(|shot| shot.reference_perplexity.is_some()) {
            writeln!(out, "others: perplexity of people who are none of the personas")?;
        }
        Ok(())
    }
}

/// Two decimals, or an exponent where that would be long.
fn short(value: f64) -> String {
    if value < 100_000.0 { format!("{value:.2}") } else { format!("{value:.1e}") }
}

fn with_half_width(value: Option<f64>, interval: Option<[f64; 2]>) -> String {
    let Some(value) = value else {
        return "-".to_owned();
    };
    match interval {
        // The longer half: the other one may be cut at 0 or 100.
        Some([low, high]) => format!("{value:.2} ± {:.2}", (value - low).max(high - value)),
        None => format!("{value:.2}"),
    }
}
