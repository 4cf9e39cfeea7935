use std::ops::ControlFlow;

use approx::assert_relative_eq;
use marionette_dialogues::{
    Dialogue, Encoder, EvaluateError, Evaluation, Learner, Options, Progress, Ranking, Sequence, Task, evaluate,
};

use crate::helpers::{dialogue, tiny_encoder};

/// A token costs ln 4 before adapting and ln 2 after; before, the first candidate is the best, after, the last one; it
/// says nothing before, and `c` and the end of text and more after.
#[derive(Default)]
struct Fake {
    support: Vec<Sequence>,
    calls: Vec<String>,
    nll: Option<f64>,
    forget_a_target: bool,
}

impl Learner for Fake {
    type Error = String;

    fn reset(&mut self) -> Result<(), String> {
        self.support.clear();
        self.calls.push("reset".into());
        Ok(())
    }

    fn adapt(&mut self, support: &[Sequence]) -> Result<(), String> {
        assert!(self.support.is_empty(), "adapting twice without a reset");
        self.support = support.to_vec();
        self.calls.push(format!("adapt {}", support.len()));
        if support.len() > 8 { Err("too much".into()) } else { Ok(()) }
    }

    fn negative_log_likelihood(&mut self, sequence: &Sequence) -> Result<f64, String> {
        assert!(!self.support.contains(sequence), "tested on what was adapted on");
        let cost = if self.support.is_empty() { 4.0_f64 } else { 2.0 };
        self.calls.push("nll".into());
        Ok(self.nll.unwrap_or(cost.ln() * sequence.targets() as f64))
    }

    fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>, String> {
        let last = ranking.candidates as u32 - 1;
        let best = if self.support.is_empty() { 0 } else { last };
        let scores = ranking.candidate.iter().map(|&owner| if owner == best { -1.0 } else { -3.0 });
        Ok(scores.skip(usize::from(self.forget_a_target)).collect())
    }

    fn reply(&mut self, prompt: &[u32], max_new: usize) -> Result<Vec<u32>, String> {
        assert_eq!((prompt.last(), max_new), (Some(&5), 4));
        Ok(if self.support.is_empty() { vec![] } else { vec![2, 5, 0, 0] })
    }
}

/// Dialogue `number` of its persona has so many `b` in its partner's words, which tells it apart; its replies are `c`
/// (2 targets, 1 word) and `c b` (4 targets, 2 words).
fn numbered(number: usize) -> Dialogue {
    let mut dialogue = dialogue(&["a"], &[(&"b".repeat(number + 1), "c"), ("a", "c b")]);
    for exchange in &mut dialogue.exchanges {
        exchange.candidates = vec!["a".into(), exchange.reply.clone()];
    }
    dialogue
}

fn task(dialogues: usize) -> Task {
    Task { persona: vec!["a".into()], dialogues: (0..dialogues).map(numbered).collect() }
}

fn options(shots: &[usize]) -> Options {
    Options { shots: shots.into(), personas: None, folds: None, max_new_tokens: 4 }
}

fn run(fake: &mut Fake, tasks: &[Task], options: &Options) -> Result<Evaluation, EvaluateError<String>> {
    let encoder: Encoder = tiny_encoder(40);
    evaluate(fake, &encoder, tasks, options, |_| ControlFlow::Continue(()))
}

#[test]
fn every_fold_is_tested_before_and_after_adapting() {
    let mut fake = Fake::default();
    let evaluation = run(&mut fake, &[task(3), task(2)], &options(&[0, 1, 5])).unwrap();
    let [zero, one, five] = evaluation.shots.as_slice() else { panic!("{evaluation:?}") };
    assert_eq!((zero.k, one.k, five.k), (0, 1, 5));
    // Five folds of two replies each: 6 targets and 3 words a fold.
    for shot in [zero, one, five] {
        assert_eq!((shot.replies, shot.personas), (10, 2));
    }
    assert_relative_eq!(zero.perplexity, 4.0, max_relative = 1e-12);
    assert_relative_eq!(zero.perplexity_per_word, 16.0, max_relative = 1e-12);
    assert_eq!((zero.hits_at_1, zero.f1), (Some(0.0), Some(0.0)));
    assert_relative_eq!(one.perplexity, 2.0, max_relative = 1e-12);
    assert_eq!(one.hits_at_1, Some(100.0));
    // `c` against `c` is 1, against `c b` 2/3.
    assert_relative_eq!(one.f1.unwrap(), 100.0 * (1.0 + 2.0 / 3.0) / 2.0, max_relative = 1e-12);
    assert_eq!((one.perplexity, one.hits_at_1, one.f1), (five.perplexity, five.hits_at_1, five.f1));
    // The persona of two has the same support for 1 and 5 shots: adapted once.
    let of_three = ["reset", "nll", "reset", "adapt 1", "nll", "reset", "adapt 2", "nll"];
    let of_two = ["reset", "nll", "reset", "adapt 1", "nll"];
    assert_eq!(fake.calls, [of_three.repeat(3), of_two.repeat(2)].concat());
}

#[test]
fn personas_and_folds_can_be_limited() {
    let mut fake = Fake::default();
    let limited = Options { personas: Some(1), folds: Some(2), ..options(&[1]) };
    let evaluation = run(&mut fake, &[task(3), task(2)], &limited).unwrap();
    assert_eq!((evaluation.shots[0].replies, evaluation.shots[0].personas), (4, 1));
    assert_eq!(fake.calls, ["reset", "adapt 1", "nll"].repeat(2));
}

#[test]
fn what_the_data_or_the_options_lack_is_left_out() {
    let mut bare = task(2);
    for exchange in bare.dialogues.iter_mut().flat_map(|dialogue| &mut dialogue.exchanges) {
        exchange.candidates.clear();
    }
    let silent = Options { max_new_tokens: 0, ..options(&[1]) };
    let evaluation = run(&mut Fake::default(), &[bare], &silent).unwrap();
    assert_eq!((evaluation.shots[0].hits_at_1, evaluation.shots[0].f1), (None, None));
}

#[test]
fn failures_name_their_place() {
    let error = |fake: &mut Fake, tasks: &[Task], options: &Options| run(fake, tasks, options).unwrap_err().to_string();
    let mut diverging = Fake { nll: Some(f64::NAN), ..Fake::default() };
    let message = error(&mut diverging, &[task(2)], &options(&[1]));
    assert!(message.starts_with("persona 0, fold 0, 1-shot: the negative log-likelihood is NaN"), "{message}");
    let mut forgetful = Fake { forget_a_target: true, ..Fake::default() };
    let message = error(&mut forgetful, &[task(2)], &options(&[1]));
    assert!(message.contains("ranking gave 3 numbers for 4 targets"), "{message}");
    assert_eq!(error(&mut Fake::default(), &[task(10)], &options(&[9])), "too much");
    assert!(error(&mut Fake::default(), &[], &options(&[1])).contains("no persona"));
    assert!(error(&mut Fake::default(), &[task(2)], &options(&[])).contains("no number of shots"));
    let none = Options { folds: Some(0), ..options(&[1]) };
    assert!(error(&mut Fake::default(), &[task(2)], &none).contains("no fold"));
}

#[test]
fn progress_is_told_and_can_break_off() {
    let mut heard = Vec::new();
    let encoder = tiny_encoder(40);
    let result = evaluate(&mut Fake::default(), &encoder, &[task(3)], &options(&[0, 1]), |progress| {
        heard.push(progress);
        if heard.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(EvaluateError::Interrupted)));
    let at = |fold, shots| Progress { persona: 0, personas: 1, fold, folds: 3, shots };
    assert_eq!(heard, [at(0, 0), at(0, 1), at(1, 0)]);
}
