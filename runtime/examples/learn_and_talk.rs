//! A bundle learns a persona from a file of its dialogues, keeps it, and answers what is typed:
//!
//!     ORT_DISABLE_TELEMETRY=1 cargo run --release -p marionette-runtime --example learn_and_talk -- bundle dialogues.txt

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use marionette_runtime::adapt::{self, Recipe, Support};
use marionette_runtime::chat::Conversation;
use marionette_runtime::dialogues::read_dialogues;
use marionette_runtime::generate::Go;
use marionette_runtime::personas::Store;
use marionette_runtime::sampling::{Sampler, Sampling};
use marionette_runtime::{Options, engine};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(bundle), Some(file)) = (paths.next(), paths.next()) else {
        return Err("expected a bundle and a file of dialogues".into());
    };
    let (mut engine, encoder) = engine::open(&bundle, Options::default())?;
    let dialogues = read_dialogues(&file)?;
    let (_, holdout) = adapt::divide(dialogues.len(), None, None)?;
    let support = Support::new(&encoder, &dialogues, holdout)?;
    let plan = support.plan(&mut engine, &Recipe::default(), None)?;
    let learned = adapt::adapt(&mut engine, &support, &plan, false, |heard| {
        println!("{heard:?}");
        Go::On
    })?;
    let store = Store::new(Some(Path::new("home")))?;
    let saved = store.lock(&"somebody".parse()?)?.save(&learned.persona, Some(&dialogues), engine.manifest(), true)?;
    println!("version {} is in {}", saved.version, saved.folder.display());

    let mut conversation = Conversation::new(&encoder, learned.persona.record.persona, 64);
    let mut sampler = Sampler::new(Sampling { seed: 1, ..Sampling::default() })?;
    for line in io::stdin().lines() {
        conversation.say(&mut engine, &mut sampler, &line?, |piece| {
            print!("{piece}");
            io::stdout().flush()?;
            Ok(Go::On)
        })?;
        println!();
    }
    Ok(())
}
