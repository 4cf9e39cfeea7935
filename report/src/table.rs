//! The paper's table with our rows beside the paper's, as Markdown and as comma-separated values.

use crate::comparison::{Cell, Figure};
use crate::differences;
use crate::text::{DASH, count, count_or_dash, duration, markdown as escape, optional};
use crate::tried;
use crate::view::{Metric, Row, View, last_cell, seeds};

/// The table at the smallest and the largest K, one table a metric with every K, what training took, and the notes.
pub fn markdown(view: &View<'_>) -> String {
    let comparison = view.comparison;
    let mut out = format!("# {}\n\n", escape(&comparison.title));
    let split = comparison.personas;
    let numbers: Vec<String> = comparison.seeds.iter().map(u64::to_string).collect();
    let facts = [
        ("Base", comparison.base.clone()),
        ("Data", comparison.data.join(", ")),
        ("Personas", format!("{} train, {} validation, {} test", split.train, split.valid, split.test)),
        ("Seeds", numbers.join(", ")),
        ("Recipe", comparison.recipe.clone()),
        ("Machine", comparison.machine.clone()),
    ];
    for (name, fact) in facts {
        out.push_str(&format!("- {name}: {}\n", escape(&fact)));
    }
    // Indented, so that it is shown as it is.
    out.push_str(&format!("\n    {}\n", comparison.command.trim_start()));

    let ks = view.table_ks();
    let mut head = vec!["Method".to_owned()];
    head.extend(Metric::PAPER.map(|metric| format!("Paper: {}", metric.short())));
    head.extend(ks.iter().flat_map(|k| Metric::PAPER.map(|metric| format!("K = {k}: {}", metric.short()))));
    head.extend(["Ranked by".to_owned(), "Seeds".to_owned()]);
    let rows = view.rows.iter().map(|row| {
        let mut cells = vec![name(row)];
        cells.extend(Metric::PAPER.map(|metric| metric.paper_text(row.paper.as_ref())));
        cells.extend(ks.iter().flat_map(|k| Metric::PAPER.map(|metric| metric.text(figure(row, *k, metric)))));
        cells.extend([escape(view.rank_by(row)), row.result.map_or_else(|| DASH.to_owned(), |r| seeds(r).to_string())]);
        cells
    });
    out.push_str("\n## The paper's table and ours\n\n");
    out.push_str(&table(&head, rows));
    out.push_str(
        "\nPPL: perplexity of a token, lower is better. Hits@1 and F1 in per cent, higher is better. In brackets: 95 % \
         interval over personas.\n",
    );
    for (name, failure) in view.failures() {
        out.push_str(&format!("\n† {}: {}\n", escape(name), escape(failure)));
    }

    for metric in Metric::ALL.into_iter().filter(|metric| view.has(*metric)) {
        out.push_str(&format!("\n## {} at every K\n\n", metric.name()));
        let rows = view.results().map(|(row, _)| {
            let figures = view.ks.iter().map(|k| metric.text(figure(row, *k, metric)));
            std::iter::once(name(row)).chain(figures).collect()
        });
        out.push_str(&table(&every_k_head(view, "Method"), rows));
    }

    for metric in differences::metrics(view) {
        out.push_str(&format!("\n## Differences of {}\n\n", metric.name()));
        let rows = differences::lines(view, metric).into_iter().map(|line| {
            let figures = line.figures.iter().map(|&figure| {
                let text = differences::text(metric, figure);
                if figure.is_some_and(differences::is_shown) { format!("**{text}**") } else { text }
            });
            std::iter::once(escape(&line.name)).chain(figures).collect()
        });
        out.push_str(&table(&every_k_head(view, ""), rows));
    }
    if !comparison.differences.is_empty() {
        out.push_str(&format!("\n{}\n", differences::CAPTION));
    }

    let tried = tried::grid(view);
    if !tried.lines.is_empty() {
        out.push_str("\n## What the validation personas chose\n\n");
        let head: Vec<String> =
            tried::LEAD.map(str::to_owned).into_iter().chain(tried.points.iter().map(tried::name)).collect();
        let rows = tried.lines.iter().map(|line| {
            let values = line.values.iter().map(|value| match value {
                Some((text, true)) => format!("**{text}**"),
                Some((text, false)) => text.clone(),
                None => String::new(),
            });
            [escape(&line.method), line.seed.to_string(), line.k.to_string()].into_iter().chain(values).collect()
        });
        out.push_str(&table(&head, rows));
        out.push_str(&format!("\n{}\n", tried::CAPTION));
    }

    if view.has_costs() {
        out.push_str("\n## What adapting and talking took in the tests\n\n");
        let rows = view.results().map(|(row, result)| {
            let cells = view.ks.iter().map(|&k| last_cell(result, k).map_or_else(|| DASH.to_owned(), cost));
            std::iter::once(name(row)).chain(cells).collect()
        });
        out.push_str(&table(&every_k_head(view, "Method"), rows));
        out.push_str(&format!("\n{COST_CAPTION}\n"));
    }

    out.push_str("\n## What training took\n\n");
    let head =
        ["Method", "Learned parameters", "Inner learning rate", "Iterations", "Tokens", "Time"].map(str::to_owned);
    let rows = view.results().map(|(row, result)| {
        vec![
            name(row),
            count(result.learned_parameters),
            escape(&result.inner_lr),
            count_or_dash(result.iterations),
            count_or_dash(result.train_tokens),
            duration(result.train_seconds.unwrap_or(f64::NAN)),
        ]
    });
    out.push_str(&table(&head, rows));

    if !comparison.notes.is_empty() {
        out.push_str("\n## Notes\n\n");
        for note in &comparison.notes {
            out.push_str(&format!("- {}\n", escape(note)));
        }
    }
    out
}

/// Below what the tests took.
pub const COST_CAPTION: &str = "Seconds of one adaptation, and milliseconds of a generated token, with the reading of what it follows; on the \
     machine of the comparison, several personas side by side, the replies to a dialogue together.";

/// Seconds to adapt and milliseconds a token.
pub fn cost(cell: &Cell) -> String {
    format!("{} s, {} ms", optional(cell.adapt_seconds, 2), optional(cell.token_ms, 1))
}

/// The head of a table with a column for every K.
fn every_k_head(view: &View<'_>, first: &str) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(view.ks.iter().map(|k| format!("K = {k}"))).collect()
}

fn name(row: &Row<'_>) -> String {
    let failed = row.result.is_some_and(|result| result.failure.is_some());
    format!("{}{}", escape(&row.name), if failed { " †" } else { "" })
}

/// What a row has at K.
pub fn figure<'a>(row: &Row<'a>, k: usize, metric: Metric) -> Option<&'a Figure> {
    metric.of(last_cell(row.result?, k)?)
}

fn table(head: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut out = format!("| {} |\n|---|{}\n", head.join(" | "), "---:|".repeat(head.len().saturating_sub(1)));
    for row in rows {
        out.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    out
}

const COLUMNS: [&str; 32] = [
    "method",
    "paper_name",
    "paper_perplexity",
    "paper_hits_at_1",
    "paper_f1",
    "k",
    "epochs",
    "perplexity",
    "perplexity_low",
    "perplexity_high",
    "perplexity_per_word",
    "perplexity_per_word_low",
    "perplexity_per_word_high",
    "hits_at_1",
    "hits_at_1_low",
    "hits_at_1_high",
    "f1",
    "f1_low",
    "f1_high",
    "recall",
    "recall_low",
    "recall_high",
    "style",
    "style_low",
    "style_high",
    "reference_perplexity",
    "reference_perplexity_low",
    "reference_perplexity_high",
    "ranked_by",
    "seeds",
    "learned_parameters",
    "failure",
];

/// One line a method, K and number of epochs, all digits, empty where there is no number. A row that was not run has its
/// paper's numbers alone.
///
/// # Errors
/// What the CSV writer says.
pub fn csv(view: &View<'_>) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS)?;
    for row in &view.rows {
        let paper = row.paper.as_ref();
        let mut start = vec![if row.ours { row.name.clone() } else { String::new() }];
        start.push(paper.map_or_else(String::new, |paper| paper.name.clone()));
        start.extend(Metric::PAPER.map(|metric| number(metric.of_paper(paper))));
        let end = match row.result {
            Some(result) => vec![
                view.rank_by(row).to_owned(),
                seeds(result).to_string(),
                result.learned_parameters.to_string(),
                result.failure.clone().unwrap_or_default(),
            ],
            None => vec![String::new(); 4],
        };
        let cells = row.result.map_or(&[][..], |result| &result.cells);
        for cell in cells {
            let mut record = start.clone();
            record.extend([cell.k.to_string(), cell.epochs.map_or_else(String::new, |epochs| epochs.to_string())]);
            for metric in Metric::ALL {
                let figure = metric.of(cell);
                record.push(number(figure.map(|figure| figure.value)));
                record.push(number(figure.and_then(|figure| figure.low)));
                record.push(number(figure.and_then(|figure| figure.high)));
            }
            record.extend(end.iter().cloned());
            writer.write_record(record)?;
        }
        if cells.is_empty() {
            writer.write_record(start.into_iter().chain(vec![String::new(); 2 + 3 * Metric::ALL.len()]).chain(end))?;
        }
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

fn number(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map_or_else(String::new, |value| value.to_string())
}
