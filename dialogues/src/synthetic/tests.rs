//! Checks of what the generator promises; the rules of English are written here again, apart from the tables.

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::script::{Topic, Turn, scripts};
use super::*;
use crate::{group_by_persona, normalise, write_convai2};

fn text_of(dialogues: &[Dialogue]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_convai2(&mut bytes, dialogues).unwrap();
    bytes
}

/// Scripts of 200 personas, eight dialogues each.
fn sample() -> Vec<(Persona, Vec<Vec<Turn>>)> {
    let mut generator = Generator::new(11);
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    (0..200)
        .map(|_| {
            let persona = generator.persona();
            let dialogues = scripts(&persona, 8, &mut rng);
            (persona, dialogues)
        })
        .collect()
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let first = text_of(&corpus(7, 5, 4, 20));
    assert_eq!(first, text_of(&corpus(7, 5, 4, 20)));
    assert_ne!(first, text_of(&corpus(8, 5, 4, 20)));
}

#[test]
fn no_two_personas_of_a_generator_share_facts_or_a_sentence() {
    let mut generator = Generator::new(3);
    let mut facts = BTreeSet::new();
    let mut sentences = BTreeSet::new();
    for _ in 0..5000 {
        let persona = generator.persona();
        assert!(facts.insert(persona.facts().collect::<Vec<_>>()));
        assert!((4..=6).contains(&persona.sentences().len()));
        for sentence in persona.sentences() {
            assert!(sentences.insert(sentence.clone()), "{sentence}");
        }
    }
}

#[test]
fn the_splits_group_into_as_many_personas_as_were_drawn() {
    let mut generator = Generator::new(7);
    let mut all = generator.corpus(16, 8, 0);
    all.extend(generator.corpus(80, 8, 0));
    let grouping = group_by_persona(all).unwrap();
    assert_eq!(grouping.tasks.len(), 96);
    assert!(grouping.tasks.iter().all(|task| task.dialogues.len() == 8));
}

#[test]
fn twenty_different_candidates_with_the_gold_reply_last() {
    for dialogue in corpus(5, 12, 8, 20) {
        for exchange in &dialogue.exchanges {
            assert_eq!(exchange.candidates.len(), 20);
            assert_eq!(exchange.candidates.last(), Some(&exchange.reply));
            let normal: BTreeSet<String> = exchange.candidates.iter().map(|text| normalise(text)).collect();
            assert_eq!(normal.len(), 20);
            assert!(exchange.candidates.iter().all(|text| !text.contains(['|', '\t'])));
        }
    }
}

#[test]
fn a_third_of_the_wrong_candidates_answers_the_same_question_with_another_value() {
    let mut generator = Generator::new(9);
    let strangers: Vec<Persona> = (0..100).map(|_| generator.persona()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    for (persona, dialogues) in sample().into_iter().take(40) {
        for turn in dialogues.iter().flatten() {
            let Topic::Ask(kind) = turn.topic else { continue };
            let wrong = candidates::draw(&persona, turn, &strangers, 20, &mut rng);
            let wrong = &wrong[..19];
            let right: Vec<String> = kind.table().replies.iter().map(|reply| persona.fill(reply, kind)).collect();
            let rivals = wrong.iter().filter(|text| {
                strangers.iter().any(|stranger| {
                    let mut answers = kind.table().replies.iter();
                    let stranger = match kind {
                        Kind::PetName => stranger.with_value_of(Kind::Pet, &persona),
                        _ => stranger.clone(),
                    };
                    answers.any(|reply| text.contains(&stranger.fill(reply, kind)))
                })
            });
            assert!(rivals.count() >= 6, "{kind:?} {wrong:?}");
            let whole_words = |text: &str, part: &str| format!(" {text} ").contains(&format!(" {part} "));
            assert!(
                !wrong.iter().any(|text| right.iter().any(|answer| whole_words(text, answer))),
                "{right:?} {wrong:?}"
            );
        }
    }
}

#[test]
fn every_reply_about_a_kind_mentions_the_personas_own_value() {
    for (persona, dialogues) in sample() {
        for turn in dialogues.iter().flatten() {
            let value = persona.value(turn.topic.kind());
            assert!(turn.reply.contains(value), "{value}: {}", turn.reply);
        }
    }
}

#[test]
fn nothing_is_asked_that_has_been_told() {
    for (persona, dialogues) in sample() {
        for dialogue in dialogues {
            let mut told = String::new();
            for turn in dialogue.iter().filter(|turn| turn.topic.kind().is_fact()) {
                let kind = turn.topic.kind();
                let value = format!(" {} ", persona.value(kind));
                match turn.topic {
                    // A short value may be part of another: tea, green tea.
                    Topic::Ask(Kind::PetName) | Topic::FollowUp(..) => {}
                    Topic::Ask(_) => {
                        let facts = persona.facts().filter(|fact| fact.contains(value.trim())).count();
                        assert!(!told.contains(&value) || facts > 1, "{value}: {told}");
                    }
                }
                told = format!("{told} {} ", turn.reply);
            }
        }
    }
}

#[test]
fn a_pets_name_is_asked_after_the_pet() {
    for (_, dialogues) in sample() {
        for dialogue in dialogues {
            let at = |topic| dialogue.iter().position(|turn| turn.topic == topic);
            if let Some(name) = at(Topic::Ask(Kind::PetName)) {
                assert!(at(Topic::Ask(Kind::Pet)).is_some_and(|pet| pet < name));
            }
        }
    }
}

#[test]
fn the_tables_are_rich() {
    for kind in Kind::FACTS {
        let table = kind.table();
        let values: BTreeSet<&str> = table.values().into_iter().collect();
        assert_eq!(values.len(), table.values().len(), "{kind:?} repeats a value");
        assert!(values.len() >= 24, "{kind:?} has {} values", values.len());
        assert!(table.replies.len() >= 5 && table.short.len() >= 2, "{kind:?}");
        assert!(table.follow_ups.iter().all(|follow_up| follow_up.replies.len() > 1));
    }
    for kind in Kind::all() {
        let questions: BTreeSet<&&str> = kind.table().questions.iter().collect();
        assert!(questions.len() >= 8, "{kind:?} has {} questions", questions.len());
        let replies = kind.table().replies.iter();
        assert!(replies.clone().all(|reply| ["{x}", "{a}", "{v}"].iter().any(|slot| reply.contains(slot))));
    }
}

#[test]
fn all_text_is_spaced_lower_case_english() {
    let mut generator = Generator::new(21);
    for dialogue in generator.corpus(120, 8, 20) {
        assert!((4..=6).contains(&dialogue.exchanges.len()));
        let mut texts: Vec<&String> = dialogue.persona.iter().collect();
        for exchange in &dialogue.exchanges {
            for reply in &exchange.candidates {
                let words = reply.split(' ').count();
                assert!((5..=14).contains(&words), "{reply}");
            }
            texts.push(&exchange.partner);
            texts.extend(&exchange.candidates);
        }
        for text in texts {
            let words: Vec<&str> = text.split(' ').collect();
            assert!(words.iter().all(|word| !word.is_empty()), "spaces: {text:?}");
            for word in &words {
                let plain = word.chars().all(|letter| letter.is_ascii_lowercase());
                assert!(plain || matches!(*word, "." | "," | "!" | "?" | "'s"), "{word:?} in {text:?}");
            }
            assert!(words.last().is_some_and(|mark| matches!(*mark, "." | "!" | "?")), "{text:?}");
            for pair in words.windows(2) {
                let vowel = pair[1].starts_with(['a', 'e', 'i', 'o', 'u']) && pair[1] != "unicycle";
                assert!(pair[0] != "a" || !vowel, "{text}");
                assert!(pair[0] != "an" || vowel, "{text}");
                assert!(pair[0] != pair[1] || pair[0] == "bye", "{text}");
            }
        }
    }
}

/// Of the replies about a fact in one dialogue, how many are about a fact that `support` of the persona's others mention.
fn coverage(sample: &[(Persona, Vec<Vec<Turn>>)], support: usize) -> f64 {
    let (mut known, mut all) = (0_u32, 0_u32);
    for (persona, dialogues) in sample {
        for (held_out, dialogue) in dialogues.iter().enumerate() {
            let others = (1..=support).map(|step| &dialogues[(held_out + step) % dialogues.len()]);
            let said: Vec<String> = others.flatten().map(|turn| format!(" {} ", turn.reply)).collect();
            for kind in dialogue.iter().map(|turn| turn.topic.kind()).filter(|kind| kind.is_fact()) {
                let value = format!(" {} ", persona.value(kind));
                known += u32::from(said.iter().any(|reply| reply.contains(&value)));
                all += 1;
            }
        }
    }
    f64::from(known) / f64::from(all)
}

#[test]
fn five_dialogues_tell_most_of_what_another_asks() {
    let sample = sample();
    for (support, least) in [(1, 0.05), (5, 0.8), (7, 0.95)] {
        let covered = coverage(&sample, support);
        println!("{support} other dialogues: {:.1} % of the facts", 100.0 * covered);
        assert!(covered > least, "{support}: {covered}");
    }
}

#[test]
fn a_persona_mentions_each_kind_about_equally_often() {
    let mut counts: BTreeMap<usize, u32> = BTreeMap::new();
    for (persona, dialogues) in sample() {
        for kind in Kind::FACTS {
            let value = format!(" {} ", persona.value(kind));
            let replies = dialogues.iter().flatten().map(|turn| format!(" {} ", turn.reply));
            *counts.entry(replies.filter(|reply| reply.contains(&value)).count()).or_default() += 1;
        }
    }
    println!("mentions in eight dialogues: {counts:?}");
    let usual: u32 = (2..=4).filter_map(|times| counts.get(&times)).sum();
    assert!(f64::from(usual) > 0.9 * f64::from(counts.values().sum::<u32>()), "{counts:?}");
}
