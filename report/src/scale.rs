//! From numbers to places on an axis.

/// An axis over `low..high`, linear or logarithmic, with its ticks.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// The number at the start.
    pub low: f64,
    /// The number at the end.
    pub high: f64,
    /// Equal ratios, not differences, are equally far apart.
    pub log: bool,
    /// Numbers that are marked, in order.
    pub ticks: Vec<f64>,
}

/// Beyond this ratio of the largest to the smallest number an axis is logarithmic.
const LOG_FROM: f64 = 6.0;
/// A number more than so many times the smallest is left out: one diverged method must not squeeze the others together.
const LARGEST_RATIO: f64 = 1000.0;

impl Scale {
    /// An axis that holds all `values` (finite) but those left out, and the ends of their intervals within reason.
    pub fn fitting(values: &[f64], intervals: &[f64]) -> Self {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let kept = values.iter().copied().filter(|value| low <= 0.0 || *value <= low * LARGEST_RATIO);
        let high = kept.fold(f64::NEG_INFINITY, f64::max);
        if low > high {
            return Self::linear(0.0, 1.0);
        }
        let ends = || intervals.iter().copied();
        if low > 0.0 && high / low > LOG_FROM {
            let bottom = ends().fold(low, f64::min).max(low / 2.0);
            let top = ends().fold(high, f64::max).min(high * 2.0);
            return Self::logarithmic(bottom / 1.08, top * 1.08);
        }
        let reach = if high > low { 2.0 * (high - low) } else { 0.5 * high.abs() };
        let (low, high) = (ends().fold(low, f64::min).max(low - reach), ends().fold(high, f64::max).min(high + reach));
        let pad = if high > low { 0.06 * (high - low) } else { 0.05 * high.abs().max(1.0) };
        // From zero where zero is near; a perplexity, a loss or a percentage is never below it.
        let bottom = if low >= 0.0 && low < 0.2 * high { 0.0 } else { low - pad };
        Self::linear(if low >= 0.0 { bottom.max(0.0) } else { bottom }, high + pad)
    }

    /// A linear axis with ticks at multiples of 1, 2 or 5 times a power of ten.
    pub fn linear(low: f64, high: f64) -> Self {
        let rough = ((high - low) / 6.0).max(f64::MIN_POSITIVE);
        let power = 10f64.powf(rough.log10().floor());
        let step = power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= rough * 0.999).unwrap_or(10.0);
        let first = (low / step - 1e-9).ceil();
        let ticks = (0..20).map(|i| (first + f64::from(i)) * step).take_while(|tick| *tick <= high + step * 1e-9);
        Self { low, high, log: false, ticks: ticks.collect() }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let decades = (high / low).log10();
        let steps: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let ticks = (first..=last).flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        Self { low, high, log: true, ticks: ticks.filter(|tick| (low..=high).contains(tick)).collect() }
    }

    /// 0 at the start, 1 at the end; numbers beyond an end lie at that end.
    pub fn place(&self, value: f64) -> f64 {
        let part = if self.log {
            (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        part.clamp(0.0, 1.0)
    }

    /// A tick's number with no more decimals than the ticks need.
    pub fn label(&self, tick: f64) -> String {
        if tick.abs() >= 1e5 {
            return format!("{tick:.0e}");
        }
        let step = match self.ticks.as_slice() {
            [first, second, ..] if !self.log => second - first,
            _ => tick.abs(),
        };
        let decimals = if step > 0.0 && step < 0.999 { (-step.log10()).ceil().clamp(0.0, 6.0) as usize } else { 0 };
        let text = format!("{tick:.decimals$}");
        if text.trim_start_matches(['-', '0', '.']).is_empty() { "0".to_owned() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::fitting(&[10.0, 19.0], &[9.5, 19.9]);
        assert!(!scale.log);
        assert_eq!(scale.ticks, [10.0, 12.0, 14.0, 16.0, 18.0, 20.0]);
        assert_eq!(scale.label(12.0), "12");
        let scale = Scale::fitting(&[3.0, 3.4], &[]);
        assert_eq!(
            scale.ticks.iter().map(|t| scale.label(*t)).collect::<Vec<_>>(),
            ["3.0", "3.1", "3.2", "3.3", "3.4"]
        );
    }

    #[test]
    fn a_large_range_is_logarithmic_and_a_diverged_one_is_cut() {
        let scale = Scale::fitting(&[12.0, 110.0], &[10.0, 130.0]);
        assert!(scale.log);
        assert_eq!(scale.ticks, [10.0, 20.0, 50.0, 100.0]);
        assert!((scale.place((scale.low * scale.high).sqrt()) - 0.5).abs() < 1e-9);
        let cut = Scale::fitting(&[12.0, 110.0, 1e30], &[10.0, 130.0, 1e31]);
        assert!(cut.high < 250.0 && cut.place(1e30) == 1.0, "{cut:?}");
        let two = Scale::fitting(&[12.0, 1e30], &[]);
        assert!(two.low < 12.0 && two.high < 20.0 && two.place(12.0) < 1.0, "{two:?}");
    }

    #[test]
    fn nothing_and_a_single_number_have_an_axis() {
        assert_eq!(Scale::fitting(&[], &[]).ticks.len(), 6);
        let scale = Scale::fitting(&[7.0], &[]);
        assert!(scale.low < 7.0 && scale.high > 7.0 && !scale.ticks.is_empty());
        assert_eq!(Scale::fitting(&[0.0], &[]).low, 0.0);
    }
}
