//! Learning curves: the loss of the validation personas after and before adaptation, and that of training, against the
//! iteration of the outer loop. A thick line is the mean over seeds, where all seeds have a loss.

use std::collections::BTreeMap;

use crate::comparison::{Curve, Point};
use crate::scale::Scale;
use crate::svg::{Line, Mark, Panel};
use crate::view::View;

/// A line of more points is drawn as the means of so many stretches.
const STRETCHES: usize = 200;
/// The loss of a meta-batch is noisy.
const STRETCHES_OF_TRAINING: usize = 50;
/// Markers along a line.
const MARKERS: usize = 5;

/// The loss that a panel shows.
type Loss = fn(&Point) -> Option<f64>;

/// One panel for each loss that any method has.
pub fn panels(view: &View<'_>) -> Vec<Panel> {
    let wanted: [(&str, &str, Loss, usize); 3] = [
        (
            "Validation loss after adaptation",
            "nats a token, lower is better",
            |point| point.validation_after,
            STRETCHES,
        ),
        (
            "Validation loss before adaptation",
            "nats a token, lower is better",
            |point| point.validation_before,
            STRETCHES,
        ),
        ("Training loss", "nats a token, smoothed", |point| point.train_loss, STRETCHES_OF_TRAINING),
    ];
    let mut panels: Vec<Panel> = wanted
        .into_iter()
        .filter_map(|(title, note, loss, stretches)| panel(view, title, note, loss, stretches))
        .collect();
    share_axis(&mut panels);
    panels
}

/// What adaptation gains is seen where both validation losses have one axis.
fn share_axis(panels: &mut [Panel]) {
    let mut both: Vec<&mut Panel> = panels.iter_mut().filter(|panel| panel.title.starts_with("Validation")).collect();
    let values: Vec<f64> = both.iter().flat_map(|panel| values(&panel.lines)).collect();
    let shared = Scale::fitting(&values, &[]);
    for panel in &mut both {
        panel.y = shared.clone();
    }
}

fn values(lines: &[Line]) -> Vec<f64> {
    let mut values: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().flatten().map(|mark| mark.y)).collect();
    values.extend(lines.iter().flat_map(|line| line.thin.iter().flatten().map(|point| point.1)));
    values
}

fn panel(view: &View<'_>, title: &str, note: &str, loss: Loss, stretches: usize) -> Option<Panel> {
    let mut lines = Vec::new();
    for (row, result) in view.results() {
        let seeds: Vec<Vec<(usize, f64)>> =
            result.curves.iter().map(|curve| series(curve, loss)).filter(|series| !series.is_empty()).collect();
        if seeds.is_empty() {
            continue;
        }
        let mean = thinned(&mean(&seeds), stretches);
        let every = mean.len().div_ceil(MARKERS).max(1);
        // Each method starts at another point, so that markers of lines that run together do not coincide.
        let first = row.style % every;
        let points = mean.iter().enumerate().map(|(at, &(x, y))| {
            let marked = at % every == first || mean.len() <= MARKERS;
            Some(Mark { x, y, interval: None, marked, title: marked.then(|| format!("{}, {x:.0}: {y:.3}", row.name)) })
        });
        let points = points.collect();
        let thin = if seeds.len() > 1 {
            seeds.iter().map(|seed| thinned(&to_floats(seed), stretches)).collect()
        } else {
            Vec::new()
        };
        lines.push(Line { name: row.name.clone(), style: row.style, points, thin, shift: 0.0 });
    }
    if lines.is_empty() {
        return None;
    }
    let last = view.results().flat_map(|(_, result)| &result.curves).flat_map(|curve| &curve.points);
    let last = last.map(|point| point.iteration).max().unwrap_or(0).max(1);
    let y = Scale::fitting(&values(&lines), &[]);
    let x_label = "iterations of the outer loop".to_owned();
    Some(Panel {
        title: title.to_owned(),
        note: note.to_owned(),
        x_label,
        x: Scale::linear(0.0, last as f64),
        y,
        lines,
    })
}

fn series(curve: &Curve, loss: Loss) -> Vec<(usize, f64)> {
    let points = curve.points.iter().filter_map(|point| Some((point.iteration, loss(point)?)));
    points.filter(|(_, loss)| loss.is_finite()).collect()
}

fn to_floats(series: &[(usize, f64)]) -> Vec<(f64, f64)> {
    series.iter().map(|&(iteration, loss)| (iteration as f64, loss)).collect()
}

/// The mean over seeds at every iteration where each of them has a loss.
fn mean(seeds: &[Vec<(usize, f64)>]) -> Vec<(f64, f64)> {
    let mut sums: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    for &(iteration, loss) in seeds.iter().flatten() {
        let sum = sums.entry(iteration).or_default();
        *sum = (sum.0 + loss, sum.1 + 1);
    }
    let whole = sums.into_iter().filter(|(_, (_, count))| *count == seeds.len());
    whole.map(|(iteration, (sum, count))| (iteration as f64, sum / count as f64)).collect()
}

/// At most `stretches` points: the means of equally many points each.
fn thinned(points: &[(f64, f64)], stretches: usize) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(stretches).max(1);
    let middle = |part: &[(f64, f64)]| {
        let count = part.len() as f64;
        (part.iter().map(|point| point.0).sum::<f64>() / count, part.iter().map(|point| point.1).sum::<f64>() / count)
    };
    points.chunks(size).map(middle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_over_all_seeds_and_thinning_keeps_it() {
        let seeds = [vec![(0, 4.0), (10, 3.0), (20, 2.0)], vec![(0, 2.0), (10, 2.0)]];
        assert_eq!(mean(&seeds), [(0.0, 3.0), (10.0, 2.5)]);
        let points: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let thin = thinned(&points, 50);
        assert_eq!(thin.len(), 50);
        assert_eq!(thin[0], (9.5, 0.5));
        assert_eq!(thinned(&points[..3], 50), &points[..3]);
    }
}
