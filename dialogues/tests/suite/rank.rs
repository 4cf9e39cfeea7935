use marionette_dialogues::{RankBy, Ranking, best_candidate, mean_scores, pmi_scores, sum_scores};

fn owned_by(candidate: &[u32], candidates: usize) -> Ranking {
    Ranking { candidate: candidate.into(), candidates, ..Ranking::default() }
}

#[test]
fn each_way_of_ranking_by_hand() {
    // Candidates of 2, 3 and 1 tokens. Means -1.5, -1, -2; sums -3, -3.5, -2.
    let ranking = owned_by(&[0, 0, 1, 1, 1, 2], 3);
    let log_probs = [-1.0, -2.0, -1.0, -1.0, -1.5, -2.0];
    let means = mean_scores(&log_probs, &ranking).unwrap();
    assert_eq!(means, [-1.5, -3.5 / 3.0, -2.0]);
    let sums = sum_scores(&log_probs, &ranking).unwrap();
    assert_eq!(sums, [-3.0, -3.5, -2.0]);
    // The last is what is said anywhere, so that it says little: -2 - -1. The first gains most from its context: -3 - -7.
    let alone = sum_scores(&[-3.0, -4.0, -2.0, -2.0, -1.0, -1.0], &ranking).unwrap();
    let pmi = pmi_scores(&sums, &alone);
    assert_eq!(pmi, [4.0, 1.5, -1.0]);
    assert_eq!([&means, &sums, &pmi].map(|scores| best_candidate(scores)), [Some(1), Some(2), Some(0)]);
}

#[test]
fn the_first_of_equals_is_the_best() {
    assert_eq!(best_candidate(&[-1.0, -1.0]), Some(0));
    assert_eq!(best_candidate(&[f64::NEG_INFINITY, -90.0]), Some(1));
    assert_eq!(best_candidate(&[f64::NAN, -90.0, f64::NAN]), Some(1));
    assert_eq!(best_candidate(&[f64::NAN]), None);
    assert_eq!(best_candidate(&[]), None);
}

#[test]
fn scores_need_a_number_for_every_target() {
    for scores in [mean_scores, sum_scores] {
        assert_eq!(scores(&[-1.0], &owned_by(&[0], 2)), None);
        assert_eq!(scores(&[-1.0], &owned_by(&[7], 1)), None);
        assert_eq!(scores(&[-1.0], &owned_by(&[0, 0], 1)), None);
        assert_eq!(scores(&[], &owned_by(&[], 0)), Some(vec![]));
    }
}

#[test]
fn ways_of_ranking_have_names() {
    for rank_by in RankBy::ALL {
        assert_eq!(rank_by.to_string().parse(), Ok(rank_by));
        assert_eq!(serde_json::to_string(&rank_by).unwrap(), format!("\"{rank_by}\""));
    }
    assert!("best".parse::<RankBy>().unwrap_err().contains("expected mean, sum, pmi or classifier"));
}
