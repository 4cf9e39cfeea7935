//! Archives, pictures and tables in which dialogues are. `fixtures/containers.py` made them, with Python's zipfile and zlib, and pyarrow.

use std::fs;
use std::path::{Path, PathBuf};

use marionette_dialogues::{Dialogue, Format, Rules, read_chat, read_file};

use crate::helpers::of_persona;

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/containers")).join(name)
}

fn told(dialogues: &[Dialogue]) -> Vec<Vec<(&str, &str)>> {
    dialogues
        .iter()
        .map(|dialogue| dialogue.exchanges.iter().map(|one| (one.partner.as_str(), one.reply.as_str())).collect())
        .collect()
}

const SAID: [(&str, &str); 2] = [("do you keep bees?", "three hives"), ("honey?", "forty jars \u{1F36F}")];

fn refusal(path: &Path) -> String {
    let problem = read_file(path).unwrap_err().to_string();
    assert!(!problem.contains('\n'), "{problem}");
    problem
}

#[test]
fn what_is_in_a_container_is_read_as_it_would_be_outside() {
    for (name, format) in [
        ("chat.zip", Format::WhatsApp),
        ("card.charx", Format::Card),
        ("card.png", Format::Card),
        ("packed.png", Format::Card),
        ("messages.parquet", Format::ChatJsonl),
        ("conversations.parquet", Format::ChatJsonl),
        ("prompts.parquet", Format::ChatJsonl),
        ("several.zip#a/result.txt", Format::WhatsApp),
    ] {
        let reading = read_file(fixture(name)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(reading.format, format, "{name}");
        let said = if name.starts_with("prompts") { &SAID[..1] } else { &SAID };
        assert_eq!(told(&reading.dialogues)[0], said, "{name}");
        let described = ["card", "packed", "conversations"].iter().any(|one| name.starts_with(one));
        let persona: &[&str] = if described { &["Ole keeps bees."] } else { &[] };
        assert_eq!(reading.dialogues[0].persona, persona, "{name}");
    }
    assert_eq!(told(&read_file(fixture("messages.parquet")).unwrap().dialogues)[1], &SAID[..1]);
}

#[test]
fn all_chats_of_an_archive_are_one_persona_s_and_what_else_is_in_it_is_said() {
    let me = Rules { me: vec!["Ole K.".to_owned()], ..Rules::default() };
    let (files, dialogues) = of_persona(&[fixture("several.zip")], &me, None).unwrap();
    assert_eq!(told(&dialogues), [SAID.to_vec(), vec![("do you keep bees?", "three cats"), SAID[1]]]);
    assert!(files[1].path.ends_with("several.zip#b/other.txt"), "{files:?}");
    let (files, _) = of_persona(&[fixture("chat.zip")], &me, None).unwrap();
    let notes: Vec<String> = files[0].notes().collect();
    assert!(notes.last().unwrap().starts_with("2 left out: files beside it"), "{notes:?}");
    assert!(notes.last().unwrap().ends_with("(IMG-20251103-WA0001.jpg, chat.zip#recipe.txt)"), "{notes:?}");
    // For what takes one file, one is to be chosen.
    let problem = refusal(&fixture("several.zip"));
    assert!(
        problem.contains("has 2 files of dialogues") && problem.contains("several.zip#a/result.txt or "),
        "{problem}"
    );
    assert!(refusal(&fixture("several.zip#c.txt")).contains("has no file \"c.txt\""));
}

#[test]
fn what_cannot_be_unpacked_says_why() {
    for (name, expected) in [
        ("picture.png", "is a picture without a character card"),
        ("broken.png", "has a card that is no base64"),
        ("pictures.zip", "is an archive without a chat"),
        ("bomb.zip", "no text is packed so small"),
        ("lzma.zip", "expected deflate"),
        ("columns.parquet", "has the columns text, label, expected one of `messages`"),
    ] {
        let problem = refusal(&fixture(name));
        assert!(problem.contains(expected) && problem.contains(name), "{problem}");
    }
    // The flag of an encrypted entry, in its own header and in the directory.
    let folder = tempfile::tempdir().unwrap();
    let mut locked = fs::read(fixture("card.charx")).unwrap();
    for (magic, flag) in [(b"PK\x03\x04", 6), (b"PK\x01\x02", 8)] {
        let places: Vec<usize> =
            locked.windows(4).enumerate().filter(|(_, four)| four == magic).map(|(at, _)| at).collect();
        places.into_iter().for_each(|at| locked[at + flag] |= 1);
    }
    let path = folder.path().join("locked.zip");
    fs::write(&path, locked).unwrap();
    assert!(refusal(&path).contains("\"card.json\" encrypted"));
}

#[test]
fn a_container_that_ends_anywhere_or_has_a_wrong_byte_is_refused_or_read() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["chat.zip", "card.charx", "card.png", "packed.png", "messages.parquet", "conversations.parquet"] {
        let whole = fs::read(fixture(name)).unwrap();
        let path = folder.path().join(name);
        for end in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[end] ^= 0x55;
            for bytes in [&whole[..end], &wrong] {
                fs::write(&path, bytes).unwrap();
                match read_chat(&path, &Rules::default()) {
                    Ok(reading) => assert!(!reading.dialogues.is_empty()),
                    Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
                }
            }
        }
    }
}
