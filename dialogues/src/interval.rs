//! The interval around a ratio of sums over personas.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// The 95 % interval of R = Σy/Σx over n clusters (here personas, whose replies are not independent of one another):
/// R ± t se with se² = n/(n−1) · Σ(yᵢ − R xᵢ)² / (Σx)² and t the 0.975 quantile of Student's distribution with n − 1
/// degrees of freedom (the linearised variance of a ratio estimator: Cochran, Sampling Techniques, 3rd edition, chapter
/// 6, without the finite-population correction).
///
/// `pairs` gives (yᵢ, xᵢ); clusters without x are passed over. `None` with fewer than two clusters, or where a number is
/// not finite.
pub fn ratio_interval(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<[f64; 2]> {
    let pairs: Vec<(f64, f64)> = pairs.into_iter().filter(|&(_, x)| x != 0.0).collect();
    let n = pairs.len() as f64;
    let (sum_y, sum_x) = pairs.iter().fold((0.0, 0.0), |(sum_y, sum_x), (y, x)| (sum_y + y, sum_x + x));
    let ratio = sum_y / sum_x;
    let squares: f64 = pairs.iter().map(|(y, x)| (y - ratio * x).powi(2)).sum();
    let quantile = StudentsT::new(0.0, 1.0, n - 1.0).ok()?.inverse_cdf(0.975);
    let half = quantile * (n / (n - 1.0) * squares).sqrt() / sum_x;
    (ratio.is_finite() && half.is_finite()).then_some([ratio - half, ratio + half])
}
