//! The form of a model's dialogues from its chat template: what the template (Jinja, as Hugging Face transformers renders it) puts
//! around the turns of a conversation is found by rendering conversations of known words, so a device needs no template.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use marionette_models::{PromptForm, Turn, files};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::Value;

use crate::{DataError, EncodeError, Tokenizer};

/// The file of a chat template alone.
const JINJA: &str = "chat_template.jinja";
/// The file that has a chat template among other things.
const CONFIG: &str = "tokenizer_config.json";
/// The most bytes that either may have.
const LARGEST_FILE: u64 = 16 << 20;
/// The most steps that rendering a template may take.
const FUEL: u64 = 1_000_000;

/// Words that no template has.
const WORDS: [&str; 5] =
    ["first-partner-words", "first-reply-words", "second-partner-words", "second-reply-words", "persona-words"];

/// The form of a model's dialogues: that of the chat template in its folder, or [`PromptForm::plain`] where there is none.
///
/// # Errors
/// A file cannot be read; the template cannot be rendered, or does not put the same around each turn; the tokenizer fails.
pub(crate) fn prompt_form(folder: &Path, tokenizer: &Tokenizer, eos_token_id: u32) -> Result<PromptForm, EncodeError> {
    let Some(template) = Template::read(folder)? else { return Ok(PromptForm::plain(eos_token_id)) };
    let around = template.around().map_err(|problem| template.refuse(&problem))?;
    let turn = |[before, after]: &[String; 2]| -> Result<Turn, EncodeError> {
        Ok(Turn { before: tokenizer.encode_controls(before)?, after: tokenizer.encode_controls(after)? })
    };
    let form = PromptForm {
        begin: tokenizer.encode_controls(&around.begin)?,
        persona: turn(&around.persona)?,
        partner: turn(&around.partner)?,
        reply: turn(&around.reply)?,
    };
    if form.end().is_none() {
        return Err(template.refuse("puts nothing after a reply, so nothing would end it").into());
    }
    // Put together piece by piece it must be what the template is as a whole.
    let words = ["hi there, how are you?", "i am fine. i have 2 dogs!"];
    let whole = template.render(&[("user", words[0]), ("assistant", words[1])], false);
    let whole = tokenizer.encode_controls(&whole.map_err(|problem| template.refuse(&problem))?)?;
    let mut pieces = form.begin.clone();
    for (turn, words) in [(&form.partner, words[0]), (&form.reply, words[1])] {
        pieces.extend([&turn.before[..], &tokenizer.encode(words)?, &turn.after].concat());
    }
    if whole != pieces {
        return Err(template.refuse("does not become the same tokens turn by turn as it does at once").into());
    }
    Ok(form)
}

/// What a template puts around turns, before and after each.
#[derive(Debug, PartialEq)]
struct Around {
    begin: String,
    persona: [String; 2],
    partner: [String; 2],
    reply: [String; 2],
}

struct Template {
    path: PathBuf,
    source: String,
    /// `bos_token` and `eos_token`, which templates may name.
    tokens: [String; 2],
}

impl Template {
    /// The chat template of a folder, where there is one.
    fn read(folder: &Path) -> Result<Option<Self>, DataError> {
        let path = folder.join(CONFIG);
        let config: Value = match read(&path)? {
            Some(text) => {
                serde_json::from_str(&text).map_err(|error| refuse(&path, &format!("is not JSON: {error}")))?
            }
            None => Value::Null,
        };
        // A token is a text, or an object that holds one.
        let token = |name: &str| {
            let value = &config[name];
            value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
        };
        let tokens = [token("bos_token"), token("eos_token")];
        let alone = folder.join(JINJA);
        if let Some(source) = read(&alone)? {
            return Ok(Some(Self { path: alone, source, tokens }));
        }
        // One template, or several by name.
        let named = |value: &Value| {
            let default = value.as_array()?.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        };
        let template = &config["chat_template"];
        let source = template.as_str().map(str::to_owned).or_else(|| named(template));
        match (source, template) {
            (Some(source), _) => Ok(Some(Self { path, source, tokens })),
            (None, Value::Null) => Ok(None),
            (None, _) => Err(refuse(&path, "has a chat_template that is no text, and none named \"default\"")),
        }
    }

    fn refuse(&self, problem: &str) -> DataError {
        refuse(&self.path, problem)
    }

    /// A conversation of roles and contents.
    fn render(&self, turns: &[(&str, &str)], ask: bool) -> Result<String, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        // Today's date would make a form of today.
        environment.add_function("strftime_now", |_: String| -> Result<String, Error> {
            Err(Error::new(
                ErrorKind::InvalidOperation,
                "the template has the date in it, so no form can be made of it",
            ))
        });
        let messages: Vec<minijinja::Value> = turns.iter().map(|&(role, content)| context! { role, content }).collect();
        let [bos_token, eos_token] = &self.tokens;
        environment
            .render_str(&self.source, context! { messages, add_generation_prompt => ask, bos_token, eos_token })
            .map_err(|error| {
                format!("cannot be rendered: {}", error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
            })
    }

    /// What the template puts around turns.
    fn around(&self) -> Result<Around, String> {
        let [p1, r1, p2, r2, persona] = WORDS;
        let (user, assistant) = ("user", "assistant");
        let one = cut(&self.render(&[(user, p1)], false)?, &[p1])?;
        let asked = cut(&self.render(&[(user, p1)], true)?, &[p1])?;
        let two =
            cut(&self.render(&[(user, p1), (assistant, r1), (user, p2), (assistant, r2)], false)?, &[p1, r1, p2, r2])?;
        let [start, first_middle, between, second_middle, end] = &two[..] else { return Err(UNEVEN.into()) };
        let after_partner = &one[1];
        let before_reply = first_middle.strip_prefix(after_partner.as_str()).ok_or(UNEVEN)?;
        let before_partner = between.strip_prefix(end.as_str()).ok_or(UNEVEN)?;
        let begin = start.strip_suffix(before_partner).ok_or(UNEVEN)?;
        let is_even = first_middle == second_middle && first_middle.starts_with(&asked[1]);
        if !is_even || one[0] != *start || asked[0] != *start {
            return Err(UNEVEN.into());
        }
        let partner = [before_partner.to_owned(), after_partner.clone()];
        // A template without a system's turn has the persona's sentences said by the partner.
        let persona = match self.render(&[("system", persona), (user, p1)], false) {
            Ok(text) => {
                let parts = cut(&text, &[persona, p1])?;
                [parts[0].clone(), parts[1].strip_suffix(before_partner).ok_or(UNEVEN)?.to_owned()]
            }
            Err(_) => [format!("{begin}{before_partner}"), after_partner.clone()],
        };
        let reply = [before_reply.to_owned(), end.clone()];
        Ok(Around { begin: begin.to_owned(), persona, partner, reply })
    }
}

const UNEVEN: &str = "does not put the same around every turn";

/// The parts of a text around words that stand in it once each, in this order.
fn cut(text: &str, words: &[&str]) -> Result<Vec<String>, String> {
    let mut parts = Vec::with_capacity(words.len() + 1);
    let mut rest = text;
    for word in words {
        let (before, after) = rest.split_once(word).ok_or("leaves out what is said")?;
        parts.push(before.to_owned());
        rest = after;
    }
    parts.push(rest.to_owned());
    match parts.iter().any(|part| WORDS.iter().any(|word| part.contains(word))) {
        true => Err("says something twice".into()),
        false => Ok(parts),
    }
}

fn refuse(path: &Path, problem: &str) -> DataError {
    DataError::file(path, problem, "use the chat template that the model came with, or remove it for plain utterances")
}

/// The text of a file, where there is one.
fn read(path: &Path) -> Result<Option<String>, DataError> {
    if !path.exists() {
        return Ok(None);
    }
    let mut text = String::new();
    let file = files::open_regular(path).map_err(|error| refuse(path, &error.problem))?;
    file.take(LARGEST_FILE + 1)
        .read_to_string(&mut text)
        .map_err(|error| refuse(path, &format!("cannot be read: {error}")))?;
    match text.len() as u64 > LARGEST_FILE {
        true => Err(refuse(path, "is larger than 16 MiB")),
        false => Ok(Some(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(source: &str) -> Result<Around, String> {
        let tokens = ["<s>".to_owned(), "</s>".to_owned()];
        Template { path: JINJA.into(), source: source.to_owned(), tokens }.around()
    }

    fn pair(before: &str, after: &str) -> [String; 2] {
        [before.to_owned(), after.to_owned()]
    }

    #[test]
    fn a_template_of_turns_is_taken_apart() {
        // With a system's turn of its own where none is given.
        let found = around(
            "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '[sys]Be good.[end]' }}{% endif %}\
             {{ '[' + m['role'] + ']' + m['content'].strip() + '[end]\n' }}{% endfor %}\
             {% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}",
        );
        let expected = Around {
            begin: "[sys]Be good.[end]".into(),
            persona: pair("[system]", "[end]\n"),
            partner: pair("[user]", "[end]\n"),
            reply: pair("[assistant]", "[end]\n"),
        };
        assert_eq!(found.unwrap(), expected);
        // Without roles for the system, and with tokens by name.
        let found = around(
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}\
             {% elif m.role == 'user' %}Q: {{ m.content }} A:{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        );
        let expected = Around {
            begin: "<s>".into(),
            persona: pair("<s>Q: ", " A:"),
            partner: pair("Q: ", " A:"),
            reply: pair(" ", "</s>"),
        };
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn what_is_no_template_of_turns_is_refused() {
        for (source, problem) in [
            ("{% for m in messages %}", "cannot be rendered"),
            ("{{ messages[0].content }}", "leaves out what is said"),
            ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "says something twice"),
            ("{% for m in messages %}{{ loop.index }}{{ m.content }}.{% endfor %}", UNEVEN),
            ("{{ strftime_now('%d') }}", "date"),
            ("{% for i in range(9999) %}{% for j in range(9999) %}.{% endfor %}{% endfor %}", "cannot be rendered"),
        ] {
            let found = around(source).unwrap_err();
            assert!(found.contains(problem), "{source}: {found}");
        }
    }
}
