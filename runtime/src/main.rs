//! `marionette`: parses the command line and prints.

mod dialogues;

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::anyhow;
use bytesize::ByteSize;
use clap::Parser as _;
use marionette_dialogues::{
    Dialogue, Encoder, EvaluateError, FileSummary, Judge, Rules, evaluate_judged, group_by_persona, read_chat,
    read_persona,
};
use marionette_models::bundle::Bundle;
use marionette_models::interrupt::{self, Work};
use marionette_models::terminal::{printable, printable_line, say};
use marionette_runtime::adapt::{self, Recipe};
use marionette_runtime::bench::{self, Shape};
use marionette_runtime::chat::{Conversation, Said};
use marionette_runtime::cli::{
    AdaptArgs, BenchArgs, ChatArgs, ChatRules, Cli, Command, Common, EvaluateArgs, GenerateArgs, Home, InspectArgs,
};
use marionette_runtime::engine::{self, Engine};
use marionette_runtime::entailment::Entailment;
use marionette_runtime::evaluate::DeviceLearner;
use marionette_runtime::generate::{Finish, Go};
use marionette_runtime::persona_name::PersonaName;
use marionette_runtime::personas::Store;
use marionette_runtime::plan::Plan;
use marionette_runtime::sampling::Sampler;
use marionette_runtime::session::{self, OnnxRuntime};
use marionette_runtime::{Error, inspect, memory, progress};

/// The longest line that `chat` takes, in bytes.
const LONGEST_LINE: u64 = 1 << 16;

fn main() -> ExitCode {
    // SAFETY: the first statement of the program; no other thread runs yet.
    unsafe { session::disable_telemetry() };
    let result = match Cli::parse().command {
        Command::Adapt(args) => adapt(&args),
        Command::Generate(args) => generate(&args),
        Command::Chat(args) => chat(&args),
        Command::Evaluate(args) => evaluate(&args),
        Command::Dialogues(args) => dialogues::dialogues(&args),
        Command::Inspect(args) => inspect(&args),
        Command::Bench(args) => bench(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has enough.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Only standard output's errors come bare: every other one names its file.
            let what = if error.is::<io::Error>() { "the output cannot be written: " } else { "" };
            say(format_args!("marionette: {what}{error}"));
            match error.downcast_ref::<Error>() {
                Some(Error::Interrupted) => ExitCode::from(interrupt::EXIT_CODE),
                Some(Error::Sampling(_)) if is_usage(&error) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_error = match error.downcast_ref::<Error>() {
        Some(Error::Output(error)) => Some(error),
        _ => error.downcast_ref::<io::Error>(),
    };
    io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn is_usage(error: &anyhow::Error) -> bool {
    use marionette_runtime::sampling::SamplingError;
    matches!(error.downcast_ref(), Some(Error::Sampling(SamplingError::Option { .. })))
}

fn hint(text: &str) {
    say(text);
}

/// Opens the bundle on its device, with a persona where one is named; gives the persona's sentences too.
fn open(common: &Common, persona: Option<(&PersonaName, &Home)>) -> Result<(Engine, Encoder, Vec<String>), Error> {
    let (mut engine, encoder) = engine::open(&common.bundle, common.options())?;
    let mut sentences = Vec::new();
    if let Some((name, Home { home })) = persona {
        let persona = Store::new(home.as_deref())?.load(name, engine.manifest())?;
        engine.set_adapters(&persona.adapters)?;
        sentences = persona.record.persona;
    }
    Ok((engine, encoder, sentences))
}

fn adapt(args: &AdaptArgs) -> anyhow::Result<()> {
    let shots = args.shots.map(Into::into);
    let dialogues = read(&args.dialogues, &args.rules, shots.unwrap_or(usize::MAX))?;
    let chosen = adapt::support(&dialogues, shots).map_err(|error| anyhow!("{}: {error}", names(&args.dialogues)))?;
    let (mut engine, encoder, _) = open(&args.common, None)?;
    let store = Store::new(args.home.home.as_deref()).map_err(Error::from)?;
    let lock = store.lock(&args.persona).map_err(Error::from)?;
    let support = adapt::Support::new(&encoder, chosen)?;
    warn_about(chosen, &support, args);
    let recipe = Recipe { epochs: args.epochs.map(Into::into), learning_rate: args.inner_lr };
    let inner = recipe.inner_loop(&engine.manifest().inner_loop, support.windows().len());
    let steps = inner.steps;

    listen()?;
    let work = Work::begin();
    let started = Instant::now();
    let plan = Plan::new(&mut engine, support.windows(), inner, args.memory_limit.map(|limit| limit.as_u64()))?;
    plan.fit().into_iter().for_each(|fit| hint(&fit.to_string()));
    let bar = progress::bar(&format!("adapting {}", args.persona), steps);
    let adapted = adapt::adapt(&mut engine, &support, &plan, args.even_if_worse, |heard| {
        bar.set_message(format!("loss {:.4}", heard.loss));
        bar.set_position(heard.step as u64);
        if work.is_interrupted() { Go::Stop } else { Go::On }
    });
    bar.finish_and_clear();
    let adapted = adapted?;
    if work.is_interrupted() {
        return Err(Error::Interrupted.into());
    }
    let path = lock.save(&adapted, engine.manifest()).map_err(Error::from)?;
    let (before, after) = (adapted.record.losses.first().copied().unwrap_or(f32::NAN), adapted.record.loss_after);
    writeln!(
        io::stdout(),
        "{}: loss {before:.4} -> {after:.4} on {}, {} steps, {:.1} s ({})\nsaved in {}",
        args.persona,
        count(chosen.len(), "dialogue"),
        steps,
        started.elapsed().as_secs_f64(),
        engine.provider(),
        printable_line(&path.display().to_string())
    )?;
    if let (Some(fit), Some(held)) = (plan.fit(), memory::resident()) {
        let [peak, limit] = [held.peak, fit.limit].map(ByteSize);
        let more = if peak > limit { format!(", more than the limit of {limit}") } else { String::new() };
        hint(&format!("held at most {peak}{more}"));
    }
    Ok(())
}

/// Ends work in hand cleanly when the user interrupts.
fn listen() -> Result<(), Error> {
    interrupt::take_over(None).map_err(|error| Error::Impossible(format!("SIGINT cannot be handled: {error}")))
}

/// The dialogues of one persona's files, the first so many of them.
fn read(paths: &[PathBuf], rules: &ChatRules, most: usize) -> Result<Vec<Dialogue>, Error> {
    let mut dialogues = Vec::new();
    let files = read_persona(paths, &rules.rules(), rules.redaction(false)?.as_ref(), &mut |dialogue| {
        if dialogues.len() < most {
            dialogues.push(dialogue);
        }
    })?;
    files.iter().for_each(tell);
    Ok(dialogues)
}

/// Says who of a file was taken for the persona, and what was left out.
fn tell(file: &FileSummary) {
    file.notes().for_each(|note| hint(&format!("{}: {note}", file.path.display())));
}

/// The dialogues of any personas in a file.
fn read_any(path: &Path) -> Result<Vec<Dialogue>, Error> {
    let (file, dialogues) = read_chat(path, &Rules::default())?.into_parts(path);
    tell(&file);
    Ok(dialogues)
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn warn_about(dialogues: &[Dialogue], support: &adapt::Support<'_>, args: &AdaptArgs) {
    let personas = adapt::personas_in(dialogues);
    if personas > 1 {
        let files = names(&args.dialogues);
        hint(&format!("{files}: these dialogues are of {personas} personas; all are learned as {}", args.persona));
    }
    if let Some((long, windows)) = support.long() {
        let (long, windows) = (count(long, "dialogue"), count(windows, "window"));
        hint(&format!("longer than the context: {long}, learned in {windows}"));
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Prints a reply piece by piece and ends its line.
fn answer(
    conversation: &mut Conversation<'_>,
    engine: &mut Engine,
    sampler: &mut Sampler,
    words: &str,
    mut go: impl FnMut() -> Go,
) -> Result<Said, Error> {
    let mut out = io::stdout().lock();
    let said = conversation.say(engine, sampler, words, |piece| {
        out.write_all(printable(piece).as_bytes())?;
        out.flush()?;
        Ok(go())
    })?;
    writeln!(out)?;
    out.flush()?;
    if said.forgotten > 0 {
        hint(&format!("(the context is full: the oldest {} forgotten)", count(said.forgotten, "utterance")));
    }
    if said.cut {
        hint("(these words are longer than the context: only their end was read)");
    }
    Ok(said)
}

fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    // Options first: a wrong one is not worth loading a model for.
    Sampler::new(args.sampling.sampling()).map_err(Error::from)?;
    let (mut engine, encoder, sentences) = open(&args.common, args.persona.as_ref().map(|name| (name, &args.home)))?;
    for prompt in &args.prompt {
        let mut sampler = Sampler::new(args.sampling.sampling()).map_err(Error::from)?;
        let mut conversation = Conversation::new(&encoder, sentences.clone(), args.sampling.max_tokens.get());
        answer(&mut conversation, &mut engine, &mut sampler, prompt, || Go::On)?;
    }
    Ok(())
}

fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    let mut sampler = Sampler::new(args.sampling.sampling()).map_err(Error::from)?;
    let (mut engine, encoder, sentences) = open(&args.common, args.persona.as_ref().map(|name| (name, &args.home)))?;
    let mut conversation = Conversation::new(&encoder, sentences, args.sampling.max_tokens.get());
    listen()?;
    let name = args.persona.as_ref().map_or("marionette", PersonaName::as_str);
    let interactive = io::stdin().is_terminal();
    let show = |prompt: &str| {
        if interactive {
            let _ = write!(io::stderr(), "{prompt}> ");
        }
    };
    if interactive {
        hint(&format!("{name} listens ({}). /help lists the commands; Ctrl-D ends.", engine.provider()));
    }
    loop {
        show("you");
        let Some(line) = read_line()? else {
            if interactive {
                hint("");
            }
            return Ok(());
        };
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/reset" => {
                conversation.reset();
                hint("the conversation begins anew");
            }
            "/help" => hint("/reset  begin anew\n/quit   end (as Ctrl-D does)\nCtrl-C  cut a reply short"),
            command if command.starts_with('/') => hint(&format!("{command} is no command; /help lists them")),
            words => {
                show(name);
                let work = Work::begin();
                let said = answer(&mut conversation, &mut engine, &mut sampler, words, || {
                    if work.is_interrupted() { Go::Stop } else { Go::On }
                })?;
                if said.finish == Finish::Context {
                    hint("(the context is full)");
                }
            }
        }
    }
}

/// The next line of standard input, without its end; `None` at the end of the input.
fn read_line() -> anyhow::Result<Option<String>> {
    let mut line = Vec::new();
    let read = io::stdin().lock().take(LONGEST_LINE + 1).read_until(b'\n', &mut line);
    let read = read.map_err(|error| anyhow!("standard input: {error}"))?;
    if read as u64 > LONGEST_LINE {
        return Err(anyhow!("standard input: a line is longer than {LONGEST_LINE} bytes"));
    }
    let text = String::from_utf8(line).map_err(|_| anyhow!("standard input: a line is not UTF-8"))?;
    Ok((read > 0).then(|| text.trim_end_matches(['\n', '\r']).to_owned()))
}

fn evaluate(args: &EvaluateArgs) -> anyhow::Result<()> {
    let in_file = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", args.dialogues.display());
    let dialogues = read_any(&args.dialogues)?;
    let grouping = group_by_persona(dialogues).map_err(|error| in_file(&error))?;
    grouping.notes().iter().for_each(|note| hint(note));
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
    let (mut engine, encoder, _) = open(&args.common, args.persona.as_ref().map(|name| (name, &args.home)))?;
    if let Some(file) = &args.reference {
        let others = read_any(file)?;
        options.reference = marionette_dialogues::reference(&encoder, &others)
            .map_err(|error| anyhow!("{}: {error}", file.display()))?;
    }
    let bar = progress::bar("evaluating", 0);
    let provider = engine.provider();
    let mut judge = args.nli.as_deref().map(|dir| Entailment::open(dir, args.common.options())).transpose()?;
    let judge = judge.as_mut().map(|judge| judge as &mut dyn Judge);
    let learner = DeviceLearner::new(&mut engine, args.inner_lr);
    let hear = |at: marionette_dialogues::Progress| {
        bar.set_length(at.total as u64);
        bar.set_position(at.done as u64);
        let epochs = at.epochs.map(|epochs| format!(", {}", count(epochs, "epoch"))).unwrap_or_default();
        bar.set_message(format!(
            "persona {}/{}, fold {}/{}, {}{epochs}",
            at.persona + 1,
            at.personas,
            at.fold + 1,
            at.folds,
            count(at.shots, "shot")
        ));
        ControlFlow::Continue(())
    };
    let result = evaluate_judged(&mut [learner], &encoder, &grouping.tasks, &options, hear, judge);
    bar.finish_and_clear();
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
        hint(&format!("held at most {}", ByteSize(held.peak)));
    }
    Ok(())
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.common.bundle).map_err(Error::from)?;
    let mut out = io::stdout().lock();
    if !args.check {
        write!(out, "{}", printable(&inspect::describe(&bundle)))?;
    }
    let mut engine = Engine::open(&bundle, args.common.options())?;
    let runtime = engine.runtime();
    let providers: Vec<&str> = runtime.providers().iter().map(|provider| provider.name()).collect();
    let (version, library) = (runtime.version(), runtime.library().display());
    let provider = engine.provider();
    writeln!(out, "ONNX Runtime {version}, provider {provider} (it has {}), {library}", providers.join(", "))?;
    if args.check {
        let parity = inspect::check(&mut engine, &bundle)?;
        write!(out, "{parity}")?;
        if !parity.is_good() {
            let dir = bundle.dir().display();
            return Err(anyhow!("{dir}: this device does not compute what the trainer did; export again or report it"));
        }
    }
    Ok(())
}

fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    let BenchArgs { prompt_tokens, new_tokens, batch, length, only, memory_limit, .. } = *args;
    let shape = Shape { prompt_tokens, new_tokens, batch, length };
    let common = &args.common;
    // (Without the tokenizer, whose memory is not what is measured.) The device first, as elsewhere.
    OnnxRuntime::load().and_then(|runtime| runtime.require(common.ep)).map_err(Error::from)?;
    let mut engine = Engine::open(&Bundle::open(&common.bundle)?, common.options())?;
    let bar = progress::bar("measuring", if only.is_some() { 1 } else { 2 });
    let limit = memory_limit.map(|limit| limit.as_u64());
    let measured = bench::measure(&mut engine, shape, only, limit, |heard| match heard {
        bench::Heard::Begins(part) => {
            bar.set_message(part.name());
            bar.inc(1);
        }
        bench::Heard::Fits(fit) => bar.suspend(|| hint(&fit.to_string())),
    });
    bar.finish_and_clear();
    let measured = measured?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&measured)?)?;
        return Ok(());
    }
    if let Some(generation) = measured.generation {
        writeln!(out, "prefill    {:>10.1} tokens/s   {prompt_tokens} tokens", generation.prefill_tokens_per_s)?;
        writeln!(out, "first token{:>10.1} ms", generation.first_token_ms)?;
        writeln!(out, "decode     {:>10.1} tokens/s   {new_tokens} tokens", generation.decode_tokens_per_s)?;
    }
    if let Some(adaptation) = measured.adaptation {
        let rate = adaptation.adapt_tokens_per_s;
        writeln!(out, "adapt      {rate:>10.1} tokens/s   a step of {batch} rows of {length} tokens")?;
        writeln!(out, "adapt step {:>10.1} ms", adaptation.adapt_step_ms)?;
    }
    if let Some(peak) = measured.peak_rss_mib {
        writeln!(out, "peak memory{peak:>10.0} MiB")?;
    }
    writeln!(out, "medians of {} ({})", bench::REPETITIONS, engine.provider())?;
    Ok(())
}
