use marionette_dialogues::{
    Dialogue, Fold, Share, Task, TaskError, group_by_persona, hold_out, leave_one_out, read_dialogues,
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

#[test]
fn shared_sentences_link_dialogues_also_through_others() {
    // 1 and 4 share nothing, but both share a sentence with 5; 3 is alone.
    let dialogues = vec![
        of(&["a", "b"], "1"),
        of(&["x", "y"], "2"),
        of(&["alone"], "3"),
        of(&["c", "d"], "4"),
        of(&["b", "c"], "5"),
        of(&["y"], "6"),
    ];
    let grouping = group_by_persona(dialogues).unwrap();
    assert_eq!(grouping.dropped_single, 1);
    assert_eq!(grouping.tasks.len(), 2);
    assert_eq!(replies(&grouping.tasks[0]), ["1", "4", "5"]);
    assert_eq!(grouping.tasks[0].persona, ["a", "b", "c", "d"]);
    assert_eq!(replies(&grouping.tasks[1]), ["2", "6"]);
    assert_eq!(grouping.tasks[1].persona, ["x", "y"]);
}

#[test]
fn convai2_has_the_personas_that_its_description_counts() {
    let Some(path) = shared("convai2/dialogues.txt") else { return };
    let grouping = group_by_persona(read_dialogues(path).unwrap()).unwrap();
    assert_eq!((grouping.tasks.len(), grouping.dropped_single), (66, 0));
    assert_eq!(grouping.tasks.iter().map(|task| task.dialogues.len()).sum::<usize>(), 691);
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
