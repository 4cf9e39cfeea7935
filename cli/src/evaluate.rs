//! The command `evaluate`: perplexity, Hits@1 and F1 on dialogues that were held out.

use std::io::{self, Write as _};
use std::ops::ControlFlow;

use anyhow::anyhow;
use bytesize::ByteSize;
use marionette_console::{Progress, note};
use marionette_dialogues::{EvaluateError, Judge, evaluate_judged, group_by_persona};
use marionette_runtime::entailment::Entailment;
use marionette_runtime::evaluate::DeviceLearner;
use marionette_runtime::memory;

use crate::args::EvaluateArgs;
use crate::common::{Opened, count, open, read_any};

/// Evaluates, and prints the table or the JSON object.
///
/// # Errors
/// Dialogues, bundle or persona cannot be read; a graph fails.
pub fn run(args: &EvaluateArgs) -> anyhow::Result<()> {
    let in_file = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", args.dialogues.display());
    let dialogues = read_any(&args.dialogues)?;
    let grouping = group_by_persona(dialogues).map_err(|error| in_file(&error))?;
    grouping.notes().iter().for_each(note);
    let mut options = marionette_dialogues::Options {
        shots: args.shots.clone(),
        epochs: args.epochs.clone().map(|epochs| epochs.0).unwrap_or_default(),
        personas: args.personas.map(Into::into),
        folds: args.folds.map(Into::into),
        max_new_tokens: args.max_tokens,
        rank_by: args.rank_by,
        samples: 0,
        reference: Vec::new(),
        in_context: args.in_context,
    };
    options.check(&grouping.tasks).map_err(|error| in_file(&error))?;
    let Opened { mut engine, encoder, .. } = open(&args.common, args.persona.as_ref().map(|name| (name, &args.home)))?;
    if let Some(file) = &args.reference {
        let others = read_any(file)?;
        options.reference = marionette_dialogues::reference(&encoder, &others)
            .map_err(|error| anyhow!("{}: {error}", file.display()))?;
    }
    let progress = Progress::new(0, "evaluations");
    let provider = engine.provider();
    let mut judge = args.nli.as_deref().map(|dir| Entailment::open(dir, args.common.options())).transpose()?;
    let judge = judge.as_mut().map(|judge| judge as &mut dyn Judge);
    let learner = DeviceLearner::new(&mut engine, args.inner_lr);
    let hear = |at: marionette_dialogues::Progress| {
        progress.at(at.done as u64, at.total as u64, || {
            let epochs = at.epochs.map(|epochs| format!(", {}", count(epochs, "epoch"))).unwrap_or_default();
            let (persona, fold) = (at.persona + 1, at.fold + 1);
            let shots = count(at.shots, "shot");
            format!("persona {persona}/{}, fold {fold}/{}, {shots}{epochs}", at.personas, at.folds)
        });
        ControlFlow::Continue(())
    };
    let result = evaluate_judged(&mut [learner], &encoder, &grouping.tasks, &options, hear, judge);
    drop(progress);
    let outcome = result.map_err(|error| match error {
        EvaluateError::Learner(error) => anyhow::Error::from(error),
        other => in_file(&other),
    })?;
    let evaluation = outcome.evaluation();
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&evaluation)?)?;
    } else {
        writeln!(out, "{evaluation} ({provider})")?;
    }
    if let Some(held) = memory::resident() {
        note(format_args!("held at most {}", ByteSize(held.peak)));
    }
    Ok(())
}
