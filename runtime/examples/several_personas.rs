//! Several personas of a bundle answer the same words, a token of each in one pass, as a server that has several guests does:
//!
//!     ORT_DISABLE_TELEMETRY=1 cargo run --release -p marionette-runtime --example several_personas -- bundle home "how are you?" ada ole

use std::num::NonZeroUsize;
use std::path::PathBuf;

use marionette_runtime::engine::Rows;
use marionette_runtime::personas::Store;
use marionette_runtime::sampling::{Sampler, Sampling};
use marionette_runtime::{Options, engine};

/// The most tokens of a reply.
const LONGEST: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(bundle), Some(home), Some(words)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("expected a bundle, a home of personas, words, and the names of personas".into());
    };
    let (engine, encoder) = engine::open(&PathBuf::from(bundle), Options::default())?;
    let (store, names) = (Store::new(Some(&PathBuf::from(home)))?, arguments.collect::<Vec<_>>());
    let Some(most) = NonZeroUsize::new(names.len()) else { return Err("expected the names of personas".into()) };
    let mut rows = Rows::open(&engine, most)?;
    let mut speaking = Vec::new();
    for name in &names {
        let persona = store.load(&name.parse()?, None, engine.manifest())?;
        let prompt = encoder.prompt(&persona.record.persona, &[&words], LONGEST)?;
        let row = rows.join(&persona.adapters)?;
        rows.read(row, &prompt.ids)?;
        speaking.push((name, row, Sampler::new(Sampling { seed: 1, ..Sampling::default() })?, prompt.ids, Vec::new()));
    }
    while !speaking.is_empty() {
        let mut tokens = Vec::new();
        let mut still = Vec::new();
        for (name, row, mut sampler, mut history, mut reply) in speaking {
            let token = sampler.sample(rows.logits(row).unwrap_or_default(), &history)?;
            if token == encoder.end_id() || reply.len() == LONGEST || history.len() == rows.context() {
                println!("{name}: {}", encoder.decode(&reply));
                rows.leave(row);
                continue;
            }
            history.push(token);
            reply.push(token);
            tokens.push((row, token));
            still.push((name, row, sampler, history, reply));
        }
        rows.step(&tokens)?;
        speaking = still;
    }
    Ok(())
}
