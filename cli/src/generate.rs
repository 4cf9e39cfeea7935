//! The command `generate`: a reply to each prompt.

use marionette_runtime::Error;
use marionette_runtime::chat::Conversation;
use marionette_runtime::generate::Go;
use marionette_runtime::sampling::Sampler;

use crate::args::GenerateArgs;
use crate::common::{Opened, answer, open};

/// Prints a reply to each prompt.
///
/// # Errors
/// The bundle or the persona cannot be opened; a graph fails.
pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    // Options first: a wrong one is not worth loading a model for.
    let sampling = args.sampling.sampling();
    Sampler::new(sampling).map_err(Error::from)?;
    let persona = args.persona.as_ref().map(|name| (name, &args.home));
    let Opened { mut engine, encoder, sentences } = open(&args.common, persona)?;
    for prompt in &args.prompt {
        let mut sampler = Sampler::new(sampling).map_err(Error::from)?;
        let mut conversation = Conversation::new(&encoder, sentences.clone(), args.sampling.max_tokens.get());
        conversation.set_stops(args.sampling.stop.clone());
        answer(|heard| conversation.say(&mut engine, &mut sampler, prompt, heard), || Go::On)?;
    }
    Ok(())
}
