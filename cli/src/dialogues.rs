//! What is understood of dialogue files: the command `dialogues`.

use std::io::{self, Write};

use marionette_dialogues::{Counts, DataError, Dialogue, EncodeError, FileSummary, read_persona, write_chat};
use marionette_models::bundle::Bundle;
use marionette_models::files;
use marionette_models::terminal::{printable, printable_line};
use marionette_runtime::{Error, engine};

use crate::args::DialoguesArgs;

/// Three dialogues to show whole: the first, the last, and one from between.
#[derive(Default)]
struct Examples {
    first: Option<Dialogue>,
    between: Option<Dialogue>,
    last: Option<Dialogue>,
    seen: usize,
}

impl Examples {
    fn see(&mut self, dialogue: Dialogue) {
        self.seen += 1;
        if self.first.is_none() {
            self.first = Some(dialogue);
            return;
        }
        // How many there are is known at the end alone; so it is from the second half or from its beginning.
        let before = self.last.replace(dialogue);
        if self.seen.is_power_of_two() || self.between.is_none() {
            self.between = before.or(self.between.take());
        }
    }
}

/// Why the dialogues of files are not told.
enum Stop {
    Data(DataError),
    Encode(EncodeError),
    Io(io::Error),
}

/// Reads the files dialogue by dialogue, says what they hold, and writes the dialogues where that is wanted.
///
/// # Errors
/// A file cannot be read, or `--out` not be written; then it is as it was.
pub fn run(args: &DialoguesArgs) -> anyhow::Result<()> {
    let encoder = args.bundle.as_deref().map(|dir| engine::encoder(&Bundle::open(dir)?)).transpose()?;
    let (rules, redaction) = (args.rules.rules(), args.rules.redaction(args.show_redactions)?);
    let (mut counts, mut examples) = (Counts::new(encoder.as_ref()), Examples::default());
    let mut read = |out: &mut dyn Write| -> Result<Vec<FileSummary>, Stop> {
        let mut stopped = None;
        let files = read_persona(&args.files, &rules, redaction.as_ref(), &mut |dialogue| {
            if stopped.is_none() {
                let counted = counts.see(&dialogue).map_err(Stop::Encode);
                stopped = counted.and_then(|()| write_chat(out, &dialogue).map_err(Stop::Io)).err();
                examples.see(dialogue);
            }
        });
        match stopped {
            Some(stop) => Err(stop),
            None => files.map_err(Stop::Data),
        }
    };
    let files = match &args.out {
        None => read(&mut io::sink()),
        Some(path) => {
            let mut result = None;
            let written = files::write_atomic(path, |writer| match read(writer) {
                // Said by the writing itself.
                Err(Stop::Io(error)) => Err(error),
                Err(stop) => {
                    result = Some(Err(stop));
                    Err(io::ErrorKind::Interrupted.into())
                }
                Ok(files) => {
                    result = Some(Ok(files));
                    Ok(())
                }
            });
            match (result, written) {
                (Some(Err(stop)), _) => Err(stop),
                (_, Err(error)) => return Err(Error::from(error).into()),
                (result, Ok(())) => result.unwrap_or(Ok(Vec::new())),
            }
        }
    };
    let files = files.map_err(|stop| match stop {
        Stop::Data(error) => anyhow::Error::from(Error::from(error)),
        Stop::Encode(error) => error.into(),
        Stop::Io(error) => error.into(),
    })?;
    let summary = counts.summary(files, None);
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&summary)?)?;
        return Ok(());
    }
    write!(out, "{}", printable(&summary.to_string()))?;
    let Examples { first, between, last, .. } = examples;
    for dialogue in [first, between, last].into_iter().flatten() {
        writeln!(out, "\nline {}:", dialogue.line)?;
        for exchange in &dialogue.exchanges {
            if !exchange.partner.is_empty() {
                writeln!(out, "  them  {}", printable_line(&exchange.partner))?;
            }
            let who = if exchange.learned { "  me    " } else { "  (me)  " };
            writeln!(out, "{who}{}", printable_line(&exchange.reply))?;
        }
    }
    Ok(())
}
