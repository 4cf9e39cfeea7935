//! What is in a bundle, and whether this device computes what the trainer computed.

use std::collections::BTreeMap;
use std::fmt;

use marionette_dialogues::Batch;
use marionette_models::bundle::{Bundle, Precision};
use marionette_models::probe::{Probe, sample};
use marionette_models::{Tensors, params};
use serde::Serialize;

use crate::engine::{Engine, Scored};
use crate::error::{Error, Result};
use crate::generate::LanguageModel;

/// The most that a value may differ from libtorch's in f32. Both sides round, and five steps through 30 blocks add up to more than one
/// pass: the adapters of SmolLM2 were off by 1.7e-4 of a tensor's largest value, those of six blocks by 1.9e-6. What rounding the weights does to a model is no fault of the device; it
/// still shows a broken one, whose errors are of the order of the values: relative ones of 1, and logits off by 10. With the bundled
/// model adapters are off by 0.14 and 0.16 of their largest value (int8, int4), logits and log-probabilities by up to 0.34 and 1.3.
pub fn tolerance(precision: Precision, relative: bool) -> f64 {
    match (precision, relative) {
        (Precision::Fp32, false) => 1e-4,
        (Precision::Fp32, true) => 1e-3,
        (Precision::Fp16, _) => 1e-2,
        (Precision::Int8, true) => 0.3,
        (Precision::Int4, true) => 0.5,
        (Precision::Int8, false) => 1.0,
        (Precision::Int4, false) => 4.0,
    }
}

/// The most that a value may differ where the trainer multiplied with the same integers. Of a value of a row that lies on the border between two
/// integers either is taken, as sums in another order say, and what follows differs by that step. Until the first such value nothing does: of the
/// bundled model 47 of 69 log-probabilities of short rows agree to 1e-4 (`tests/parity/frozen.rs`); the worst were off by 0.1, adapters by 0.011.
fn tolerance_of_the_same(precision: Precision, relative: bool) -> f64 {
    match (precision.is_integer(), relative) {
        (false, _) => tolerance(Precision::Fp32, relative),
        (true, true) => 0.05,
        (true, false) => 0.3,
    }
}

/// One thing compared with libtorch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// The worst error, absolute or relative.
    pub error: f64,
    /// Whether the error is relative to the largest value (of a tensor, where there are several).
    pub relative: bool,
}

/// How the device compares with what the trainer recorded; `Display` prints it as a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parity {
    /// One row each.
    pub checks: Vec<Check>,
    /// How the device's weights are stored, and how the trainer held them, on which depends what an error may be ([`tolerance`]): where both
    /// are the same, rounding weights explains nothing.
    pub precision: Precision,
    /// How the trainer held them.
    pub trained: Precision,
}

impl Parity {
    /// Whether all are within the tolerance.
    pub fn is_good(&self) -> bool {
        self.checks.iter().all(|check| self.allows(check))
    }

    /// Whether an error is within the tolerance. NaN is not.
    fn allows(&self, check: &Check) -> bool {
        check.error <= self.most(check)
    }

    fn most(&self, check: &Check) -> f64 {
        let of = |precision| tolerance(precision, check.relative);
        match self.precision == self.trained {
            true => tolerance_of_the_same(self.precision, check.relative),
            false => of(self.precision).max(of(self.trained)),
        }
    }
}

impl fmt::Display for Parity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.what.chars().count()).max().unwrap_or(0);
        writeln!(f, "{:<width$}  {:>11}  {:<8}  {:>7}", "device against libtorch", "worst error", "kind", "at most")?;
        for check in &self.checks {
            let kind = if check.relative { "relative" } else { "absolute" };
            let verdict = if self.allows(check) { "ok" } else { "TOO LARGE" };
            writeln!(
                f,
                "{:<width$}  {:>11.1e}  {kind}  {:>7.0e}  {verdict}",
                check.what,
                check.error,
                self.most(check)
            )?;
        }
        Ok(())
    }
}

/// Replays the bundle's probe through its graphs. The engine must hold the bundle's adapters; afterwards it holds those
/// after the probe's steps.
///
/// # Errors
/// The bundle has no probe; a graph fails.
pub fn check(engine: &mut Engine, bundle: &Bundle) -> Result<Parity> {
    let Some(probe) = bundle.probe()? else {
        let problem = "has no probe.safetensors: only a bundle exported from a training run can be checked";
        return Err(Error::Impossible(format!("{}: {problem}", bundle.dir().display())));
    };
    let row = probe.input_ids.get(..probe.length).unwrap_or_default();
    let mut checks = check_logits(engine, &probe, row)?;
    checks.push(Check {
        what: format!("score: log-probabilities of {} tokens", probe.log_probs.len()),
        error: worst(&engine.score(&Scored::all(row))?, &probe.log_probs),
        relative: false,
    });
    checks.extend(check_steps(engine, &probe)?);
    Ok(Parity { checks, precision: engine.manifest().precision, trained: probe.frozen })
}

/// The logits after one pass, after two (as a chat's later turns are read), and after reading the second half of the row
/// token by token (as a reply is generated).
fn check_logits(engine: &mut Engine, probe: &Probe, row: &[i64]) -> Result<Vec<Check>> {
    let tokens: Vec<u32> = row.iter().map(|&id| u32::try_from(id).unwrap_or(u32::MAX)).collect();
    let (first, second) = tokens.split_at(tokens.len() / 2);
    let one_by_one: Vec<&[u32]> = [first].into_iter().chain(second.chunks(1)).collect();
    let mut checks = Vec::new();
    for (how, passes) in
        [("one pass", vec![tokens.as_slice()]), ("two passes", vec![first, second]), ("token by token", one_by_one)]
    {
        engine.truncate(0);
        let mut error = f64::NAN;
        for pass in passes {
            error = worst(engine.advance(pass)?, &probe.logits);
        }
        checks.push(Check { what: format!("generate: logits, {how}"), error, relative: false });
    }
    engine.truncate(0);
    Ok(checks)
}

fn check_steps(engine: &mut Engine, probe: &Probe) -> Result<Vec<Check>> {
    let Probe { batch: rows, length, .. } = *probe;
    let batch = Batch { ids: probe.input_ids.clone(), mask: probe.loss_mask.clone(), rows, length };
    let manifest = engine.manifest();
    let table = params::adapter_table(&manifest.model, &manifest.adapter);
    let rates = manifest.inner_loop.learning_rate.per_tensor(table.len()).map_err(Error::Impossible)?;
    let mut losses = Vec::with_capacity(probe.losses.len());
    for _ in &probe.losses {
        losses.push(engine.adapt_step(std::slice::from_ref(&batch), &rates)?.loss);
    }
    let steps = losses.len();
    let relative =
        losses.iter().zip(&probe.losses).map(|(got, expected)| f64::from((got - expected).abs() / expected.abs()));
    let losses = Check { what: format!("adapt: losses of {steps} steps"), error: largest(relative), relative: true };
    let adapters = Check {
        what: format!("adapt: {} adapter tensors after them", table.len()),
        error: worst_tensor(&engine.adapters(), &probe.adapters_after),
        relative: true,
    };
    Ok(vec![losses, adapters])
}

/// The largest absolute difference; infinite where there are not as many values.
fn worst(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    largest(got.iter().zip(expected).map(|(got, expected)| f64::from(got - expected).abs()))
}

/// Over the samples of all tensors, the largest difference relative to the sample's largest value.
fn worst_tensor(got: &Tensors, expected: &BTreeMap<String, Vec<f32>>) -> f64 {
    largest(expected.iter().map(|(name, expected)| {
        let scale = largest(expected.iter().map(|value| f64::from(value.abs())));
        let error = got.get(name).map_or(f64::INFINITY, |got| worst(&sample(&got.values), expected));
        if error == 0.0 { 0.0 } else { error / scale }
    }))
}

/// The maximum, NaN where there is one: an error that is not a number must not look small.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values
        .fold(0.0, |largest: f64, value| if largest.is_nan() || value.is_nan() { f64::NAN } else { largest.max(value) })
}

#[cfg(test)]
mod tests {
    use marionette_models::HostTensor;

    use super::*;

    #[test]
    fn an_error_is_never_smaller_than_it_is() {
        assert_eq!(worst(&[1.0, 2.0], &[1.0, 2.5]), 0.5);
        assert_eq!(worst(&[1.0], &[1.0, 2.5]), f64::INFINITY);
        assert!(worst(&[f32::NAN, 1.0], &[1.0, 1.0]).is_nan());
        let is_good = |error| {
            let checks = vec![Check { what: String::new(), error, relative: false }];
            Parity { checks, precision: Precision::Fp32, trained: Precision::Fp32 }.is_good()
        };
        assert!(is_good(1e-4));
        assert!(!is_good(1.1e-4));
        assert!(!is_good(f64::NAN));
    }

    #[test]
    fn tensors_are_compared_each_to_its_own_scale() {
        let tensors = |small: f32, large: f32| {
            let tensor = |value| HostTensor { shape: vec![2], values: vec![value, 0.0] };
            Tensors::from([("small".into(), tensor(small)), ("large".into(), tensor(large))])
        };
        let expected =
            |small, large| BTreeMap::from([("small".into(), vec![small, 0.0]), ("large".into(), vec![large, 0.0])]);
        let error = worst_tensor(&tensors(0.011, 100.0), &expected(0.01, 100.0));
        assert!((error - 0.1).abs() < 1e-4, "{error}");
        assert_eq!(worst_tensor(&tensors(1.0, 1.0), &expected(1.0, 1.0)), 0.0);
        assert_eq!(worst_tensor(&Tensors::new(), &expected(1.0, 1.0)), f64::INFINITY);
    }
}
