//! The command `adapt`: learns a persona from its dialogues, and saves it as a new version.

mod shown;
mod watch;

use std::io::{self, Write as _};
use std::time::Instant;

use anyhow::anyhow;
use bytesize::ByteSize;
use marionette_console::interrupt::Work;
use marionette_console::{note, say};
use marionette_dialogues::{Dialogue, Encoder, Learner as _};
use marionette_models::Tensors;
use marionette_models::terminal::printable_line;
use marionette_runtime::adapt::{self, Adapted, Recipe, Support};
use marionette_runtime::evaluate::DeviceLearner;
use marionette_runtime::generate::Go;
use marionette_runtime::persona_name::{PersonaName, PersonaRef};
use marionette_runtime::personas::{PersonaError, Record, Saved, Store};
use marionette_runtime::plan::Plan;
use marionette_runtime::{Engine, Error, memory};
use serde::Serialize;

use self::shown::Shown;
use crate::args::{AdaptArgs, Home, LearningArgs};
use crate::common::{Opened, count, listen, names, open, read};

/// The longest reply that is shown, in tokens.
const LONGEST_REPLY: usize = 32;

/// A reply as it was and as it is.
#[derive(Debug, Serialize)]
struct Reply {
    /// What was said to it last.
    to: String,
    before: String,
    after: String,
}

/// What is learned, wherever it comes from.
pub(crate) struct Lesson<'a> {
    pub(crate) home: &'a Home,
    pub(crate) persona: &'a PersonaName,
    /// The version that it begins with, `ann@2`; none is the bundle's start.
    pub(crate) from: Option<String>,
    pub(crate) dialogues: Vec<Dialogue>,
    /// How many of the dialogues, the last ones, are held out.
    pub(crate) holdout: usize,
    /// Where they come from, as it is said.
    pub(crate) source: String,
    pub(crate) keep_dialogues: bool,
    pub(crate) learning: &'a LearningArgs,
}

/// Learns the persona, and saves it where that lowered its loss; again and again where its files are watched.
///
/// # Errors
/// Dialogues that cannot be read, a bundle that cannot be opened, a persona that is busy; an adaptation that diverged or made it worse.
pub fn run(args: &AdaptArgs) -> anyhow::Result<()> {
    let AdaptArgs { common, home, persona, learning, from, .. } = args;
    if args.watch && args.dialogues.iter().any(|path| path.as_os_str() == "-") {
        return Err(anyhow!("--watch watches files, and standard input is none"));
    }
    let source = names(&args.dialogues);
    let mut seen = watch::state(&args.dialogues);
    let (mut dialogues, mut holdout) = lesson(args)?;
    // The version that is current now, whatever becomes current meanwhile.
    let from = match from {
        Some(PersonaRef { name, version: None }) => {
            let version = home.store().and_then(|store| store.current(name)).map_err(Error::from)?;
            Some(PersonaRef { name: name.clone(), version: Some(version) })
        }
        from => from.clone(),
    };
    let Opened { mut engine, encoder, .. } = open(common, from.as_ref().map(|from| (from, home)))?;
    let from = from.map(|from| from.to_string());
    let start = engine.adapters();
    let keep_dialogues = !args.forget_dialogues;
    listen()?;
    loop {
        let (from, source) = (from.clone(), source.clone());
        let learned = learn(
            &mut engine,
            &encoder,
            &Lesson { home, persona, from, dialogues, holdout, source, keep_dialogues, learning },
        );
        let is_stopped =
            |error: &anyhow::Error| matches!(error.downcast_ref(), Some(Error::Interrupted | Error::Stopped));
        match learned {
            Ok(()) if !args.watch => return Ok(()),
            Err(error) if !args.watch || is_stopped(&error) => return Err(error),
            Ok(()) => {}
            // It is watched so that better dialogues may come.
            Err(error) => say(error),
        }
        engine.close_graphs();
        engine.set_adapters(&start)?;
        note(format_args!("watching {}; Ctrl-C ends", names(&args.dialogues)));
        (dialogues, holdout) = loop {
            seen = watch::change(&args.dialogues, &seen);
            match lesson(args) {
                Ok(lesson) => break lesson,
                // It may be half-written.
                Err(error) => say(error),
            }
        };
    }
}

/// The dialogues that the command line names, and how many of them are held out.
fn lesson(args: &AdaptArgs) -> anyhow::Result<(Vec<Dialogue>, usize)> {
    let (shots, holdout) = (args.shots.map(usize::from), args.learning.holdout);
    let most = shots.map_or(usize::MAX, |shots| shots.saturating_add(holdout.unwrap_or(1)));
    let mut dialogues = read(&args.dialogues, &args.rules, most)?;
    let divided = adapt::divide(dialogues.len(), shots, holdout);
    let (used, holdout) = divided.map_err(|error| anyhow!("{}: {error}", names(&args.dialogues)))?;
    dialogues.truncate(used);
    Ok((dialogues, holdout))
}

/// Learns a persona from the engine's adapters. After an error these may be any; otherwise they are the new version's.
pub(crate) fn learn(engine: &mut Engine, encoder: &Encoder, lesson: &Lesson<'_>) -> anyhow::Result<()> {
    let Lesson { persona: name, dialogues, learning, .. } = lesson;
    let store = lesson.home.store().map_err(Error::from)?;
    let lock = store.lock(name).map_err(Error::from)?;
    let support = Support::new(encoder, dialogues, lesson.holdout)?;
    warn_about(&support, lesson);

    let work = Work::begin();
    let started = Instant::now();
    let recipe = Recipe { epochs: learning.epochs.map(Into::into), learning_rate: learning.inner_lr };
    let plan = support.plan(engine, &recipe, learning.memory_limit.map(|limit| limit.as_u64()))?;
    plan.fit().into_iter().for_each(note);
    // Replies need another graph, which would not fit beside what was allowed.
    let start = learning.memory_limit.is_none().then(|| engine.adapters());
    let mut shown = Shown::new(&plan, plan.values(engine));
    let adapted = adapt::adapt(engine, &support, &plan, learning.even_if_worse, |heard| {
        shown.hear(heard);
        if work.is_interrupted() { Go::Stop } else { Go::On }
    });
    drop(shown);
    let Adapted { mut persona, stopped } = adapted?;
    persona.record.seconds = Some(started.elapsed().as_secs_f64());
    persona.record.from.clone_from(&lesson.from);
    let better = better_than_current(engine, &store, &support, &plan, name, &persona.adapters)?;
    let is_improved = persona.record.held_out.is_none_or(|held_out| held_out.after < held_out.before);
    let kept = lesson.keep_dialogues.then_some(dialogues.as_slice());
    let current = is_improved && better.is_none();
    let saved = lock.save(&persona, kept, engine.manifest(), current).map_err(Error::from)?;
    let replies = match &start {
        Some(start) => replies(engine, encoder, &support, [start, &persona.adapters], learning.replies)?,
        None => Vec::new(),
    };
    tell(name, learning.json, &persona.record, &saved, better, &replies, engine.provider().name())?;
    if let (Some(fit), Some(held)) = (plan.fit(), memory::resident()) {
        let [peak, limit] = [held.peak, fit.limit].map(ByteSize);
        let more = if peak > limit { format!(", more than the limit of {limit}") } else { String::new() };
        note(format_args!("held at most {peak}{more}"));
    }
    if stopped { Err(Error::Stopped.into()) } else { Ok(()) }
}

/// The number of the version in use, and its loss on the held-out dialogues, where that is lower than the new one's. It is not asked where it
/// learned from one of them, was learned on another base, or cannot be read: then it is no judge.
fn better_than_current(
    engine: &mut Engine,
    store: &Store,
    support: &Support<'_>,
    plan: &Plan,
    name: &PersonaName,
    adapters: &Tensors,
) -> Result<Option<(usize, f32)>, Error> {
    let current = match store.current(name) {
        Ok(current) if !support.held_out().is_empty() => current,
        _ => return Ok(None),
    };
    let known = match store.dialogues(name, Some(current)) {
        Ok(known) => known,
        Err(PersonaError::NoDialogues { .. }) => return Ok(None),
        Err(error) => {
            note(format_args!("{name}@{current} is not compared with: {error}"));
            return Ok(None);
        }
    };
    let Ok(persona) = store.load(name, Some(current), engine.manifest()) else { return Ok(None) };
    let learned = known.get(..persona.record.dialogues).unwrap_or(&known);
    if support.held_out().iter().any(|held| held.is_among(learned)) {
        return Ok(None);
    }
    let new = adapt::held_out_loss(engine, plan)?;
    engine.set_adapters(&persona.adapters)?;
    let old = adapt::held_out_loss(engine, plan)?;
    engine.set_adapters(adapters)?;
    Ok(old.zip(new).and_then(|(old, new)| (old < new).then_some((current, old))))
}

/// Greedy replies to the last utterances of the held-out dialogues, or of the learned ones where there are none, by two sets of adapters.
/// The second ones stay the engine's.
fn replies(
    engine: &mut Engine,
    encoder: &Encoder,
    support: &Support<'_>,
    [start, adapted]: [&Tensors; 2],
    most: usize,
) -> Result<Vec<Reply>, Error> {
    let shown = if support.held_out().is_empty() { support.learned() } else { support.held_out() };
    let (mut said_to, mut prompts) = (Vec::new(), Vec::new());
    for dialogue in shown {
        let mut history: Vec<&str> = Vec::new();
        for exchange in &dialogue.exchanges {
            history.push(&exchange.partner);
            if !exchange.partner.is_empty() && prompts.len() < most {
                said_to.push(exchange.partner.clone());
                prompts.push(encoder.prompt(&dialogue.persona, &history, LONGEST_REPLY)?.ids);
            }
            history.push(&exchange.reply);
        }
    }
    if prompts.is_empty() {
        return Ok(Vec::new());
    }
    engine.close_graphs();
    let mut by = |adapters: &Tensors| -> Result<Vec<String>, Error> {
        engine.set_adapters(adapters)?;
        let replies = DeviceLearner::new(engine, None).replies(&prompts, encoder.end_id(), LONGEST_REPLY)?;
        Ok(replies.iter().map(|ids| encoder.decode(ids)).collect())
    };
    let (before, after) = (by(start)?, by(adapted)?);
    let replies = said_to.into_iter().zip(before).zip(after);
    Ok(replies.map(|((to, before), after)| Reply { to, before, after }).collect())
}

/// What is learned when a persona is learned again: the dialogues of a version, and what it was taught since, before those that were held out.
/// Gives how many are held out, and how many were taught.
pub(crate) fn again(
    store: &Store,
    name: &PersonaName,
    version: Option<usize>,
) -> Result<(Vec<Dialogue>, usize, usize), Error> {
    let found = store.version(name, version)?;
    let mut dialogues = store.dialogues(name, Some(found.number))?;
    let held_out = found.record.held_out.map_or(0, |held_out| held_out.dialogues).min(dialogues.len());
    let mut taught = store.taught(name)?;
    taught.retain(|taught| !taught.is_among(&dialogues));
    let (learned, count) = (dialogues.len() - held_out, taught.len());
    dialogues.splice(learned..learned, taught);
    Ok((dialogues, held_out, count))
}

/// What came of it, on standard output.
#[derive(Serialize)]
struct Report<'a> {
    persona: &'a str,
    version: usize,
    is_current: bool,
    folder: String,
    record: &'a Record,
    replies: &'a [Reply],
}

fn tell(
    persona: &PersonaName,
    json: bool,
    record: &Record,
    saved: &Saved,
    better: Option<(usize, f32)>,
    replies: &[Reply],
    provider: &str,
) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let Saved { version, is_current, folder } = saved;
    let folder = folder.display().to_string();
    if json {
        let report =
            Report { persona: persona.as_str(), version: *version, is_current: *is_current, folder, record, replies };
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    let (before, after) = (record.losses.first().copied().unwrap_or(f32::NAN), record.loss_after);
    let (dialogues, steps) = (count(record.dialogues, "dialogue"), count(record.losses.len(), "step"));
    let seconds = record.seconds.unwrap_or(0.0);
    writeln!(out, "{persona}: loss {before:.4} -> {after:.4} on {dialogues}, {steps}, {seconds:.1} s ({provider})")?;
    if let Some(held_out) = record.held_out {
        let [before, after] = [held_out.before, held_out.after].map(f32::exp);
        let dialogues = count(held_out.dialogues, "dialogue");
        writeln!(out, "perplexity {before:.2} -> {after:.2} on {dialogues} that it did not learn from")?;
    }
    for Reply { to, before, after } in replies {
        let [to, before, after] = [to, before, after].map(|text| printable_line(text));
        writeln!(out, "  {to}\n    before: {before}\n    now:    {after}")?;
    }
    writeln!(out, "saved as {persona}@{version} in {}", printable_line(&folder))?;
    if let Some((current, loss)) = better {
        let perplexity = loss.exp();
        writeln!(out, "{persona}@{current} stays current: it has a perplexity of {perplexity:.2} there")?;
    } else if !is_current {
        writeln!(out, "it is not current: it made nothing better")?;
    }
    if !is_current {
        writeln!(out, "(marionette personas revert {persona} {version} makes it current)")?;
    }
    Ok(())
}

fn warn_about(support: &Support<'_>, lesson: &Lesson<'_>) {
    let personas = adapt::personas_in(support.dialogues());
    if personas > 1 {
        let Lesson { source, persona, .. } = lesson;
        note(format_args!("{source}: these dialogues are of {personas} personas; all are learned as {persona}"));
    }
    if let Some((long, windows)) = support.long() {
        let (long, windows) = (count(long, "dialogue"), count(windows, "window"));
        note(format_args!("longer than the context: {long}, learned in {windows}"));
    }
}
