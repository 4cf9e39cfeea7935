//! From runs and outcomes to what the report shows.

use marionette_dialogues::{Cell as Tests, Change, Difference as Differs, Evaluation, Outcome, RankBy, ShotResult};
use marionette_models::LearningRate;
use marionette_report::{Cell, Curve, Difference, Figure, MethodResult, Point, Sample, paper_row};

use super::test::{Tried, best};
use super::{Options, Row};
use crate::method::Method;
use crate::train::{Metrics, Report};
use crate::trained::Trained;
use crate::workers::Compute;

/// One method with one seed.
pub struct Done {
    pub method: Method,
    pub seed: u64,
    /// `None` where the run does not say.
    pub report: Option<Report>,
    pub outcome: Outcome,
    /// What the validation personas were tried with before.
    pub tried: Vec<Tried>,
    pub curve: Vec<Metrics>,
    /// The number of parameters that learned.
    pub learned: usize,
    /// α, in words.
    pub rates: String,
}

/// α of a trained model, in words.
pub fn rates(trained: &Trained) -> String {
    match &trained.recipe.learning_rate {
        LearningRate::Shared(rate) => format!("{rate:.4}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        LearningRate::PerTensor(rates) => {
            let (least, most) =
                rates.iter().fold((f32::MAX, 0.0_f32), |(least, most), &rate| (least.min(rate), most.max(rate)));
            format!("{least:.3} to {most:.3}")
        }
    }
}

/// The machine, in one line.
pub fn machine(compute: Compute) -> String {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let name = name.trim_start_matches([' ', '\t', ':']).trim();
    let name = if name.is_empty() { std::env::consts::ARCH } else { name };
    let device = if compute.device.is_cuda() { "GPU" } else { "CPU" };
    format!("{name}, {} threads, {} workers, on the {device}", compute.threads, compute.workers)
}

/// What all methods share, in one line.
pub fn recipe(options: &Options) -> String {
    let Options { inner_steps, dialogues_per_step, bottleneck, start, data, plan, .. } = options;
    let start = start.as_ref().map(|run| format!("; adapters begin with those of {}", run.display()));
    format!(
        "{} meta-iterations at most of {} personas each, the best by validation; K = {} support and at most {} query \
         dialogues; {inner_steps} inner SGD steps on {dialogues_per_step} dialogue(s) each; bottleneck {bottleneck}{}",
        plan.iterations,
        plan.meta_batch,
        data.support_dialogues,
        data.query_dialogues,
        start.unwrap_or_default()
    )
}

/// What a row came to, over its seeds.
pub fn row(name: &str, done: &[Done], failure: Option<String>) -> MethodResult {
    let reports: Vec<Report> = done.iter().filter_map(|done| done.report).collect();
    let mean = |of: &dyn Fn(&Report) -> f64| match reports.as_slice() {
        [] => None,
        reports => Some(reports.iter().map(of).sum::<f64>() / reports.len() as f64),
    };
    let evaluations: Vec<Evaluation> = done.iter().map(|done| done.outcome.evaluation()).collect();
    let pooled = Outcome::pooled(done.iter().map(|done| &done.outcome)).map(|outcome| outcome.evaluation());
    let cell = |shot: &ShotResult| {
        let of = |value: &dyn Fn(&ShotResult) -> Option<f64>| -> Vec<f64> {
            let same = |other: &&ShotResult| (other.k, other.epochs) == (shot.k, shot.epochs);
            evaluations.iter().filter_map(|evaluation| evaluation.shots.iter().find(same).and_then(value)).collect()
        };
        let figure = |value: f64, interval: Option<[f64; 2]>, seeds: Vec<f64>| Figure {
            value,
            low: interval.map(|[low, _]| low),
            high: interval.map(|[_, high]| high),
            seeds,
        };
        let intervals = &shot.intervals;
        let costs = pooled.iter().flat_map(|evaluation| &evaluation.costs);
        let cost = costs.into_iter().find(|cost| (cost.k, cost.epochs) == (shot.k, shot.epochs));
        Cell {
            k: shot.k,
            epochs: shot.epochs,
            perplexity: figure(shot.perplexity, intervals.perplexity, of(&|shot| Some(shot.perplexity))),
            perplexity_per_word: figure(shot.perplexity_per_word, None, of(&|shot| Some(shot.perplexity_per_word))),
            hits_at_1: shot.hits_at_1.map(|hits| figure(hits, intervals.hits_at_1, of(&|shot| shot.hits_at_1))),
            f1: shot.f1.map(|f1| figure(f1, intervals.f1, of(&|shot| shot.f1))),
            recall: shot.likeness.map(|found| {
                figure(found.recall_margin, found.recall_interval, of(&|shot| Some(shot.likeness?.recall_margin)))
            }),
            style: shot.likeness.map(|found| {
                figure(found.style_margin, found.style_interval, of(&|shot| Some(shot.likeness?.style_margin)))
            }),
            reference: shot
                .reference_perplexity
                .map(|perplexity| figure(perplexity, None, of(&|shot| shot.reference_perplexity))),
            adapt_seconds: cost.and_then(|cost| cost.adapt_seconds),
            token_ms: cost.and_then(|cost| cost.token_ms),
            replies: shot.replies,
            personas: shot.personas,
        }
    };
    let mut rates: Vec<&str> = done.iter().map(|done| done.rates.as_str()).collect();
    rates.dedup();
    MethodResult {
        method: name.to_owned(),
        paper: paper_row(name),
        rank_by: classifies(done).then(|| RankBy::Classifier.to_string()),
        learned_parameters: done.first().map_or(0, |done| done.learned),
        inner_lr: rates.join("; "),
        iterations: reports.iter().map(|report| report.iterations).max(),
        train_seconds: mean(&|report| report.seconds),
        train_tokens: mean(&|report| report.tokens as f64).map(|tokens| tokens as usize),
        cells: pooled.iter().flat_map(|evaluation| &evaluation.shots).map(cell).collect(),
        tried: done.iter().flat_map(tried).collect(),
        curves: done.iter().map(curve).collect(),
        samples: done.first().map(samples).unwrap_or_default(),
        failure,
    }
}

fn classifies(done: &[Done]) -> bool {
    done.first().is_some_and(|done| done.method.classifies())
}

/// Each row at each K less itself without adapting, and one of them less every other: extra-place, which the device ships, or else
/// the first run that was given.
pub fn differences(rows: &[Row<'_>], done: &[Vec<Done>]) -> Vec<Difference> {
    let pooled: Vec<(&Row<'_>, bool, Outcome)> = rows
        .iter()
        .zip(done)
        .filter_map(|(row, done)| {
            Some((row, classifies(done), Outcome::pooled(done.iter().map(|done| &done.outcome))?))
        })
        .collect();
    let mut differences = Vec::new();
    let mut compare = |(row, classifies, cell): (&Row<'_>, bool, &Tests),
                       (from, other_classifies, other): (&Row<'_>, bool, &Tests)| {
        if let Some(found) = Differs::of(cell, other) {
            let figure = |change: Change| Figure {
                value: change.value,
                low: Some(change.interval[0]),
                high: Some(change.interval[1]),
                seeds: Vec::new(),
            };
            differences.push(Difference {
                method: row.name().to_owned(),
                k: cell.k,
                from: from.name().to_owned(),
                from_k: other.k,
                perplexity: found.perplexity.map(figure),
                // Candidates that are ranked by something else do not compare.
                hits_at_1: found.hits_at_1.filter(|_| classifies == other_classifies).map(figure),
                f1: found.f1.map(figure),
            });
        }
    };
    let is_shipped = |row: &Row<'_>| row.name() == Method::ExtraPlace.name();
    let subject = pooled.iter().find(|(row, ..)| is_shipped(row));
    let subject = subject.or_else(|| pooled.iter().find(|(row, ..)| matches!(row, Row::Given(_))));
    if let Some((subject, ranks, ours)) = subject {
        let others = || pooled.iter().filter(|(row, ..)| row.name() != subject.name());
        for (k, (row, other_ranks, outcome)) in
            others().flat_map(|other| ours.ks().into_iter().map(move |k| (k, other)))
        {
            if let Some((one, other)) = ours.at(k).zip(outcome.at(k)) {
                compare((subject, *ranks, one), (row, *other_ranks, other));
            }
        }
    }
    for (row, ranks, outcome) in &pooled {
        for k in outcome.ks().into_iter().filter(|&k| k > 0) {
            if let Some((one, other)) = outcome.at(k).zip(outcome.at(0)) {
                compare((row, *ranks, one), (row, *ranks, other));
            }
        }
    }
    differences
}

fn tried(done: &Done) -> Vec<marionette_report::Tried> {
    let point = |tried: &Tried| marionette_report::Tried {
        seed: done.seed,
        k: tried.k,
        // As it was written: 0.3 and not what is nearest to it in 32 bits.
        factor: tried.factor.to_string().parse().unwrap_or(f64::from(tried.factor)),
        epochs: tried.epochs,
        perplexity: tried.perplexity,
        chosen: best(&done.tried, tried.k) == Some(tried),
    };
    done.tried.iter().map(point).collect()
}

fn curve(done: &Done) -> Curve {
    let point = |line: &Metrics| Point {
        iteration: line.iteration,
        tokens: line.tokens as usize,
        train_loss: line.loss,
        validation_before: line.validation.map(|validation| validation.loss_before),
        validation_after: line.validation.map(|validation| validation.loss_after),
    };
    Curve { seed: done.seed, points: done.curve.iter().map(point).collect() }
}

fn samples(done: &Done) -> Vec<Sample> {
    let sample = |sample: &marionette_dialogues::Sample| Sample {
        persona: sample.persona.clone(),
        context: sample.context.clone(),
        gold: sample.gold.clone(),
        k: sample.k,
        epochs: sample.epochs,
        reply: sample.reply.clone(),
        seed: done.seed,
    };
    done.outcome.samples.iter().map(sample).collect()
}
