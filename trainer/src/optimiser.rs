//! The outer optimiser: Adam, with decoupled weight decay where it is asked for.

use tch::{Tensor, no_grad};

use crate::error::Result;

/// The constants of Adam.
#[derive(Debug, Clone, Copy)]
pub struct Adam {
    /// β₁, the decay of the first moment.
    pub beta_1: f64,
    /// β₂, the decay of the second moment.
    pub beta_2: f64,
    /// ε, added to the root of the second moment.
    pub epsilon: f64,
}

/// Adam's state for some parameters (Kingma & Ba 2015, algorithm 1; the decay as Loshchilov & Hutter 2019, algorithm 2).
#[derive(Debug)]
pub struct AdamState {
    settings: Adam,
    /// m, one a parameter.
    first: Vec<Tensor>,
    /// v, one a parameter.
    second: Vec<Tensor>,
    /// The weight decay, one a parameter.
    decay: Vec<f64>,
    steps: i32,
}

impl AdamState {
    /// The state before the first step. `decay` says the weight decay of each parameter.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(settings: Adam, parameters: &[Tensor], decay: impl Fn(&Tensor) -> f64) -> Result<Self> {
        let zeros = || parameters.iter().map(|p| Ok(p.f_detach()?.f_zeros_like()?)).collect::<Result<Vec<_>>>();
        Ok(Self {
            settings,
            first: zeros()?,
            second: zeros()?,
            decay: parameters.iter().map(decay).collect(),
            steps: 0,
        })
    }

    /// The state after `steps` steps, without weight decay.
    pub fn resume(settings: Adam, first: Vec<Tensor>, second: Vec<Tensor>, steps: i32) -> Self {
        let decay = vec![0.0; first.len()];
        Self { settings, first, second, decay, steps }
    }

    /// The first and second moment of each parameter.
    pub fn moments(&self) -> impl Iterator<Item = (&Tensor, &Tensor)> {
        self.first.iter().zip(&self.second)
    }

    /// Steps done.
    pub fn steps(&self) -> i32 {
        self.steps
    }

    /// One step in place: p ← p − η (m̂ / (√v̂ + ε) + λ p), with one gradient and one η a parameter.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn step(
        &mut self,
        parameters: &mut [Tensor],
        gradients: &[Tensor],
        learning_rate: impl Fn(usize) -> f64,
    ) -> Result<()> {
        let Adam { beta_1, beta_2, epsilon } = self.settings;
        self.steps += 1;
        let (correction_1, correction_2) = (1.0 - beta_1.powi(self.steps), 1.0 - beta_2.powi(self.steps));
        let moments = self.first.iter_mut().zip(&mut self.second);
        no_grad(|| {
            for (index, (((parameter, gradient), (first, second)), decay)) in
                parameters.iter_mut().zip(gradients).zip(moments).zip(&self.decay).enumerate()
            {
                let learning_rate = learning_rate(index);
                let _ = first.f_lerp_(gradient, 1.0 - beta_1)?;
                let _ = second.f_lerp_(&gradient.f_square()?, 1.0 - beta_2)?;
                let root = (second.f_sqrt()? / correction_2.sqrt()).f_add_scalar_(epsilon)?;
                let update = first.f_div(&root)?.f_mul_scalar_(learning_rate / correction_1)?;
                if *decay > 0.0 {
                    let _ = parameter.f_mul_scalar_(1.0 - learning_rate * decay)?;
                }
                let _ = parameter.f_sub_(&update)?;
            }
            Ok(())
        })
    }
}

/// The L2 norm over all values of all tensors.
///
/// # Errors
/// What libtorch says.
pub fn global_norm(tensors: &[Tensor]) -> Result<f64> {
    let squares = tensors.iter().map(|tensor| Ok(tensor.f_square()?.f_sum(tch::Kind::Double)?));
    let squares = squares.collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&squares, 0)?.f_sum(None)?.f_double_value(&[])?.sqrt())
}

/// Scales the gradients down to a global norm of at most `most` (Pascanu et al. 2013, algorithm 1), and gives the norm
/// they had.
///
/// # Errors
/// What libtorch says.
pub fn clip(gradients: &mut [Tensor], most: f64) -> Result<f64> {
    let norm = global_norm(gradients)?;
    if norm > most {
        for gradient in gradients {
            let _ = gradient.f_mul_scalar_(most / norm)?;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_worked_by_hand() {
        let settings = Adam { beta_1: 0.9, beta_2: 0.99, epsilon: 0.0 };
        let mut parameters = [Tensor::from_slice(&[1.0_f64, 2.0])];
        let mut state = AdamState::new(settings, &parameters, |_| 0.0).unwrap();
        // The first step is η sign(g), whatever g is.
        state.step(&mut parameters, &[Tensor::from_slice(&[4.0_f64, -0.5])], |_| 0.1).unwrap();
        let expected = Tensor::from_slice(&[0.9_f64, 2.1]);
        assert!((&parameters[0] - expected).abs().max().double_value(&[]) < 1e-12);
        // Then g = 0: m̂ = 0.09 · 4 / 0.19, v̂ = 0.0099 · 16 / 0.0199 for the first value.
        state.step(&mut parameters, &[Tensor::from_slice(&[0.0_f64, 0.0])], |_| 0.1).unwrap();
        let update = 0.1 * (0.09 * 4.0 / 0.19) / (0.0099_f64 * 16.0 / 0.0199).sqrt();
        assert!((parameters[0].double_value(&[0]) - (0.9 - update)).abs() < 1e-12);
    }

    #[test]
    fn decay_is_decoupled() {
        let mut parameters = [Tensor::from_slice(&[2.0_f64])];
        let settings = Adam { beta_1: 0.9, beta_2: 0.99, epsilon: 1e-8 };
        let mut state = AdamState::new(settings, &parameters, |_| 0.5).unwrap();
        state.step(&mut parameters, &[Tensor::from_slice(&[0.0_f64])], |_| 0.1).unwrap();
        assert!((parameters[0].double_value(&[0]) - 2.0 * (1.0 - 0.1 * 0.5)).abs() < 1e-12);
    }

    #[test]
    fn clipping_scales_all_by_one_factor() {
        let mut gradients = [Tensor::from_slice(&[3.0_f64]), Tensor::from_slice(&[0.0_f64, 4.0])];
        assert!((clip(&mut gradients, 2.0).unwrap() - 5.0).abs() < 1e-12);
        assert!((gradients[0].double_value(&[0]) - 1.2).abs() < 1e-12);
        assert!((gradients[1].double_value(&[1]) - 1.6).abs() < 1e-12);
        assert!((clip(&mut gradients, 2.0).unwrap() - 2.0).abs() < 1e-12);
    }
}
