//! A comparison as a reader wants it: in the paper's order, with the paper's numbers beside, at the K that matter.

use std::collections::BTreeSet;

use crate::comparison::{Cell, Comparison, Figure, MethodResult};
use crate::paper::{PaperRow, paper_methods, paper_only_rows, paper_row};
use crate::text::{DASH, fixed, optional};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Of a token.
    Perplexity,
    /// Of a white-space word.
    PerWord,
    /// Per cent.
    HitsAt1,
    /// Per cent.
    F1,
    /// Points of a per cent.
    Recall,
    /// Hundredths of the distance of styles that have nothing in common.
    Style,
    /// Of a token of people who are none of the personas.
    Reference,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Perplexity, Self::PerWord, Self::HitsAt1, Self::F1, Self::Recall, Self::Style, Self::Reference];
    /// Those of the paper's table.
    pub const PAPER: [Self; 3] = [Self::Perplexity, Self::HitsAt1, Self::F1];

    /// As a heading.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "Perplexity",
            Self::PerWord => "Perplexity per word",
            Self::HitsAt1 => "Hits@1, %",
            Self::F1 => "F1, %",
            Self::Recall => "Own words used beyond others’, points",
            Self::Style => "Style nearer than to others’, hundredths",
            Self::Reference => "Perplexity of other people",
        }
    }

    /// As a column's heading in a crowded table.
    pub fn short(self) -> &'static str {
        match self {
            Self::Perplexity => "PPL",
            Self::PerWord => "PPL/word",
            Self::HitsAt1 => "Hits@1",
            Self::F1 => "F1",
            Self::Recall => "Recall",
            Self::Style => "Style",
            Self::Reference => "PPL of others",
        }
    }

    /// Which way is better.
    pub fn direction(self) -> &'static str {
        if self.lower_is_better() { "lower is better" } else { "higher is better" }
    }

    fn lower_is_better(self) -> bool {
        matches!(self, Self::Perplexity | Self::PerWord | Self::Reference)
    }

    /// As many as the paper prints.
    pub fn decimals(self) -> usize {
        if self == Self::HitsAt1 { 1 } else { 2 }
    }

    /// The figure of a cell, where it was measured and is a number.
    pub fn of(self, cell: &Cell) -> Option<&Figure> {
        let figure = match self {
            Self::Perplexity => Some(&cell.perplexity),
            Self::PerWord => Some(&cell.perplexity_per_word),
            Self::HitsAt1 => cell.hits_at_1.as_ref(),
            Self::F1 => cell.f1.as_ref(),
            Self::Recall => cell.recall.as_ref(),
            Self::Style => cell.style.as_ref(),
            Self::Reference => cell.reference.as_ref(),
        };
        figure.filter(|figure| figure.value.is_finite())
    }

    /// What the paper prints.
    pub fn of_paper(self, row: Option<&PaperRow>) -> Option<f64> {
        match self {
            Self::Perplexity => row?.perplexity,
            Self::PerWord | Self::Recall | Self::Style | Self::Reference => None,
            Self::HitsAt1 => row?.hits_at_1,
            Self::F1 => row?.f1,
        }
    }

    /// The paper's number, or a dash.
    pub fn paper_text(self, row: Option<&PaperRow>) -> String {
        optional(self.of_paper(row), self.decimals())
    }

    /// The mean, or a dash.
    pub fn value_text(self, figure: Option<&Figure>) -> String {
        optional(figure.map(|figure| figure.value), self.decimals())
    }

    /// `low–high`, where both are known.
    pub fn interval_text(self, figure: Option<&Figure>) -> Option<String> {
        let (low, high) = figure?.interval()?;
        Some(format!("{}–{}", fixed(low, self.decimals()), fixed(high, self.decimals())))
    }

    /// The mean and its interval, as `13.21 (12.90–13.50)`.
    pub fn text(self, figure: Option<&Figure>) -> String {
        let value = self.value_text(figure);
        match self.interval_text(figure) {
            Some(interval) => format!("{value} ({interval})"),
            None => value,
        }
    }
}

impl Figure {
    /// Both ends of the interval, where both are numbers.
    pub(crate) fn interval(&self) -> Option<(f64, f64)> {
        let (low, high) = (self.low?, self.high?);
        (low.is_finite() && high.is_finite()).then_some((low, high))
    }
}

/// One line of the tables: a method that ran, one that did not, or a row that only the paper has.
#[derive(Debug)]
pub struct Row<'a> {
    /// The method, or the paper's name for it.
    pub name: String,
    /// The paper's numbers.
    pub paper: Option<PaperRow>,
    /// Ours.
    pub result: Option<&'a MethodResult>,
    /// Which line style the method has in every figure.
    pub style: usize,
    /// Whether it can be run here.
    pub ours: bool,
}

/// A comparison in the order in which it is shown.
#[derive(Debug)]
pub struct View<'a> {
    /// All that was given.
    pub comparison: &'a Comparison,
    /// The paper's order, then methods that the paper does not have, then what only the paper has.
    pub rows: Vec<Row<'a>>,
    /// Every K of any method, from the smallest.
    pub ks: Vec<usize>,
}

impl<'a> View<'a> {
    /// Puts the methods in order.
    pub fn new(comparison: &'a Comparison) -> Self {
        let mut rows = Vec::new();
        for (style, method) in paper_methods().enumerate() {
            let paper = paper_row(method);
            let before = rows.len();
            for result in comparison.methods.iter().filter(|result| result.method == method) {
                let paper = result.paper.clone().or_else(|| paper.clone());
                rows.push(Row { name: method.to_owned(), paper, result: Some(result), style, ours: true });
            }
            if rows.len() == before {
                rows.push(Row { name: method.to_owned(), paper, result: None, style, ours: true });
            }
        }
        let mut style = paper_methods().count();
        for result in comparison.methods.iter().filter(|result| paper_row(&result.method).is_none()) {
            let (name, paper) = (result.method.clone(), result.paper.clone());
            rows.push(Row { name, paper, result: Some(result), style, ours: true });
            style += 1;
        }
        for paper in paper_only_rows() {
            rows.push(Row { name: paper.name.clone(), paper: Some(paper), result: None, style, ours: false });
        }
        let ks: BTreeSet<usize> = comparison.methods.iter().flat_map(|m| &m.cells).map(|cell| cell.k).collect();
        Self { comparison, rows, ks: ks.into_iter().collect() }
    }

    /// The rows that ran.
    pub fn results(&self) -> impl Iterator<Item = (&Row<'a>, &'a MethodResult)> {
        self.rows.iter().filter_map(|row| Some((row, row.result?)))
    }

    /// The smallest K and the largest, which are the table's.
    pub fn table_ks(&self) -> Vec<usize> {
        let mut ks: Vec<usize> = [self.ks.first(), self.ks.last()].into_iter().flatten().copied().collect();
        ks.dedup();
        ks
    }

    /// The best value at K of any method that counts.
    pub fn best(&self, metric: Metric, k: usize) -> Option<f64> {
        let counted = self.results().filter(|(row, _)| self.counts(row, metric));
        let values = counted.filter_map(|(_, result)| Some(metric.of(last_cell(result, k)?)?.value));
        if metric.lower_is_better() { values.min_by(f64::total_cmp) } else { values.max_by(f64::total_cmp) }
    }

    /// Whether a row can be the best: Hits@1 compares only between rows whose candidates are ranked alike.
    pub fn counts(&self, row: &Row<'a>, metric: Metric) -> bool {
        metric != Metric::HitsAt1 || self.rank_by(row) == self.comparison.rank_by
    }

    /// Whether all methods rank their candidates by the same.
    pub fn ranked_alike(&self) -> bool {
        self.results().all(|(row, _)| self.rank_by(row) == self.comparison.rank_by)
    }

    /// Whether anything measured this.
    pub fn has(&self, metric: Metric) -> bool {
        self.results().any(|(_, result)| result.cells.iter().any(|cell| metric.of(cell).is_some()))
    }

    /// Whether it was measured how long the tests took.
    pub fn has_costs(&self) -> bool {
        self.results().flat_map(|(_, result)| &result.cells).any(|cell| cell.token_ms.is_some())
    }

    /// Methods that failed, with why.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.results().filter_map(|(row, result)| Some((row.name.as_str(), result.failure.as_deref()?)))
    }

    /// What a method's candidates were ranked by.
    pub fn rank_by(&self, row: &Row<'a>) -> &'a str {
        match row.result {
            Some(result) => result.rank_by.as_deref().unwrap_or(&self.comparison.rank_by),
            None => DASH,
        }
    }
}

/// The cell that stands for K: the recipe's own number of steps, or else the most epochs.
pub fn last_cell(result: &MethodResult, k: usize) -> Option<&Cell> {
    result.cells.iter().filter(|cell| cell.k == k).max_by_key(|cell| cell.epochs.unwrap_or(usize::MAX))
}

/// The number of seeds that gave a number.
pub fn seeds(result: &MethodResult) -> usize {
    let counted = |cell: &Cell| cell.perplexity.seeds.iter().filter(|value| value.is_finite()).count();
    result.cells.iter().map(counted).min().unwrap_or(0)
}
