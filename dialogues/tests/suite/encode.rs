use marionette_dialogues::{
    Batch, Dialogue, EncodeError, Encoder, Ranking, Sequence, group_by_persona, read_dialogues,
};

use marionette_models::{Gpt2Shape, PromptForm, Turn};

use crate::helpers::{dialogue, shared, tiny_encoder, tiny_tokenizer};

/// `ab <eot> a c <eot> b <eot> c <eot>` = 4 5 | 0 3 2 5 | 1 5 | 2 5.
fn two_exchanges() -> Dialogue {
    let mut dialogue = dialogue(&["ba", "c"], &[("ab", "a c"), ("b", "c")]);
    dialogue.exchanges[1].candidates = vec!["ab a".into(), "c".into()];
    dialogue
}

fn bits(mask: &[bool]) -> Vec<u8> {
    mask.iter().map(|&target| u8::from(target)).collect()
}

/// The windows of a dialogue: ids, mask, words and replies.
fn windows(encoder: &Encoder, dialogue: &Dialogue) -> Vec<(Vec<u32>, Vec<u8>, usize, usize)> {
    let of = |window: Sequence| (window.ids, bits(&window.target), window.words, window.replies);
    encoder.windows(dialogue).unwrap().into_iter().map(of).collect()
}

fn only(encoder: &Encoder, dialogue: &Dialogue) -> Sequence {
    let [window] = <[Sequence; 1]>::try_from(encoder.windows(dialogue).unwrap()).unwrap();
    window
}

#[test]
fn a_dialogue_is_one_sequence_whose_targets_are_the_replies() {
    let sequence = only(&tiny_encoder(10), &two_exchanges());
    assert_eq!(sequence.ids, [4, 5, 0, 3, 2, 5, 1, 5, 2, 5]);
    assert_eq!(bits(&sequence.target), [0, 0, 1, 1, 1, 1, 0, 0, 1, 1]);
    assert_eq!((sequence.words, sequence.replies, sequence.cut, sequence.targets()), (3, 2, 0, 6));
}

#[test]
fn a_reply_that_is_not_learned_is_history() {
    let mut dialogue = two_exchanges();
    dialogue.exchanges[0].learned = false;
    let sequence = only(&tiny_encoder(10), &dialogue);
    assert_eq!(sequence.ids, [4, 5, 0, 3, 2, 5, 1, 5, 2, 5]);
    assert_eq!(bits(&sequence.target), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    assert_eq!((sequence.words, sequence.replies), (1, 1));
    let all = Dialogue { exchanges: two_exchanges().exchanges, ..dialogue.clone() };
    let encoder = tiny_encoder(20).with_choices(2);
    let choices = |dialogue: &Dialogue| encoder.examples(dialogue).unwrap()[0].choices.len();
    assert_eq!((choices(&all), choices(&dialogue)), (1, 1));
    dialogue.exchanges[0].learned = true;
    dialogue.exchanges[1].learned = false;
    assert_eq!(choices(&dialogue), 0);
}

#[test]
fn text_gives_the_same_tokens_whoever_it_comes_from() {
    let encoder = tiny_encoder(10);
    let tokens = |text: &str| encoder.prompt(&[], &[text], 1).unwrap().ids;
    for typed in ["a\nc", "\u{feff}a c", "a\u{1b}c\r\n", " a \t c"] {
        assert_eq!(tokens(typed), tokens("a c"), "{typed:?}");
        assert_eq!(encoder.windows(&dialogue(&[], &[(typed, "b")])).unwrap()[0].ids[..3], tokens("a c")[..3]);
    }
}

#[test]
fn an_empty_partner_is_its_end_of_text() {
    let sequence = only(&tiny_encoder(10), &dialogue(&[], &[("", "a")]));
    assert_eq!(sequence.ids, [5, 0, 5]);
    assert_eq!(bits(&sequence.target), [0, 1, 1]);
}

#[test]
fn what_exceeds_the_context_is_read_in_windows() {
    let first = (vec![4, 5, 0, 3, 2, 5], vec![0, 0, 1, 1, 1, 1], 2, 1);
    // The second reply has as much history as fits, from an utterance on, none of it learned again.
    for positions in [8, 9] {
        let second = (vec![0, 3, 2, 5, 1, 5, 2, 5], vec![0, 0, 0, 0, 0, 0, 1, 1], 1, 1);
        assert_eq!(windows(&tiny_encoder(positions), &two_exchanges()), [first.clone(), second]);
    }
    assert_eq!(windows(&tiny_encoder(7), &two_exchanges()), [first, (vec![1, 5, 2, 5], vec![0, 0, 1, 1], 1, 1)]);
}

#[test]
fn an_utterance_longer_than_the_context_is_divided() {
    // A reply: `a c<eot>` of 4 tokens in 3, each a target once, with what fits before it.
    let found = windows(&tiny_encoder(3), &dialogue(&[], &[("ab", "a c")]));
    let expected = [
        (vec![4, 5, 0], vec![0, 0, 1], 0, 0),
        (vec![0, 3], vec![0, 1], 0, 0),
        (vec![0, 3, 2], vec![0, 0, 1], 0, 0),
        (vec![3, 2, 5], vec![0, 0, 1], 2, 1),
    ];
    assert_eq!(found, expected);
    // The partner's words: what fits of them, so that the reply has a history.
    let found = windows(&tiny_encoder(5), &dialogue(&[], &[("b", "b"), ("cbcbcbc", "a")]));
    assert_eq!(found, [(vec![1, 5, 1, 5], vec![0, 0, 1, 1], 1, 1), (vec![1, 2, 5, 0, 5], vec![0, 0, 0, 1, 1], 1, 1)]);
}

#[test]
fn every_reply_is_a_target_once_in_windows_that_fit() {
    let words = ["", "a", "ab", "b c", "cbcbcb", "a b c ab", "bbbbbbbbbbbbbbbbbbb"];
    let mut next = 7_usize;
    let mut word = || {
        next = (next * 1_103_515_245 + 12_345) % (1 << 31);
        words[(next >> 8) % words.len()]
    };
    for round in 0..200 {
        let turns: Vec<(&str, &str)> = (0..round % 9 + 1).map(|_| (word(), word())).collect();
        let talk = dialogue(&["ab", "c"], &turns);
        for (least, whole, encoder) in [
            (2, tiny_encoder(4000), &tiny_encoder as &dyn Fn(usize) -> Encoder),
            (7, tiny_encoder(4000).with_persona_text(true), &|positions| {
                tiny_encoder(positions).with_persona_text(true)
            }),
            (10, around(4000), &around),
        ] {
            let targets = |windows: &[Sequence]| -> Vec<u32> {
                let of = |window: &Sequence| {
                    window.ids.iter().zip(&window.target).filter(|(_, is)| **is).map(|(id, _)| *id).collect::<Vec<_>>()
                };
                windows.iter().flat_map(of).collect()
            };
            let expected = only(&whole, &talk);
            for positions in [least, least + 1, 12, 20, 33, 64] {
                let found = encoder(positions).windows(&talk).unwrap();
                assert_eq!(targets(&found), targets(std::slice::from_ref(&expected)), "{positions} {turns:?}");
                assert!(found.iter().all(|window| window.ids.len() <= positions && window.targets() > 0));
                let sum = |of: fn(&Sequence) -> usize| found.iter().map(of).sum::<usize>();
                assert_eq!((sum(|one| one.replies), sum(|one| one.words)), (expected.replies, expected.words));
            }
        }
    }
}

#[test]
fn persona_text_stands_in_front_of_every_window() {
    // `ba c<eot>` = 1 0 3 2 5.
    let encoder = tiny_encoder(15).with_persona_text(true);
    let sequence = only(&encoder, &two_exchanges());
    assert_eq!(sequence.ids, [1, 0, 3, 2, 5, 4, 5, 0, 3, 2, 5, 1, 5, 2, 5]);
    assert_eq!(bits(&sequence.target), [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1]);
    let found = windows(&tiny_encoder(13).with_persona_text(true), &two_exchanges());
    let expected = [
        (vec![1, 0, 3, 2, 5, 4, 5, 0, 3, 2, 5], vec![0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1], 2, 1),
        (vec![1, 0, 3, 2, 5, 0, 3, 2, 5, 1, 5, 2, 5], vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1], 1, 1),
    ];
    assert_eq!(found, expected);
    // Half of 6 at most.
    let encoder = tiny_encoder(6).with_persona_text(true);
    let found = encoder.windows(&two_exchanges()).unwrap();
    assert!(found.iter().all(|window| window.ids[..3] == [3, 2, 5] && window.cut == 1));
    let prompt = encoder.prompt(&["ba".into(), "c".into()], &["b"], 1).unwrap();
    assert_eq!((prompt.ids, prompt.cut), (vec![3, 2, 5, 1, 5], 1));
    assert_eq!(encoder.prompt(&[], &["b"], 1).unwrap().ids, [1, 5]);
}

#[test]
fn a_ranking_is_the_history_and_all_candidates_after_it() {
    let ranking = tiny_encoder(11).ranking(&two_exchanges(), 1).unwrap();
    // History 4 5 0 3 2 5 1 5; `ab a` = 4 3 0, `c` = 2.
    assert_eq!(ranking.ids, [4, 5, 0, 3, 2, 5, 1, 5, 4, 3, 0, 2]);
    assert_eq!(ranking.positions, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 8]);
    assert_eq!(ranking.branch, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2]);
    assert_eq!(ranking.rows, [7, 8, 9, 10, 7, 11]);
    assert_eq!(ranking.targets, [4, 3, 0, 5, 2, 5]);
    assert_eq!(ranking.candidate, [0, 0, 0, 0, 1, 1]);
    assert_eq!((ranking.candidates, ranking.cut), (2, 0));
}

#[test]
fn a_rankings_history_leaves_room_for_the_longest_candidate() {
    let ranking = tiny_encoder(10).ranking(&two_exchanges(), 1).unwrap();
    assert_eq!(ranking.ids, [0, 3, 2, 5, 1, 5, 4, 3, 0, 2]);
    assert_eq!(ranking.positions.iter().max(), Some(&8));
    assert_eq!((ranking.rows[0], ranking.cut), (5, 1));
    // `ab a<eot>` cannot follow a history in 3 positions: its oldest token goes, and of the history all but one.
    let ranking = tiny_encoder(3).ranking(&two_exchanges(), 1).unwrap();
    assert_eq!(ranking.ids, [5, 3, 0, 2]);
    assert_eq!(ranking.positions, [0, 1, 2, 1]);
    assert_eq!(ranking.targets, [3, 0, 5, 2, 5]);
    assert_eq!(ranking.rows, [0, 1, 2, 0, 3]);
    assert_eq!(ranking.cut, 4);
}

#[test]
fn without_its_context_a_candidate_follows_a_lone_end_of_text() {
    let alone = tiny_encoder(11).unconditional(&two_exchanges(), 1).unwrap();
    assert_eq!(alone.ids, [5, 4, 3, 0, 2]);
    assert_eq!(alone.positions, [0, 1, 2, 3, 1]);
    assert_eq!(alone.branch, [0, 1, 1, 1, 2]);
    assert_eq!(alone.rows, [0, 1, 2, 3, 0, 4]);
    let ranking = tiny_encoder(11).ranking(&two_exchanges(), 1).unwrap();
    assert_eq!((alone.targets, alone.candidate), (ranking.targets, ranking.candidate));
    assert!(alone.ends.is_empty() && ranking.ends.is_empty());
    // Persona text `ba c<eot>` takes 2 of 4 positions, so that of `ab a` one token stays, here as there.
    let encoder = tiny_encoder(4).with_persona_text(true);
    let alone = encoder.unconditional(&two_exchanges(), 1).unwrap();
    assert_eq!((alone.ids, alone.cut), (vec![5, 0, 2], 1));
    let ranking = encoder.ranking(&two_exchanges(), 1).unwrap();
    assert_eq!((&ranking.targets, &ranking.candidate), (&alone.targets, &alone.candidate));
    assert_eq!(ranking.ids, [2, 5, 5, 0, 2]);
}

#[test]
fn with_choices_the_closing_end_of_text_is_in_the_row() {
    let plain = tiny_encoder(12).ranking(&two_exchanges(), 1).unwrap();
    let encoder = tiny_encoder(12).with_choices(2);
    let ranking = encoder.ranking(&two_exchanges(), 1).unwrap();
    // History 4 5 0 3 2 5 1 5; `ab a<eot>` = 4 3 0 5, `c<eot>` = 2 5.
    assert_eq!(ranking.ids, [4, 5, 0, 3, 2, 5, 1, 5, 4, 3, 0, 5, 2, 5]);
    assert_eq!(ranking.positions, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 8, 9]);
    assert_eq!(ranking.branch, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
    assert_eq!(ranking.rows, [7, 8, 9, 10, 7, 12]);
    assert_eq!(ranking.ends, [11, 13]);
    assert_eq!((ranking.targets, ranking.candidate), (plain.targets, plain.candidate));
    // It takes a position: one less, and the history is cut.
    assert_eq!(tiny_encoder(11).with_choices(2).ranking(&two_exchanges(), 1).unwrap().cut, 1);
    assert_eq!(encoder.unconditional(&two_exchanges(), 1).unwrap().ends, [4, 6]);
    // Half of two positions is the persona's, one the history's: a candidate without a token says nothing.
    let encoder = tiny_encoder(2).with_persona_text(true);
    assert!(encoder.ranking(&two_exchanges(), 1).is_ok());
    assert!(matches!(encoder.with_choices(2).ranking(&two_exchanges(), 1), Err(EncodeError::NoRoom { .. })));
}

#[test]
fn choices_are_the_gold_reply_among_distractors() {
    let mut dialogue = two_exchanges();
    dialogue.exchanges[0].candidates = vec!["a c".into()];
    dialogue.exchanges[1].candidates = ["a", "b", "ab", "c", "ba"].map(String::from).to_vec();
    let example = |encoder: &Encoder, dialogue: &Dialogue| encoder.examples(dialogue).unwrap().remove(0);
    let plain = example(&tiny_encoder(20), &dialogue);
    assert_eq!(plain.sequence, only(&tiny_encoder(20), &dialogue));
    assert!(plain.choices.is_empty() && example(&tiny_encoder(20).with_choices(1), &dialogue).choices.is_empty());
    // The first exchange has no distractor. Targets of the second: the gold, `c<eot>`, then three of the others.
    let encoder = tiny_encoder(20).with_choices(4);
    let found = example(&encoder, &dialogue);
    let [choice] = found.choices.as_slice() else { panic!("{found:?}") };
    assert_eq!((choice.candidates, choice.ends.len()), (4, 4));
    let texts = |choice: &Ranking| -> Vec<String> {
        let ids = |owner| choice.targets.iter().zip(&choice.candidate).filter(move |(_, of)| **of == owner);
        (0..choice.candidates as u32)
            .map(|owner| encoder.decode(&ids(owner).map(|(&id, _)| id).collect::<Vec<_>>()))
            .collect()
    };
    let chosen = texts(choice);
    assert_eq!(chosen[0], "c");
    let mut distractors = chosen[1..].to_vec();
    distractors.sort();
    distractors.dedup();
    assert_eq!(distractors.len(), 3);
    assert!(distractors.iter().all(|one| ["a", "b", "ab", "ba"].contains(&one.as_str())));
    // The next exchange draws anew from the same candidates.
    let mut twice = dialogue.clone();
    twice.exchanges.push(twice.exchanges[1].clone());
    assert!((1..20).any(|line| {
        let found = example(&encoder, &Dialogue { line, ..twice.clone() });
        texts(&found.choices[0]) != texts(&found.choices[1])
    }));
    // The same again; with another line, sooner or later, others; all four where five are asked for.
    assert_eq!(example(&encoder, &dialogue), found);
    assert!((2..20).any(|line| {
        let moved = Dialogue { line, ..dialogue.clone() };
        texts(&example(&encoder, &moved).choices[0]) != chosen
    }));
    assert_eq!(example(&tiny_encoder(20).with_choices(9), &dialogue).choices[0].candidates, 5);
    // In windows, each is with the one in which its reply ends.
    let of_window = |positions: usize| {
        let examples = tiny_encoder(positions).with_choices(4).examples(&twice).unwrap();
        examples.iter().map(|example| (example.choices.len(), example.sequence.replies)).collect::<Vec<_>>()
    };
    assert_eq!(
        (of_window(14), of_window(10), of_window(8)),
        (vec![(2, 3)], vec![(1, 2), (1, 1)], vec![(0, 1), (1, 1), (1, 1)])
    );
}

#[test]
fn only_candidates_can_be_ranked() {
    for exchange in [0, 2] {
        let error = tiny_encoder(9).ranking(&two_exchanges(), exchange).unwrap_err();
        assert!(matches!(error, EncodeError::NoCandidates { .. }), "{error}");
    }
}

#[test]
fn a_prompt_leaves_room_for_the_reply() {
    let prompt = |positions, max_new| tiny_encoder(positions).prompt(&[], &["ab", "a c", "b"], max_new);
    assert_eq!(prompt(10, 2).unwrap().ids, [4, 5, 0, 3, 2, 5, 1, 5]);
    let cut = prompt(10, 3).unwrap();
    assert_eq!((cut.ids, cut.cut), (vec![0, 3, 2, 5, 1, 5], 1));
    assert_eq!(prompt(10, 9).unwrap().ids, [5]);
    assert!(matches!(prompt(10, 10), Err(EncodeError::NoRoom { .. })));
    assert_eq!(tiny_encoder(9).prompt::<&str>(&[], &[], 2).unwrap().ids, [5]);
}

#[test]
fn a_batch_is_padded_on_the_right() {
    let encoder = tiny_encoder(10);
    let long = only(&encoder, &dialogue(&[], &[("ab", "a c")]));
    let short = only(&encoder, &dialogue(&[], &[("b", "c")]));
    let batch = Batch::new([&short, &long]).unwrap();
    assert_eq!((batch.rows, batch.length, batch.targets()), (2, 6, 6));
    assert_eq!(batch.ids, [1, 5, 2, 5, 0, 0, 4, 5, 0, 3, 2, 5]);
    assert_eq!(bits(&batch.mask), [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]);
    let expected = [(1, 2), (2, 5), (7, 0), (8, 3), (9, 2), (10, 5)];
    assert_eq!(batch.predictions().collect::<Vec<_>>(), expected);
    assert_eq!(short.predictions().collect::<Vec<_>>(), [(1, 2), (2, 5)]);
    let first = Sequence { ids: vec![3, 4], target: vec![true, true], ..Sequence::default() };
    assert_eq!(first.predictions().collect::<Vec<_>>(), [(0, 4)], "nothing stands before the first");
    let mut silent = short;
    silent.target.fill(false);
    assert!(matches!(Batch::new([&silent]), Err(EncodeError::NoTargets)));
    assert!(matches!(Batch::new([]), Err(EncodeError::NoTargets)));
}

#[test]
fn real_dialogues_have_the_lengths_that_their_description_gives() {
    let (Some(path), Some(folder)) = (shared("convai2/dialogues.txt"), shared("gpt2-tokenizer")) else { return };
    let gpt2 = Gpt2Shape { vocab_size: 50257, n_positions: 1024, n_embd: 768, n_layer: 12, n_head: 12 };
    let encoder = Encoder::from_folder(folder, &gpt2.into()).unwrap();
    let tasks = group_by_persona(read_dialogues(path).unwrap()).unwrap().tasks;
    let dialogues: Vec<&Dialogue> = tasks.iter().flat_map(|task| &task.dialogues).collect();
    let lengths: Vec<usize> = dialogues.iter().map(|dialogue| only(&encoder, dialogue).ids.len()).collect();
    assert_eq!(lengths.iter().max(), Some(&336));
    assert_eq!((lengths.iter().sum::<usize>() as f64 / 691.0).round(), 210.0);
}

/// A form with something around everything: 3 begins, 0 is before and after the partner's words, 1 before and after the reply's.
fn around(positions: usize) -> Encoder {
    let form = PromptForm {
        begin: vec![3],
        persona: Turn { before: vec![2, 2], after: vec![5] },
        partner: Turn { before: vec![0], after: vec![5, 0] },
        reply: Turn { before: vec![1], after: vec![5, 1] },
    };
    Encoder::new(tiny_tokenizer(), form, positions, 6).unwrap()
}

#[test]
fn a_form_stands_around_every_utterance_and_its_end_is_a_target() {
    let encoder = around(20);
    let talk = dialogue(&["ab"], &[("ab", "c"), ("", "ab c")]);
    let sequence = only(&encoder, &talk);
    // begin, partner "ab", reply "c", partner "", reply "ab c" (4 3 2).
    assert_eq!(sequence.ids, [3, 0, 4, 5, 0, 1, 2, 5, 1, 0, 5, 0, 1, 4, 3, 2, 5, 1]);
    let targets: Vec<usize> = (0..sequence.ids.len()).filter(|&token| sequence.target[token]).collect();
    assert_eq!(targets, [6, 7, 13, 14, 15, 16]);
    assert_eq!((sequence.replies, sequence.words, sequence.cut), (2, 3, 0));
    // The persona's sentences take the place of the beginning, and a prompt ends where a reply begins.
    let with = encoder.clone().with_persona_text(true);
    let prompt = with.prompt(&["ab".into()], &["c", "ab", "c"], 2).unwrap();
    assert_eq!(prompt.ids, [2, 2, 4, 5, 0, 2, 5, 0, 1, 4, 5, 1, 0, 2, 5, 0, 1]);
    // What does not fit is cut at the oldest utterance, and what stands around the newest stays whole.
    let cut = encoder.prompt(&[], &["c", "ab", "c"], 8).unwrap();
    assert_eq!((cut.ids, cut.cut), (vec![3, 1, 4, 5, 1, 0, 2, 5, 0, 1], 1));
    let long = encoder.prompt(&[], &["ab c"], 13).unwrap();
    assert_eq!((long.ids, long.cut), (vec![3, 0, 3, 2, 5, 0, 1], 1));
    assert!(encoder.prompt(&[], &["c"], 18).is_err());
}

#[test]
fn candidates_follow_what_stands_before_a_reply() {
    let mut talk = dialogue(&[], &[("ab", "c")]);
    talk.exchanges[0].candidates = vec!["ab".into(), "c".into()];
    let ranking = around(20).ranking(&talk, 0).unwrap();
    assert_eq!(ranking.ids, [3, 0, 4, 5, 0, 1, 4, 2]);
    assert_eq!((ranking.rows, ranking.targets), (vec![5, 6, 5, 7], vec![4, 5, 2, 5]));
    let alone = around(20).unconditional(&talk, 0).unwrap();
    assert_eq!(alone.ids, [3, 1, 4, 2]);
}

#[test]
fn encoders_share_their_tokenizer_with_streams() {
    let encoder = tiny_encoder(4);
    let mut stream = encoder.stream();
    assert_eq!(stream.push(4).as_deref(), Some("ab"));
    assert_eq!(encoder.decode(&[4, 3, 2, 5]), "ab c");
    assert_eq!(encoder.tokenizer().largest_id(), tiny_tokenizer().largest_id());
    assert_eq!((encoder.end_id(), encoder.n_positions()), (5, 4));
}
