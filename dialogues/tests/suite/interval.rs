use approx::assert_relative_eq;
use marionette_dialogues::ratio_interval;

#[test]
fn the_interval_of_a_ratio_by_hand() {
    // R = 4/6; residuals 1 - 4/3 and 3 - 8/3, so 2/9 in squares; se = sqrt(2/1 * 2/9) / 6 = 1/9; t(1) = 12.7062047362.
    let [low, high] = ratio_interval([(1.0, 2.0), (3.0, 4.0)]).unwrap();
    assert_relative_eq!(low, 2.0 / 3.0 - 12.7062047362 / 9.0, max_relative = 1e-9);
    assert_relative_eq!(high, 2.0 / 3.0 + 12.7062047362 / 9.0, max_relative = 1e-9);
    // R = 3/4; residuals 1/2, -3/4, 1/4: 7/8 in squares; se = sqrt(3/2 * 7/8) / 4; t(2) = 4.30265272975.
    let [low, high] = ratio_interval([(2.0, 2.0), (0.0, 1.0), (1.0, 1.0)]).unwrap();
    let half = 4.30265272975 * 1.3125_f64.sqrt() / 4.0;
    assert_relative_eq!(low, 0.75 - half, max_relative = 1e-9);
    assert_relative_eq!(high, 0.75 + half, max_relative = 1e-9);
}

#[test]
fn equal_weights_give_the_interval_of_a_mean() {
    // 1, 2, 3, 4, 5: s = sqrt(5/2), t(4) = 2.7764451052.
    let [low, high] = ratio_interval((1..=5).map(|y| (f64::from(y), 1.0))).unwrap();
    assert_relative_eq!(high - 3.0, 2.7764451052 * 0.5_f64.sqrt(), max_relative = 1e-9);
    assert_relative_eq!(3.0 - low, 2.7764451052 * 0.5_f64.sqrt(), max_relative = 1e-9);
}

#[test]
fn what_has_no_interval() {
    assert_eq!(ratio_interval([]), None);
    assert_eq!(ratio_interval([(1.0, 2.0)]), None);
    // A persona in which nothing was counted says nothing.
    assert_eq!(ratio_interval([(1.0, 2.0), (0.0, 0.0)]), None);
    assert_eq!(ratio_interval([(f64::INFINITY, 2.0), (1.0, 1.0)]), None);
    // No difference between personas: an interval without width.
    assert_eq!(ratio_interval([(1.0, 2.0), (2.0, 4.0)]), Some([0.5, 0.5]));
}
