use std::ops::ControlFlow;

use approx::assert_relative_eq;
use marionette_dialogues::{
    Candidates, Cell, Context, Cost, Dialogue, Encoder, EvaluateError, Example, Judge, Learner, Options, Outcome,
    Passes, Progress, RankBy, Ranking, Sample, Sequence, Task, TooFew, evaluate, evaluate_judged, reference,
};

use crate::helpers::{dialogue, tiny_encoder};

/// A token costs ln 4 before adapting and ln 2 after; before, the first candidate is the best, after, the last one; it
/// says nothing before, and `c` and the end of text and more after.
#[derive(Default, Clone)]
struct Fake {
    support: Vec<Example>,
    calls: Vec<String>,
    nll: Option<f64>,
    forget_a_target: bool,
    /// Scores of the first and the last candidate.
    classifier: Option<[f32; 2]>,
    /// So far.
    epochs: usize,
    diverges_beyond: Option<usize>,
    /// The tokens of the longest sequence that it was tested on.
    longest: usize,
}

impl Learner for Fake {
    type Error = String;

    fn reset(&mut self) -> Result<(), String> {
        self.support.clear();
        self.epochs = 0;
        self.calls.push("reset".into());
        Ok(())
    }

    fn adapt(&mut self, support: &[Example], passes: Passes) -> Result<(), String> {
        match passes {
            Passes::Recipe => {
                assert!(self.support.is_empty(), "adapting twice without a reset");
                self.calls.push(format!("adapt {}", support.len()));
            }
            Passes::Epochs(more) => {
                assert!(self.support.is_empty() || self.support == support, "another support without a reset");
                self.epochs += more;
                self.calls.push(format!("adapt {} +{more}", support.len()));
            }
        }
        self.support = support.to_vec();
        if support.len() > 8 { Err("too much".into()) } else { Ok(()) }
    }

    fn negative_log_likelihood(&mut self, sequence: &Sequence) -> Result<f64, String> {
        assert!(self.support.iter().all(|known| known.sequence != *sequence), "tested on what was adapted on");
        if self.diverges_beyond.is_some_and(|longest| sequence.ids.len() > longest) {
            return Ok(f64::NAN);
        }
        let cost = if self.support.is_empty() { 4.0_f64 } else { 2.0 };
        self.calls.push("nll".into());
        self.longest = self.longest.max(sequence.ids.len());
        Ok(self.nll.unwrap_or(cost.ln() * sequence.targets() as f64))
    }

    fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>, String> {
        // Alone, the last candidate is likely too, as long as anything was learned.
        let alone = ranking.branch.iter().filter(|branch| **branch == 0).count() == 1;
        let last = ranking.candidates as u32 - 1;
        let best = if self.support.is_empty() { 0 } else { last };
        let score = |&owner: &u32| {
            if owner != best {
                -3.0
            } else if alone {
                -0.5
            } else {
                -1.0
            }
        };
        Ok(ranking.candidate.iter().map(score).skip(usize::from(self.forget_a_target)).collect())
    }

    fn classify(&mut self, ranking: &Ranking) -> Result<Option<Vec<f32>>, String> {
        assert_eq!(ranking.ends.len(), ranking.candidates);
        Ok(self.classifier.map(|[first, last]| {
            let mut scores = vec![first; ranking.candidates];
            scores[ranking.candidates - 1] = last;
            scores
        }))
    }

    fn replies(&mut self, prompts: &[Vec<u32>], _: u32, max_new: usize) -> Result<Vec<Vec<u32>>, String> {
        assert!(prompts.iter().all(|prompt| (prompt.last(), max_new) == (Some(&5), 4)), "{prompts:?}, {max_new}");
        let reply =
            if self.support.is_empty() { vec![] } else { [vec![2; self.epochs.max(1)], vec![5, 0, 0]].concat() };
        Ok(vec![reply; prompts.len()])
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
    Options { shots: shots.into(), max_new_tokens: 4, ..Options::default() }
}

fn run(fake: &mut Fake, tasks: &[Task], options: &Options) -> Result<Outcome, EvaluateError<String>> {
    let encoder: Encoder = tiny_encoder(40);
    evaluate(std::slice::from_mut(fake), &encoder, tasks, options, |_| ControlFlow::Continue(()))
}

#[test]
fn every_fold_is_tested_before_and_after_adapting() {
    let mut fake = Fake::default();
    let outcome = run(&mut fake, &[task(3), task(2)], &options(&[0, 1, 2, 5])).unwrap();
    let evaluation = outcome.evaluation();
    // No persona has five dialogues to adapt on, and one of the two has no two.
    let [zero, one, two] = evaluation.shots.as_slice() else { panic!("{evaluation:?}") };
    assert_eq!((zero.k, one.k, two.k), (0, 1, 2));
    let few = |k, personas| TooFew { k, personas, of: 2 };
    assert_eq!(evaluation.too_few, [few(2, 1), few(5, 2)]);
    let shown = evaluation.to_string();
    assert!(shown.contains("2 shots: 1 of 2 personas left out") && shown.contains("no row for 5 shots"), "{shown}");
    // Five folds of two replies each: 6 targets and 3 words a fold.
    for (shot, replies, personas) in [(zero, 10, 2), (one, 10, 2), (two, 6, 1)] {
        assert_eq!((shot.epochs, shot.replies, shot.personas), (None, replies, personas));
    }
    let counts =
        |cell: &Cell| cell.personas.iter().map(|tally| (tally.tokens, tally.replies, tally.ranked)).collect::<Vec<_>>();
    let (three, both) = (vec![(18, 6, 6)], vec![(18, 6, 6), (12, 4, 4)]);
    assert_eq!(outcome.cells.iter().map(counts).collect::<Vec<_>>(), [both.clone(), both, three, vec![]]);
    assert_relative_eq!(zero.perplexity, 4.0, max_relative = 1e-12);
    assert_relative_eq!(zero.perplexity_per_word, 16.0, max_relative = 1e-12);
    assert_eq!((zero.hits_at_1, zero.f1), (Some(0.0), Some(0.0)));
    assert_relative_eq!(one.perplexity, 2.0, max_relative = 1e-12);
    assert_eq!(one.hits_at_1, Some(100.0));
    // `c` against `c` is 1, against `c b` 2/3.
    assert_relative_eq!(one.f1.unwrap(), 100.0 * (1.0 + 2.0 / 3.0) / 2.0, max_relative = 1e-12);
    assert_eq!((one.hits_at_1, one.f1), (two.hits_at_1, two.f1));
    let of_three = ["reset", "nll", "reset", "adapt 1", "nll", "reset", "adapt 2", "nll"];
    let of_two = ["reset", "nll", "reset", "adapt 1", "nll"];
    assert_eq!(fake.calls, [of_three.repeat(3), of_two.repeat(2)].concat());
}

#[test]
fn epochs_go_on_from_one_test_to_the_next() {
    let mut fake = Fake::default();
    let asked = Options { epochs: vec![0, 1, 4], folds: Some(1), ..options(&[2, 0]) };
    let outcome = run(&mut fake, &[task(3)], &asked).unwrap();
    let cells: Vec<_> = outcome.cells.iter().map(|cell| (cell.k, cell.epochs)).collect();
    assert_eq!(cells, [(2, Some(0)), (2, Some(1)), (2, Some(4)), (0, Some(0)), (0, Some(1)), (0, Some(4))]);
    // No shots are what no epochs are: untouched, tested once.
    assert_eq!(fake.calls, ["reset", "nll", "adapt 2 +1", "nll", "adapt 2 +3", "nll"]);
    let perplexities = outcome.evaluation().shots.into_iter().map(|shot| shot.perplexity.round() as u32);
    assert_eq!(perplexities.collect::<Vec<_>>(), [4, 2, 2, 4, 4, 4]);

    // Where no shots came first, the first epochs need a reset of their own.
    let mut fake = Fake::default();
    run(&mut fake, &[task(3)], &Options { shots: vec![0, 2], ..asked.clone() }).unwrap();
    assert_eq!(fake.calls, ["reset", "nll", "reset", "adapt 2 +1", "nll", "adapt 2 +3", "nll"]);
    let error = run(&mut fake, &[task(3)], &Options { epochs: vec![1, 3, 3], ..asked }).unwrap_err();
    assert!(error.to_string().starts_with("3 epochs follow 3; "), "{error}");
}

#[test]
fn samples_show_the_same_exchange_for_every_cell() {
    let mut long = task(2);
    long.dialogues[0].exchanges.push(numbered(0).exchanges[0].clone());
    long.dialogues[0].exchanges.push(numbered(0).exchanges[1].clone());
    let asked = Options { samples: 1, epochs: vec![0, 2], ..options(&[1]) };
    let outcome = run(&mut Fake::default(), &[long, task(2)], &asked).unwrap();
    let sample = |epochs, reply: &str| Sample {
        persona: vec!["a".into()],
        context: ["b", "c", "a", "c b", "b"].map(String::from).to_vec(),
        gold: "c".into(),
        k: 1,
        epochs: Some(epochs),
        reply: reply.into(),
    };
    assert_eq!(outcome.samples, [sample(0, ""), sample(2, "cc")]);
    // Two exchanges only: the last one.
    let outcome = run(&mut Fake::default(), &[task(2)], &asked).unwrap();
    assert_eq!((outcome.samples[0].context.len(), outcome.samples[0].gold.as_str()), (3, "c b"));
    let silent = Options { max_new_tokens: 0, ..asked };
    assert!(run(&mut Fake::default(), &[task(2)], &silent).unwrap().samples.is_empty());
}

#[test]
fn candidates_are_ranked_as_asked() {
    let hits = |fake: &mut Fake, rank_by, encoder: &Encoder| {
        let asked = Options { rank_by, ..options(&[0, 1]) };
        let outcome = evaluate(std::slice::from_mut(fake), encoder, &[task(2)], &asked, |_| ControlFlow::Continue(()));
        outcome.map(|outcome| {
            assert_eq!(outcome.evaluation().rank_by, rank_by);
            outcome.evaluation().shots.iter().map(|shot| shot.hits_at_1.unwrap()).collect::<Vec<_>>()
        })
    };
    let encoder = tiny_encoder(40);
    // The gold is last, `c` or `c b`, the other `a`. By mean it wins after adapting. By sum `c b<eot>` (4 tokens of -1)
    // also wins over `a<eot>` (2 of -3).
    assert_eq!(hits(&mut Fake::default(), RankBy::Mean, &encoder).unwrap(), [0.0, 100.0]);
    assert_eq!(hits(&mut Fake::default(), RankBy::Sum, &encoder).unwrap(), [0.0, 100.0]);
    // pmi after adapting: the gold has -1 a token against -0.5 alone, the other -3 against -3, which is better. Before, it
    // is the first that loses: -1 against -0.5.
    assert_eq!(hits(&mut Fake::default(), RankBy::Pmi, &encoder).unwrap(), [100.0, 0.0]);
    let encoder = encoder.with_choices(2);
    let mut fake = Fake { classifier: Some([0.5, 1.5]), ..Fake::default() };
    assert_eq!(hits(&mut fake, RankBy::Classifier, &encoder).unwrap(), [100.0, 100.0]);
    // Where nothing is ranked there is no Hits@1, and nobody is asked to rank.
    let asked = Options { rank_by: RankBy::None, ..options(&[0, 1]) };
    let outcome = run(&mut Fake::default(), &[task(2)], &asked).unwrap();
    assert!(outcome.evaluation().shots.iter().all(|shot| shot.hits_at_1.is_none() && shot.f1.is_some()));
    let error = hits(&mut Fake::default(), RankBy::Classifier, &encoder).unwrap_err();
    assert_eq!(error.to_string(), "the model has no classifier to rank candidates by; rank by mean, sum or pmi");
}

#[test]
fn other_people_are_read_once_a_persona_before_and_after_adapting() {
    let encoder = tiny_encoder(40);
    // Three exchanges of nobody's.
    let stranger = dialogue(&["b"], &[("bb", "a"), ("b", "c"), ("b", "c")]);
    let asked =
        Options { reference: reference(&encoder, std::slice::from_ref(&stranger)).unwrap(), ..options(&[0, 2]) };
    let outcome = run(&mut Fake::default(), &[task(3), task(4)], &asked).unwrap();
    let targets = asked.reference.iter().map(Sequence::targets).sum::<usize>();
    // Two personas, the first of each one's folds.
    let counts: Vec<usize> = outcome.cells.iter().map(|cell| cell.total().reference_tokens).collect();
    assert_eq!(counts, [2 * targets; 2]);
    let perplexities: Vec<f64> =
        outcome.evaluation().shots.iter().map(|shot| shot.reference_perplexity.unwrap()).collect();
    assert_relative_eq!(perplexities[0], 4.0, max_relative = 1e-12);
    assert_relative_eq!(perplexities[1], 2.0, max_relative = 1e-12);
    assert_eq!(reference(&encoder, &vec![stranger; 30]).unwrap().len(), 16);
}

#[test]
fn what_is_read_instead_of_learned_is_without_the_sentences_that_are_tested_with() {
    let encoder = tiny_encoder(40);
    let longest = |in_context| {
        let mut fakes = [Fake::default()];
        let asked = Options { in_context, ..options(&[1]) };
        evaluate(&mut fakes, &encoder, &[task(2)], &asked, |_| ControlFlow::Continue(())).unwrap();
        let [Fake { calls, longest, .. }] = fakes;
        assert_eq!(calls.iter().any(|call| call.starts_with("adapt")), in_context.is_none(), "{calls:?}");
        longest
    };
    let length = |encoder: &Encoder, number| encoder.examples(&numbered(number)).unwrap()[0].sequence.ids.len();
    let (bare, told) =
        (|number| length(&encoder, number), |number| length(&encoder.clone().with_persona_text(true), number));
    assert_eq!(longest(None), bare(1));
    assert_eq!(longest(Some(Context::Dialogues)), bare(0) + bare(1));
    assert_eq!(longest(Some(Context::Persona)), bare(0) + told(1));
}

#[test]
fn generated_replies_are_told_from_those_for_others() {
    // Alike but for one sentence; what is generated is "c" after adapting, and nothing before.
    let mut personas = [task(3), task(3)];
    personas[1].persona = vec!["c".into()];
    let outcome = run(&mut Fake::default(), &personas, &options(&[0, 2])).unwrap();
    let sums: Vec<_> = outcome.cells[1].personas.iter().map(|tally| (tally.own_words, tally.recalled)).collect();
    // "a" is an article, which no normal form has: the first persona has no word of its own.
    assert_eq!(sums, [(0, 0), (1, 1)]);
    // All say the same, so nobody is nearer to itself.
    let total = outcome.cells[1].total();
    assert_eq!((total.recall_margin(), total.style_margin()), (Some(0.0), Some(0.0)));
}

#[test]
fn a_judge_hears_every_reply_with_every_sentence() {
    struct Equal(usize);
    impl Judge for Equal {
        fn judge(&mut self, text: &str, sentence: &str) -> Result<i8, String> {
            self.0 += 1;
            if self.0 > 40 { Err("enough".into()) } else { Ok(if text == sentence { 1 } else { -1 }) }
        }
    }
    let mut personas = [task(3), task(3)];
    personas[1].persona = vec!["c".into(), "b".into(), "c".into()];
    let judged = |personas: &[Task]| {
        let fakes = &mut [Fake::default()];
        let silent = |_: Progress| ControlFlow::Continue(());
        evaluate_judged(fakes, &tiny_encoder(40), personas, &options(&[1]), silent, Some(&mut Equal(0)))
    };
    // Six replies each, all of them "c": of the first's one sentence and of the second's three.
    let outcome = judged(&personas).unwrap();
    let sums: Vec<_> = outcome.cells[0].personas.iter().map(|tally| (tally.consistency, tally.judged)).collect();
    assert_eq!(sums, [(-6, 6), (6, 6)]);
    assert_eq!(outcome.evaluation().shots[0].consistency, Some(0.0));
    assert_eq!(judged(&[task(3), task(20), task(30)]).unwrap_err().to_string(), "enough");
}

#[test]
fn several_learners_give_what_one_gives() {
    let tasks: Vec<Task> = (2..9).map(task).collect();
    let asked = Options { samples: 3, ..options(&[0, 2]) };
    let one = run(&mut Fake::default(), &tasks, &asked).unwrap();
    for learners in [2, 3, 16] {
        let mut fakes = vec![Fake::default(); learners];
        let mut heard = Vec::new();
        let several = evaluate(&mut fakes, &tiny_encoder(40), &tasks, &asked, |progress| {
            heard.push((progress.persona, progress.fold, progress.shots));
            ControlFlow::Continue(())
        });
        // How long it took is another matter.
        let mut several = Outcome { seconds: one.seconds, ..several.unwrap() };
        for (cell, of_one) in several.cells.iter_mut().zip(&one.cells) {
            let counts = |cost: &Cost| (cost.adaptations, cost.reply_tokens);
            assert_eq!(counts(&cell.cost), counts(&of_one.cost));
            cell.cost = of_one.cost;
        }
        assert_eq!(several, one);
        heard.sort_unstable();
        let every =
            (0..7).flat_map(|persona| (0..persona + 2).flat_map(move |fold| [0, 2].map(|k| (persona, fold, k))));
        // The first persona has two dialogues alone.
        assert_eq!(heard, every.filter(|(persona, _, k)| (*persona, *k) != (0, 2)).collect::<Vec<_>>());
    }
    // Dialogue n has n + 10 tokens, so every persona of four dialogues or more fails, at its fourth. The first is named.
    let failing = Fake { diverges_beyond: Some(12), ..Fake::default() };
    for learners in [1, 4, 4, 4, 4, 4, 4, 4, 4] {
        let mut fakes = vec![failing.clone(); learners];
        let result = evaluate(&mut fakes, &tiny_encoder(40), &tasks, &asked, |_| ControlFlow::Continue(()));
        let message = result.unwrap_err().to_string();
        assert!(message.starts_with("persona 2, fold 3, 0-shot: "), "{message}");
    }
    let mut fakes = vec![Fake::default(); 3];
    let result = evaluate(&mut fakes, &tiny_encoder(40), &tasks, &asked, |_| ControlFlow::Break(()));
    assert!(matches!(result, Err(EvaluateError::Interrupted)));
    let result = evaluate::<Fake>(&mut [], &tiny_encoder(40), &tasks, &asked, |_| ControlFlow::Continue(()));
    assert!(result.unwrap_err().to_string().contains("no learner"));
}

#[test]
fn personas_and_folds_can_be_limited() {
    let mut fake = Fake::default();
    let limited = Options { personas: Some(1), folds: Some(2), ..options(&[1]) };
    let evaluation = run(&mut fake, &[task(3), task(2)], &limited).unwrap().evaluation();
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
    let evaluation = run(&mut Fake::default(), &[bare], &silent).unwrap().evaluation();
    assert_eq!((evaluation.shots[0].hits_at_1, evaluation.shots[0].f1), (None, None));
}

/// Four personas of three dialogues, each with two replies of its own and one that all say.
fn without_candidates() -> Vec<Task> {
    let replies = |number: usize| (0..5).map(|bit| if number >> bit & 1 == 0 { "b" } else { "c" }).collect::<String>();
    let dialogue = |number| dialogue(&["b"], &[("b", &replies(number)), ("c", &replies(number + 1)), ("b", "cab")]);
    let task = |persona: usize| (0..3).map(|index| dialogue(6 * persona + 2 * index)).collect();
    (0..4).map(|persona| Task { persona: vec!["b".into()], dialogues: task(persona) }).collect()
}

#[test]
fn where_there_are_no_candidates_they_are_drawn_from_others() {
    #[derive(Default)]
    struct Looks(Vec<Ranking>);
    impl Learner for Looks {
        type Error = String;
        fn reset(&mut self) -> Result<(), String> {
            Ok(())
        }
        fn adapt(&mut self, _: &[Example], _: Passes) -> Result<(), String> {
            Ok(())
        }
        fn negative_log_likelihood(&mut self, _: &Sequence) -> Result<f64, String> {
            Ok(1.0)
        }
        fn rank(&mut self, ranking: &Ranking) -> Result<Vec<f32>, String> {
            self.0.push(ranking.clone());
            Ok(ranking.candidate.iter().map(|&owner| -1.0 - owner as f32).collect())
        }
        fn replies(&mut self, prompts: &[Vec<u32>], _: u32, _: usize) -> Result<Vec<Vec<u32>>, String> {
            Ok(vec![vec![]; prompts.len()])
        }
    }
    let (encoder, tasks) = (tiny_encoder(60), without_candidates());
    let look = |tasks: &[Task], personas| {
        let mut looks = [Looks::default()];
        let asked = Options { personas, ..options(&[0]) };
        let outcome = evaluate(&mut looks, &encoder, tasks, &asked, |_| ControlFlow::Continue(())).unwrap();
        let [Looks(rankings)] = looks;
        (outcome, rankings)
    };
    // 18 replies of the other three personas, and the one that all say.
    let (outcome, rankings) = look(&tasks, None);
    assert_eq!((outcome.candidates, rankings.len()), (Candidates::None, 0));
    assert!(outcome.evaluation().shots[0].hits_at_1.is_none());
    let mut more = tasks.clone();
    more.push(Task { dialogues: vec![dialogue(&["b"], &[("b", "cbcbcb")]); 2], ..tasks[0].clone() });
    more[4].dialogues[1].exchanges[0].reply = "bcbcbcb".into();
    let (outcome, rankings) = look(&more, Some(4));
    let evaluation = outcome.evaluation();
    assert_eq!((evaluation.candidates, rankings.len()), (Candidates::Drawn, 36));
    assert!(evaluation.to_string().contains("candidates are drawn: the reply and 19 replies of other personas"));
    let text = |ranking: &Ranking, candidate: u32| {
        let own = ranking.targets.iter().zip(&ranking.candidate).filter(|(_, owner)| **owner == candidate);
        encoder.decode(&own.map(|(&id, _)| id).collect::<Vec<_>>())
    };
    let exchanges = more.iter().take(4).enumerate().flat_map(|(index, task)| {
        task.dialogues.iter().flat_map(move |dialogue| dialogue.exchanges.iter().map(move |exchange| (index, exchange)))
    });
    for ((index, exchange), ranking) in exchanges.zip(&rankings) {
        let texts: Vec<String> = (0..20).map(|candidate| text(ranking, candidate)).collect();
        assert_eq!((ranking.candidates, texts.last()), (20, Some(&exchange.reply)));
        let own: Vec<&String> =
            more[index].dialogues.iter().flat_map(|dialogue| &dialogue.exchanges).map(|one| &one.reply).collect();
        assert!(texts[..19].iter().all(|text| text == "cab" || !own.contains(&text)), "{texts:?}");
        let mut different = texts.clone();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), 20);
    }
    // The same draws for everybody.
    assert_eq!(look(&more, Some(4)).1, rankings);
    assert_eq!(look(&more, Some(1)).1, rankings[..9]);
}

#[test]
fn what_is_not_learned_is_neither_tested_nor_drawn() {
    let mut half = task(2);
    half.dialogues.iter_mut().for_each(|dialogue| dialogue.exchanges[0].learned = false);
    let outcome = run(&mut Fake::default(), &[half], &options(&[1])).unwrap();
    let tally = outcome.cells[0].total();
    assert_eq!((tally.tokens, tally.replies, tally.ranked, tally.generated), (8, 2, 2, 2));
}

#[test]
fn a_dialogue_longer_than_the_context_is_tested_in_windows() {
    let mut tasks = [task(3)];
    for (number, dialogue) in tasks[0].dialogues.iter_mut().enumerate() {
        // So that every window is of one dialogue alone.
        dialogue.exchanges[1].partner = "c".repeat(number) + "a";
    }
    let whole = run(&mut Fake::default(), &tasks, &options(&[0, 1])).unwrap();
    let mut fake = Fake::default();
    let encoder = tiny_encoder(9);
    let asked = Options { max_new_tokens: 0, ..options(&[0, 1]) };
    let outcome =
        evaluate(std::slice::from_mut(&mut fake), &encoder, &tasks, &asked, |_| ControlFlow::Continue(())).unwrap();
    for (windowed, whole) in outcome.cells.iter().zip(&whole.cells) {
        let (windowed, whole) = (windowed.total(), whole.total());
        assert_eq!((windowed.tokens, windowed.words, windowed.replies), (whole.tokens, whole.words, whole.replies));
        assert_relative_eq!(windowed.nll, whole.nll, max_relative = 1e-12);
    }
    // Each window of the support counts as a dialogue does.
    assert!(fake.calls.contains(&"adapt 2".to_owned()), "{:?}", fake.calls);
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
    let message = error(&mut Fake::default(), &[task(3), task(2)], &options(&[3, 7]));
    assert!(message.contains("no persona has more than 3 dialogues") && message.contains("so 3 cannot"), "{message}");
}

#[test]
fn progress_is_told_and_can_break_off() {
    let mut heard = Vec::new();
    let encoder = tiny_encoder(40);
    let result = evaluate(&mut [Fake::default()], &encoder, &[task(3)], &options(&[0, 1]), |progress| {
        heard.push(progress);
        if heard.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(EvaluateError::Interrupted)));
    let at =
        |fold, shots, done| Progress { persona: 0, personas: 1, fold, folds: 3, shots, epochs: None, done, total: 6 };
    assert_eq!(heard, [at(0, 0, 0), at(0, 1, 1), at(1, 0, 2)]);
}
