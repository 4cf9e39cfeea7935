//! Fine-tuning files: a dialogue an object of JSON, in any of the usual forms. OpenAI's `messages` of `role` and `content`, ShareGPT's
//! `conversations` of `from` and `value`, Alpaca's `instruction`, `input` and `output` with a `history`, TRL's `prompt` and `completion`.

use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::bad::Bad;
use super::lines::Lines;
use super::objects::Objects;
use super::{LeftOut, Source};
use crate::conversation::{ASSISTANT, About, Message, Sink, USER};
use crate::error::{excerpt, without_place};
use crate::{DataError, Dialogue, Exchange, clean};

#[derive(Deserialize, Default)]
#[serde(expecting = "an object with `messages`", default)]
struct Chat {
    #[serde(alias = "conversations", alias = "conversation")]
    messages: Option<Vec<Written>>,
    persona: Option<Persona>,
    personality: Option<Persona>,
    /// What other forms have, and what may be anything beside `messages`.
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Chat {
    /// The messages, whatever the form.
    fn messages(&mut self) -> Result<Vec<Written>, String> {
        if let Some(messages) = self.messages.take() {
            return Ok(messages);
        }
        let has = |key: &str| self.others.contains_key(key);
        if has("chosen") || has("rejected") {
            return Err("`chosen` and `rejected` are two replies to judge, and no dialogue".to_owned());
        }
        if has("instruction") && has("output") {
            let said = |role: &str, text: String| Written::new(role, text);
            let mut messages: Vec<Written> =
                self.other::<String>("system")?.map(|text| said("system", text)).into_iter().collect();
            for [user, assistant] in self.other::<Vec<[String; 2]>>("history")?.unwrap_or_default() {
                messages.extend([said(USER, user), said(ASSISTANT, assistant)]);
            }
            let text = |key: &str| Ok::<_, String>(self.other::<String>(key)?.unwrap_or_default());
            messages.push(said(USER, format!("{}\n{}", text("instruction")?, text("input")?)));
            messages.push(said(ASSISTANT, text("output")?));
            return Ok(messages);
        }
        match self.other::<Side>("prompt")?.zip(self.other::<Side>("completion")?) {
            Some((prompt, completion)) => Ok([prompt.messages(USER), completion.messages(ASSISTANT)].concat()),
            None => Err("missing field `messages`".to_owned()),
        }
    }

    /// A field of another form, where it is there.
    fn other<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, String> {
        match self.others.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|error| format!("`{key}`: {error}")),
        }
    }
}

/// A prompt or a completion.
#[derive(Deserialize)]
#[serde(untagged, expecting = "`prompt` or `completion` is neither a string nor a list of messages")]
enum Side {
    Text(String),
    Messages(Vec<Written>),
}

impl Side {
    fn messages(self, role: &str) -> Vec<Written> {
        match self {
            Self::Text(text) => vec![Written::new(role, text)],
            Self::Messages(messages) => messages,
        }
    }
}

#[derive(Deserialize, Clone)]
#[serde(expecting = "a message with `role` and `content`")]
struct Written {
    #[serde(alias = "from")]
    role: String,
    #[serde(default, alias = "value")]
    content: Option<Content>,
    #[serde(default)]
    weight: Option<f64>,
    #[serde(default)]
    tool_calls: Option<Value>,
    #[serde(default)]
    function_call: Option<Value>,
}

impl Written {
    fn new(role: &str, text: String) -> Self {
        let (role, content) = (role.to_owned(), Some(Content::Text(text)));
        Self { role, content, weight: None, tool_calls: None, function_call: None }
    }

    /// Whether it asks for a tool instead of saying something.
    fn calls(&self) -> bool {
        let is_call = |value: &Value| value.as_array().is_none_or(|calls| !calls.is_empty());
        [&self.tool_calls, &self.function_call].into_iter().flatten().any(is_call)
    }
}

#[derive(Deserialize, Clone)]
#[serde(untagged, expecting = "`content` is neither a string nor a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize, Clone)]
struct Part {
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`persona` is neither a string nor a list of strings")]
enum Persona {
    One(String),
    Several(Vec<String>),
}

/// Who says a message.
enum Role {
    Partner,
    Persona,
    System,
    Tool,
}

impl Role {
    /// By the names that fine-tuning files have, in any case.
    fn of(name: &str) -> Option<Self> {
        Some(match name.trim().to_ascii_lowercase().as_str() {
            "user" | "human" => Self::Partner,
            "assistant" | "bot" | "gpt" | "model" => Self::Persona,
            "system" | "developer" => Self::System,
            "tool" | "function" => Self::Tool,
            _ => return None,
        })
    }
}

/// What of a file's objects is no message.
#[derive(Default)]
struct Counts {
    tools: usize,
    parts: usize,
    system: usize,
    surrogates: usize,
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.tools += more.tools;
        self.parts += more.parts;
        self.system += more.system;
        self.surrogates += more.surrogates;
    }

    fn left_out(self) -> Vec<LeftOut> {
        let left_out = |what: &str, count| LeftOut { what: what.into(), count };
        vec![
            left_out("calls of tools and what they gave", self.tools),
            left_out("parts of messages that are not text", self.parts),
            left_out("system messages within a dialogue, or beside its persona", self.system),
            left_out("halves of surrogate pairs", self.surrogates),
        ]
    }
}

/// How it is to be written.
pub(super) const REMEDY: &str = "write each dialogue as `{\"messages\":[{\"role\":\"user\",\"content\":\"…\"},\
                      {\"role\":\"assistant\",\"content\":\"…\"}]}`";

/// A dialogue a line.
///
/// # Errors
/// [`DataError`].
pub(super) fn read_lines(path: &Path, source: &Source, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
    let mut lines = Lines::new(path, source.open()?);
    let mut reading = Chats::new(source, sink);
    while let Some((line, text)) = lines.next()? {
        if !text.trim().is_empty() {
            reading.see(line, text);
        }
    }
    reading.end(path)
}

/// Objects in a list or one after the other, over several lines or not.
///
/// # Errors
/// [`DataError`].
pub(super) fn read_objects(path: &Path, source: &Source, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
    let mut objects = Objects::new(path, source.open()?);
    let mut reading = Chats::new(source, sink);
    while let Some((line, text)) = objects.next()? {
        reading.see(line, text);
    }
    reading.end(path)
}

struct Chats<'a> {
    sink: &'a mut dyn Sink,
    counts: Counts,
    bad: Bad,
    seen: usize,
}

impl<'a> Chats<'a> {
    fn new(source: &Source, sink: &'a mut dyn Sink) -> Self {
        Self { sink, counts: Counts::default(), bad: source.bad(), seen: 0 }
    }

    fn see(&mut self, line: usize, text: &str) {
        self.seen += 1;
        if let Err(problem) = self.chat(line, text) {
            self.bad.add(line, problem, REMEDY);
        }
    }

    fn end(self, path: &Path) -> Result<Vec<LeftOut>, DataError> {
        let mut left_out = vec![self.bad.judge(path, "dialogues", self.seen)?];
        left_out.extend(self.counts.left_out());
        Ok(left_out)
    }

    /// Hands the messages of an object on, where all of it can be read.
    fn chat(&mut self, line: usize, text: &str) -> Result<(), String> {
        // A carriage return is a blank, also where JSON would not have it.
        let (text, surrogates) = without_half_surrogates(&text.replace('\r', " "));
        let mut parsed: Chat = serde_json::from_str(&text).map_err(|error| {
            let place = if error.line() > 1 { format!("line {} of it, ", error.line()) } else { String::new() };
            format!("{} in {place}column {}", without_place(&error), error.column())
        })?;
        let mut counts = Counts { surrogates, ..Counts::default() };
        // Of other forms it is one of the messages.
        let has_messages = parsed.messages.is_some();
        let messages = parsed.messages()?;
        let mut said = Vec::with_capacity(messages.len());
        let mut system = Vec::new();
        for (index, message) in (1..).zip(messages) {
            let Some(role) = Role::of(&message.role) else {
                let role = excerpt(&message.role);
                return Err(format!("message {index} has the role {role}, expected system, user or assistant"));
            };
            let learned = match message.weight {
                None | Some(1.0) => true,
                Some(0.0) => false,
                Some(weight) => return Err(format!("message {index} has the weight {weight}, expected 0 or 1")),
            };
            let calls = message.calls();
            let text = words(message.content, &mut counts.parts);
            match role {
                Role::Partner => said.push(Message::of_role(USER, text, line)),
                // The words after the call's result are the reply.
                Role::Persona if calls && clean(&text).is_empty() => counts.tools += 1,
                Role::Persona => said.push(Message { learned, ..Message::of_role(ASSISTANT, text, line) }),
                Role::Tool => counts.tools += 1,
                Role::System if said.is_empty() => system.push(text),
                Role::System => counts.system += 1,
            }
        }
        let beside = parsed.others.get("system").and_then(Value::as_str).filter(|_| has_messages);
        let persona = match parsed.persona.or(parsed.personality) {
            None if system.is_empty() => beside.map(str::to_owned).into_iter().collect(),
            None => system,
            Some(persona) => {
                counts.system += system.len();
                match persona {
                    Persona::One(text) => vec![text],
                    Persona::Several(texts) => texts,
                }
            }
        };
        self.counts.add(&counts);
        let sentences = persona.iter().flat_map(|text| text.lines()).map(clean);
        let persona = sentences.filter(|sentence| !sentence.is_empty()).collect();
        self.sink.begin(About { persona, whole: true, ..About::default() });
        said.into_iter().for_each(|message| self.sink.message(message));
        Ok(())
    }
}

/// Writes a dialogue as a line of chat JSONL, so that [`crate::read_dialogues`] gives it back, without the partner's sentences and
/// candidates, which the format does not have.
///
/// # Errors
/// What the writer says.
pub fn write_chat(writer: &mut (impl Write + ?Sized), dialogue: &Dialogue) -> std::io::Result<()> {
    let Dialogue { persona, exchanges, .. } = dialogue;
    let mut messages = Vec::with_capacity(2 * exchanges.len());
    for Exchange { partner, reply, learned, .. } in exchanges {
        if !partner.is_empty() {
            messages.push(json!({"role": USER, "content": partner}));
        }
        messages.push(match learned {
            true => json!({"role": ASSISTANT, "content": reply}),
            false => json!({"role": ASSISTANT, "content": reply, "weight": 0}),
        });
    }
    let chat = match persona.is_empty() {
        true => json!({"messages": messages}),
        false => json!({"persona": persona, "messages": messages}),
    };
    writeln!(writer, "{chat}")
}

/// The text of a message; `others` counts its parts that are no text.
fn words(content: Option<Content>, others: &mut usize) -> String {
    match content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let total = parts.len();
            let texts: Vec<String> = parts.into_iter().filter_map(|part| part.text).collect();
            *others += total - texts.len();
            texts.join("\n")
        }
    }
}

/// JSON whose strings have no escape of half a surrogate pair, which is no character, and how many there were.
fn without_half_surrogates(json: &str) -> (String, usize) {
    let mut whole = String::with_capacity(json.len());
    let (mut rest, mut halves) = (json, 0);
    while let Some(place) = rest.find('\\') {
        let (before, escape) = rest.split_at(place);
        whole.push_str(before);
        let length = match (unit(escape), escape.get(6..).and_then(unit)) {
            (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => 12,
            (Some(0xD800..0xE000), _) => {
                halves += 1;
                rest = &escape[6..];
                continue;
            }
            // A backslash, and what it escapes.
            _ => 1 + escape.chars().nth(1).map_or(0, char::len_utf8),
        };
        whole.push_str(&escape[..length]);
        rest = &escape[length..];
    }
    whole.push_str(rest);
    (whole, halves)
}

/// The UTF-16 unit of an escape at the beginning of a text.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_surrogate_pair_goes_and_a_whole_one_stays() {
        let pair = r#""\ud83d\ude0a\n""#;
        assert_eq!(without_half_surrogates(pair), (pair.to_owned(), 0));
        let (escaped, half) = (r"\\ud83d", r"\ud83d");
        assert_eq!(without_half_surrogates(escaped), (escaped.to_owned(), 0));
        assert_eq!(without_half_surrogates(&format!("a{half}b")), ("ab".to_owned(), 1));
        assert_eq!(without_half_surrogates(&format!("{half}{half}\\ude0a")), (format!("{half}\\ude0a"), 1));
        assert_eq!(without_half_surrogates(r"\ude0a\"), (r"\".to_owned(), 1));
    }
}
