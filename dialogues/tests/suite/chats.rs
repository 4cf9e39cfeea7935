//! Chats of people, as their programs export them.

use std::fs;
use std::path::PathBuf;

use marionette_dialogues::{
    DataError, Dialogue, Exchange, Format, Found, LeftOut, Reading, Redacted, Redaction, Redactor, Rules, read_chat,
    write_chat,
};
use tempfile::TempDir;

use crate::helpers::{of_persona, shared};

fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat");
    fs::write(&path, text).unwrap();
    (folder, path)
}

fn rules(me: &[&str]) -> Rules {
    Rules { me: me.iter().map(|&name| name.to_owned()).collect(), ..Rules::default() }
}

fn read_with(text: &str, rules: &Rules) -> Result<Reading, DataError> {
    let (_folder, path) = file(text);
    read_chat(path, rules)
}

fn read(text: &str, me: &[&str]) -> Reading {
    read_with(text, &rules(me)).unwrap()
}

fn refusal(text: &str, me: &[&str]) -> String {
    let message = read_with(text, &rules(me)).unwrap_err().to_string();
    assert!(!message.contains('\n') && message.contains("chat"), "{message}");
    message
}

/// The exchanges of each dialogue; those that are not learned begin with a tilde.
fn told(dialogues: &[Dialogue]) -> Vec<Vec<(String, String)>> {
    let exchange = |Exchange { partner, reply, learned, .. }: &Exchange| {
        (partner.clone(), if *learned { reply.clone() } else { format!("~{reply}") })
    };
    dialogues.iter().map(|dialogue| dialogue.exchanges.iter().map(exchange).collect()).collect()
}

fn expected(dialogues: &[&[(&str, &str)]]) -> Vec<Vec<(String, String)>> {
    let pair = |&(partner, reply): &(&str, &str)| (partner.to_owned(), reply.to_owned());
    dialogues.iter().map(|dialogue| dialogue.iter().map(pair).collect()).collect()
}

fn left_out(reading: &Reading) -> Vec<(&str, usize)> {
    reading.left_out.iter().map(|left| (left.what.as_str(), left.count)).collect()
}

const ANDROID: &str = "\
03/11/2025, 18:00 - Messages and calls are end-to-end encrypted. Tap to learn more.
03/11/2025, 18:02 - Ada B.: do you keep bees?
03/11/2025, 18:02 - Ole K.: three hives
03/11/2025, 18:03 - Ole K.: behind the shed,

next to the oak
03/11/2025, 18:04 - Ada B.: <Media omitted>
03/11/2025, 18:04 - Ada B.: honey?
03/11/2025, 18:05 - Ole K.: forty jars \u{1F36F} <This message was edited>
04/11/2025, 09:00 - Ole K.: good morning
04/11/2025, 09:01 - Ada B.: morning! tea: now?
04/11/2025, 09:01 - Ole K.: always
04/11/2025, 09:30 - Ole K.: come over
04/11/2025, 09:31 - Ada B.: This message was deleted
04/11/2025, 09:32 - Ada B.: on my way
";

#[test]
fn a_whatsapp_export_of_two_is_what_one_answers_the_other() {
    let reading = read(ANDROID, &[]);
    assert_eq!(reading.format, Format::WhatsApp);
    let speakers = reading.speakers.as_ref().unwrap();
    assert_eq!((speakers.me.as_slice(), speakers.found), (["Ole K.".to_owned()].as_slice(), Found::Answers));
    assert_eq!(speakers.messages, [("Ole K.".to_owned(), 6), ("Ada B.".to_owned(), 4)]);
    // 2025-11-03 18:00 and 2025-11-04 09:32, by Python's calendar.timegm.
    assert_eq!(speakers.span, Some([1_762_192_800, 1_762_248_720]));
    let own: [&[(&str, &str)]; 2] = [
        &[("do you keep bees?", "three hives behind the shed, next to the oak"), ("honey?", "forty jars \u{1F36F}")],
        &[("", "~good morning"), ("morning! tea: now?", "always")],
    ];
    assert_eq!(told(&reading.dialogues), expected(&own));
    assert_eq!(reading.dialogues.iter().map(|dialogue| dialogue.line).collect::<Vec<_>>(), [2, 10]);
    assert_eq!(
        left_out(&reading),
        [
            ("notices of the program", 1),
            ("deleted messages", 1),
            ("pictures, voice messages and other media without words", 1),
            ("closing words without a reply", 1),
            ("utterances of the persona that answer nobody: history, not learned", 2),
        ]
    );
    // From the other side; a picture with words after it is answered in words.
    let other: [&[(&str, &str)]; 2] = [
        &[("", "~do you keep bees?"), ("three hives behind the shed, next to the oak", "honey?")],
        &[("good morning", "morning! tea: now?"), ("always come over", "on my way")],
    ];
    let reading = read(ANDROID, &["ada b."]);
    assert_eq!(told(&reading.dialogues), expected(&other));
    assert_eq!(reading.speakers.unwrap().found, Found::Named);
    // Both names are one person's: nobody is left to answer.
    assert!(refusal(ANDROID, &["Ada B.", "Ole K."]).contains("no words of the persona that answer anybody's"));
}

#[test]
fn the_rule_has_numbers() {
    let with = |change: &dyn Fn(&mut Rules)| {
        let mut rules = rules(&["Ole K."]);
        change(&mut rules);
        told(&read_with(ANDROID, &rules).unwrap().dialogues)
    };
    // What comes half an hour later is still the same utterance.
    let patient = with(&|rules| rules.join = 3600);
    assert_eq!(
        patient[1],
        [(String::new(), "~good morning".into()), ("morning! tea: now?".into(), "always come over".into())]
    );
    // A day's silence is none: it is one dialogue.
    let one = with(&|rules| rules.silence = 86_400);
    assert_eq!(one.len(), 1);
    assert_eq!(one[0][2], (String::new(), "~good morning".to_owned()));
}

#[test]
fn other_forms_of_whatsapp_exports_say_the_same() {
    let android = read(ANDROID, &[]);
    let same = |text: &str| assert_eq!(told(&read(text, &[]).dialogues), told(&android.dialogues), "{text}");
    // American, with a narrow blank before AM and PM; the order of the date is that in which time goes on.
    let mut american = ANDROID.replace("03/11/2025", "11/3/25").replace("04/11/2025", "11/4/25");
    for (hour, twelve) in [(18, 6), (9, 9)] {
        for minute in 0..60 {
            let half = if hour < 12 { "AM" } else { "PM" };
            american = american
                .replace(&format!("{hour:02}:{minute:02} - "), &format!("{twelve}:{minute:02}\u{202F}{half} - "));
        }
    }
    same(&american);
    assert_eq!(read(&american, &[]).speakers.unwrap().span, android.speakers.as_ref().unwrap().span);
    // iOS: brackets, seconds, marks of direction, and what is left out in words of the program.
    let mut ios = String::new();
    for line in ANDROID.lines() {
        let line = match line.split_once(" - ") {
            None => line.to_owned(),
            Some((time, rest)) => {
                format!("[{time}:07] {}", rest.replace("Messages and", "Ole K.: \u{200E}Messages and"))
            }
        };
        let line = line.replace("<Media omitted>", "\u{200E}image omitted").replace("<This", "\u{200E}<This");
        let line = line.replace("This message was deleted", "\u{200E}This message was deleted.");
        ios += &format!("{}{line}\r\n", if line.contains('\u{200E}') { "\u{200E}" } else { "" });
    }
    same(&ios);
    // German, Spanish, Chinese media, and files by name.
    for media in [
        "<Medien ausgeschlossen>",
        "<Multimedia omitido>",
        "<省略多媒体文件>",
        "IMG-20251103-WA0001.jpg (file attached)",
        "null",
    ] {
        same(&ANDROID.replace("<Media omitted>", media));
    }
    // A picture's caption is words.
    let caption = ANDROID.replace("<Media omitted>", "IMG-1.jpg (Datei angehängt)\nlook");
    assert_eq!(read(&caption, &[]).dialogues[0].exchanges[1].partner, "look honey?");
}

#[test]
fn names_may_have_colons_and_notices_quotation_marks() {
    let text = ANDROID
        .replace("Ole K.", "~\u{202F}Dr: Ole")
        .replace("Tap to learn more.", "Ada changed the subject to \"Trip: Rome\"");
    let reading = read(&text, &[]);
    assert_eq!(reading.speakers.unwrap().me, ["Dr: Ole"]);
    assert_eq!(reading.dialogues[0].exchanges[0].reply, "three hives behind the shed, next to the oak");
}

#[test]
fn of_a_group_somebody_must_be_named() {
    let text = ANDROID.replace("Ada B.: morning", "Eve: morning") + "04/11/2025, 09:33 - Ole K.: bring cups\n";
    let problem = refusal(&text, &[]);
    assert!(problem.contains("Ole K. (7), Ada B. (3), Eve (1)") && problem.contains("--me NAME"), "{problem}");
    let problem = refusal(&text, &["Ole"]);
    assert!(
        problem.contains("nobody in it is called \"Ole\"; who speaks, with so many messages: Ole K. (7)"),
        "{problem}"
    );
    let plain = told(&read(&text, &["Ole K."]).dialogues);
    assert_eq!(plain[1][1], ("morning! tea: now?".to_owned(), "always".to_owned()));
    let marked = read_with(&text, &Rules { group: true, ..rules(&["Ole K."]) }).unwrap();
    assert_eq!(marked.dialogues[1].exchanges[1].partner, "Eve: morning! tea: now?");
}

const TELEGRAM: &str = r#"{"name": "Ada", "type": "personal_chat", "id": 7, "messages": [
  {"id": 1, "type": "service", "date": "2025-11-03T18:00:00", "actor": "Ada", "action": "phone_call", "text": ""},
  {"id": 2, "type": "message", "date": "2025-11-03T18:02:11", "date_unixtime": "1762189331", "from": "Ole", "from_id": "user2", "text": "hello"},
  {"id": 3, "type": "message", "date": "2025-11-03T18:02:31", "date_unixtime": "1762189351", "from": "Ada", "from_id": "user1", "text": ["see ", {"type": "link", "text": "a.example"}, "\x0B!"]},
  {"id": 4, "type": "message", "date": "2025-11-03T18:02:40", "date_unixtime": "1762189360", "from": "Ole", "from_id": "user2", "forwarded_from": "Eve", "text": "news"},
  {"id": 5, "type": "message", "date": "2025-11-03T18:02:50", "date_unixtime": "1762189370", "from": "Ole", "from_id": "user2", "photo": "1.jpg", "text": ""},
  {"id": 6, "type": "message", "date": "2025-11-03T18:03:50", "date_unixtime": "1762189430", "from": null, "from_id": "user1", "text": "and?"},
  {"id": 7, "type": "message", "date": "2025-11-03T18:04:50", "date_unixtime": "1762189490", "from": "Ole", "from_id": "user2", "text": "bees"}
 ]}"#;

#[test]
fn a_telegram_export_says_whose_it_is() {
    let reading = read(TELEGRAM, &[]);
    assert_eq!(reading.format, Format::Telegram);
    let speakers = reading.speakers.as_ref().unwrap();
    // The chat is called by the one whom its owner talks with.
    assert_eq!((speakers.me.as_slice(), speakers.found), (["Ole".to_owned()].as_slice(), Found::Owner));
    // What a picture answers has no answer.
    assert_eq!(told(&reading.dialogues), expected(&[&[("", "~hello"), ("and?", "bees")]]));
    assert_eq!(
        left_out(&reading),
        [
            ("notices of the program", 1),
            ("forwarded messages, which are somebody else's words", 1),
            ("pictures, voice messages and other media without words", 1),
            ("utterances of the persona that answer nobody: history, not learned", 1),
        ]
    );
    // By id; a name that is gone is the same person.
    for me in ["1", "Ada"] {
        let reading = read(TELEGRAM, &[me]);
        // What answers a picture is history for what follows, and nothing follows.
        assert_eq!(told(&reading.dialogues), expected(&[&[("hello", "see a.example !")]]), "{me}");
    }
    // A whole account, with ids of before 2021.
    let chat = TELEGRAM.replace("\"user1\"", "1").replace("\"user2\"", "2");
    let account = format!(
        "{{\"about\": \"x\", \"personal_information\": {{\"user_id\": 2}}, \"chats\": {{\"about\": \"\", \"list\": [{chat}, {chat}]}}}}"
    );
    let reading = read(&account, &[]);
    assert_eq!((reading.dialogues.len(), reading.speakers.unwrap().found), (2, Found::Owner));
}

#[test]
fn a_wrong_message_is_counted_and_a_cut_file_refused() {
    let wrong = TELEGRAM.replace("\"text\": \"news\"", "\"text\": 7");
    let problem = refusal(&wrong, &[]);
    assert!(problem.contains("line 5: ") && problem.contains("neither a string nor a list"), "{problem}");
    let many = TELEGRAM.replace(
        "]}",
        &format!("{}]}}", r#",{"id": 8, "type": "message", "from": "Ada", "from_id": "user1", "text": "x"}"#.repeat(9)),
    );
    let reading = read(&many.replace("\"text\": \"news\"", "\"text\": 7"), &[]);
    assert_eq!((left_out(&reading)[0].1, reading.dialogues.len()), (1, 1));
    for end in 0..TELEGRAM.len() {
        let _ = read_with(&TELEGRAM[..end], &rules(&[]));
        assert!(read_with(&TELEGRAM[..end], &rules(&["Ole"])).is_err(), "{end}");
    }
}

const DISCORD: &str = r#"{"guild": {"id": "0", "name": "DM"}, "channel": {"id": "1", "type": "DirectTextChat"}, "messages": [
 {"id": "1", "type": "RecipientAdd", "timestamp": "2025-11-03T18:00:00+00:00", "content": "added", "author": {"id": "11", "name": "ada", "isBot": false}},
 {"id": "2", "type": "Default", "timestamp": "2025-11-03T18:01:00.5+00:00", "content": "bees?", "author": {"id": "11", "name": "ada", "nickname": "Ada", "isBot": false}},
 {"id": "3", "type": "Default", "timestamp": "2025-11-03T18:01:10+00:00", "content": "hello, humans", "author": {"id": "13", "name": "helper", "isBot": true}},
 {"id": "4", "type": "Reply", "timestamp": "2025-11-03T19:02:00+01:00", "content": "three hives", "author": {"id": "12", "name": "ole", "isBot": false}}
]}"#;

const INSTAGRAM: &str = r#"{"participants": [{"name": "Ada"}, {"name": "Ole"}], "messages": [
 {"sender_name": "Ole", "timestamp_ms": 1762192930000, "content": "caf\u00c3\u00a9"},
 {"sender_name": "Ada", "timestamp_ms": 1762192925000, "content": "Reacted X to your message "},
 {"sender_name": "Ada", "timestamp_ms": 1762192920000, "photos": [{"uri": "1.jpg"}]},
 {"sender_name": "Ada", "timestamp_ms": 1762192915000, "content": "where", "is_unsent": true},
 {"sender_name": "Ada", "timestamp_ms": 1762192910000, "content": "coffee?"}], "title": "Ada"}"#;

const SILLYTAVERN: &str = r#"{"user_name":"Me","character_name":"Ole","create_date":"2025-11-03","chat_metadata":{}}
{"name":"Ole","is_user":false,"is_system":false,"mes":"*waves*"}
{"name":"Me","is_user":true,"is_system":false,"mes":"bees?"}
{"name":"Ole","is_user":false,"is_system":false,"mes":"none","swipes":["none","three hives"],"swipe_id":1}
{"name":"System","is_user":false,"is_system":true,"mes":"saved"}
"#;

#[test]
fn other_programs_say_who_says_what_in_their_ways() {
    let discord = read(DISCORD, &[]);
    assert_eq!((discord.format, told(&discord.dialogues)), (Format::Discord, expected(&[&[("bees?", "three hives")]])));
    assert_eq!(left_out(&discord), [("notices of the program", 1), ("words of bots", 1)]);
    // An offset is of the clock: 18:00 to 18:02 in UTC.
    assert_eq!(discord.speakers.unwrap().span, Some([1_762_192_800, 1_762_192_920]));
    assert_eq!(told(&read(DISCORD, &["12"]).dialogues), expected(&[&[("bees?", "three hives")]]));

    let instagram = read(INSTAGRAM, &[]);
    assert_eq!(
        (instagram.format, told(&instagram.dialogues)),
        (Format::Instagram, expected(&[&[("coffee?", "café")]]))
    );
    let media = "pictures, voice messages and other media without words";
    assert_eq!(left_out(&instagram), [("notices of the program", 1), ("deleted messages", 1), (media, 1)]);

    // The character's first words are the beginning of the play.
    let play = read(SILLYTAVERN, &[]);
    assert_eq!(
        (play.format, told(&play.dialogues)),
        (Format::SillyTavern, expected(&[&[("", "*waves*"), ("bees?", "three hives")]]))
    );
    assert_eq!((play.speakers.unwrap().found, play.left_out[0].count), (Found::Owner, 1));
    assert_eq!(told(&read(SILLYTAVERN, &["Me"]).dialogues), expected(&[&[("*waves*", "bees?")]]));
}

const IMESSAGE: &str = "\
May 17, 2022  5:29:42 PM
Me
hello

May 17, 2022  5:30:00 PM (Read by you after 18 seconds)
+1 555 0100
bees?
no?

    May 17, 2022  5:31:00 PM
    Me
    three

Tapbacks:
    Loved by Me

May 17, 2022  5:31:00 PM
Me
two
Edited 4 seconds later: three
This message responded to an earlier message.

May 17, 2022  5:32:00 PM +1 555 0100 named the conversation Bees

May 17, 2022  5:33:00 PM
+1 555 0100
attachments/1/2.heic

May 17, 2022 10:33:00 PM
+1 555 0100
asleep?

May 17, 2022 10:34:00 PM
Me
no
";

#[test]
fn an_imessage_export_is_me_answering() {
    let reading = read(IMESSAGE, &[]);
    assert_eq!((reading.format, reading.speakers.unwrap().found), (Format::IMessage, Found::Owner));
    assert_eq!(told(&reading.dialogues), expected(&[&[("", "~hello"), ("bees? no?", "three"), ("asleep?", "no")]]));
    let reading = read(IMESSAGE, &[]);
    let media = "pictures, voice messages and other media without words";
    let unprompted = "utterances of the persona that answer nobody: history, not learned";
    assert_eq!(left_out(&reading), [("notices of the program", 1), (media, 1), (unprompted, 1)]);
}

const CARD: &str = r#"{"spec": "chara_card_v2", "data": {"name": "Ole", "description": "{{char}} keeps bees.\n{{char}} knows {{user}}.",
 "personality": "calm", "scenario": "", "first_mes": "Hello, {{user}}.", "creator_notes": "for adults",
 "mes_example": "<START>\n{{user}}: bees?\n{{char}}: *nods*\nthree hives\n<START>\n{{user}}: honey?\nOle: jars, {{user}}\n{{user}}: oh"}}"#;

#[test]
fn a_card_says_who_somebody_is_and_how_they_talk() {
    let reading = read(CARD, &[]);
    assert_eq!(reading.format, Format::Card);
    assert_eq!(
        told(&reading.dialogues),
        expected(&[&[("bees?", "*nods* three hives")], &[("honey?", "jars, you")], &[("", "Hello, you.")]])
    );
    for dialogue in &reading.dialogues {
        assert_eq!(dialogue.persona, ["Ole keeps bees.", "Ole knows you.", "calm"]);
    }
    let plain = CARD.replace(r#"{"spec": "chara_card_v2", "data": "#, "").replace("oh\"}}", "oh\"}");
    assert_eq!(read(&plain, &[]).dialogues, reading.dialogues);
    let bare = plain.replace("mes_example", "x").replace("Hello, {{user}}.", "");
    assert!(refusal(&bare, &[]).contains("has no examples of how the character talks"));
}

#[test]
fn a_reply_to_an_older_message_answers_that_one() {
    let message = |id: usize, minute: usize, from: &str, to: usize, text: &str| {
        let to = if to > 0 { format!(r#""reply_to_message_id":{to},"#) } else { String::new() };
        format!(
            r#"{{"id":{id},"type":"message","date":"2025-11-03T1{}:{:02}:00","from":"{from}",{to}"text":"{text}"}}"#,
            minute / 60,
            minute % 60
        )
    };
    let said = [
        message(1, 0, "Ada", 0, "who comes?"),
        message(2, 1, "Eve", 0, "not me"),
        // What is before it as it is, is not said again; nor is what it has just answered.
        message(3, 2, "Ole", 1, "me"),
        message(4, 3, "Ole", 1, "and the dog"),
        message(5, 4, "Ada", 0, "and the honey?"),
        message(6, 5, "Ole", 0, "aye"),
        message(7, 6, "Eve", 0, "hm"),
        message(8, 7, "Ole", 5, "two jars"),
        // After a night, in another dialogue; to words of its own; and to what nobody knows.
        message(9, 400, "Ole", 2, "you should"),
        message(10, 401, "Ole", 8, "dark ones"),
        message(11, 480, "Ole", 99, "hello?"),
    ];
    let text = format!(r#"{{"name":"x","type":"private_group","id":7,"messages":[{}]}}"#, said.join(","));
    let ole = rules(&["Ole"]);
    let expected_of = |eve: &str, ada: &str| {
        expected(&[
            &[
                (&format!("{ada}who comes? {eve}not me"), "me and the dog"),
                (&format!("{ada}and the honey?"), "aye"),
                (&format!("{eve}hm {ada}and the honey?"), "two jars"),
            ],
            &[(&format!("{eve}not me"), "you should dark ones")],
        ])
    };
    assert_eq!(told(&read_with(&text, &ole).unwrap().dialogues), expected_of("", ""));
    let marked = read_with(&text, &Rules { group: true, ..ole.clone() }).unwrap();
    assert_eq!(told(&marked.dialogues), expected_of("Eve: ", "Ada: "));
    // The same of Discord, whose ids are text.
    let mut discord = text.replace("\"type\":\"message\"", "\"type\":\"Default\"");
    for id in 1..=99 {
        discord = discord
            .replace(&format!("\"reply_to_message_id\":{id},"), &format!("\"reference\":{{\"messageId\":\"{id}\"}},"));
    }
    for name in ["Ada", "Eve", "Ole"] {
        discord = discord.replace(&format!("\"from\":\"{name}\""), &format!("\"author\":{{\"name\":\"{name}\"}}"));
    }
    let discord =
        discord.replace("\"text\":", "\"content\":").replace("\"date\"", "\"timestamp\"").replace(":00\",", ":00Z\",");
    let discord = discord.replace(r#"{"name":"x","type":"private_group","id":7,"#, r#"{"guild":{},"channel":{},"#);
    let reading = read_with(&discord, &ole).unwrap();
    assert_eq!((reading.format, told(&reading.dialogues)), (Format::Discord, expected_of("", "")));
}

const CHARACTER_OLD: &str = r#"{"info":{"character":{"name":"Ole"}},"histories":{"histories":[{"external_id":"x","msgs":[
{"id":1,"text":"I keep bees.","src":{"is_human":false,"name":"Ole"},"tgt":{"is_human":true}},
{"id":2,"text":"how many?","src":{"is_human":true,"name":"Ada"}},
{"id":3,"text":"three hives","src":{"is_human":false,"name":"Ole"}}]},
{"msgs":[{"text":"honey?","src":{"is_human":true}},{"text":"forty jars","src":{"is_human":false}}]}]}}"#;

const CHARACTER_NEW: &str = r#"{"turns":[
{"turn_key":{"turn_id":"d"},"create_time":"2024-05-02T10:00:03.5Z","author":{"name":"Ole"},"candidates":[
{"candidate_id":"1","raw_content":"four hives","is_final":true},{"candidate_id":"2","raw_content":"three hives","is_final":true}],"primary_candidate_id":"2"},
{"create_time":"2024-05-02T10:00:02Z","author":{"name":"Ada","is_human":true},"candidates":[{"candidate_id":"3","raw_content":"how many?"}],"primary_candidate_id":"3"},
{"create_time":"2024-05-02T10:00:01Z","author":{"name":"Ole"},"candidates":[{"candidate_id":"4","raw_content":"I keep bees."}],"primary_candidate_id":"x"}]}"#;

#[test]
fn a_chat_of_character_ai_is_what_the_character_answers() {
    let first: &[(&str, &str)] = &[("", "I keep bees."), ("how many?", "three hives")];
    let reading = read(CHARACTER_OLD, &[]);
    assert_eq!(
        (reading.format, told(&reading.dialogues)),
        (Format::CharacterAi, expected(&[first, &[("honey?", "forty jars")]]))
    );
    let reading = read(CHARACTER_NEW, &["assistant"]);
    assert_eq!((reading.format, told(&reading.dialogues)), (Format::CharacterAi, expected(&[first])));
}

/// So many days of a chat, each begun by the same words of Ada's.
fn days(number: usize, words: &str) -> String {
    let day = |day: usize| {
        format!(
            "{day:02}/11/2025, 08:00 - Ada B.: {words}\n{day:02}/11/2025, 08:01 - Ole K.: the {day}th jar today\n\
             {day:02}/11/2025, 08:02 - Ada B.: and of clover, how many since {day}?\n{day:02}/11/2025, 08:03 - Ole K.: count {day} and {day}\n"
        )
    };
    (1..=number).map(day).collect()
}

#[test]
fn what_is_word_for_word_in_many_dialogues_is_nobody_s_own() {
    let read = |text: &str| {
        let (_folder, path) = file(text);
        let (files, dialogues) = of_persona(&[path], &rules(&["Ole K."]), None).unwrap();
        let repeated = |left: &&LeftOut| left.what == "messages that are word for word in many dialogues";
        (files[0].left_out.iter().find(repeated).map_or(0, |left| left.count), dialogues)
    };
    const LONG: &str = "this chat is kept for you by the robot";
    let (count, dialogues) = read(&days(6, LONG));
    assert_eq!((count, dialogues.len()), (6, 6));
    // What Ole says next answers nobody that is seen.
    assert_eq!(
        told(&dialogues)[0],
        expected(&[&[("", "~the 1th jar today"), ("and of clover, how many since 1?", "count 1 and 1")]])[0]
    );
    // In brackets it may be short; what people say each day stays, as what is in few dialogues does.
    assert_eq!(read(&days(6, "[Foto]")).0, 6);
    assert_eq!(read(&days(6, "good morning")).0, 0);
    assert_eq!(read(&days(4, LONG)).0, 0);
    // One in five, and not one in six.
    let rare = |number: usize| days(number, "x").replacen("Ada B.: x", &format!("Ada B.: {LONG}"), 5);
    assert_eq!((read(&rare(25)).0, read(&rare(30)).0), (5, 0));
}

#[test]
fn what_two_exports_both_have_is_learned_once() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.txt", "b.txt"].map(|name| folder.path().join(name));
    fs::write(&paths[0], days(6, "morning")).unwrap();
    fs::write(&paths[1], days(8, "morning")).unwrap();
    let (files, dialogues) = of_persona(&paths, &rules(&["Ole K."]), None).unwrap();
    assert_eq!((files[0].dialogues, files[1].dialogues, dialogues.len()), (6, 2, 8));
    assert_eq!(
        files[1].left_out.last().unwrap(),
        &LeftOut { what: "dialogues that were there before, or nearly".into(), count: 6 }
    );
}

#[test]
fn what_is_redacted_is_replaced_counted_and_shown_where_that_is_wanted() {
    let (_folder, path) = file(
        r#"{"persona":["I am Ole, ole@example.org."],"messages":[{"role":"user","content":"your number?"},{"role":"assistant","content":"+49 30 123456, Ole"},{"role":"user","content":"really +49 30 123456?"},{"role":"assistant","content":"yes"}]}"#,
    );
    let redactor = Redactor::new(&["ole"]);
    let read = |shown| {
        let redaction = Redaction { redactor: redactor.clone(), shown };
        let (mut files, dialogues) = of_persona(std::slice::from_ref(&path), &rules(&[]), Some(&redaction)).unwrap();
        (files.remove(0), dialogues)
    };
    let (file, dialogues) = read(true);
    assert_eq!(dialogues[0].persona, ["I am [blocked], [email]."]);
    assert_eq!(told(&dialogues), expected(&[&[("your number?", "[phone], [blocked]"), ("really [phone]?", "yes")]]));
    let found: Vec<_> = file.replaced.iter().map(|one| (one.what, one.count, one.texts.as_slice())).collect();
    let text = |text: &str, times| vec![(text.to_owned(), times)];
    assert_eq!(
        found,
        [
            (Redacted::Email, 1, text("ole@example.org", 1).as_slice()),
            (Redacted::Phone, 2, &text("+49 30 123456", 2)),
            (Redacted::Blocked, 2, &text("Ole", 2)),
        ]
    );
    let notes: Vec<String> = file.notes().collect();
    assert_eq!(notes[2..4], ["2 replaced by [phone]: phone numbers", "  \"+49 30 123456\" (2)"]);
    // What is not to be shown is nowhere but in the file it came from.
    let (file, _) = read(false);
    assert!(!serde_json::to_string(&file).unwrap().contains("123456"), "{file:?}");
}

#[test]
fn nothing_is_left_out_where_that_is_strict() {
    let line = |text: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"{text}"}},{{"role":"assistant","content":"b"}}]}}"#)
    };
    let text = (0..10).map(|number| line(&number.to_string()) + "\n").collect::<String>() + "{\n";
    assert_eq!(read(&text, &[]).dialogues.len(), 10);
    let strict = Rules { strict: true, ..Rules::default() };
    let problem = read_with(&text, &strict).unwrap_err().to_string();
    assert!(problem.contains("chat, line 11: EOF"), "{problem}");
    let telegram = TELEGRAM.replacen("\"type\": \"message\"", "\"type\": 7", 1);
    assert_ne!(telegram, TELEGRAM);
    let named = Rules { strict: true, ..rules(&["Ole"]) };
    assert!(read_with(&telegram, &named).is_err());
}

#[test]
fn files_and_folders_of_one_persona_go_together() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("b.txt", ANDROID);
    write("a.json", CARD);
    write(".hidden", "nothing");
    let ole = rules(&["Ole K."]);
    let read = |paths: &[PathBuf]| of_persona(paths, &ole, None);
    let (files, dialogues) = read(&[folder.path().to_path_buf()]).unwrap();
    let formats: Vec<Format> = files.iter().map(|file| file.format).collect();
    assert_eq!(formats, [Format::Card, Format::WhatsApp]);
    // What the card says of him holds in the chat, where nothing is said.
    assert!(dialogues.iter().all(|dialogue| dialogue.persona[0] == "Ole keeps bees."));
    // Alone, a file of roles knows nobody by that name.
    let problem = read(&[folder.path().join("a.json")]).unwrap_err().to_string();
    assert!(problem.contains("in which roles speak"), "{problem}");
    write("c", "neither");
    let problem = read(&[folder.path().to_path_buf()]).unwrap_err().to_string();
    assert!(problem.contains("c, line 1: this looks like text"), "{problem}");
    let empty = tempfile::tempdir().unwrap();
    let problem = read(&[empty.path().to_path_buf()]).unwrap_err().to_string();
    assert!(problem.contains("is a folder without files of dialogues"), "{problem}");
}

#[test]
fn a_file_that_ends_anywhere_is_refused_or_read() {
    for text in [ANDROID, TELEGRAM, DISCORD, INSTAGRAM, SILLYTAVERN, IMESSAGE, CARD, CHARACTER_OLD, CHARACTER_NEW] {
        let (_folder, path) = file("");
        for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
            fs::write(&path, &text[..end]).unwrap();
            match read_chat(&path, &Rules::default()) {
                Ok(reading) => assert!(!reading.dialogues.is_empty()),
                Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            }
        }
    }
}

/// Messages of two by turns, with their minutes; the same in every program's way of writing.
#[test]
fn what_each_program_would_write_is_read_alike() {
    let mut state = 7_u64;
    let mut draw = |below: u64| {
        // Knuth's generator; its high bits.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    const WORDS: [&str; 8] = ["bees", "honey: now", "(three)", "\u{1F36F}", "\"jar\"", "[x]", "caf\u{e9} ok", "a\\b"];
    for _ in 0..40 {
        let mut minute = 0_i64;
        let mut messages = vec![("Ada", 0, "hi".to_owned())];
        for _ in 0..30 {
            minute += [0, 1, 4, 5, 6, 90, 359, 361, 2000][draw(9) as usize];
            let text = (0..1 + draw(3)).map(|_| WORDS[draw(8) as usize]).collect::<Vec<_>>().join(" ");
            messages.push((["Ada", "Ole"][draw(2) as usize], minute, text));
        }
        let at = |minute: i64| jiff::civil::date(2025, 11, 3).at(18, 0, 0, 0) + jiff::Span::new().minutes(minute);
        let lines = |line: &dyn Fn(&(&str, i64, String)) -> String| messages.iter().map(line).collect::<Vec<_>>();
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let android =
            lines(&|(name, minute, text)| format!("{} - {name}: {text}\n", at(*minute).strftime("%d/%m/%Y, %H:%M")))
                .concat();
        let ios = lines(&|(name, minute, text)| {
            format!("[{}] {name}: {text}\r\n", at(*minute).strftime("%d.%m.%y, %H:%M:%S"))
        })
        .concat();
        let telegram = lines(&|(name, minute, text)| {
            format!(r#"{{"type":"message","date":"{}","from":"{name}","text":[{}]}}"#, at(*minute), json(text))
        });
        let telegram = format!(r#"{{"type":"private_group","messages":[{}]}}"#, telegram.join(","));
        let discord = lines(&|(name, minute, text)| {
            format!(
                r#"{{"type":"Default","timestamp":"{}Z","content":{},"author":{{"name":"{name}"}}}}"#,
                at(*minute),
                json(text)
            )
        });
        let discord = format!(r#"{{"guild":{{}},"channel":{{}},"messages":[{}]}}"#, discord.join(","));
        let mut instagram = lines(&|(name, minute, text)| {
            let misread: String = text.bytes().map(char::from).collect();
            format!(r#"{{"sender_name":"{name}","timestamp_ms":{},"content":{}}}"#, minute * 60_000, json(&misread))
        });
        instagram.reverse();
        let instagram = format!(r#"{{"participants":[],"messages":[{}]}}"#, instagram.join(","));
        let imessage = lines(&|(name, minute, text)| {
            format!("{}\n{name}\n{text}\n\n", at(*minute).strftime("%b %d, %Y  %-I:%M:%S %p"))
        })
        .concat();
        let Ok(whatsapp) = read_with(&android, &rules(&["Ole"])) else {
            assert!(
                refusal(&ios, &["Ole"]).contains("Ole") || refusal(&telegram, &["Ole"]).contains("answer anybody's")
            );
            continue;
        };
        for other in [&ios, &telegram, &discord, &instagram, &imessage] {
            assert_eq!(told(&read(other, &["Ole"]).dialogues), told(&whatsapp.dialogues), "{other}");
        }
        // Of programs that keep no times, or name roles alone.
        let sillytavern =
            lines(&|(name, _, text)| format!("{{\"name\":\"{name}\",\"mes\":{}}}\n", json(text))).concat();
        let sillytavern = format!("{{\"user_name\":\"Ada\",\"character_name\":\"Ole\"}}\n{sillytavern}");
        let old =
            lines(&|(name, _, text)| format!(r#"{{"text":{},"src":{{"is_human":{}}}}}"#, json(text), *name == "Ada"));
        let old = format!(r#"{{"histories":{{"histories":[{{"msgs":[{}]}}]}}}}"#, old.join(","));
        let mut new = lines(&|(name, minute, text)| {
            format!(
                r#"{{"create_time":"{}Z","author":{{"is_human":{}}},"candidates":[{{"candidate_id":"x","raw_content":"no"}},{{"candidate_id":"y","raw_content":{}}}],"primary_candidate_id":"y"}}"#,
                at(*minute),
                *name == "Ada",
                json(text)
            )
        });
        if messages.first().map(|first| first.1) < messages.last().map(|last| last.1) {
            new.reverse();
        }
        let new = format!(r#"{{"turns":[{}]}}"#, new.join(","));
        let role = |name: &str| if name == "Ada" { "human" } else { "gpt" };
        let sharegpt =
            lines(&|(name, _, text)| format!(r#"{{"from":"{}","value":{}}}"#, role(name), json(text))).join(",");
        let timeless = read(&sillytavern, &[]);
        assert_eq!(timeless.format, Format::SillyTavern);
        for (other, format) in [
            (&old, Format::CharacterAi),
            (&format!(r#"[{{"conversations":[{sharegpt}]}}]"#), Format::ChatJson),
            (&format!("{{\"conversations\":[{sharegpt}]}}\n"), Format::ChatJsonl),
        ] {
            let other = read(other, &[]);
            assert_eq!((other.format, told(&other.dialogues)), (format, told(&timeless.dialogues)));
        }
        let longer = Rules { join: u64::MAX, silence: u64::MAX, ..rules(&[]) };
        assert_eq!(told(&read_with(&new, &longer).unwrap().dialogues), told(&timeless.dialogues));
        // And written as chat JSONL they are the same again.
        let mut written = Vec::new();
        whatsapp.dialogues.iter().for_each(|dialogue| write_chat(&mut written, dialogue).unwrap());
        let again = read(std::str::from_utf8(&written).unwrap(), &[]);
        assert_eq!((again.format, told(&again.dialogues)), (Format::ChatJsonl, told(&whatsapp.dialogues)));
    }
}

#[test]
fn fine_tuning_files_have_several_forms() {
    let same = |text: &str| {
        assert_eq!(
            told(&read(text, &[]).dialogues),
            expected(&[&[("bees?", "three"), ("honey? now", "jars")]]),
            "{text}"
        )
    };
    same(
        r#"{"conversations":[{"from":"human","value":"bees?"},{"from":"gpt","value":"three"},{"from":"human","value":"honey? now"},{"from":"gpt","value":"jars"}]}"#,
    );
    same(r#"[{"instruction":"honey?","input":"now","output":"jars","history":[["bees?","three"]],"system":"x"}]"#);
    same(
        r#"{"prompt":[{"role":"user","content":"bees?"},{"role":"assistant","content":"three"},{"role":"user","content":"honey? now"}],"completion":[{"role":"assistant","content":"jars"}]}"#,
    );
    let one = read(r#"{"prompt":"bees?","completion":" three "}"#, &["assistant"]);
    assert_eq!(told(&one.dialogues), expected(&[&[("bees?", "three")]]));
    // What another form means by a field is no matter beside `messages`.
    let beside = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"input":{},"prompt":7,"history":null}"#;
    assert_eq!(told(&read(beside, &[]).dialogues), expected(&[&[("a", "b")]]));
    let problem = refusal(r#"{"prompt":"x","chosen":"a","rejected":"b"}"#, &[]);
    assert!(problem.contains("two replies to judge, and no dialogue"), "{problem}");
    assert!(refusal(beside, &["Ole"]).contains("in which roles speak and assistant is learned"));
}

#[test]
fn chats_that_people_have_are_read() {
    let Some(folder) = shared("inputs") else { return };
    for (name, format, found) in [
        (
            "whatsapp.txt",
            Format::WhatsApp,
            vec![("do you keep bees?", "three hives behind the shed"), ("honey?", "forty jars \u{1F41D}")],
        ),
        ("wa-android.txt", Format::WhatsApp, vec![("honey?", "forty jars")]),
        ("telegram.json", Format::Telegram, vec![("do you keep bees?", "three hives")]),
        ("sharegpt.json", Format::ChatJson, vec![("do you keep bees?", "three hives."), ("honey?", "forty jars.")]),
        ("sharegpt.jsonl", Format::ChatJsonl, vec![("do you keep bees?", "three hives."), ("honey?", "forty jars.")]),
        ("alpaca.json", Format::ChatJson, vec![("do you keep bees?", "three hives.")]),
        ("alpaca.jsonl", Format::ChatJsonl, vec![("do you keep bees?", "three hives.")]),
        ("promptcompletion.jsonl", Format::ChatJsonl, vec![("do you keep bees?", "three hives.")]),
    ] {
        let me = if format == Format::Telegram { rules(&["Ole"]) } else { rules(&[]) };
        let mut reading = read_chat(folder.join(name), &me).unwrap_or_else(|error| panic!("{name}: {error}"));
        reading.dialogues.truncate(1);
        assert_eq!((reading.format, told(&reading.dialogues)), (format, expected(&[&found])), "{name}");
    }
    let problem = read_chat(folder.join("tg1.json"), &Rules::default()).unwrap_err().to_string();
    assert!(problem.contains("Ada (1)"), "{problem}");
}
