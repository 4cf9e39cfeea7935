//! The lines of a chat: typed at a prompt with history and editing, or read from a pipe.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use marionette_console::{interrupt, say};
use marionette_models::files;
use marionette_runtime::personas::home;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

/// The longest line, in bytes.
const LONGEST: u64 = 1 << 16;
/// What begins and ends words of several lines.
const QUOTES: &str = "\"\"\"";
/// The file of what was typed before, in the home folder.
const HISTORY: &str = "chat-history";

/// What was read.
pub(super) enum Line {
    Words(String),
    /// Nothing that can be said, and why: the next line may be better.
    Bad(String),
    End,
}

/// Where lines come from.
pub(super) struct Lines {
    /// At a terminal.
    editor: Option<(Editor<(), FileHistory>, Option<PathBuf>)>,
}

impl Lines {
    pub(super) fn new(given: Option<&Path>) -> Self {
        if !io::stdin().is_terminal() {
            return Self { editor: None };
        }
        // Pasted text is one piece, line breaks and all.
        let config = Config::builder().bracketed_paste(true).auto_add_history(false).build();
        let editor = Editor::<(), FileHistory>::with_config(config).ok();
        let history = home(given).ok().map(|home| home.join(HISTORY));
        Self {
            editor: editor.map(|mut editor| {
                // There may be none yet.
                let _ = history.as_deref().map(|history| editor.load_history(history));
                (editor, history)
            }),
        }
    }

    pub(super) fn is_interactive(&self) -> bool {
        self.editor.is_some()
    }

    /// The next words: a line, or several between `"""`.
    pub(super) fn next(&mut self, prompt: &str) -> anyhow::Result<Line> {
        let words = match self.line(prompt)? {
            Line::Words(line) => line,
            other => return Ok(other),
        };
        let Some(first) = words.trim_start().strip_prefix(QUOTES) else { return Ok(Line::Words(words)) };
        let mut text = first.to_owned();
        while !text.trim_end().ends_with(QUOTES) {
            match self.line("... ")? {
                Line::Words(line) => {
                    text.push('\n');
                    text.push_str(&line);
                }
                Line::End => return Ok(Line::Bad(format!("the words between {QUOTES} have no end"))),
                bad @ Line::Bad(_) => return Ok(bad),
            }
        }
        let text = text.trim_end().strip_suffix(QUOTES).unwrap_or(&text);
        Ok(Line::Words(text.to_owned()))
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        let Some((editor, history)) = &mut self.editor else { return piped() };
        let mut asked = false;
        loop {
            match editor.readline(prompt) {
                Ok(line) => {
                    if !line.trim().is_empty() {
                        let _ = editor.add_history_entry(line.as_str());
                        remember(editor, history.as_deref());
                    }
                    return Ok(match line.len() as u64 > LONGEST {
                        true => Line::Bad(too_long()),
                        false => Line::Words(line),
                    });
                }
                Err(ReadlineError::Interrupted) if asked => interrupt::leave(),
                Err(ReadlineError::Interrupted) => {
                    asked = true;
                    say("(Ctrl-C once more, Ctrl-D or /quit ends)");
                }
                Err(ReadlineError::Eof) => return Ok(Line::End),
                Err(error) => return Err(anyhow!("the terminal: {error}")),
            }
        }
    }
}

/// What was typed is there the next time too; that it cannot be kept is no reason to stop.
fn remember(editor: &mut Editor<(), FileHistory>, history: Option<&Path>) {
    if let Some(history) = history
        && files::create_folders(files::parent(history)).is_ok()
    {
        let _ = editor.append_history(history);
    }
}

/// The next line of standard input, without its end.
fn piped() -> anyhow::Result<Line> {
    let broken = |error: io::Error| anyhow!("standard input: {error}");
    let mut line = Vec::new();
    let mut input = io::stdin().lock();
    let read = (&mut input).take(LONGEST + 1).read_until(b'\n', &mut line).map_err(broken)?;
    if read == 0 {
        return Ok(Line::End);
    }
    if read as u64 > LONGEST && !line.ends_with(b"\n") {
        input.skip_until(b'\n').map_err(broken)?;
        return Ok(Line::Bad(too_long()));
    }
    Ok(match String::from_utf8(line) {
        Ok(text) => Line::Words(text.trim_end_matches(['\n', '\r']).to_owned()),
        Err(_) => Line::Bad("standard input: a line is not UTF-8; it is left out".to_owned()),
    })
}

fn too_long() -> String {
    format!("a line is longer than {LONGEST} bytes; it is left out")
}
