//! Initial values of the tensors of a table.

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, StandardNormal};

use crate::params::{HostTensor, Init, TensorSpec, Tensors};

/// Fresh tensors, drawn in the order of the table.
pub fn initialise(table: &[TensorSpec], rng: &mut ChaCha8Rng) -> Tensors {
    let fresh = |spec: &TensorSpec, rng: &mut ChaCha8Rng| {
        let values = match spec.init {
            Init::Zeros => vec![0.0; spec.len()],
            Init::Ones => vec![1.0; spec.len()],
            Init::Normal { std } => normal(spec.len(), std, rng),
        };
        HostTensor { shape: spec.shape.clone(), values }
    };
    table.iter().map(|spec| (spec.name.clone(), fresh(spec, rng))).collect()
}

/// `count` normal values with mean zero.
fn normal(count: usize, std: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    StandardNormal.sample_iter(rng).take(count).map(|value: f32| value * std).collect()
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng as _;

    use super::*;

    #[test]
    fn normal_values_have_their_moments_and_repeat() {
        let draw = || normal(100_001, 0.5, &mut ChaCha8Rng::seed_from_u64(7));
        let values = draw();
        assert_eq!(values, draw());
        let moment = |power: i32| values.iter().map(|&v| f64::from(v).powi(power)).sum::<f64>() / values.len() as f64;
        // The mean, variance and fourth moment (3 σ⁴) of a normal distribution, within some five standard errors.
        assert!(moment(1).abs() < 0.01, "{}", moment(1));
        assert!((moment(2) - 0.25).abs() < 0.006, "{}", moment(2));
        assert!((moment(4) - 3.0 * 0.0625).abs() < 0.01, "{}", moment(4));
    }
}
