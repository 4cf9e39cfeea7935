//! The command `chat`: a conversation with a persona, which can be taught in it.

mod commands;
mod lines;

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use bytesize::ByteSize;
use marionette_console::interrupt::Work;
use marionette_console::say;
use marionette_dialogues::{Dialogue, Encoder, read_dialogues, write_chat};
use marionette_models::{Tensors, files};
use marionette_runtime::chat::{Conversation, Said};
use marionette_runtime::generate::{Finish, Go};
use marionette_runtime::persona_name::PersonaRef;
use marionette_runtime::sampling::Sampler;
use marionette_runtime::{Engine, Error, engine, memory};

use self::commands::{Command, HELP, Setting, Words, parse};
use self::lines::{Line, Lines};
use crate::adapt::{self, Lesson};
use crate::args::ChatArgs;
use crate::common::{answer, count, listen};

/// Talks until the input ends.
///
/// # Errors
/// The bundle or the persona cannot be opened; standard input or output is broken.
pub fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let sampler = Sampler::new(args.sampling.sampling()).map_err(Error::from)?;
    let (engine, encoder) = engine::open(&args.common.bundle, args.common.options())?;
    let mut session = Session::new(args, engine, &encoder, sampler)?;
    listen()?;
    let mut lines = Lines::new(args.home.home.as_deref());
    if lines.is_interactive() {
        let name = session.name();
        say(format_args!("{name} listens ({}). /help lists the commands; Ctrl-D ends.", session.engine.provider()));
    }
    loop {
        let line = match lines.next("you> ")? {
            Line::Words(line) => line,
            Line::Bad(problem) => {
                say(problem);
                continue;
            }
            Line::End => return Ok(()),
        };
        let done = match parse(&line) {
            Err(problem) => Err(anyhow!(problem)),
            Ok(Words::None) => Ok(()),
            Ok(Words::Command(Command::Quit)) => return Ok(()),
            Ok(Words::Command(command)) => session.obey(command, lines.is_interactive()),
            Ok(Words::Said(words)) => session.hear(&words, lines.is_interactive()).map_err(Into::into),
        };
        match done {
            Ok(()) => {}
            // Nobody reads any more.
            Err(error) if matches!(error.downcast_ref(), Some(Error::Output(_))) => return Err(error),
            // What goes wrong is said, and the chat goes on.
            Err(error) => say(error),
        }
    }
}

/// A conversation, and what it is held with.
struct Session<'a> {
    args: &'a ChatArgs,
    engine: Engine,
    encoder: &'a Encoder,
    /// The bundle's own adapters.
    start: Tensors,
    persona: Option<PersonaRef>,
    conversation: Conversation<'a>,
    sampler: Sampler,
    said_forgotten: bool,
    /// The last reply, and how long it took.
    last: Option<(Said, Duration)>,
}

impl<'a> Session<'a> {
    fn new(args: &'a ChatArgs, engine: Engine, encoder: &'a Encoder, sampler: Sampler) -> Result<Self, Error> {
        let mut session = Self {
            args,
            start: engine.adapters(),
            engine,
            encoder,
            persona: None,
            conversation: Conversation::new(encoder, Vec::new(), args.sampling.max_tokens.get()),
            sampler,
            said_forgotten: false,
            last: None,
        };
        session.conversation.set_stops(args.sampling.stop.clone());
        session.become_persona(args.persona.clone())?;
        Ok(session)
    }

    /// Whom one talks with.
    fn name(&self) -> String {
        self.persona.as_ref().map_or("marionette".to_owned(), PersonaRef::to_string)
    }

    /// Talks as another from now on; what was said stays.
    fn become_persona(&mut self, persona: Option<PersonaRef>) -> Result<(), Error> {
        let (adapters, sentences) = match &persona {
            Some(PersonaRef { name, version }) => {
                let persona = self.args.home.store()?.load(name, *version, self.engine.manifest())?;
                (persona.adapters, persona.record.persona)
            }
            None => (self.start.clone(), Vec::new()),
        };
        self.engine.set_adapters(&adapters)?;
        self.conversation.set_persona(sentences);
        self.persona = persona;
        Ok(())
    }

    /// Replies to words.
    fn hear(&mut self, words: &str, interactive: bool) -> Result<(), Error> {
        self.reply(interactive, |conversation, engine, sampler, heard| {
            conversation.say(engine, sampler, words, heard).map(Some)
        })
    }

    fn reply(
        &mut self,
        interactive: bool,
        say_it: impl FnOnce(
            &mut Conversation<'a>,
            &mut Engine,
            &mut Sampler,
            &mut dyn FnMut(&str) -> Result<Go, Error>,
        ) -> Result<Option<Said>, Error>,
    ) -> Result<(), Error> {
        if interactive {
            let _ = write!(std::io::stderr(), "{}> ", self.name());
        }
        let work = Work::begin();
        let begun = Instant::now();
        let mut nothing = false;
        let said = answer(
            |heard| {
                let said = say_it(&mut self.conversation, &mut self.engine, &mut self.sampler, heard)?;
                nothing = said.is_none();
                Ok(said.unwrap_or_else(nobody))
            },
            || if work.is_interrupted() { Go::Stop } else { Go::On },
        )?;
        if nothing {
            say("nothing was said yet");
            return Ok(());
        }
        if said.forgotten > 0 && !self.said_forgotten {
            self.said_forgotten = true;
            let forgotten = count(said.forgotten, "utterance");
            say(format_args!("(the context is full: the oldest {forgotten} are not read any more; more will follow)"));
        }
        if said.finish == Finish::Context {
            say("(the context is full)");
        }
        self.last = Some((said, begun.elapsed()));
        Ok(())
    }

    fn obey(&mut self, command: Command, interactive: bool) -> anyhow::Result<()> {
        match command {
            Command::Quit => {}
            Command::Help => say(HELP),
            Command::Reset => {
                self.conversation.reset();
                say("the conversation begins anew");
            }
            Command::Undo => match self.conversation.undo() {
                true => say("the last exchange is taken back"),
                false => say("nothing was said yet"),
            },
            Command::Regenerate => self.reply(interactive, |conversation, engine, sampler, heard| {
                conversation.regenerate(engine, sampler, heard)
            })?,
            Command::Persona(persona) => {
                self.become_persona(persona)?;
                say(format_args!("{} listens", self.name()));
            }
            Command::Teach(words) => self.teach(&words)?,
            Command::Learn => self.learn()?,
            Command::Save(path) => {
                let dialogue = self.dialogue().ok_or_else(|| anyhow!("nothing was said yet"))?;
                files::write_atomic(&path, |writer| write_chat(writer, &dialogue))?;
                say(format_args!("the conversation is in {}", path.display()));
            }
            Command::Load(path) => {
                let dialogues = read_dialogues(&path)?;
                let Some(dialogue) = dialogues.into_iter().next() else {
                    bail!("{}: holds no dialogue", path.display())
                };
                let said = dialogue.exchanges.into_iter().flat_map(|said| [said.partner, said.reply]);
                self.conversation.resume(said.collect());
                let exchanges = count(self.conversation.exchanges().len(), "exchange");
                say(format_args!("the conversation goes on after {exchanges}"));
            }
            Command::Set(None) => self.say_settings(),
            Command::Set(Some(setting)) => {
                self.set(setting)?;
                self.say_settings();
            }
            Command::Stats => self.say_stats(),
        }
        Ok(())
    }

    /// What was said, as a dialogue.
    fn dialogue(&self) -> Option<Dialogue> {
        let exchanges = self.conversation.exchanges();
        let persona = self.conversation.persona().to_vec();
        (!exchanges.is_empty()).then_some(Dialogue { persona, partner_persona: Vec::new(), exchanges, line: 1 })
    }

    /// Puts other words in the place of the last reply, and keeps them to be learned.
    fn teach(&mut self, words: &str) -> anyhow::Result<()> {
        let Some(PersonaRef { name, .. }) = self.persona.clone() else {
            bail!("nobody is there to be taught: /persona NAME, or begin with --persona");
        };
        let Some(mut dialogue) = self.dialogue() else { bail!("nothing was said yet") };
        let last = dialogue.exchanges.len() - 1;
        for (index, exchange) in dialogue.exchanges.iter_mut().enumerate() {
            exchange.learned = index == last;
            if exchange.learned {
                words.clone_into(&mut exchange.reply);
            }
        }
        let taught = self.args.home.store()?.lock(&name)?.teach(&dialogue)?;
        self.conversation.correct(words);
        say(format_args!("kept: {} to learn; /learn learns them now", count(taught, "dialogue")));
        Ok(())
    }

    /// Learns the persona again, with what it was taught.
    fn learn(&mut self) -> anyhow::Result<()> {
        let Some(PersonaRef { name, version }) = self.persona.clone() else {
            bail!("nobody is there to learn: /persona NAME, or begin with --persona");
        };
        let store = self.args.home.store()?;
        let (dialogues, holdout, taught) = adapt::again(&store, &name, version)?;
        if taught == 0 {
            bail!("there is nothing to learn: /teach WORDS says what the last reply should have been");
        }
        self.engine.set_adapters(&self.start)?;
        let lesson = Lesson {
            home: &self.args.home,
            persona: &name,
            from: None,
            dialogues,
            holdout,
            source: name.to_string(),
            keep_dialogues: true,
            learning: &self.args.learning,
        };
        let learned = adapt::learn(&mut self.engine, self.encoder, &lesson);
        // As it was where it learned nothing, and its current version where it did.
        let now = if learned.is_ok() { Some(PersonaRef { name, version: None }) } else { self.persona.clone() };
        self.become_persona(now)?;
        learned
    }

    fn set(&mut self, setting: Setting) -> Result<(), Error> {
        let mut sampling = self.sampler.options();
        match setting {
            Setting::Temperature(value) => sampling.temperature = value,
            Setting::TopP(value) => sampling.top_p = value,
            Setting::TopK(value) => sampling.top_k = value,
            Setting::MinP(value) => sampling.min_p = value,
            Setting::RepetitionPenalty(value) => sampling.repetition_penalty = value,
            Setting::Seed(value) => sampling.seed = value,
            Setting::MaxTokens(value) => self.conversation.set_max_tokens(value),
            // One more, or none at all.
            Setting::Stop(text) => {
                let before = if text.is_some() { self.conversation.stops().to_vec() } else { Vec::new() };
                self.conversation.set_stops(before.into_iter().chain(text).collect());
            }
        }
        self.sampler = Sampler::new(sampling)?;
        Ok(())
    }

    fn say_settings(&self) {
        let sampling = self.sampler.options();
        let stops: Vec<String> = self.conversation.stops().iter().map(|stop| format!("{stop:?}")).collect();
        say(format_args!(
            "temperature {}, top-p {}, top-k {}, min-p {}, repetition-penalty {}, seed {}, max-tokens {}, stop {}",
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.seed,
            self.conversation.max_tokens(),
            if stops.is_empty() { "none".to_owned() } else { stops.join(" ") }
        ));
    }

    fn say_stats(&self) {
        let exchanges = count(self.conversation.exchanges().len(), "exchange");
        match &self.last {
            None => say(format_args!("{exchanges}; nothing was said yet")),
            Some((Said { prefilled, tokens, .. }, took)) => {
                let seconds = took.as_secs_f64();
                let (read, written) = (count(*prefilled, "token"), count(*tokens, "token"));
                let speed = *tokens as f64 / seconds.max(1e-9);
                say(format_args!(
                    "{exchanges}; the last reply: {read} read, {written} written in {seconds:.2} s, {speed:.0} a second"
                ));
            }
        }
        if let Some(held) = memory::resident() {
            say(format_args!("{} of memory, at most {}", ByteSize(held.now), ByteSize(held.peak)));
        }
    }
}

/// A reply where there was none to give.
fn nobody() -> Said {
    Said { text: String::new(), finish: Finish::Stopped, forgotten: 0, cut: false, prefilled: 0, tokens: 0 }
}
