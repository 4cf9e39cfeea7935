use clap::CommandFactory as _;

use super::*;

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn texts_may_begin_with_a_hyphen() {
    for line in [
        "generate B --prompt=-x --stop -y",
        "adapt B --persona a --dialogues f --me -z-",
        "generate B --prompt a -- -b",
    ] {
        let words = std::iter::once("marionette").chain(line.split(' '));
        assert!(Cli::try_parse_from(words).is_ok() != line.contains(" -- "), "{line}");
    }
}

#[test]
fn impossible_options_are_usage_errors() {
    for line in [
        "adapt B --persona ../x --dialogues f",
        "adapt B --persona CON --dialogues f",
        "adapt B --persona a --dialogues f --shots 0",
        "adapt B --persona a --dialogues f --inner-lr nan",
        "adapt B --persona a --dialogues f --inner-lr -1",
        "adapt B --persona a",
        "adapt B --persona a --dialogues f --memory-limit much",
        "adapt B --persona a --dialogues f --memory-limit -1MiB",
        "generate B",
        "generate B --prompt x --ep tpu",
        "generate B --prompt x --threads 0",
        "generate B --prompt x --max-tokens 0",
        "evaluate B --dialogues f --shots 1,x",
        "evaluate B --dialogues f --epochs 3,1",
        "evaluate B --dialogues f --epochs 1,1",
        "evaluate B --dialogues f --epochs 1,",
        "evaluate B --dialogues f --rank-by classifier",
        "bench",
        "bench B --home h",
        "inspect B --home h",
        "dance B",
    ] {
        let words = std::iter::once("marionette").chain(line.split(' '));
        let error = Cli::try_parse_from(words).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn numbers_have_limits_which_are_said() {
    const HUGE: [&str; 7] =
        ["18446744073709551616", "18446744073709551615", "9223372036854775808", "1000000000000", "-1", "nan", "inf"];
    let adapt = "adapt B --persona a --dialogues f";
    let evaluate = "evaluate B --dialogues f";
    for (line, option, least, most) in [
        (adapt, "--shots", 1, MOST),
        (adapt, "--epochs", 1, MOST),
        (adapt, "--threads", 1, MOST_THREADS),
        ("generate B --prompt x", "--max-tokens", 1, MOST_TOKENS),
        ("generate B --prompt x", "--threads", 1, MOST_THREADS),
        ("chat B", "--max-tokens", 1, MOST_TOKENS),
        (evaluate, "--shots", 0, MOST),
        (evaluate, "--epochs", 0, MOST),
        (evaluate, "--personas", 1, MOST),
        (evaluate, "--folds", 1, MOST),
        (evaluate, "--max-tokens", 0, MOST_TOKENS),
        ("inspect B", "--threads", 1, MOST_THREADS),
        ("bench B", "--prompt-tokens", 1, MOST_TOKENS),
        ("bench B", "--new-tokens", 1, MOST_TOKENS),
        ("bench B", "--batch", 1, Shape::MOST_ROWS),
        ("bench B", "--length", 2, MOST_TOKENS),
    ] {
        let parse = |value: &str| {
            let words = ["marionette"].into_iter().chain(line.split(' ')).chain([option, value]);
            Cli::try_parse_from(words).map(drop)
        };
        let beyond = [(most + 1).to_string(), if least == 0 { "x".into() } else { (least - 1).to_string() }];
        for value in HUGE.into_iter().chain(beyond.iter().map(String::as_str)) {
            let error = parse(value).expect_err(&format!("{line} {option} {value}"));
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            assert_eq!(error.exit_code(), 2, "{text}");
            let limits = format!("from {least} to {most}");
            assert!(first.contains(option) && first.contains(&limits), "{line} {option} {value}: {text}");
        }
        for value in [least, most] {
            assert!(parse(&value.to_string()).is_ok(), "{line} {option} {value}");
        }
    }
    for (line, option) in [(adapt, "--inner-lr"), (evaluate, "--inner-lr")] {
        for value in ["nan", "inf", "-inf", "-1", "0", "1e39"] {
            let words = ["marionette"].into_iter().chain(line.split(' ')).chain([option, value]);
            assert_eq!(Cli::try_parse_from(words).expect_err(value).exit_code(), 2);
        }
    }
}

#[test]
fn evaluating_takes_a_list_of_epochs_and_a_ranking() {
    let parse = |line: &str| match Cli::try_parse_from(line.split(' ')).map(|cli| cli.command) {
        Ok(Command::Evaluate(args)) => (args.epochs, args.rank_by),
        other => panic!("{line}: {other:?}"),
    };
    let line = "marionette evaluate B --dialogues f";
    assert_eq!(parse(line), (None, RankBy::Mean));
    let list = Some(Epochs(vec![0, 1, 10]));
    assert_eq!(parse(&format!("{line} --epochs 0,1,10 --rank-by pmi")), (list, RankBy::Pmi));
    assert_eq!(parse(&format!("{line} --epochs 4")).0, Some(Epochs(vec![4])));
}
