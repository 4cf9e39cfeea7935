//! The command `chat`: a conversation with a persona.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use anyhow::anyhow;
use marionette_console::interrupt::Work;
use marionette_console::say;
use marionette_runtime::Error;
use marionette_runtime::chat::Conversation;
use marionette_runtime::generate::{Finish, Go};
use marionette_runtime::sampling::Sampler;

use crate::args::ChatArgs;
use crate::common::{answer, listen, open};

/// The longest line that `chat` takes, in bytes.
const LONGEST_LINE: u64 = 1 << 16;

/// Talks until the input ends.
///
/// # Errors
/// The bundle or the persona cannot be opened; standard input cannot be read.
pub fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let mut sampler = Sampler::new(args.sampling.sampling()).map_err(Error::from)?;
    let (mut engine, encoder, sentences) = open(&args.common, args.persona.as_ref().map(|name| (name, &args.home)))?;
    let mut conversation = Conversation::new(&encoder, sentences, args.sampling.max_tokens.get());
    listen()?;
    let name = args.persona.as_ref().map_or("marionette", |persona| persona.name.as_str());
    let interactive = io::stdin().is_terminal();
    let show = |prompt: &str| {
        if interactive {
            let _ = write!(io::stderr(), "{prompt}> ");
        }
    };
    if interactive {
        say(format_args!("{name} listens ({}). /help lists the commands; Ctrl-D ends.", engine.provider()));
    }
    loop {
        show("you");
        let Some(line) = read_line()? else {
            if interactive {
                say("");
            }
            return Ok(());
        };
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/reset" => {
                conversation.reset();
                say("the conversation begins anew");
            }
            "/help" => say("/reset  begin anew\n/quit   end (as Ctrl-D does)\nCtrl-C  cut a reply short"),
            command if command.starts_with('/') => say(format_args!("{command} is no command; /help lists them")),
            words => {
                show(name);
                let work = Work::begin();
                let said = answer(&mut conversation, &mut engine, &mut sampler, words, || {
                    if work.is_interrupted() { Go::Stop } else { Go::On }
                })?;
                if said.finish == Finish::Context {
                    say("(the context is full)");
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
