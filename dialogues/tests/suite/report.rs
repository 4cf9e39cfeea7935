use approx::assert_relative_eq;
use marionette_dialogues::{
    Candidates, Cell, Cost, Evaluation, Intervals, Likeness, Outcome, RankBy, Sample, ShotCost, ShotResult, Tally,
};

/// Two personas. Perplexity: nll 2 of 4 tokens and 4 of 4; Hits@1 1 of 2 and 0 of 2; F1 1 of 2 and 2 of 2.
fn cell(k: usize, epochs: Option<usize>) -> Cell {
    let counts = Tally { tokens: 4, words: 2, replies: 2, ranked: 2, generated: 2, ..Tally::default() };
    let personas = vec![Tally { nll: 2.0, hits: 1, f1_sum: 1.0, ..counts }, Tally { nll: 4.0, f1_sum: 2.0, ..counts }];
    Cell { k, epochs, personas, too_few: 0, cost: Cost::default() }
}

fn outcome() -> Outcome {
    let sample = Sample {
        persona: vec!["i ski.".into()],
        context: vec!["hi".into()],
        gold: "hello".into(),
        k: 1,
        epochs: Some(3),
        reply: "ho".into(),
    };
    Outcome {
        candidates: Candidates::Stored,
        rank_by: RankBy::Pmi,
        cells: vec![cell(0, Some(1)), cell(1, Some(3))],
        samples: vec![sample],
        seconds: 2.0,
    }
}

#[test]
fn a_cells_figures_and_intervals_by_hand() {
    let shot = ShotResult::new(&cell(5, None)).unwrap();
    assert_eq!((shot.k, shot.epochs, shot.replies, shot.personas), (5, None, 4, 2));
    // 6 of 8: R = 3/4, residuals -1 and 1, se = sqrt(2 * 2) / 8 = 1/4; t(1) = 12.7062047362.
    assert_relative_eq!(shot.perplexity, 0.75_f64.exp());
    assert_relative_eq!(shot.perplexity_per_word, 1.5_f64.exp());
    let [low, high] = shot.intervals.perplexity.unwrap();
    assert_relative_eq!(low, (0.75_f64 - 12.7062047362 / 4.0).exp(), max_relative = 1e-8);
    assert_relative_eq!(high, (0.75_f64 + 12.7062047362 / 4.0).exp(), max_relative = 1e-8);
    assert_eq!((shot.hits_at_1, shot.f1), (Some(25.0), Some(75.0)));
    // R = 1/4, se = sqrt(2 * 1/2) / 4: beyond both ends.
    assert_eq!(shot.intervals.hits_at_1, Some([0.0, 100.0]));
    assert_eq!(shot.intervals.f1, Some([0.0, 100.0]));
    let alone = Cell { personas: vec![cell(0, None).personas[0]], ..cell(0, None) };
    assert_eq!(alone.intervals(), Intervals::default());
    assert_eq!(ShotResult::new(&Cell { personas: vec![Tally::default(); 2], ..cell(0, None) }), None);
}

#[test]
fn costs_are_means_over_adaptations_and_tokens() {
    let mut cost = Cost { adapt_seconds: 3.0, adaptations: 1, reply_seconds: 0.5, reply_tokens: 10 };
    cost.merge(&Cost { adapt_seconds: 5.0, adaptations: 3, reply_seconds: 1.5, reply_tokens: 30 });
    assert_eq!((cost.adaptation(), cost.token()), (Some(2.0), Some(50.0)));
    assert_eq!((Cost::default().adaptation(), Cost::default().token()), (None, None));
}

#[test]
fn outcomes_of_several_seeds_are_pooled_by_persona() {
    let mut other = outcome();
    other.cells[1].personas[1].nll = 8.0;
    let pooled = Outcome::pooled([&outcome(), &other, &outcome()]).unwrap();
    assert_eq!((pooled.seconds, pooled.samples.len(), pooled.cells.len()), (6.0, 1, 2));
    let personas = &pooled.cells[1].personas;
    assert_eq!((personas[0].nll, personas[1].nll, personas[1].tokens), (6.0, 16.0, 12));
    // Pooling what is equal changes no figure and no interval: a persona stays one cluster.
    let same = Outcome::pooled([&outcome(), &outcome()]).unwrap();
    assert_eq!(
        same.evaluation().shots,
        outcome()
            .evaluation()
            .shots
            .into_iter()
            .map(|mut shot| {
                shot.replies *= 2;
                shot
            })
            .collect::<Vec<_>>()
    );
    assert_eq!(Outcome::pooled([]), None);
    let mut fewer = outcome();
    fewer.cells[0].personas.pop();
    assert_eq!(Outcome::pooled([&outcome(), &fewer]), None);
    assert_eq!(Outcome::pooled([&outcome(), &Outcome { rank_by: RankBy::Sum, ..outcome() }]), None);
}

#[test]
fn an_outcome_survives_json() {
    let json = serde_json::to_string(&outcome()).unwrap();
    assert_eq!(serde_json::from_str::<Outcome>(&json).unwrap(), outcome());
}

#[test]
fn an_evaluation_prints_as_json() {
    let shot = ShotResult {
        k: 0,
        epochs: None,
        perplexity: 27.35,
        perplexity_per_word: 60.5,
        hits_at_1: Some(10.9),
        f1: None,
        replies: 12,
        personas: 3,
        intervals: Intervals { perplexity: Some([25.5, 30.0]), hits_at_1: Some([9.0, 12.5]), f1: None },
        likeness: None,
        reference_perplexity: None,
        consistency: None,
    };
    let asked = ShotResult { k: 10, epochs: Some(7), hits_at_1: None, intervals: Intervals::default(), ..shot.clone() };
    let evaluation = Evaluation {
        rank_by: RankBy::Mean,
        candidates: Candidates::Stored,
        shots: vec![shot, asked],
        too_few: vec![],
        costs: vec![],
        seconds: 1.5,
    };
    let json = serde_json::to_string(&evaluation).unwrap();
    let expected = [
        r#"{"rank_by":"mean","candidates":"stored","shots":[{"k":0,"perplexity":27.35,"perplexity_per_word":60.5,"hits_at_1":10.9,"f1":null,"#,
        r#""replies":12,"personas":3,"intervals":{"perplexity":[25.5,30.0],"hits_at_1":[9.0,12.5],"f1":null}},"#,
        r#"{"k":10,"epochs":7,"perplexity":27.35,"perplexity_per_word":60.5,"hits_at_1":null,"f1":null,"#,
        r#""replies":12,"personas":3,"intervals":{"perplexity":null,"hits_at_1":null,"f1":null}}],"too_few":[],"costs":[],"seconds":1.5}"#,
    ];
    assert_eq!(json, expected.concat());
    assert_eq!(serde_json::from_str::<Evaluation>(&json).unwrap(), evaluation);
}

#[test]
fn an_evaluation_prints_as_a_table() {
    let shot = |k, hits_at_1| ShotResult {
        k,
        epochs: None,
        perplexity: 27.354,
        perplexity_per_word: 60.5,
        hits_at_1,
        f1: Some(11.32),
        replies: 12,
        personas: 3,
        intervals: Intervals {
            perplexity: Some([25.5, 30.0]),
            hits_at_1: hits_at_1.map(|_| [0.0, 12.5]),
            f1: Some([11.0, 11.64]),
        },
        likeness: None,
        reference_perplexity: None,
        consistency: None,
    };
    let evaluation = Evaluation {
        rank_by: RankBy::Sum,
        candidates: Candidates::Stored,
        shots: vec![shot(0, Some(5.9)), shot(10, None)],
        too_few: vec![],
        costs: vec![],
        seconds: 1.5,
    };
    assert_eq!(
        evaluation.to_string(),
        "shots  perplexity [95 % interval]  per word  Hits@1 (95 %)      F1 (95 %)  replies  personas\n    \
         0       27.35 [25.50, 30.00]      60.50    5.90 ± 6.60   11.32 ± 0.32       12         3\n   \
         10       27.35 [25.50, 30.00]      60.50              -   11.32 ± 0.32       12         3\n\
         Hits@1 ranks by sum: the sum of the log-probabilities of a candidate's tokens\n\
         1.5 s"
    );
    let likeness = Likeness {
        recall: 20.0,
        recall_margin: 5.25,
        recall_interval: Some([3.0, 7.5]),
        style_margin: 1.5,
        style_interval: None,
    };
    let alike = ShotResult {
        likeness: Some(likeness),
        reference_perplexity: Some(30.5),
        consistency: Some(-0.25),
        ..shot(0, None)
    };
    let cost = |k, adapt_seconds, token_ms| ShotCost { k, epochs: None, adapt_seconds, token_ms };
    let costs = vec![cost(0, None, Some(12.5)), cost(5, Some(0.5), None)];
    let table = Evaluation { shots: vec![alike, shot(5, None)], costs, ..evaluation.clone() }.to_string();
    assert!(
        table.ends_with(
            "shots  own words %  beyond others'  nearer style  consistency  others  s to adapt  ms/token\n    \
             0        20.00     5.25 ± 2.25          1.50        -0.25   30.50           -     12.50\n    \
             5            -               -             -            -       -        0.50         -\n\
             own words: those that few other personas have; beyond others': more than replies for them use, points\n\
             nearer style: how much nearer character trigrams are to the persona's than to others', hundredths\n\
             others: perplexity of people who are none of the personas\n1.5 s"
        ),
        "{table}"
    );
    let mut hopeless = shot(1, None);
    (hopeless.epochs, hopeless.perplexity, hopeless.f1, hopeless.intervals) =
        (Some(3), f64::MAX, None, Intervals::default());
    let table = Evaluation {
        rank_by: RankBy::Sum,
        candidates: Candidates::Stored,
        shots: vec![hopeless],
        too_few: vec![],
        costs: vec![],
        seconds: 0.0,
    }
    .to_string();
    assert_eq!(
        table,
        "shots  epochs  perplexity [95 % interval]  per word  Hits@1 (95 %)      F1 (95 %)  replies  personas\n    \
         1       3     1.8e308                     60.50              -              -       12         3\n\
         0.0 s"
    );
    assert!(table.lines().all(|line| line.chars().count() <= 100));
}
