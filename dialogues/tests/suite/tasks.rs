use marionette_dialogues::{
    Dialogue, Fold, Overlap, Share, Task, TaskError, group_by_persona, hold_out, leave_one_out, read_dialogues,
};

use crate::helpers::{dialogue, shared};

/// A dialogue told apart by its reply.
fn of(persona: &[&str], reply: &str) -> Dialogue {
    dialogue(persona, &[("hi", reply)])
}

fn replies(task: &Task) -> Vec<&str> {
    task.dialogues.iter().map(|dialogue| dialogue.exchanges[0].reply.as_str()).collect()
}

fn tasks(count: usize) -> Vec<Task> {
    (0..count)
        .map(|index| {
            let persona = format!("number {index}");
            Task { persona: vec![persona.clone()], dialogues: vec![of(&[&persona], "x"); 2] }
        })
        .collect()
}

fn names(tasks: &[Task]) -> Vec<&str> {
    tasks.iter().map(|task| task.persona[0].as_str()).collect()
}

/// The replies of each persona, those with one dialogue left out.
fn grouped(lists: &[&[&str]]) -> Vec<Vec<String>> {
    let dialogues = lists.iter().enumerate().map(|(index, list)| of(list, &(index + 1).to_string())).collect();
    let tasks = group_by_persona(dialogues).map(|grouping| grouping.tasks).unwrap_or_default();
    tasks.iter().map(|task| replies(task).into_iter().map(str::to_owned).collect()).collect()
}

#[test]
fn two_shared_sentences_link_dialogues_also_through_others() {
    // 1 and 4 share nothing, but both share two sentences with 5; 3 is alone.
    let dialogues = vec![
        of(&["a", "b"], "1"),
        of(&["x", "y", "z"], "2"),
        of(&["alone"], "3"),
        of(&["c", "d"], "4"),
        of(&["d", "b", "c", "a"], "5"),
        of(&["z", "y"], "6"),
    ];
    let grouping = group_by_persona(dialogues).unwrap();
    assert_eq!((grouping.dropped_single, &grouping.common), (1, &None));
    assert_eq!(grouping.tasks.len(), 2);
    assert_eq!(replies(&grouping.tasks[0]), ["1", "4", "5"]);
    assert_eq!(grouping.tasks[0].persona, ["a", "b", "c", "d"]);
    assert_eq!(replies(&grouping.tasks[1]), ["2", "6"]);
    assert_eq!(grouping.tasks[1].persona, ["x", "y", "z"]);
}

#[test]
fn one_shared_sentence_of_several_joins_nobody() {
    assert_eq!(
        grouped(&[&["mother", "a"], &["mother", "b"], &["b", "c"], &["a", "mother"], &["c", "x"]]),
        [["1", "4"]]
    );
    // The same sentence twice is one.
    assert_eq!(grouped(&[&["mother", "mother", "a"], &["mother", "mother", "b"], &["z"], &["z"]]), [["3", "4"]]);
}

#[test]
fn a_shorter_list_joins_where_all_of_it_is_shared() {
    assert_eq!(
        grouped(&[&["a", "b"], &["b"], &["x", "y"], &["b", "c"], &["y", "x"]]),
        [vec!["1", "2", "4"], vec!["3", "5"]]
    );
}

#[test]
fn a_sentence_of_everybody_is_passed_over() {
    let system = "You are a helpful assistant.";
    let dialogues = vec![
        of(&[system, "i ride", "i swim"], "1"),
        of(&[system, "i ride"], "2"),
        of(&["i swim", "i knit", system], "3"),
        of(&[system, "i knit", "i swim"], "4"),
        of(&[system], "5"),
        of(&[system], "6"),
    ];
    let grouping = group_by_persona(dialogues).unwrap();
    assert_eq!(grouping.common.as_deref(), Some(system));
    assert!(!grouping.is_one_for_want_of_others());
    assert_eq!(grouping.tasks.iter().map(replies).collect::<Vec<_>>(), [["1", "2"], ["3", "4"], ["5", "6"]]);
    // What the persona is does not lose it.
    assert_eq!(grouping.tasks[0].persona, [system, "i ride", "i swim"]);
    // Where there is nothing else, there is one persona, for want of others.
    let grouping = group_by_persona(vec![of(&[system], "1"), of(&[system], "2")]).unwrap();
    assert!(grouping.is_one_for_want_of_others());
    // Two sentences of everybody are those of one person.
    let grouping = group_by_persona(vec![of(&["a", "b"], "1"), of(&["b", "a"], "2")]).unwrap();
    assert!(grouping.common.is_none() && !grouping.is_one_for_want_of_others());
}

/// How many personas there are, how many of them with two dialogues or more, and the most dialogues.
fn counted(files: &[&str]) -> Option<(usize, usize, usize)> {
    let paths: Vec<_> = files.iter().map(|file| shared(file)).collect::<Option<_>>()?;
    let grouping = group_by_persona(paths.iter().flat_map(|path| read_dialogues(path).unwrap()).collect()).unwrap();
    let most = grouping.tasks.iter().map(|task| task.dialogues.len()).max();
    Some((grouping.tasks.len() + grouping.dropped_single, grouping.tasks.len(), most.unwrap()))
}

#[test]
fn real_data_has_the_personas_that_their_authors_count() {
    // By an independent count in Python over pairs of sentences; the original says 955 training personas.
    let training = ["personachat/train_self.txt", "personachat/train_other_side.txt"];
    let Some(found) = counted(&training) else { return };
    assert_eq!(found, (959, 918, 21));
    assert_eq!(counted(&["convai2/dialogues.txt"]), Some((68, 68, 18)));
    assert_eq!(counted(&["inputs/common.jsonl"]), Some((40, 40, 4)));
}

#[test]
fn refuses_what_gives_no_tasks() {
    let mut nameless = of(&[], "2");
    nameless.line = 7;
    let error = group_by_persona(vec![of(&["a"], "1"), nameless]).unwrap_err();
    assert_eq!(error, TaskError::NoPersona { line: 7 });
    let error = group_by_persona(vec![of(&["a"], "1"), of(&["b"], "2")]).unwrap_err();
    assert_eq!(error, TaskError::NoTasks { dropped: 2 });
    assert_eq!(group_by_persona(vec![]).unwrap_err(), TaskError::NoTasks { dropped: 0 });
}

#[test]
fn held_out_personas_are_chosen_by_the_seed_and_stay_in_order() {
    let (train, held) = hold_out(tasks(10), Share::Count(3), 1).unwrap();
    assert_eq!((train.len(), held.len()), (7, 3));
    let mut all: Vec<&str> = names(&train).into_iter().chain(names(&held)).collect();
    all.sort_unstable();
    assert_eq!(all, names(&tasks(10)));
    assert!(names(&train).is_sorted() && names(&held).is_sorted());
    assert_eq!(hold_out(tasks(10), Share::Count(3), 1).unwrap(), (train, held.clone()));
    assert!((2..20).any(|seed| hold_out(tasks(10), Share::Count(3), seed).unwrap().1 != held));
}

#[test]
fn a_share_can_be_a_fraction() {
    let held = |fraction| hold_out(tasks(10), Share::Fraction(fraction), 1).map(|(_, held)| held.len());
    assert_eq!(held(0.3), Ok(3));
    assert_eq!(held(0.01), Ok(1));
    assert_eq!(held(0.0), Ok(0));
    for wrong in [-0.1, 1.1, f64::NAN, 1.0] {
        assert!(held(wrong).is_err(), "{wrong}");
    }
    assert!(hold_out(tasks(10), Share::Count(10), 1).is_err());
}

#[test]
fn a_fold_never_adapts_on_what_it_tests() {
    let task = Task { persona: vec![], dialogues: vec![of(&["a"], "x"); 4] };
    let fold = |held_out, support: &[usize]| Fold { held_out, support: support.into() };
    assert_eq!(leave_one_out(&task, 2), [fold(0, &[1, 2]), fold(1, &[0, 2]), fold(2, &[0, 1]), fold(3, &[0, 1])]);
    assert_eq!(leave_one_out(&task, 9)[1], fold(1, &[0, 2, 3]));
    assert_eq!(leave_one_out(&task, 0)[3], fold(3, &[]));
}

#[test]
fn what_is_tested_is_compared_with_what_is_known_by_content() {
    let grouped = |lists: &[(&[&str], &str)]| {
        let dialogues = lists.iter().map(|(persona, reply)| of(persona, reply)).collect();
        group_by_persona(dialogues).unwrap().tasks
    };
    let known = grouped(&[(&["a", "b"], "1"), (&["a", "b"], "2"), (&["x", "y"], "3"), (&["x", "y"], "4")]);
    let tested = grouped(&[
        // Two sentences of a known persona; then one alone, which says nothing; then a known dialogue under other sentences.
        (&["b", "a", "c"], "5"),
        (&["b", "a", "c"], "6"),
        (&["x", "z"], "7"),
        (&["x", "z"], "8"),
        (&["p", "q"], "3"),
        (&["p", "q"], "9"),
    ]);
    let overlap = Overlap::of(&known, &tested);
    assert_eq!(overlap, Overlap { personas: 2, of_personas: 3, dialogues: 1, of_dialogues: 6 });
    assert_eq!(overlap.to_string(), "2 of 3 personas and 1 of 6 dialogues");
    assert!(Overlap::of(&known, &tested[1..2]).is_none() && Overlap::of(&[], &tested).is_none());
    assert_eq!(Overlap::of(&known, &known).personas, 2);
}

#[test]
fn a_dialogue_that_is_there_twice_is_taken_once() {
    let grouping = group_by_persona(vec![of(&["a"], "1"), of(&["b"], "1"), of(&["a"], "1"), of(&["a"], "2")]).unwrap();
    assert_eq!((grouping.tasks.len(), grouping.repeated, grouping.dropped_single), (1, 1, 1));
    assert_eq!(replies(&grouping.tasks[0]), ["1", "2"]);
    assert_eq!(grouping.notes()[0], "1 dialogue is there twice and is taken once");
    // Twice the same file is one persona less, not one more.
    assert!(group_by_persona(vec![of(&["a"], "1"), of(&["a"], "1")]).is_err());
}

#[test]
fn the_real_training_data_and_the_validation_data_have_nothing_in_common() {
    let (Some(train), Some(valid)) = (shared("personachat/train_self.txt"), shared("convai2/dialogues.txt")) else {
        return;
    };
    let read = |path| group_by_persona(read_dialogues(path).unwrap()).unwrap().tasks;
    let overlap = Overlap::of(&read(train), &read(valid));
    assert_eq!(overlap, Overlap { personas: 0, of_personas: 68, dialogues: 0, of_dialogues: 691 });
}
