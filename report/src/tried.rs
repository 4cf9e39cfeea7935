//! How each method was adapted in the tests, and what else was tried.

use crate::comparison::Tried;
use crate::text::optional;
use crate::view::View;

/// Below the table.
pub const CAPTION: &str =
    "Perplexity of the validation personas, which no test is of; bold is what was tested, a dash diverged.";

/// What stands before the points in a table.
pub const LEAD: [&str; 3] = ["Method", "Seed", "K"];

/// A way of adapting: the factor of the inner learning rate, and the passes.
pub type Point = (f64, Option<usize>);

/// What was tried with one method, seed and K.
pub struct Line {
    /// The method.
    pub method: String,
    /// The run's seed.
    pub seed: u64,
    /// K.
    pub k: usize,
    /// The perplexity at each of the grid's points, and whether it was chosen.
    pub values: Vec<Option<(String, bool)>>,
}

/// All that was tried.
pub struct Grid {
    /// The ways of adapting, from the smallest factor.
    pub points: Vec<Point>,
    /// In the order of the methods.
    pub lines: Vec<Line>,
}

/// The grid of a comparison.
pub fn grid(view: &View<'_>) -> Grid {
    let mut points: Vec<Point> = Vec::new();
    let all = || view.results().flat_map(|(_, result)| &result.tried);
    for point in all().map(of) {
        if !points.contains(&point) {
            points.push(point);
        }
    }
    points.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
    let mut lines: Vec<Line> = Vec::new();
    for (row, result) in view.results() {
        for tried in &result.tried {
            let is_same = |line: &Line| (&line.method, line.seed, line.k) == (&row.name, tried.seed, tried.k);
            let at = lines.iter().position(is_same).unwrap_or_else(|| {
                let values = vec![None; points.len()];
                lines.push(Line { method: row.name.clone(), seed: tried.seed, k: tried.k, values });
                lines.len() - 1
            });
            let place = points.iter().position(|&point| point == of(tried));
            if let Some(slot) = place.and_then(|place| lines.get_mut(at)?.values.get_mut(place)) {
                *slot = Some((optional(tried.perplexity, 2), tried.chosen));
            }
        }
    }
    Grid { points, lines }
}

fn of(tried: &Tried) -> Point {
    (tried.factor, tried.epochs)
}

/// As `α × 0.3, 5 passes`.
pub fn name(&(factor, epochs): &Point) -> String {
    let passes = match epochs {
        None => String::new(),
        Some(1) => ", 1 pass".to_owned(),
        Some(epochs) => format!(", {epochs} passes"),
    };
    format!("α × {factor}{passes}")
}
