//! The command `generate`: a reply to each prompt.

use std::io::{self, Write as _};

use marionette_runtime::Error;
use marionette_runtime::chat::{Conversation, Said};
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
        if args.json {
            let Said { text, finish, prefilled, tokens, .. } =
                conversation.say(&mut engine, &mut sampler, prompt, |_| Ok(Go::On))?;
            let seed = sampling.seed;
            let reply = serde_json::json!({ "prompt": prompt, "reply": text, "finish": finish.name(), "seed": seed,
                "tokens_read": prefilled, "tokens_written": tokens });
            writeln!(io::stdout(), "{reply}")?;
            continue;
        }
        answer(|heard| conversation.say(&mut engine, &mut sampler, prompt, heard), || Go::On)?;
    }
    Ok(())
}
