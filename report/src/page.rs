//! One page that shows all of it: no script, no outside reference.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::differences;
use crate::samples::{Context, Contexts, contexts, turns};
use crate::style::dark_rules;
use crate::svg::{Panel, inline};
use crate::table::{self, figure};
use crate::text::{DASH, count, count_or_dash, duration, fixed};
use crate::tried;
use crate::view::{Metric, Row, View, last_cell, seeds};

const CSS: &str = include_str!("page.css");

/// The whole of `index.html`.
pub fn page(view: &View<'_>, shots: &[Panel], epochs: &[Panel], curves: &[Panel]) -> String {
    let comparison = view.comparison;
    let samples = contexts(view);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (comparison.title) }
                style { (PreEscaped(CSS)) (PreEscaped(dark_rules())) }
            }
            body {
                header {
                    h1 { (comparison.title) }
                    p.lead { (comparison.recipe) }
                    nav {
                        a href="#table" { "Table" }
                        @if !shots.is_empty() { a href="#figure" { "Figure" } }
                        @if !comparison.differences.is_empty() { a href="#differences" { "Differences" } }
                        @if !epochs.is_empty() { a href="#epochs" { "Epochs" } }
                        @if !curves.is_empty() { a href="#curves" { "Learning curves" } }
                        a href="#cost" { "Training" }
                        @if !samples.contexts.is_empty() { a href="#samples" { "Samples" } }
                        @if !comparison.notes.is_empty() { a href="#notes" { "Notes" } }
                    }
                }
                main {
                    (what_was_run(view))
                    section #table { h2 { "The paper’s table and ours" } (main_table(view)) }
                    @if !shots.is_empty() {
                        section #figure {
                            h2 { "Against the number of dialogues" }
                            (pictures(shots, "Perplexity, Hits@1 and F1 of the test personas against K. Bars: 95 % interval over personas. \
                                Lines are set side by side at each K so that their bars do not cover each other. An arrow marks a \
                                value beyond the axis."))
                            (every_k(view))
                        }
                    }
                    @if !comparison.differences.is_empty() { (all_differences(view)) }
                    @if !epochs.is_empty() {
                        section #epochs {
                            h2 { "Against the number of epochs" }
                            (pictures(epochs, "The same against the passes over the dialogues adapted on, at the largest K. No epoch is the model as it was trained."))
                        }
                    }
                    @if !curves.is_empty() {
                        section #curves {
                            h2 { "Learning curves" }
                            (pictures(curves, "Losses against the iteration of the outer loop. Thick: mean over seeds; thin: one line a seed."))
                        }
                    }
                    section #cost { h2 { "What training took" } (cost(view)) (costs_of_tests(view)) (all_tried(view)) }
                    @if !samples.contexts.is_empty() { (all_samples(&samples)) }
                    @if !comparison.notes.is_empty() {
                        section #notes { h2 { "Notes" } ul { @for note in &comparison.notes { li { (note) } } } }
                    }
                }
                footer {
                    p {
                        "Perplexity is exp of the mean negative log-likelihood of the reply tokens; per word, the same sum over the count of \
                         white-space words, which alone compares between tokenizers. Hits@1: the gold reply is ranked first among its \
                         candidates. F1: unigram overlap of the generated reply with the gold one. Every figure with all its digits, and \
                         that of each seed, is in comparison.json; table.csv holds the means and intervals."
                    }
                }
            }
        }
    };
    format!("{}\n", page.into_string())
}

fn what_was_run(view: &View<'_>) -> Markup {
    let comparison = view.comparison;
    let split = comparison.personas;
    let seeds: Vec<String> = comparison.seeds.iter().map(u64::to_string).collect();
    html! {
        section #run {
            h2 { "What was run" }
            dl {
                div { dt { "Base model" } dd { (comparison.base) } }
                div { dt { "Data" } dd { @for (at, file) in comparison.data.iter().enumerate() { @if at > 0 { br; } (file) } } }
                div { dt { "Personas" } dd { (count(split.train)) " training, " (count(split.valid)) " validation, " (count(split.test)) " test" } }
                div { dt { "Seeds" } dd { (seeds.join(", ")) } }
                div { dt { "Candidates ranked by" } dd { (comparison.rank_by) } }
                div { dt { "Machine" } dd { (comparison.machine) } }
            }
            (command(&comparison.command))
        }
    }
}

/// Lines break before an option rather than inside one.
fn command(text: &str) -> Markup {
    html! {
        pre tabindex="0" {
            code { @for (at, part) in text.split(" --").enumerate() { @if at > 0 { " " } span.option { @if at > 0 { "--" } (part) } } }
        }
    }
}

fn main_table(view: &View<'_>) -> Markup {
    let ks = view.table_ks();
    html! {
        div.scroll tabindex="0" {
            table {
                thead {
                    tr {
                        th.name rowspan="2" scope="col" { "Method" }
                        th.group colspan="3" scope="colgroup" { "Paper" }
                        @for k in &ks { th.group colspan="3" scope="colgroup" { "Ours, " i { "K" } " = " (k) } }
                        th.left rowspan="2" scope="col" { "Ranked by" }
                        th rowspan="2" scope="col" { "Seeds" }
                    }
                    tr {
                        @for metric in Metric::PAPER { th scope="col" { (metric.short()) } }
                        @for _ in &ks { @for metric in Metric::PAPER { th scope="col" { (metric.short()) } } }
                    }
                }
                tbody {
                    @for row in &view.rows {
                        tr class=[row.result.is_none().then_some("absent")] {
                            (name(row))
                            @for metric in Metric::PAPER { td { (metric.paper_text(row.paper.as_ref())) } }
                            @if row.result.is_some() {
                                @for k in &ks { @for metric in Metric::PAPER { (value(view, row, *k, metric)) } }
                                td.left { (view.rank_by(row)) }
                                td { (row.result.map_or(0, seeds)) }
                            } @else {
                                td.left colspan=(3 * ks.len() + 2) { @if row.ours { "not run" } @else { "in the paper only" } }
                            }
                        }
                    }
                }
            }
        }
        p.caption {
            "PPL: perplexity of a token, lower is better. Hits@1 and F1 in per cent, higher is better. Small: 95 % interval over personas. \
             Bold: the best of ours in its column"
            @if view.ranked_alike() { "." } @else { "; of Hits@1, which compares only between rows that are ranked alike, the best of those ranked by " (view.comparison.rank_by) "." }
        }
        @for (name, failure) in view.failures() { p.failure { "† " b { (name) } ": " bdi { (failure) } } }
    }
}

fn name(row: &Row<'_>) -> Markup {
    let failed = row.result.is_some_and(|result| result.failure.is_some());
    html! { th.name scope="row" { (row.name) @if failed { " " abbr title="see below" { "†" } } } }
}

fn value(view: &View<'_>, row: &Row<'_>, k: usize, metric: Metric) -> Markup {
    let figure = figure(row, k, metric);
    let best = view.counts(row, metric) && figure.is_some_and(|figure| view.best(metric, k) == Some(figure.value));
    html! {
        td {
            @if best { b { (metric.value_text(figure)) } } @else { (metric.value_text(figure)) }
            @if let Some(interval) = metric.interval_text(figure) { small { (interval) } }
        }
    }
}

fn pictures(panels: &[Panel], caption: &str) -> Markup {
    html! {
        figure {
            div.panels { @for panel in panels { (inline(panel)) } }
            figcaption.caption { (caption) }
        }
    }
}

/// The head of a table with a column for every K.
fn every_k_head(view: &View<'_>, first: &str) -> Markup {
    html! {
        thead { tr { th.name scope="col" { (first) } @for k in &view.ks { th scope="col" { i { "K" } " = " (k) } } } }
    }
}

fn every_k(view: &View<'_>) -> Markup {
    html! {
        @for metric in Metric::ALL.into_iter().filter(|metric| view.has(*metric)) {
            details {
                summary { (metric.name()) " at every K" }
                div.scroll tabindex="0" {
                    table {
                        (every_k_head(view, "Method"))
                        tbody {
                            @for (row, _) in view.results() {
                                tr { (name(row)) @for k in &view.ks { (value(view, row, *k, metric)) } }
                            }
                        }
                    }
                }
            }
        }
        @if let Some(&k) = view.ks.last() { (every_seed(view, k)) }
    }
}

fn all_differences(view: &View<'_>) -> Markup {
    html! {
        section #differences {
            h2 { "Differences" }
            @for metric in differences::metrics(view) {
                h3 { (metric.name()) }
                div.scroll tabindex="0" {
                    table {
                        (every_k_head(view, "Compared"))
                        tbody {
                            @for line in differences::lines(view, metric) {
                                tr {
                                    th.name scope="row" { (line.name) }
                                    @for &figure in &line.figures {
                                        @let text = differences::text(metric, figure);
                                        td { @if figure.is_some_and(differences::is_shown) { b { (text) } } @else { (text) } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            p.caption { (differences::CAPTION) }
        }
    }
}

fn every_seed(view: &View<'_>, k: usize) -> Markup {
    let seeds = &view.comparison.seeds;
    let metrics: Vec<Metric> = Metric::PAPER.into_iter().filter(|metric| view.has(*metric)).collect();
    let of_seed = |row: &Row<'_>, metric: Metric, at: usize| {
        let value = figure(row, k, metric).and_then(|figure| figure.seeds.get(at).copied());
        value.map_or_else(|| DASH.to_owned(), |value| fixed(value, metric.decimals()))
    };
    html! {
        @if seeds.len() > 1 {
            details {
                summary { "Every seed at K = " (k) }
                div.scroll tabindex="0" {
                    table {
                        thead {
                            tr {
                                th.name rowspan="2" scope="col" { "Method" }
                                @for metric in &metrics { th.group colspan=(seeds.len()) scope="colgroup" { (metric.name()) } }
                            }
                            tr { @for _ in &metrics { @for seed in seeds { th scope="col" { "seed " (seed) } } } }
                        }
                        tbody {
                            @for (row, _) in view.results() {
                                tr { (name(row)) @for metric in &metrics { @for at in 0..seeds.len() { td { (of_seed(row, *metric, at)) } } } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn cost(view: &View<'_>) -> Markup {
    let last = view.ks.last().copied().unwrap_or(0);
    html! {
        div.scroll tabindex="0" {
            table {
                thead {
                    tr {
                        th.name scope="col" { "Method" }
                        @for head in ["Learned parameters", "Inner learning rate", "Iterations", "Tokens", "Time", "Replies scored", "Personas scored"] {
                            th scope="col" { (head) }
                        }
                    }
                }
                tbody {
                    @for (row, result) in view.results() {
                        @let cell = last_cell(result, last);
                        tr {
                            (name(row))
                            td { (count(result.learned_parameters)) }
                            td { (result.inner_lr) }
                            td { (count_or_dash(result.iterations)) }
                            td { (count_or_dash(result.train_tokens)) }
                            td { (duration(result.train_seconds.unwrap_or(f64::NAN))) }
                            td { (cell.map_or_else(|| DASH.to_owned(), |cell| count(cell.replies))) }
                            td { (cell.map_or_else(|| DASH.to_owned(), |cell| count(cell.personas))) }
                        }
                    }
                }
            }
        }
        p.caption { "Every column is of one seed; tokens and time are means over seeds. Iterations are of the outer loop, replies and personas those of the test at K = " (last) "." }
    }
}

fn costs_of_tests(view: &View<'_>) -> Markup {
    html! {
        @if view.has_costs() {
            details {
                summary { "What adapting and talking took in the tests" }
                div.scroll tabindex="0" {
                    table {
                        (every_k_head(view, "Method"))
                        tbody {
                            @for (row, result) in view.results() {
                                tr { (name(row)) @for &k in &view.ks { td { (last_cell(result, k).map_or_else(|| DASH.to_owned(), table::cost)) } } }
                            }
                        }
                    }
                }
                p.caption { (table::COST_CAPTION) }
            }
        }
    }
}

fn all_tried(view: &View<'_>) -> Markup {
    let tried = tried::grid(view);
    html! {
        @if !tried.lines.is_empty() {
            details {
                summary { "What the validation personas chose" }
                div.scroll tabindex="0" {
                    table {
                        thead {
                            tr {
                                @for head in tried::LEAD { th.name scope="col" { (head) } }
                                @for point in &tried.points { th scope="col" { (tried::name(point)) } }
                            }
                        }
                        tbody {
                            @for line in &tried.lines {
                                tr {
                                    th.name scope="row" { (line.method) }
                                    td { (line.seed) }
                                    td { (line.k) }
                                    @for value in &line.values {
                                        td {
                                            @match value {
                                                Some((text, true)) => b { (text) },
                                                Some((text, false)) => (text),
                                                None => "",
                                            }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
                p.caption { (tried::CAPTION) }
            }
        }
    }
}

fn all_samples(samples: &Contexts<'_>) -> Markup {
    html! {
        section #samples {
            h2 { "Samples" }
            p { "The same contexts answered by every method. Of several seeds the first is shown." }
            @for (at, Context { sample, replies }) in samples.contexts.iter().enumerate() {
                article {
                    h3 { "Context " (at + 1) }
                    div.context {
                        @if !sample.persona.is_empty() {
                            div {
                                h4 { "Persona" }
                                ul { @for sentence in &sample.persona { li dir="auto" { (sentence) } } }
                            }
                        }
                        div {
                            h4 { "Dialogue so far" }
                            @for (persona, text) in turns(&sample.context) {
                                p.turn { span.who { @if persona { "Persona" } @else { "Partner" } } span dir="auto" { (text) } }
                            }
                            p.turn.gold { span.who { "In the data" } span dir="auto" { (sample.gold) } }
                        }
                    }
                    div.scroll tabindex="0" {
                        table.replies {
                            thead { tr { th.name scope="col" { "Method" } @for k in &samples.ks { th.left scope="col" { i { "K" } " = " (k) } } } }
                            tbody {
                                @for (name, replies) in replies {
                                    tr {
                                        th.name scope="row" { (name) }
                                        @for reply in replies { td.left dir="auto" { (reply.unwrap_or(DASH)) } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
