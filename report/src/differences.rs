//! Methods against each other on the same replies.

use crate::comparison::{Difference, Figure};
use crate::text::{DASH, signed};
use crate::view::{Metric, View};

/// Below the tables.
pub const CAPTION: &str = "On the same replies; in brackets the 95 % interval, clustered by persona (percentile bootstrap of 10,000 samples \
     below a hundred personas). Bold: the interval does not hold 0. Perplexity in per cent of the other's, Hits@1 and F1 in points.";

/// One line of a table: what is compared, and its figure at every K.
pub struct Line<'a> {
    /// Such as `extra-place − transfer`.
    pub name: String,
    /// One for each of the view's K.
    pub figures: Vec<Option<&'a Figure>>,
}

/// The lines of a metric that have a figure.
pub fn lines<'a>(view: &View<'a>, metric: Metric) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for difference in &view.comparison.differences {
        let name = name(difference);
        let at = lines.iter().position(|line| line.name == name).unwrap_or_else(|| {
            lines.push(Line { name, figures: vec![None; view.ks.len()] });
            lines.len() - 1
        });
        let place = view.ks.iter().position(|&k| k == difference.k);
        let slot = place.and_then(|place| lines.get_mut(at)?.figures.get_mut(place));
        if let Some(slot) = slot {
            *slot = figure(difference, metric);
        }
    }
    lines.retain(|line| line.figures.iter().any(Option::is_some));
    lines
}

/// The metrics that have lines.
pub fn metrics(view: &View<'_>) -> impl Iterator<Item = Metric> {
    let has = |metric: &Metric| view.comparison.differences.iter().any(|found| figure(found, *metric).is_some());
    Metric::PAPER.into_iter().filter(has)
}

fn name(difference: &Difference) -> String {
    let Difference { method, from, k, from_k, .. } = difference;
    match (method == from, k == from_k) {
        (true, _) => format!("{method} − itself at K = {from_k}"),
        (false, true) => format!("{method} − {from}"),
        (false, false) => format!("{method} − {from} at K = {from_k}"),
    }
}

fn figure(difference: &Difference, metric: Metric) -> Option<&Figure> {
    let figure = match metric {
        Metric::Perplexity => difference.perplexity.as_ref(),
        Metric::PerWord | Metric::Recall | Metric::Style | Metric::Reference => None,
        Metric::HitsAt1 => difference.hits_at_1.as_ref(),
        Metric::F1 => difference.f1.as_ref(),
    };
    figure.filter(|figure| figure.value.is_finite())
}

/// Whether the interval lies on one side of 0: else nothing is claimed.
pub fn is_shown(figure: &Figure) -> bool {
    figure.interval().is_some_and(|(low, high)| low > 0.0 || high < 0.0)
}

/// The figure and its interval, as `−1.2 % (−2.0, −0.4)`.
pub fn text(metric: Metric, figure: Option<&Figure>) -> String {
    let Some(figure) = figure else { return DASH.to_owned() };
    let unit = if metric == Metric::Perplexity { " %" } else { "" };
    let value = signed(figure.value, 2);
    match figure.interval() {
        Some((low, high)) => format!("{value}{unit} ({}, {})", signed(low, 2), signed(high, 2)),
        None => format!("{value}{unit}"),
    }
}
