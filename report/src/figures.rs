//! The figures of the evaluation: each metric against K, and against the number of epochs.

use std::collections::BTreeSet;

use crate::comparison::{Cell, MethodResult};
use crate::scale::Scale;
use crate::svg::{Line, Mark, Panel, SPAN};
use crate::view::{Metric, View, last_cell};

/// Perplexity, Hits@1 and F1 against K: one panel each that was measured.
pub fn against_k(view: &View<'_>) -> Vec<Panel> {
    let places: Vec<f64> = view.ks.iter().map(|k| *k as f64).collect();
    metrics(view, &places, "K, dialogues adapted on", |result, at| last_cell(result, *view.ks.get(at)?))
}

/// The same against the passes over the K dialogues, at the largest K; no epoch is K = 0. Empty where fewer than two
/// numbers of epochs were tried.
pub fn against_epochs(view: &View<'_>) -> Vec<Panel> {
    let Some(&largest) = view.ks.last() else { return Vec::new() };
    let tried = |result: &MethodResult| -> Vec<usize> {
        result.cells.iter().filter(|cell| cell.k == largest).filter_map(|cell| cell.epochs).collect()
    };
    let mut epochs: BTreeSet<usize> = view.results().flat_map(|(_, result)| tried(result)).collect();
    if epochs.is_empty() {
        return Vec::new();
    }
    if view.ks.first() == Some(&0) {
        epochs.insert(0);
    }
    if epochs.len() < 2 {
        return Vec::new();
    }
    let epochs: Vec<usize> = epochs.into_iter().collect();
    let places: Vec<f64> = epochs.iter().map(|epochs| *epochs as f64).collect();
    metrics(view, &places, &format!("epochs over K = {largest} dialogues"), |result, at| {
        let wanted = *epochs.get(at)?;
        let exact = result.cells.iter().find(|cell| cell.k == largest && cell.epochs == Some(wanted));
        exact.or_else(|| if wanted == 0 { last_cell(result, 0) } else { None })
    })
}

fn metrics<'a>(
    view: &View<'a>,
    places: &[f64],
    x_label: &str,
    cell: impl Fn(&'a MethodResult, usize) -> Option<&'a Cell>,
) -> Vec<Panel> {
    if places.is_empty() {
        return Vec::new();
    }
    Metric::PAPER
        .into_iter()
        .filter(|metric| *metric == Metric::Perplexity || view.has(*metric))
        .map(|metric| {
            let mut lines: Vec<Line> = view
                .results()
                .map(|(row, result)| {
                    let points = places.iter().enumerate().map(|(at, place)| {
                        let figure = metric.of(cell(result, at)?)?;
                        let title = format!("{}, {place}: {}", row.name, metric.text(Some(figure)));
                        let interval = figure.interval();
                        Some(Mark { x: *place, y: figure.value, interval, marked: true, title: Some(title) })
                    });
                    let points = points.collect();
                    Line { name: row.name.clone(), style: row.style, points, thin: Vec::new(), shift: 0.0 }
                })
                .filter(|line| line.points.iter().any(Option::is_some))
                .collect();
            spread(&mut lines, places);
            let marks = || lines.iter().flat_map(|line| line.points.iter().flatten());
            let values: Vec<f64> = marks().map(|mark| mark.y).collect();
            let ends: Vec<f64> = marks().filter_map(|mark| mark.interval).flat_map(|(low, high)| [low, high]).collect();
            let y = Scale::fitting(&values, &ends);
            Panel {
                title: metric.name().to_owned(),
                note: note(view, metric),
                x_label: x_label.to_owned(),
                x: axis(places),
                y,
                lines,
            }
        })
        .collect()
}

/// Which way is better, and for Hits@1 what the candidates were ranked by.
fn note(view: &View<'_>, metric: Metric) -> String {
    if metric != Metric::HitsAt1 {
        return metric.direction().to_owned();
    }
    let usual = &view.comparison.rank_by;
    let mut others = view.results().filter(|(row, _)| !view.counts(row, metric));
    match (others.next(), others.next()) {
        (None, _) => format!("{}, ranked by {usual}", metric.direction()),
        (Some((row, _)), None) => format!("ranked by {usual}; {} by {}", row.name, view.rank_by(row)),
        _ => format!("ranked by {usual}; some otherwise, see the table"),
    }
}

/// An axis whose ticks are the places themselves, but for those too near to the one before.
fn axis(places: &[f64]) -> Scale {
    let (low, high) = (places.first().copied().unwrap_or(0.0), places.last().copied().unwrap_or(0.0));
    let (low, high) = if high > low { (low, high) } else { (low - 1.0, low + 1.0) };
    let room = 16.0 / SPAN * (high - low);
    let mut ticks: Vec<f64> = Vec::new();
    for place in places {
        if ticks.last().is_none_or(|last| place - last >= room) {
            ticks.push(*place);
        }
    }
    Scale { low, high, log: false, ticks }
}

/// Moves the lines sideways, each by its own amount and all within half the smallest gap between two places.
fn spread(lines: &mut [Line], places: &[f64]) {
    let axis = axis(places);
    let gaps = places.iter().zip(places.iter().skip(1)).map(|(a, b)| (b - a) / (axis.high - axis.low) * SPAN);
    let gap = gaps.fold(60.0, f64::min);
    let count = lines.len() as f64;
    let step = (0.62 * gap / count.max(1.0)).min(4.0);
    for (at, line) in lines.iter_mut().enumerate() {
        line.shift = step * (at as f64 - (count - 1.0) / 2.0);
    }
}
