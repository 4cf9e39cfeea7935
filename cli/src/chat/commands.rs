//! What is typed in a chat: words, or a command.

use std::path::PathBuf;
use std::str::FromStr;

use marionette_console::options::{MOST_TOKENS, whole};
use marionette_runtime::persona_name::PersonaRef;

/// What `/help` says.
pub(super) const HELP: &str = "\
/persona [NAME]      talk with another persona, or a version of it (NAME@N); without a name with none
/teach WORDS         what the last reply should have been: it is kept, to be learned
/learn               learn what was taught, now
/regenerate          another reply to the last words
/undo                take the last exchange back
/reset               begin anew
/save FILE           write the conversation, as a dialogue
/load FILE           go on with a conversation that was written
/set [NAME VALUE]    temperature, top-p, top-k, min-p, repetition-penalty, seed, max-tokens, stop; without a value say them
/stats               how fast the last reply was
/quit                end (as Ctrl-D does)
//words              words that begin with a slash
\"\"\"                  several lines, up to the next \"\"\"
Ctrl-C               cut a reply short";

/// What was typed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Words {
    /// Nothing.
    None,
    /// Words to the persona.
    Said(String),
    Command(Command),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Help,
    Quit,
    Reset,
    Undo,
    Regenerate,
    Persona(Option<PersonaRef>),
    Teach(String),
    Learn,
    Save(PathBuf),
    Load(PathBuf),
    Set(Option<Setting>),
    Stats,
}

/// What `/set` sets.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Setting {
    Temperature(f32),
    TopP(f32),
    TopK(usize),
    MinP(f32),
    RepetitionPenalty(f32),
    Seed(u64),
    MaxTokens(usize),
    /// One more, or none at all.
    Stop(Option<String>),
}

/// Reads what was typed.
///
/// # Errors
/// One line, where it is no command that there is, or one without what belongs to it.
pub(super) fn parse(line: &str) -> Result<Words, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Words::None);
    }
    let Some(command) = line.strip_prefix('/') else { return Ok(Words::Said(line.to_owned())) };
    if command.starts_with('/') {
        return Ok(Words::Said(command.to_owned()));
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let alone = |command: Command| match rest {
        "" => Ok(command),
        _ => Err(format!("/{name} stands alone")),
    };
    let needed = |what: &str| match rest {
        "" => Err(format!("/{name} needs {what}")),
        _ => Ok(rest.to_owned()),
    };
    let command = match name {
        "help" | "?" => alone(Command::Help)?,
        "quit" | "exit" | "bye" => alone(Command::Quit)?,
        "reset" | "clear" => alone(Command::Reset)?,
        "undo" => alone(Command::Undo)?,
        "regenerate" => alone(Command::Regenerate)?,
        "learn" => alone(Command::Learn)?,
        "stats" => alone(Command::Stats)?,
        "persona" if rest.is_empty() => Command::Persona(None),
        "persona" => Command::Persona(Some(rest.parse::<PersonaRef>().map_err(|error| error.to_string())?)),
        "teach" => Command::Teach(needed("the words that the last reply should have been")?),
        "save" => Command::Save(needed("the name of a file")?.into()),
        "load" => Command::Load(needed("the name of a file")?.into()),
        "set" if rest.is_empty() => Command::Set(None),
        "set" => Command::Set(Some(setting(rest)?)),
        _ => return Err(format!("/{name} is no command; /help lists them, and //{name} says it")),
    };
    Ok(Words::Command(command))
}

fn setting(text: &str) -> Result<Setting, String> {
    let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let value = value.trim();
    fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
        value.parse().map_err(|_| format!("/set {name} {value}: expected a number"))
    }
    Ok(match name {
        "temperature" => Setting::Temperature(number(name, value)?),
        "top-p" => Setting::TopP(number(name, value)?),
        "top-k" => Setting::TopK(number(name, value)?),
        "min-p" => Setting::MinP(number(name, value)?),
        "repetition-penalty" => Setting::RepetitionPenalty(number(name, value)?),
        "seed" => Setting::Seed(number(name, value)?),
        "max-tokens" => {
            let tokens = whole::<1, MOST_TOKENS>(value).map_err(|error| format!("/set {name} {value}: {error}"))?;
            Setting::MaxTokens(tokens)
        }
        "stop" => Setting::Stop((!value.is_empty()).then(|| value.to_owned())),
        _ => return Err(format!("/set {name}: there is no such setting; /help lists them")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_commands_are_told_apart() {
        let said = |words: &str| Ok(Words::Said(words.to_owned()));
        assert_eq!(parse("  hello / you "), said("hello / you"));
        assert_eq!(parse("//help"), said("/help"));
        assert_eq!(parse(" \t"), Ok(Words::None));
        let command = |line: &str| match parse(line) {
            Ok(Words::Command(command)) => command,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(command("/teach  no , i am  a nurse "), Command::Teach("no , i am  a nurse".into()));
        assert_eq!(command("/persona zoë k@2"), Command::Persona(Some("zoë k@2".parse().unwrap())));
        assert_eq!(command("/persona"), Command::Persona(None));
        assert_eq!(command("/save my talk.jsonl"), Command::Save("my talk.jsonl".into()));
        assert_eq!(command("/set top-p 0.5"), Command::Set(Some(Setting::TopP(0.5))));
        assert_eq!(command("/set stop you:"), Command::Set(Some(Setting::Stop(Some("you:".into())))));
        assert_eq!(command("/set stop"), Command::Set(Some(Setting::Stop(None))));
        assert_eq!(command("/bye"), Command::Quit);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for line in [
            "/",
            "/dance",
            "/teach",
            "/save",
            "/quit now",
            "/persona ../x",
            "/persona ann@0",
            "/set top-p",
            "/set top-p x",
            "/set top-k -1",
            "/set max-tokens 0",
            "/set colour red",
        ] {
            let problem = parse(line).unwrap_err();
            assert!(!problem.contains('\n') && problem.len() > 10, "{line}: {problem}");
        }
    }

    #[test]
    fn help_names_every_command_and_setting() {
        for line in HELP.lines().filter(|line| line.starts_with('/') && !line.starts_with("//")) {
            let name = line.split_whitespace().next().unwrap();
            let known = |rest: &str| parse(&format!("{name} {rest}")).is_ok() || parse(name).is_ok();
            assert!(known("x"), "{name}");
        }
        let settings = HELP.lines().find(|line| line.starts_with("/set")).unwrap();
        for name in settings.split("VALUE]").nth(1).unwrap().split(';').next().unwrap().split(',') {
            assert!(parse(&format!("/set {} 1", name.trim())).is_ok(), "{name}");
        }
    }
}
