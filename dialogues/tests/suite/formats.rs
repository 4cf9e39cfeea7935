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
    Exchange { candidates, ..Exchange::new(partner, reply) }
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
            left_out("closing words without a reply", 1),
            left_out("dialogues without a reply", 1),
        ]
    );
    // Other columns beside, in another order, are no matter.
    let other = "id,Best Generated Conversation,User 2 Personas,\"user 1 personas\"\n7,User 1: a\nx";
    assert!(refusal(other.as_bytes()).1.contains("2 fields, expected 4"));
    let some =
        format!("{}{}", other.trim_end_matches("7,User 1: a\nx"), "7,User 1: a,p,q\n".repeat(9) + "7,User 1: a\n");
    let reading = read(some.as_bytes()).unwrap();
    assert_eq!((reading.dialogues.len(), reading.left_out[0].count), (9, 1));
    assert!(reading.left_out[0].what.contains("line 11: the record that begins here has 2 fields"), "{reading:?}");
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
    let left_out = |what: &str| LeftOut { what: what.into(), count: 1 };
    assert_eq!(
        reading.left_out,
        [
            left_out("system messages within a dialogue, or beside its persona"),
            left_out("closing words without a reply"),
        ]
    );
}

#[test]
fn wrong_chat_lines_are_refused_with_their_number() {
    let good = r#"{"messages":[{"role":"assistant","content":"b"}]}"#;
    for (bad, problem) in [
        (
            r#"{"messages":[{"role":"narrator","content":"b"}]}"#,
            "message 1 has the role \"narrator\", expected system, user or",
        ),
        (
            r#"{"messages":[{"role":"user","content":7}]}"#,
            "`content` is neither a string nor a list of parts in column",
        ),
        (r#"{"messages":[{"role":"assistant","content":"b","weight":0.5}]}"#, "the weight 0.5, expected 0 or 1"),
        (r#"{"persona":7,"messages":[]}"#, "`persona` is neither a string nor a list of strings in column"),
        (r#"{"text":"b"}"#, "missing field `messages`"),
        (r#"{"messages":["#, "EOF while parsing"),
        ("1 a\tb", "expected an object with `messages` in column 1"),
    ] {
        let (line, message) = refusal(format!("{good}\n{bad}\n").as_bytes());
        assert!(line == Some(2) && message.contains(problem), "{message}");
        // One in ten is left out, and shown.
        let nine = format!("{good}\n").repeat(9);
        let reading = read(format!("{nine}{bad}\n").as_bytes()).unwrap();
        assert_eq!((reading.dialogues.len(), reading.left_out[0].count), (9, 1));
        assert!(reading.left_out[0].what.starts_with("dialogues that cannot be read (line 10: "), "{reading:?}");
        assert!(reading.left_out[0].what.contains(problem), "{reading:?}");
    }
    // Five are shown, all are counted.
    let many = format!("{good}\n").repeat(60) + &"{\"messages\":7}\n".repeat(6);
    let reading = read(many.as_bytes()).unwrap();
    let what = &reading.left_out[0].what;
    assert!(reading.left_out[0].count == 6 && what.contains("line 65: ") && what.ends_with("; …)"), "{what}");
    let error = read((many + &"{\"messages\":7}\n".repeat(2)).as_bytes()).unwrap_err();
    assert!(
        error.line == Some(61) && error.problem.contains("8 of 68 dialogues cannot be read, also line 62"),
        "{error}"
    );
}

#[test]
fn chat_is_read_as_fine_tuning_files_have_it() {
    let one = |text: &str| {
        let reading = read(text.as_bytes()).unwrap();
        assert_eq!(reading.dialogues.len(), 1, "{text}");
        let exchanges = reading.dialogues[0].exchanges.clone();
        let left: Vec<(usize, String)> = reading.left_out.iter().map(|left| (left.count, left.what.clone())).collect();
        (reading.dialogues[0].persona.clone(), exchanges, left)
    };
    let messages = |text: &str| one(&format!(r#"{{"messages":[{text}]}}"#));
    let unlearned = |partner: &str, reply: &str| Exchange { learned: false, ..Exchange::new(partner, reply) };
    let said = r#"{"role":"user","content":"q"},{"role":"assistant","content":"a"}"#;
    for [user, assistant] in [["User", "ASSISTANT"], ["human", "gpt"], ["human", "bot"], [" user", "model "]] {
        let found = messages(&said.replace("user", user).replace("assistant", assistant));
        assert_eq!(found, (vec![], vec![Exchange::new("q", "a")], vec![]));
    }
    let (persona, ..) = messages(&format!(r#"{{"role":"Developer","content":"I ski.\nI sew."}},{said}"#));
    assert_eq!(persona, ["I ski.", "I sew."]);
    let (persona, ..) = one(&format!(r#"{{"personality":["i ride."],"messages":[{said}]}}"#));
    assert_eq!(persona, ["i ride."]);
    let (persona, _, left) = messages(&format!(r#"{said},{{"role":"system","content":"be a pirate"}}"#));
    assert!(persona.is_empty() && left[0].0 == 1 && left[0].1.starts_with("system messages within"), "{left:?}");
    // A weight of 0 is history; the two of one speaker are not joined.
    let (_, exchanges, _) = messages(
        r#"{"role":"user","content":"q"},{"role":"assistant","content":"a","weight":0},{"role":"assistant","content":"b","weight":1}"#,
    );
    assert_eq!(exchanges, [unlearned("q", "a"), Exchange::new("", "b")]);
    // An empty reply is left out with the words before it, and does not join those after it.
    let (_, exchanges, left) =
        messages(&format!(r#"{{"role":"user","content":"x"}},{{"role":"assistant","content":" "}},{said}"#));
    assert_eq!((exchanges, left[0].0), (vec![Exchange::new("q", "a")], 1));
    // A call of a tool is no reply.
    let (_, exchanges, left) = messages(
        r#"{"role":"user","content":"q"},{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]},
           {"role":"tool","content":"21"},{"role":"assistant","content":"a"}"#
            .replace('\n', "")
            .as_str(),
    );
    assert_eq!(
        (exchanges, left),
        (vec![Exchange::new("q", "a")], vec![(2, "calls of tools and what they gave".into())])
    );
    // Parts, of which one is no text, and half a surrogate pair.
    let (_, exchanges, left) = messages(
        r#"{"role":"user","content":[{"type":"text","text":"q"},{"type":"image_url","image_url":{}}]},{"role":"assistant","content":"a\ud83d"}"#,
    );
    assert_eq!(exchanges, [Exchange::new("q", "a")]);
    assert_eq!(left.iter().map(|(count, _)| *count).collect::<Vec<_>>(), [1, 1]);
    // Everything of a dialogue that says nothing is counted.
    let line = format!(r#"{{"messages":[{said}]}}"#);
    let silent = r#"{"messages":[{"role":"user","content":"q"}]}"#;
    let unweighted = r#"{"messages":[{"role":"assistant","content":"a","weight":0}]}"#;
    let (_, _, left) = one(&format!("{line}\n{silent}\n{unweighted}\n"));
    let what: Vec<&str> = left.iter().map(|(_, what)| what.as_str()).collect();
    assert_eq!(what, ["dialogues without a reply", "dialogues of which no reply is to be learned"]);
    let (_, message) = refusal(format!("{silent}\n").as_bytes());
    assert!(message.contains("has no dialogue with a reply of the assistant"), "{message}");
}

#[test]
fn chat_json_may_be_a_list_or_over_several_lines() {
    let object = |reply: &str| {
        format!("{{\n  \"messages\": [\n    {{\"role\": \"assistant\", \"content\": \"}}{reply}\"}}\n  ]\n}}")
    };
    let list = format!("[{},\n{}]", object("a"), object("b"));
    let line = |text: &str| text.replace('\n', "");
    for (text, format, lines) in [
        (list.clone(), Format::ChatJson, [1, 6]),
        (line(&list), Format::ChatJson, [1, 1]),
        (format!("{}\n{}\n", object("a"), object("b")), Format::ChatJson, [1, 6]),
        (format!("\u{feff}\n{}\n\n{}", line(&object("a")), line(&object("b"))), Format::ChatJsonl, [2, 4]),
    ] {
        let reading = read(text.as_bytes()).unwrap();
        assert_eq!(reading.format, format, "{text}");
        let found: Vec<_> = reading.dialogues.iter().map(|one| (one.exchanges[0].reply.as_str(), one.line)).collect();
        assert_eq!(found, [("}a", lines[0]), ("}b", lines[1])], "{text}");
    }
    // The first 64 KiB may say nothing yet.
    let long = format!(r#"{{"id":"{}","messages":[{{"role":"assistant","content":"a"}}]}}"#, "x".repeat(1 << 17));
    for text in [format!("{long}\n{long}\n"), format!("[{long},{long}]")] {
        assert_eq!(read(text.as_bytes()).unwrap().dialogues.len(), 2);
    }
    // One object that is no dialogue does not hide the others.
    let list = format!("[{}]", [object("a").as_str(); 10].join(",").replacen("role", "roll", 1));
    let reading = read(list.as_bytes()).unwrap();
    assert_eq!((reading.dialogues.len(), reading.left_out[0].count), (9, 1));
}

#[test]
fn a_carriage_return_is_a_line_end_or_a_blank() {
    let chat = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
    let text = "1 q\ta\n2 q\ta\n";
    for (whole, marked) in [
        (text, text.replace('\n', "\r\r\n")),
        (text, text.replace('\n', "\r")),
        (text, text.replacen('\n', "\r", 1)),
        (text, format!("\u{feff}{text}\r\n\n")),
        ("1 q q\ta\n2 q\ta a\n", "1 q\rq\ta\n2 q\ta\ra\r\n".to_owned()),
        (chat, format!("{chat}\r\r\n")),
        (chat, format!("{chat}\r")),
        (chat, chat.replace("\"content\"", "\r\"content\"") + "\n"),
        (&chat.replace("\"q\"", "\"q q\""), chat.replace("\"q\"", "\"q\rq\"") + "\n"),
        ("1 a\tb\n1 c\td\n", "1 a\tb\r1 c\td\n".to_owned()),
    ] {
        let (expected, found) = (read(whole.as_bytes()).unwrap(), read(marked.as_bytes()).unwrap());
        let exchanges =
            |reading: &Reading| reading.dialogues.iter().map(|one| one.exchanges.clone()).collect::<Vec<_>>();
        assert_eq!(exchanges(&found), exchanges(&expected), "{marked:?}");
    }
    let csv = CSV.replace('\n', "\r\n");
    assert_eq!(read(csv.as_bytes()).unwrap().dialogues.len(), 3);
    let spoken = "user 1 personas,user 2 personas,Best Generated Conversation\na,b,\"User 1: p\rUser 2: q\"\n";
    assert_eq!(read(spoken.as_bytes()).unwrap().dialogues[1].exchanges, [Exchange::new("p", "q")]);
}

#[test]
fn what_people_have_is_read() {
    let Some(folder) = shared("inputs") else { return };
    let read = |name: &str| read_file(folder.join(name)).unwrap_or_else(|error| panic!("{error}"));
    for (name, dialogues, replies) in [
        ("array.json", 2, 3),
        ("pretty.json", 1, 2),
        ("bom.csv", 2, 3),
        ("bom.jsonl", 2, 3),
        ("bom.txt", 2, 3),
        ("blank-between.txt", 2, 3),
        ("trailing-blank.txt", 2, 3),
        ("open.txt", 1, 1),
        ("developer.jsonl", 1, 1),
        ("empty-assistant.jsonl", 2, 3),
        ("empty-middle.jsonl", 3, 4),
        ("parts.jsonl", 1, 1),
        ("personality.jsonl", 1, 1),
        ("rolecase.jsonl", 1, 1),
        ("roles.jsonl", 1, 1),
        ("surrogate.jsonl", 3, 4),
        ("toolrole.jsonl", 3, 4),
        ("tools.jsonl", 3, 4),
        ("weight.jsonl", 1, 2),
        ("system-middle.jsonl", 3, 0),
        ("samesystem.jsonl", 60, 60),
        ("mojibake.jsonl", 3, 0),
    ] {
        let reading = read(name);
        assert_eq!(reading.dialogues.len(), dialogues, "{name}: {:?}", reading.left_out);
        let found: usize = reading.dialogues.iter().map(|dialogue| dialogue.exchanges.len()).sum();
        assert!(replies == 0 || found == replies, "{name}: {found} replies");
    }
    assert!(read_file(folder.join("badrole-50k.jsonl")).is_ok());
}

#[test]
fn a_file_that_is_none_of_these_says_what_it_looks_like() {
    for (bytes, problem) in [
        (b"".as_slice(), "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"{\"dialog\": []}\n", "this looks like JSON that begins \"{\\\"dialog\\\": []}"),
        (b"[{\"dialog\": []}]", "this looks like a JSON list"),
        (b"hello\tyou\n", "this looks like text that begins \"hello\\tyou\""),
        (
            b"\x1F\x8B\x08\0",
            "this looks like a gzip archive, not like dialogues; unpack it, or give a chat of WhatsApp",
        ),
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
        assert_eq!(read(&marked).unwrap(), read(text.as_bytes()).unwrap());
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
