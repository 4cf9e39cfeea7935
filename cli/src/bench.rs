//! The command `bench`: the speed and memory of a bundle on this device.

use std::io::{self, Write as _};
use std::num::NonZeroUsize;

use anyhow::bail;
use marionette_console::Progress;
use marionette_models::bundle::Bundle;
use marionette_runtime::bench::{self, Part, Shape, Together};
use marionette_runtime::session::OnnxRuntime;
use marionette_runtime::{Engine, Error};

use crate::args::BenchArgs;

/// Measures, and prints the medians.
///
/// # Errors
/// The bundle cannot be opened, or is too small for the shape.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let &BenchArgs { prompt_tokens, new_tokens, batch, length, only, memory_limit, .. } = args;
    if only == Some(Part::Adapt) && !args.rows.is_empty() {
        bail!("--rows are measured while generating: leave --only adapt or --rows out");
    }
    let shape = Shape { prompt_tokens, new_tokens, batch, length };
    let common = &args.common;
    // (Without the tokenizer, whose memory is not what is measured.) The device first, as elsewhere.
    OnnxRuntime::load().and_then(|runtime| runtime.require(common.ep)).map_err(Error::from)?;
    let mut engine = Engine::open(&Bundle::open(&common.bundle)?, common.options())?;
    let progress = Progress::new(if only.is_some() { 1 } else { 2 }, "parts");
    let limit = memory_limit.map(|limit| limit.as_u64());
    let rows: Vec<NonZeroUsize> = args.rows.iter().copied().filter_map(NonZeroUsize::new).collect();
    let measured = bench::measure(&mut engine, shape, only, &rows, limit, |heard| match heard {
        bench::Heard::Begins(part) => progress.step(|| part.name().to_owned()),
        bench::Heard::Fits(fit) => progress.say(&fit.to_string()),
    });
    drop(progress);
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
    for Together { rows, tokens_per_s } in &measured.rows {
        let of_each = tokens_per_s / *rows as f64;
        writeln!(
            out,
            "{rows:>3} at once{tokens_per_s:>10.1} tokens/s   {of_each:.1} each, adapters of its own for each"
        )?;
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
