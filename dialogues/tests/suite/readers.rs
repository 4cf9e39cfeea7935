use std::fs;

use marionette_dialogues::{DataError, Dialogue, Exchange, LeftOut, read_dialogues, read_file, write_convai2};

use crate::helpers::{dialogue, shared};

fn read(bytes: &[u8]) -> Result<Vec<Dialogue>, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dialogues.txt");
    fs::write(&path, bytes).unwrap();
    read_dialogues(path)
}

/// The line and the message of the refusal.
fn refusal(bytes: &[u8]) -> (usize, String) {
    let error = read(bytes).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("dialogues.txt, line "), "{message}");
    assert!(!message.contains('\n'), "{message}");
    (error.line.unwrap(), message)
}

#[test]
fn reads_every_field() {
    let text = "1 your persona: i ski.\n2 partner's persona: i have cats.\n3 hi\tfine .\t\tno|fine .\n\
                4 and ?\tyes\n1 __SILENCE__\thello\t0.5\n";
    let expected = vec![
        Dialogue {
            persona: vec!["i ski.".into()],
            partner_persona: vec!["i have cats.".into()],
            exchanges: vec![
                Exchange { candidates: vec!["no".into(), "fine .".into()], ..Exchange::new("hi", "fine .") },
                Exchange::new("and ?", "yes"),
            ],
            line: 1,
        },
        Dialogue { persona: vec![], partner_persona: vec![], exchanges: vec![Exchange::new("", "hello")], line: 5 },
    ];
    assert_eq!(read(text.as_bytes()).unwrap(), expected);
    let with_cr = text.replace('\n', "\r\n");
    assert_eq!(read(with_cr.as_bytes()).unwrap(), expected);
    assert_eq!(read(text.trim_end().as_bytes()).unwrap(), expected);
}

#[test]
fn writes_what_it_reads() {
    let mut dialogues = vec![
        dialogue(&["i ski.", "i am ten."], &[("", "hello 😀"), ("your persona: odd", "b")]),
        dialogue(&[], &[("x", "y")]),
    ];
    dialogues[0].partner_persona.push("i sew.".into());
    dialogues[0].exchanges[1].candidates = vec!["a".into(), "b".into()];
    dialogues[1].line = 6;
    let mut text = Vec::new();
    write_convai2(&mut text, &dialogues).unwrap();
    assert_eq!(read(&text).unwrap(), dialogues);
}

#[test]
fn writes_nothing_that_it_could_not_read() {
    let refuse = |change: fn(&mut Dialogue)| {
        let mut wrong = dialogue(&["i ski."], &[("a", "b")]);
        change(&mut wrong);
        let error = write_convai2(&mut Vec::new(), &[wrong]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    };
    refuse(|dialogue| dialogue.exchanges.clear());
    refuse(|dialogue| dialogue.persona[0] = "two\nlines".into());
    refuse(|dialogue| dialogue.exchanges[0].partner = "a\ttab".into());
    refuse(|dialogue| dialogue.exchanges[0].reply = " ".into());
    refuse(|dialogue| dialogue.exchanges[0].candidates = vec!["not it".into()]);
    refuse(|dialogue| dialogue.exchanges[0].candidates = vec!["b".into(), "c|d".into()]);
}

#[test]
fn refuses_other_encodings_with_the_line() {
    assert_eq!(refusal(b"1 a\tb\n2 caf\xE9\tb\n").0, 2);
    assert!(refusal(b"1 a\tb\n2 caf\xE9\tb\n").1.contains("byte 6 of the line is not UTF-8"));
    for mark in [b"\xFF\xFE", b"\xFE\xFF"] {
        let (line, message) = refusal(&[mark.as_slice(), b"1\0 \0a\0"].concat());
        assert!(line == 1 && message.contains("UTF-16"), "{message}");
    }
    let (line, message) = refusal(b"1 a\tb\n2 a\0\tb\n");
    assert!(line == 2 && message.contains("NUL"), "{message}");
}

#[test]
fn refuses_a_line_over_a_mebibyte_and_takes_one_that_just_fits() {
    let mut text = b"1 a\tb\n2 ".to_vec();
    let longest = (1 << 20) - "2 \tb".len();
    text.resize(text.len() + longest, b'x');
    assert!(read(&[&text, b"\tb\r\n".as_slice()].concat()).is_ok());
    let (line, message) = refusal(&[&text, b"y\tb\n".as_slice()].concat());
    assert!(line == 2 && message.contains("longer than 1048576 bytes"), "{message}");
}

#[test]
fn refuses_wrong_lines_with_their_number() {
    let cases: &[(&str, usize, &str)] = &[
        ("", 1, "empty"),
        ("1 a\tb\n2\n", 2, "not ConvAI2"),
        ("1 a\tb\nx a\tb\n", 2, "not ConvAI2"),
        ("0 a\tb\n", 1, "not ConvAI2"),
        ("99999999999 a\tb\n", 1, "not ConvAI2"),
        ("2 a\tb\n", 1, "expected 1"),
        ("1 a\tb\n3 a\tb\n", 2, "number 3 follows 1, expected 2 or 1"),
        ("1 a\tb\n2 a\tb\n2 a\tb\n", 3, "number 2 follows 2, expected 3 or 1"),
        ("1 hello\n", 1, "has no exchange"),
        ("1 your persona: \n", 1, "persona line without a sentence"),
        ("1 a\t\n", 1, "reply after the tab is empty"),
        ("1 \tb\n", 1, "partner's words are missing"),
        ("1 a\tb\t\tb|c\td\n", 1, "more than four fields"),
        ("1 a\tb\t\tc|d\n", 1, "not among its candidates"),
        ("1 a\tb\n2 your persona: late.\n", 2, "persona line follows"),
        ("1 a\tb\n1 your persona: x.\n1 a\tb\n", 2, "has no exchange"),
        ("1 a\tb\n1 your persona: x.\n", 2, "has no exchange"),
    ];
    for (text, line, problem) in cases {
        let (found, message) = refusal(text.as_bytes());
        assert_eq!(found, *line, "{text:?}: {message}");
        assert!(message.contains(problem), "{text:?}: {message}");
    }
}

#[test]
fn words_without_a_reply_are_left_out_at_the_end_and_go_on_within() {
    let (_folder, path) = {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "1 hello\n2 are you there ?\tyes\n3 see you\n1 a\tb\n").unwrap();
        (folder, path)
    };
    let reading = read_file(&path).unwrap();
    let [first, _] = reading.dialogues.as_slice() else { panic!("{reading:?}") };
    assert_eq!(first.exchanges, [Exchange::new("hello are you there ?", "yes")]);
    let left = LeftOut { what: "closing words without a reply".into(), count: 1 };
    assert_eq!(reading.left_out, [left]);
}

#[test]
fn a_dialogue_with_a_bad_line_is_left_out_whole() {
    let good = "1 a\tb\n2 a\tb\n3 a\tb\n4 a\tb\n5 a\tb\n";
    let dialogues = read(format!("{good}1 c\td\n2 x\t\n3 e\tf\n{good}").as_bytes()).unwrap();
    assert_eq!(dialogues.iter().map(|one| (one.exchanges.len(), one.line)).collect::<Vec<_>>(), [(5, 1), (5, 9)]);
}

#[test]
fn refuses_a_missing_file_and_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let missing = read_dialogues(folder.path().join("none.txt")).unwrap_err().to_string();
    assert!(missing.contains("none.txt") && missing.contains("cannot be read"), "{missing}");
    assert!(read_dialogues(folder.path()).is_err());
}

#[test]
fn reads_convai2_as_it_is() {
    let Some(path) = shared("convai2/dialogues.txt") else { return };
    let dialogues = read_dialogues(&path).unwrap();
    assert_eq!(dialogues.len(), 691);
    for exchange in dialogues.iter().flat_map(|dialogue| &dialogue.exchanges) {
        assert_eq!(exchange.candidates.len(), 20);
        assert_eq!(exchange.candidates.last(), Some(&exchange.reply));
    }
    let mut again = Vec::new();
    write_convai2(&mut again, &dialogues).unwrap();
    assert!(again == fs::read(&path).unwrap(), "writing changes the file");
}
