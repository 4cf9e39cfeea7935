use approx::assert_relative_eq;
use marionette_dialogues::{Tally, f1, hits_at_1, normalise};

#[test]
fn normalising_follows_convai2() {
    // Each as ParlAI's `normalize_answer` gives it.
    let cases = [
        ("The Cat, a dog -- and AN apple!", "cat dog and apple"),
        ("i'm fine . isn't it ?", "i m fine isn t it"),
        ("theatre another atheist", "theatre another atheist"),
        ("a-the_an", ""),
        ("a1 1a the9", "a1 1a the9"),
        ("the’s a…b éa an", "’s …b éa"),
        ("  tab\there\n", "tab here"),
        ("ÜBER the STRASSE", "über strasse"),
        ("", ""),
    ];
    for (text, expected) in cases {
        assert_eq!(normalise(text), expected, "{text:?}");
    }
}

#[test]
fn f1_is_the_overlap_of_words_by_hand() {
    // i like red cars | i like big red dogs: 3 in common, P 3/4, R 3/5, F1 2*.45/1.35.
    assert_relative_eq!(f1("I like the red cars .", "i like big red dogs"), 2.0 / 3.0);
    // Words count as often as both have them: no no | no: P 1/2, R 1.
    assert_relative_eq!(f1("no no", "no !"), 2.0 / 3.0);
    assert_relative_eq!(f1("no", "no no no"), 0.5);
    assert_relative_eq!(f1("Yes, it is.", "yes it is"), 1.0);
    for (hypothesis, reference) in [("", "yes"), ("yes", ""), ("", ""), ("the", "a"), ("x", "y")] {
        assert_eq!(f1(hypothesis, reference), 0.0);
    }
}

#[test]
fn a_hit_compares_normal_forms() {
    assert!(hits_at_1("The cat !", "cat"));
    assert!(!hits_at_1("cats", "cat"));
}

#[test]
fn tallies_add_up_to_the_metrics() {
    let mut tally = Tally {
        nll: 4.0 * 2.0_f64.ln(),
        tokens: 3,
        words: 2,
        replies: 1,
        hits: 1,
        ranked: 3,
        f1_sum: 0.5,
        generated: 1,
        own_words: 4,
        recalled: 2,
        recalled_elsewhere: 0.5,
        styled: 1,
        style: 0.25,
        style_elsewhere: 0.75,
        consistency: 3,
        judged: 1,
        reference_nll: 2.0_f64.ln(),
        reference_tokens: 1,
    };
    tally.merge(&Tally { nll: 2.0 * 2.0_f64.ln(), ranked: 1, generated: 3, words: 1, replies: 2, ..Tally::default() });
    // Six halvings over three tokens, and over three words.
    assert_relative_eq!(tally.perplexity().unwrap(), 4.0, max_relative = 1e-12);
    assert_relative_eq!(tally.perplexity_per_word().unwrap(), 4.0, max_relative = 1e-12);
    assert_relative_eq!(tally.hits_at_1().unwrap(), 25.0);
    assert_relative_eq!(tally.f1().unwrap(), 12.5);
    tally.merge(&Tally { own_words: 4, recalled_elsewhere: 0.5, styled: 1, style: 0.25, ..Tally::default() });
    // One word of eight, and a quarter on the average of two.
    assert_relative_eq!(tally.recall_margin().unwrap(), 12.5);
    assert_relative_eq!(tally.style_margin().unwrap(), 12.5);
    tally.merge(&Tally { consistency: -1, judged: 3, ..Tally::default() });
    assert_eq!((tally.consistency(), Tally::default().consistency()), (Some(0.5), None));
    assert_relative_eq!(tally.reference_perplexity().unwrap(), 2.0, max_relative = 1e-12);
    let empty = Tally::default();
    assert_eq!(
        (empty.perplexity(), empty.perplexity_per_word(), empty.hits_at_1(), empty.f1()),
        (None, None, None, None)
    );
    let hopeless = Tally { nll: 1e6, tokens: 1, ..Tally::default() };
    assert_eq!(hopeless.perplexity(), Some(f64::MAX));
}
