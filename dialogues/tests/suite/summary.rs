use std::fs;

use std::path::Path;

use marionette_dialogues::{Bin, Distribution, Encoder, Format, Summary, read_file};

use crate::helpers::tiny_encoder;

const TEXT: &str = "1 your persona: ab\n2 b\ta c\t\tb|a c\n3 b\tc\n1 your persona: ab\n2 b\tcccccc\t\tb|c|cccccc\n\
    1 your persona: c\n2 b\ta\n1 b\ta\n";

fn summary(files: &[&Path], encoder: Option<&Encoder>) -> Summary {
    Summary::of(files.iter().map(|file| (file, read_file(file).unwrap())), encoder).unwrap()
}

#[test]
fn counts_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let (text, chat) = (folder.path().join("a"), folder.path().join("b"));
    fs::write(&text, TEXT).unwrap();
    let line = r#"{"persona":"ab","messages":[{"role":"assistant","content":"c"},{"role":"user","content":"b"}]}"#;
    fs::write(&chat, line).unwrap();
    let of_both = summary(&[&text, &chat], Some(&tiny_encoder(7)));
    let summary_of_one = summary(&[&text], None);
    let summary = of_both;
    let files: Vec<_> = summary.files.iter().map(|file| (file.format, file.dialogues, file.left_out.len())).collect();
    assert_eq!(files, [(Format::ConvAi2, 4, 0), (Format::ChatJsonl, 1, 1)]);
    // `ab` has three dialogues over both files, `c` one, and one has no persona.
    let personas = summary.personas.as_ref().unwrap();
    assert_eq!((summary.dialogues, personas.personas, personas.dropped_single, personas.without_persona), (5, 1, 1, 1));
    assert_eq!((summary.replies, summary.words), (6, 7));
    assert_eq!((summary.with_candidates, summary.candidates), (2, Some([2, 3])));
    // b<eot> a c<eot> b<eot> c<eot> is 10 tokens, in 7: 6, and 4 with as little history as fits; b<eot> cccccc<eot> is 9: its
    // first 7, and the last 2 after 5. Then 4 and 4, and <eot> c<eot>: 3.
    let tokens = summary.tokens.as_ref().unwrap();
    assert_eq!(
        (tokens.total, tokens.targets, tokens.exceeding, tokens.n_positions),
        (10 + 9 + 4 + 4 + 3, 4 + 2 + 7 + 2 + 2 + 2, 2, 7)
    );
    let Distribution { least, median, most, .. } = tokens.per_dialogue;
    assert_eq!((least, median, most), (3, 4, 10));
    let shown = summary.to_string();
    assert!(
        shown.contains("a: ConvAI2 text, 4 dialogues\n") && shown.contains("b: chat JSONL, 1 dialogue\n"),
        "{shown}"
    );
    assert!(shown.contains("  1 left out: closing words without a reply\n"), "{shown}");
    assert!(shown.contains("longer than the context of 7 tokens: 2, read in 4 windows\n"), "{shown}");
    assert!(serde_json::to_string(&summary).unwrap().contains(r#""format":"chat-jsonl""#));
    assert_eq!((summary_of_one.tokens, summary_of_one.personas.unwrap().personas), (None, 1));
}

#[test]
fn histograms_have_few_bars_of_round_width() {
    let bin = |from, to, count| Bin { from, to, count };
    let of = |values: &[usize]| Distribution::of(values.to_vec());
    let few = of(&[5, 2, 2, 4]).unwrap();
    assert_eq!((few.least, few.median, few.most), (2, 2, 5));
    assert_eq!(few.bins, [bin(2, 2, 2), bin(3, 3, 0), bin(4, 4, 1), bin(5, 5, 1)]);
    // 3 to 999 in tens would be 100 bars, in fifties 20, in hundreds 10.
    let wide = of(&[999, 3, 120, 150]).unwrap();
    assert_eq!((wide.bins.len(), wide.bins[0], wide.bins[1]), (10, bin(0, 99, 1), bin(100, 199, 2)));
    assert_eq!(of(&[7]).unwrap().bins, [bin(7, 7, 1)]);
    assert_eq!(of(&[]), None);
    assert!(of(&[0, usize::MAX]).is_some_and(|all| all.bins.len() <= 12));
    let (long, short) = ("█".repeat(60), "█".repeat(30));
    assert_eq!(few.to_string(), format!("  2 │{long} 2\n  3 │0\n  4 │{short} 1\n  5 │{short} 1\n"));
}
