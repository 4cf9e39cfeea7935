//! The files of a report, made from a comparison written by hand.

#![allow(clippy::unwrap_used, clippy::panic)] // What fails here fails a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use marionette_report::{
    Cell, Comparison, Curve, Difference, Figure, MethodResult, Point, ReportError, Sample, Split, Tried, paper_methods,
    paper_only_rows, paper_row, read, write,
};

fn figure(value: f64) -> Figure {
    Figure { value, low: Some(value * 0.9), high: Some(value * 1.1), seeds: vec![value - 0.5, value + 0.5] }
}

fn cell(k: usize, perplexity: f64, hits: f64, f1: f64) -> Cell {
    Cell {
        k,
        epochs: None,
        perplexity: figure(perplexity),
        perplexity_per_word: figure(perplexity * 2.0),
        hits_at_1: Some(figure(hits)),
        f1: Some(figure(f1)),
        recall: None,
        style: None,
        reference: None,
        adapt_seconds: (k > 0).then_some(1.5),
        token_ms: Some(12.25),
        replies: 321,
        personas: 12,
    }
}

fn sample(k: usize, seed: u64, reply: &str) -> Sample {
    Sample {
        persona: vec!["i love cats.".to_owned()],
        context: vec!["hi".to_owned(), "hello there".to_owned(), "do you have pets?".to_owned()],
        gold: "two cats, yes.".to_owned(),
        k,
        epochs: None,
        reply: reply.to_owned(),
        seed,
    }
}

fn method(name: &str, at: usize) -> MethodResult {
    let shift = at as f64;
    let point = |iteration: usize, loss: f64| Point {
        iteration,
        tokens: iteration * 1000,
        train_loss: Some(loss),
        validation_before: Some(loss + 0.3),
        validation_after: Some(loss),
    };
    let curve =
        |seed| Curve { seed, points: vec![point(0, 5.0 + shift), point(10, 4.0 + shift), point(20, 3.5 + shift)] };
    MethodResult {
        method: name.to_owned(),
        paper: paper_row(name),
        learned_parameters: 1_234_567,
        inner_lr: "0.01".to_owned(),
        iterations: Some(20),
        train_seconds: Some(75.0),
        train_tokens: Some(20_000),
        cells: vec![
            cell(0, 31.25 + shift, 5.5 + shift, 7.75),
            cell(1, 25.5 + shift, 6.5 + shift, 8.75),
            cell(5, 21.125 + shift, 9.5 + shift, 11.25),
        ],
        curves: vec![curve(4), curve(9)],
        samples: vec![sample(0, 4, "i do not know"), sample(5, 9, "no"), sample(5, 4, "i have two cats")],
        ..MethodResult::default()
    }
}

fn comparison() -> Comparison {
    Comparison {
        title: "By hand".to_owned(),
        base: "tiny".to_owned(),
        data: vec!["dialogues.txt".to_owned()],
        personas: Split { train: 30, valid: 6, test: 12 },
        seeds: vec![4, 9],
        rank_by: "mean".to_owned(),
        command: "marionette-train compare --base tiny --seeds 2".to_owned(),
        machine: "2 cores".to_owned(),
        recipe: "5 steps of SGD".to_owned(),
        methods: paper_methods().enumerate().map(|(at, name)| method(name, at)).collect(),
        differences: Vec::new(),
        notes: vec!["One persona was dropped.".to_owned()],
    }
}

fn text(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap()
}

fn written(comparison: &Comparison) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), comparison).unwrap();
    for file in fs::read_dir(dir.path()).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let content = fs::read_to_string(&path).unwrap();
        if name.ends_with(".svg") {
            roxmltree::Document::parse(&content).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        if name != "comparison.json" {
            assert!(!content.contains("NaN") && !content.contains("inf,") && !content.contains("Infinity"), "{name}");
        }
    }
    dir
}

/// The table as it is printed in the paper.
#[test]
fn the_papers_numbers_are_the_papers() {
    let printed = [
        ("reinit", "REINIT", 72.36, 7.8, 8.21),
        ("transfer", "Transfer", 27.35, 10.9, 11.32),
        ("reinit-maml", "REINIT+MAML", 57.79, 10.1, 10.41),
        ("in-place", "In-place", 14.10, 13.2, 15.93),
        ("extra-place-unfixed", "Extra-place unfixed", 23.79, 11.7, 12.55),
        ("extra-place", "Extra-place", 13.21, 16.4, 19.38),
        ("transfertransfo", "Transfertransfo", 17.51, 82.2, 19.09),
    ];
    assert!(paper_methods().eq(printed.map(|row| row.0)));
    for (method, name, perplexity, hits, f1) in printed {
        let row = paper_row(method).unwrap();
        assert_eq!(
            (row.name.as_str(), row.perplexity, row.hits_at_1, row.f1),
            (name, Some(perplexity), Some(hits), Some(f1))
        );
    }
    let others: Vec<_> = paper_only_rows().into_iter().map(|row| (row.perplexity, row.hits_at_1, row.f1)).collect();
    assert_eq!(others, [(Some(15.12), Some(81.9), Some(19.77)), (None, Some(17.6), Some(18.11))]);
    assert!(paper_row("").is_none() && paper_row("P² Bot").is_none());
}

#[test]
fn the_table_has_the_numbers_it_was_given() {
    let mut given = comparison();
    given.methods[6].rank_by = Some("classifier".to_owned());
    let dir = written(&given);
    let table = text(dir.path(), "table.md");
    let line = |name: &str| table.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap().to_owned();
    assert_eq!(
        line("reinit"),
        "| reinit | 72.36 | 7.8 | 8.21 | 31.25 (28.12–34.38) | 5.5 (5.0–6.1) | 7.75 (6.98–8.53) | 21.12 (19.01–23.24) | \
         9.5 (8.6–10.5) | 11.25 (10.12–12.38) | mean | 2 |"
    );
    assert!(line("transfertransfo").ends_with("| classifier | 2 |"));
    // Not the last line of that name: what the tests took is in a table of its own.
    assert!(table.contains("| reinit | — s, 12.2 ms | 1.50 s, 12.2 ms | 1.50 s, 12.2 ms |"), "{table}");
    assert!(line("P² Bot").starts_with("| P² Bot | 15.12 | 81.9 | 19.77 | — |"));

    let mut reader = csv::Reader::from_path(dir.path().join("table.csv")).unwrap();
    let heads = reader.headers().unwrap().clone();
    let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(records.len(), 7 * 3 + 2);
    let record = records.iter().find(|r| &r[0] == "extra-place" && &r[5] == "5").unwrap();
    let of = |name: &str| record.get(heads.iter().position(|head| head == name).unwrap()).unwrap();
    assert_eq!([of("paper_f1"), of("epochs"), of("perplexity"), of("seeds")], ["19.38", "", "26.125", "2"]);
    assert_eq!(of("f1_high").parse::<f64>().unwrap(), 11.25 * 1.1);

    let page = text(dir.path(), "index.html");
    for number in ["31.25", "28.12–34.38", "13.21", "1,234,567", "1 min 15 s", "seed 9"] {
        assert!(page.contains(number), "{number}");
    }
    // The best of each column is bold; Hits@1 of a classifier is not compared with a language model's.
    assert!(page.contains("<b>31.25</b>") && !page.contains("<b>37.25</b>"));
    assert!(page.contains("<b>14.5</b>") && page.contains("15.5") && !page.contains("<b>15.5</b>"));
}

#[test]
fn every_method_has_a_marker_and_a_dash_pattern_of_its_own_and_its_name() {
    let dir = written(&comparison());
    for (file, panels) in [("figure.svg", 3), ("curves.svg", 3)] {
        let content = text(dir.path(), file);
        let picture = roxmltree::Document::parse(&content).unwrap();
        let dashes: Vec<&str> = picture.descendants().filter_map(|node| node.attribute("stroke-dasharray")).collect();
        assert_eq!(dashes.len(), 7 * panels, "{file}");
        assert_eq!(dashes.iter().collect::<BTreeSet<_>>().len(), 7, "{file}");
        for name in paper_methods() {
            let names = picture.descendants().filter(|node| node.has_tag_name("text") || !node.is_element());
            assert_eq!(
                names.filter(|node| node.is_text() && node.text() == Some(name)).count(),
                panels,
                "{file}: {name}"
            );
        }
        // The marker beside each name, in the order of the names.
        let svg = "http://www.w3.org/2000/svg";
        let markers: BTreeSet<&str> = picture
            .descendants()
            .filter(|node| {
                node.has_tag_name((svg, "g"))
                    && node.attribute("transform").is_some_and(|t| t.starts_with("translate(286"))
            })
            .filter_map(|node| node.first_element_child()?.attribute("d"))
            .collect();
        assert_eq!(markers.len(), 7, "{file}");
    }
}

#[test]
fn places_follow_the_numbers() {
    let mut given = comparison();
    given.methods.truncate(1);
    let dir = written(&given);
    let content = text(dir.path(), "figure.svg");
    let picture = roxmltree::Document::parse(&content).unwrap();
    let line = picture.descendants().find(|node| node.attribute("stroke-dasharray").is_some()).unwrap();
    let places: Vec<(f64, f64)> = line.attribute("d").unwrap()[1..]
        .split('L')
        .map(|place| place.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap())
        .collect();
    // K = 0, 1, 5 from left to right on a linear axis; perplexities 31.25, 25.5, 21.125 from top to bottom.
    let [(x0, y0), (x1, y1), (x5, y5)] = places[..] else { panic!("{places:?}") };
    assert!(((x1 - x0) * 5.0 - (x5 - x0)).abs() < 1.0, "{places:?}");
    assert!(((y1 - y0) / (y5 - y0) - 5.75 / 10.125).abs() < 0.01, "{places:?}");
    assert!(y0 < y1 && y1 < y5, "{places:?}");
}

#[test]
fn equal_comparisons_give_equal_bytes_and_can_be_read_again() {
    let given = comparison();
    let (one, two) = (written(&given), tempfile::tempdir().unwrap());
    let again = read(&one.path().join("comparison.json")).unwrap();
    assert!(again == given);
    write(two.path(), &again).unwrap();
    for file in ["comparison.json", "table.md", "table.csv", "figure.svg", "curves.svg", "samples.md", "index.html"] {
        assert!(text(one.path(), file) == text(two.path(), file), "{file}");
    }
}

#[test]
fn samples_stand_side_by_side() {
    let dir = written(&comparison());
    let samples = text(dir.path(), "samples.md");
    assert_eq!(samples.matches("## Context").count(), 1);
    assert!(
        samples.contains("> **Partner:** hi  \n> **Persona:** hello there  \n> **Partner:** do you have pets?  \n")
    );
    assert!(samples.contains("> **Reply in the data:** two cats, yes."));
    assert!(samples.contains("| Method | K = 0 | K = 5 |"));
    // The first seed of the comparison, 4.
    assert_eq!(samples.matches("| i do not know | i have two cats |").count(), 7);
}

#[test]
fn hostile_text_stays_text() {
    let attack = "<script>alert(\"1\")</script>\u{202e}'&\0</svg><img src=x onerror=y>|\n- [a](http://b)";
    let mut given = comparison();
    let attacked = &mut given.methods[0];
    attacked.method = attack.to_owned();
    attacked.failure = Some(attack.to_owned());
    attacked.rank_by = Some(attack.to_owned());
    attacked.inner_lr = attack.to_owned();
    for sample in &mut attacked.samples {
        (sample.reply, sample.gold) = (attack.to_owned(), attack.to_owned());
        sample.context[0] = attack.to_owned();
        sample.persona[0] = attack.to_owned();
    }
    for field in [
        &mut given.title,
        &mut given.base,
        &mut given.command,
        &mut given.machine,
        &mut given.recipe,
        &mut given.rank_by,
    ] {
        attack.clone_into(field);
    }
    (given.data, given.notes) = (vec![attack.to_owned()], vec![attack.to_owned()]);
    let dir = written(&given);
    let page = text(dir.path(), "index.html");
    assert!(page.contains("&lt;script&gt;"));
    for file in ["index.html", "figure.svg", "curves.svg", "samples.md"] {
        let content = text(dir.path(), file).replace(r"\<", "");
        assert!(!content.contains("<script") && !content.contains("<img"), "{file}");
        assert!(!content.contains(['\0', '\u{202e}']), "{file}");
    }
    let samples = text(dir.path(), "samples.md");
    assert!(samples.lines().all(|line| !line.starts_with("- [a]")) && samples.contains(r"\<script\>"));
    // A line of the table stays one line with its columns.
    let table = text(dir.path(), "table.md");
    let row = table.lines().find(|line| line.starts_with(r"| \<script")).unwrap();
    assert_eq!(row.replace(r"\|", "").matches('|').count(), 13);
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let page = text(written(&comparison()).path(), "index.html");
    for reference in ["src=", "<link", "url(", "@import", "<script", "<iframe"] {
        assert!(!page.contains(reference), "{reference}");
    }
    assert!(page.match_indices("href=\"").all(|(at, _)| page[at + 6..].starts_with('#')));
    let outside = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    assert!(!outside.contains("http://") && !outside.contains("https://"));
}

#[test]
fn epochs_have_a_figure_that_begins_at_k_0_and_leaves_with_them() {
    let mut given = comparison();
    let dir = written(&given);
    assert!(!dir.path().join("epochs.svg").exists());
    for method in &mut given.methods {
        let mut more = cell(5, 18.0, 12.0, 12.0);
        more.epochs = Some(10);
        method.cells[2].epochs = Some(3); // K = 5
        method.cells.insert(0, more);
    }
    write(dir.path(), &given).unwrap();
    let content = text(dir.path(), "epochs.svg");
    assert!(content.contains("epochs over K = 5 dialogues"));
    assert!(content.contains("reinit, 0: 31.25 (28.12–34.38)") && content.contains("reinit, 10: 18.00"));
    // The table's K = 5 is after the most epochs.
    assert!(text(dir.path(), "table.md").contains("18.00 (16.20–19.80)"));
    write(dir.path(), &comparison()).unwrap();
    assert!(!dir.path().join("epochs.svg").exists());
}

#[test]
fn what_is_missing_is_a_dash_and_a_failure_is_shown() {
    let mut given = comparison();
    given.methods.truncate(3);
    given.methods[0].cells[0].perplexity =
        Figure { value: f64::NAN, low: None, high: Some(f64::INFINITY), seeds: vec![f64::NAN, 1e30] };
    given.methods[0].train_seconds = Some(f64::NAN);
    given.methods[1].cells[2].perplexity.value = 1e30;
    for method in &mut given.methods {
        for cell in &mut method.cells {
            (cell.hits_at_1, cell.f1) = (None, None);
        }
    }
    (given.methods[2].cells, given.methods[2].curves, given.methods[2].samples) = (vec![], vec![], vec![]);
    given.methods[2].failure = Some("seed 4 diverged at iteration 3".to_owned());
    given.personas = Split::default();
    let dir = written(&given);
    let table = text(dir.path(), "table.md");
    assert!(table.contains("| reinit | 72.36 | 7.8 | 8.21 | — | — | — | 21.12"));
    assert!(
        table.contains("| reinit-maml † | 57.79") && table.contains("† reinit-maml: seed 4 diverged at iteration 3")
    );
    assert!(table.contains("| extra-place | 13.21 | 16.4 | 19.38 | — |"));
    let page = text(dir.path(), "index.html");
    assert!(page.contains("seed 4 diverged at iteration 3") && page.contains("not run"));
    let again = read(&dir.path().join("comparison.json")).unwrap();
    assert!(again.methods[0].train_seconds.is_none() && again.methods[0].cells[0].perplexity.seeds[0].is_nan());
}

#[test]
fn differences_say_whom_they_are_between_and_claim_nothing_whose_interval_holds_zero() {
    let of = |value, low, high| Some(Figure { value, low: Some(low), high: Some(high), seeds: Vec::new() });
    let between = |k, from: &str, from_k| Difference {
        method: "extra-place".to_owned(),
        k,
        from: from.to_owned(),
        from_k,
        ..Difference::default()
    };
    let mut given = comparison();
    given.differences = vec![
        Difference { perplexity: of(-1.25, -2.0, -0.5), f1: of(0.5, -0.25, 1.0), ..between(1, "transfer", 1) },
        Difference { perplexity: of(0.125, -0.5, 1.5), ..between(5, "transfer", 5) },
        Difference { perplexity: of(-4.0, -6.0, -3.0), ..between(5, "extra-place", 0) },
    ];
    let dir = written(&given);
    let table = text(dir.path(), "table.md");
    for line in [
        "## Differences of Perplexity",
        "| extra-place − transfer | — | **−1.25 % (−2.00, −0.50)** | +0.12 % (−0.50, +1.50) |",
        "| extra-place − itself at K = 0 | — | — | **−4.00 % (−6.00, −3.00)** |",
        "| extra-place − transfer | — | +0.50 (−0.25, +1.00) | — |",
    ] {
        assert!(table.contains(line), "{line} is not in {table}");
    }
    assert!(!table.contains("Differences of Hits@1"));
    let page = text(dir.path(), "index.html");
    assert!(page.contains("<b>−1.25 % (−2.00, −0.50)</b>") && page.contains("<td>+0.12 % (−0.50, +1.50)</td>"));
    assert!(
        page.contains("href=\"#differences\"") && !text(written(&comparison()).path(), "index.html").contains("#diff")
    );
}

#[test]
fn what_was_tried_on_the_validation_personas_is_shown_whole() {
    let tried = |seed, k, factor, epochs, perplexity| Tried { seed, k, factor, epochs, perplexity, chosen: false };
    let mut given = comparison();
    given.methods[5].tried = vec![
        Tried { chosen: true, ..tried(4, 1, 0.3, Some(5), Some(20.5)) },
        tried(4, 1, 3.0, Some(1), None),
        tried(4, 1, 0.3, Some(1), Some(21.0)),
        tried(9, 1, 0.3, Some(1), Some(19.0)),
    ];
    let dir = written(&given);
    let table = text(dir.path(), "table.md");
    for line in [
        "| Method | Seed | K | α × 0.3, 1 pass | α × 0.3, 5 passes | α × 3, 1 pass |",
        "| extra-place | 4 | 1 | 21.00 | **20.50** | — |",
        "| extra-place | 9 | 1 | 19.00 |  |  |",
    ] {
        assert!(table.contains(line), "{line} is not in {table}");
    }
    assert!(text(dir.path(), "index.html").contains("<td><b>20.50</b></td>"));
    assert!(!text(written(&comparison()).path(), "table.md").contains("validation personas chose"));
}

#[test]
fn one_seed_one_k_and_nothing_measured_are_reports_too() {
    let mut given = comparison();
    given.seeds = vec![4];
    for method in &mut given.methods {
        method.cells.truncate(1);
        method.curves.truncate(1);
        method.cells[0].perplexity = Figure { value: 20.0, ..Figure::default() };
    }
    assert!(text(written(&given).path(), "table.md").contains("| K = 0: F1 | Ranked by |"));
    let bare = MethodResult { method: "mine".to_owned(), ..MethodResult::default() };
    let dir = written(&Comparison { methods: vec![bare], ..Comparison::default() });
    assert!(text(dir.path(), "table.md").contains("| mine | — | — | — |  | 0 |"));
    assert!(!dir.path().join("figure.svg").exists());
}

#[test]
fn errors_are_one_line_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let error = write(&dir.path().join("out"), &Comparison::default()).unwrap_err();
    assert!(matches!(error, ReportError::NoMethods) && !dir.path().join("out").exists());

    let file = dir.path().join("comparison.json");
    fs::write(&file, "{\n  \"title\": 3\n}").unwrap();
    let error = read(&file).unwrap_err().to_string();
    assert!(
        error.contains("comparison.json: line 2, column 12: invalid type: integer `3`, expected a string"),
        "{error}"
    );
    assert!(error.contains("marionette-train compare") && !error.contains('\n'), "{error}");

    let error = write(&file, &comparison()).unwrap_err().to_string();
    assert!(error.contains("comparison.json: the folder cannot be made"), "{error}");
}
