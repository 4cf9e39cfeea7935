//! The formats other than ConvAI2's, and how they are told apart.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use marionette_dialogues::{
    DataError, Dialogue, Exchange, Format, LeftOut, Reading, group_by_persona, read_dialogues, read_file,
};
use tempfile::TempDir;

use crate::helpers::{dialogue, shared};

fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    // A name that says nothing, or something wrong.
    let path = folder.path().join("data.txt");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(bytes: &[u8]) -> Result<Reading, DataError> {
    let (_folder, path) = file(bytes);
    read_file(path)
}

fn refusal(bytes: &[u8]) -> (Option<usize>, String) {
    let error = read(bytes).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("data.txt") && message.contains("; "), "{message}");
    assert!(!message.contains('\n') && message.chars().count() < 500, "{message}");
    (error.line, message)
}

fn exchange(partner: &str, reply: &str, candidates: &[&str]) -> Exchange {
    let candidates = candidates.iter().map(|one| (*one).to_owned()).collect();
    Exchange { partner: partner.into(), reply: reply.into(), candidates }
}

const PERSONACHAT: &str = r#"{"train": [{"personality": ["i ski.", "i sew."], "utterances": [
  {"candidates": ["no", "hello"], "history": ["hi"]},
  {"candidates": ["yes", "no"], "history": ["hi", "hello", "do you\tski?"]}]}],
 "valid": [{"personality": ["i ski."], "utterances": [{"candidates": ["hm", "ho"], "history": ["__ SILENCE __"]}]},
           {"personality": ["i run."], "utterances": [{"candidates": ["ho"], "history": ["\"messages\":"]}]}]}"#;

#[test]
fn personachat_json_is_read_in_whole_or_in_part() {
    let train = Dialogue {
        exchanges: vec![exchange("hi", "hello", &["no", "hello"]), exchange("do you ski?", "no", &["yes", "no"])],
        ..dialogue(&["i ski.", "i sew."], &[])
    };
    let silent = Dialogue { exchanges: vec![exchange("", "ho", &["hm", "ho"])], ..dialogue(&["i ski."], &[]) };
    let other = dialogue(&["i run."], &[("\"messages\":", "ho")]);
    let numbered = |dialogues: &[&Dialogue]| -> Vec<Dialogue> {
        let number = |(index, one): (usize, &&Dialogue)| Dialogue { line: index + 1, ..(*one).clone() };
        dialogues.iter().enumerate().map(number).collect()
    };
    let (_folder, path) = file(PERSONACHAT.as_bytes());
    let reading = read_file(&path).unwrap();
    assert_eq!(reading.format, Format::PersonaChatJson);
    assert_eq!(reading.dialogues, numbered(&[&train, &silent, &other]));
    let part = |name: &str| read_dialogues(format!("{}#{name}", path.display()));
    assert_eq!(part("train").unwrap(), numbered(&[&train]));
    assert_eq!(part("valid").unwrap(), numbered(&[&silent, &other]));
    let message = part("test").unwrap_err().to_string();
    assert!(message.contains("has no part \"test\"; choose `#train` or `#valid`"), "{message}");
    // Where a file has that very name, it is the file.
    fs::write(format!("{}#train", path.display()), "1 a\tb\n").unwrap();
    assert_eq!(part("train").unwrap(), [dialogue(&[], &[("a", "b")])]);
    let (_folder, path) = file(b"1 a\tb\n");
    let message = read_dialogues(format!("{}#valid", path.display())).unwrap_err().to_string();
    assert!(message.contains("it is ConvAI2 text, which has no parts"), "{message}");
}

#[test]
fn wrong_personachat_json_is_refused() {
    let changed = |from: &str, to: &str| {
        let changed = PERSONACHAT.replacen(from, to, 1);
        assert_ne!(changed, PERSONACHAT);
        refusal(changed.as_bytes())
    };
    for (from, to, line, problem) in [
        ("\"history\": [\"hi\"]", "\"history\": []", 3, "dialogue 1 of \"train\" has an empty history"),
        ("[\"ho\"]", "[]", 5, "dialogue 2 of \"valid\" has no candidates"),
        ("[\"i run.\"]", "[\" \"]", 5, "dialogue 2 of \"valid\" has an empty personality"),
        ("\"history\": [\"hi\"]", "\"context\": [\"hi\"]", 2, "missing field `history`"),
        ("[\"i run.\"]", "7", 5, "invalid type: integer `7`, expected a sequence in column"),
        ("}]}]}", "}]}]", 5, "EOF while parsing"),
        ("}]}]}", "}]}]} 1", 5, "trailing characters"),
    ] {
        let (found, message) = changed(from, to);
        assert!(message.contains(problem), "{message}");
        assert_eq!(found, Some(line), "{message}");
        assert!(!message.contains(" at line "), "{message}");
    }
    let (_, message) = refusal(br#"{"train": [], "valid": [], "messages": "personality":"#);
    assert!(message.contains("data.txt"), "{message}");
}

const CSV: &str = "user 1 personas,user 2 personas,Best Generated Conversation\n\
    \"I ski.\nI sew.\",I run.,\"User 1: Hi!\n\nUser 2: Hello!\nUser 2: How are you?\nUser 1: Fine,\nlike this:\n\n\
    1. a \"\"b\"\"\n[They ski.]\n*Later*\nUser 2: Bye!\n(The end)\"\n\
    I row.,\"I fly.\",\"* * *\nHeading\n*User 2:* Only me.\n* User 2: Again. *\"\n";

#[test]
fn a_conversation_is_two_dialogues() {
    let reading = read(CSV.as_bytes()).unwrap();
    assert_eq!(reading.format, Format::SyntheticPersonaChat);
    let of = |persona: &[&str], partner: &[&str], turns: &[(&str, &str)], line| Dialogue {
        partner_persona: partner.iter().map(|one| (*one).to_owned()).collect(),
        line,
        ..dialogue(persona, turns)
    };
    let fine = "Fine, like this: 1. a \"b\"";
    let expected = [
        // The closing words of the partner have no reply.
        of(&["I ski.", "I sew."], &["I run."], &[("", "Hi!"), ("Hello! How are you?", fine)], 2),
        of(&["I run."], &["I ski.", "I sew."], &[("Hi!", "Hello! How are you?"), (fine, "Bye!")], 2),
        of(&["I fly."], &["I row."], &[("", "Only me. Again.")], 15),
    ];
    assert_eq!(reading.dialogues, expected);
    let left_out = |what: &str, count| LeftOut { what: what.into(), count };
    assert_eq!(
        reading.left_out,
        [
            left_out("stage directions, lines in brackets or asterisks", 3),
            left_out("lines before the first speaker", 1),
            left_out("sides of a conversation that say nothing", 1),
        ]
    );
    // Other columns beside, in another order, are no matter.
    let other = "id,Best Generated Conversation,User 2 Personas,\"user 1 personas\"\n7,User 1: a\nx";
    assert!(refusal(other.as_bytes()).1.contains("2 fields, expected 4"));
    let other = "id,Best Generated Conversation,User 2 Personas,\"user 1 personas\"\n7,User 1: a,p,q\n";
    assert_eq!(read(other.as_bytes()).unwrap().dialogues[0].persona, ["q"]);
}

#[test]
fn other_columns_are_named() {
    let expected = "expected \"user 1 personas\", \"user 2 personas\", \"Best Generated Conversation\"";
    for (header, found) in [
        ("user 1 personas,user 2 persona,Best Generated Conversation", "\"user 2 persona\", "),
        ("text,label", "the columns \"text\", \"label\", "),
        (&vec!["c"; 99].join(","), "\"c\", …"),
    ] {
        let (line, message) = refusal(format!("{header}\na,b,c\n").as_bytes());
        assert!(line == Some(1) && message.contains(expected) && message.contains(found), "{message}");
    }
    let (_, message) = refusal(b"user 1 personas,user 2 personas,Best Generated Conversation\n");
    assert!(message.contains("has no conversation"), "{message}");
}

#[test]
fn chat_lines_are_dialogues() {
    let text = r#"{"messages":[{"role":"system","content":"I ski.\nI sew."},{"role":"user","content":"Hi"},
"#
    .trim_end()
    .to_owned()
        + r#"{"role":"user","content":"you"},{"role":"assistant","content":"Hello"},{"role":"assistant","content":"there\n"},{"role":"user","content":"Bye"}]}

{"id":3,"persona":["I run.",""],"messages":[{"content":"Me first","role":"assistant"},{"role":"system","content":"no"}]}
{"persona":"I fly.","messages":[{"role":"user","content":"<|endoftext|>"},{"role":"assistant","content":"ok"}]}
{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
    let reading = read(text.as_bytes()).unwrap();
    assert_eq!(reading.format, Format::ChatJsonl);
    let at = |line, persona: &[&str], turn| Dialogue { line, ..dialogue(persona, &[turn]) };
    assert_eq!(
        reading.dialogues,
        [
            at(1, &["I ski.", "I sew."], ("Hi you", "Hello there")),
            at(3, &["I run."], ("", "Me first")),
            at(4, &["I fly."], ("<|endoftext|>", "ok")),
            at(5, &[], ("a", "b")),
        ]
    );
    let unanswered = LeftOut { what: "closing messages of the user without a reply".into(), count: 1 };
    assert_eq!(reading.left_out, [unanswered]);
}

#[test]
fn wrong_chat_lines_are_refused_with_their_number() {
    let good = r#"{"messages":[{"role":"assistant","content":"b"}]}"#;
    for (bad, problem) in [
        (
            r#"{"messages":[{"role":"tool","content":"b"}]}"#,
            "message 1 has the role \"tool\", expected system, user or",
        ),
        (r#"{"messages":[{"role":"user","content":"b"}]}"#, "no message of the dialogue is the assistant's"),
        (r#"{"messages":[{"role":"assistant","content":""}]}"#, "no message of the dialogue is the assistant's"),
        (r#"{"messages":[{"role":"assistant"}]}"#, "missing field `content` in column 33"),
        (r#"{"messages":[{"role":"user","content":["b"]}]}"#, "invalid type: sequence, expected a string in column"),
        (r#"{"persona":7,"messages":[]}"#, "`persona` is neither a string nor a list of strings in column"),
        (r#"{"text":"b"}"#, "missing field `messages`"),
        (r#"{"messages":["#, "EOF while parsing"),
        ("1 a\tb", "expected an object with `messages` in column 1"),
        ("\u{feff}{}", "expected value in column 1"),
    ] {
        let (line, message) = refusal(format!("{good}\n{bad}\n").as_bytes());
        assert!(line == Some(2) && message.contains(problem), "{message}");
    }
}

#[test]
fn a_file_that_is_none_of_these_says_what_it_looks_like() {
    for (bytes, problem) in [
        (b"".as_slice(), "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"{\"dialog\": []}\n", "this looks like JSON that begins \"{\\\"dialog\\\": []}"),
        (b"[{\"messages\": []}]", "this looks like a JSON list"),
        (b"hello\tyou\n", "this looks like text that begins \"hello\\tyou\""),
        (b"\x1F\x8B\x08\0", "this looks like a gzip archive, not like dialogues; unpack it, or give ConvAI2 text"),
        (b"\x7FELF\0\0", "this looks like a binary file, or UTF-16"),
        (b"1\0 \0a\0\t\0", "this looks like a binary file, or UTF-16"),
    ] {
        let (line, message) = refusal(bytes);
        assert!(line == Some(1) && message.contains(problem), "{message}");
        assert!(message.contains("ConvAI2 text") && message.contains("chat JSONL"), "{message}");
    }
}

#[test]
fn no_format_takes_another_encoding() {
    let chat = r#"{"messages":[{"role":"assistant","content":"X"}]}"#;
    for text in [chat, CSV, PERSONACHAT] {
        let with = |bytes: &[u8]| {
            let place = text.find(['X', 'H']).or_else(|| text.find("hello")).unwrap();
            [&text.as_bytes()[..place], bytes, &text.as_bytes()[place..]].concat()
        };
        for bytes in [b"caf\xE9 ".as_slice(), b"\0"] {
            let (line, message) = refusal(&with(bytes));
            assert!(line.is_some() && (bytes != b"\0" || message.contains("NUL")), "{message}");
        }
        let marked = [b"\xEF\xBB\xBF", text.as_bytes()].concat();
        assert!(refusal(&marked).1.contains("byte-order mark"));
        let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(refusal(&[b"\xFF\xFE", wide.as_slice()].concat()).1.contains("UTF-16"));
    }
}

#[test]
fn no_piece_of_a_file_may_be_longer_than_a_mebibyte() {
    let long = "x".repeat(1 << 20);
    let chat = format!(r#"{{"messages":[{{"role":"assistant","content":"{long}"}}]}}"#);
    let csv = CSV.replace("Hi!", &long);
    // A quotation mark of its own ends no string.
    let json = PERSONACHAT.replace("hello", &(r#"\""#.to_owned() + &long));
    for (text, line, what) in [(chat, 1, "line"), (csv, 4, "record"), (json, 2, "string")] {
        let (found, message) = refusal(text.as_bytes());
        assert!(message.contains("is longer than 1048576 bytes") && message.contains(what), "{message}");
        assert!(found.is_some_and(|found| found <= line), "{message}");
    }
    // A file of any length that is one line, as Hugging Face's is, is no matter.
    let mut entry = String::from(r#"{"valid": ["#);
    for number in 0..20_000 {
        let comma = if number == 0 { "" } else { "," };
        write!(entry, r#"{comma}{{"personality":["i ski."],"utterances":[{{"candidates":["no \" \\","yes {number}"],"history":["hi"]}}]}}"#).unwrap();
    }
    let reading = read((entry + "]}").as_bytes()).unwrap();
    assert_eq!(reading.dialogues.len(), 20_000);
    assert_eq!(reading.dialogues[19_999].exchanges[0].reply, "yes 19999");
}

#[test]
fn reads_synthetic_persona_chat_as_it_is() {
    let Some(path) = shared("spc/valid.csv") else { return };
    let reading = read_file(path).unwrap();
    // 1,000 conversations of two.
    assert_eq!((reading.format, reading.dialogues.len()), (Format::SyntheticPersonaChat, 2000));
    let grouping = group_by_persona(reading.dialogues.clone()).unwrap();
    // By an independent count in Python over pairs of sentences.
    let sizes = || grouping.tasks.iter().map(|task| task.dialogues.len());
    assert_eq!((grouping.tasks.len(), grouping.dropped_single), (100, 0));
    assert_eq!((sizes().min(), sizes().max(), sizes().sum()), (Some(16), Some(25), 2000));
    for utterance in reading.dialogues.iter().flat_map(|one| &one.exchanges).flat_map(|one| [&one.partner, &one.reply])
    {
        assert!(!utterance.contains(['\n', '\r', '\0']) && !utterance.starts_with("User "), "{utterance}");
    }
}
