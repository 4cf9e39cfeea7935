//! Whether a device computes what the processor does: losses and gradients of one persona on both.

use std::fmt;

use marionette_models::checkpoint::BaseFiles;
use marionette_models::params::TensorSpec;
use tch::{Device, Kind, Tensor};

use super::begin::{begin, encoder, read_personas};
use super::config::Config;
use super::options::Precision;
use super::tasks::{Draw, Tasks};
use crate::error::{Result, TrainError};
use crate::inner;
use crate::tensors::TokenBatch;

/// A device beside the processor, on one batch of one persona.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceCheck {
    /// The device and what it computes products in.
    pub device: String,
    /// The loss in fp32 on the processor, in nats a token.
    pub expected_loss: f64,
    /// The loss on the device.
    pub loss: f64,
    /// ‖g − g′‖ / ‖g‖ over all tensors, g being the gradient on the processor.
    pub gradient_error: f64,
    /// The tensor whose gradient differs the most, and by how much, relative to its own norm.
    pub worst: (String, f64),
    /// The same for the outer gradient, through the inner loop.
    pub outer_error: f64,
    /// What the errors may be.
    pub most: f64,
}

impl fmt::Display for DeviceCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, expected_loss, loss, gradient_error, worst: (name, worst), outer_error, most } = self;
        writeln!(f, "{device} against fp32 on the CPU")?;
        writeln!(f, "  loss            {loss:.6} against {expected_loss:.6}")?;
        writeln!(f, "  gradient        relative error {gradient_error:.1e}, worst {worst:.1e} in {name}")?;
        write!(f, "  outer gradient  relative error {outer_error:.1e} (at most {most:.0e} are expected)")
    }
}

/// What one device computes.
struct Computed {
    loss: f64,
    gradient: Vec<Tensor>,
    outer: Vec<Tensor>,
}

/// Computes the loss and the gradients of the first training persona on the device of `config`, and in fp32 on the
/// processor.
///
/// # Errors
/// As a run; and [`TrainError::Device`] where they differ by more than rounding explains.
pub fn check_device(config: &Config, base: &BaseFiles, device: Device) -> Result<DeviceCheck> {
    let (personas, _) = read_personas(config, &encoder(config, &base.config)?)?;
    let compute = |device: Device, kind: Kind| -> Result<(Computed, Vec<TensorSpec>)> {
        let (model, mut start) = begin(config, base, device, kind)?;
        // Where up-projections are zero, half of the gradients are too.
        for (index, tensor) in start.iter_mut().enumerate() {
            tch::manual_seed(index as i64);
            let noise = Tensor::f_randn(tensor.size(), (Kind::Float, Device::Cpu))?.f_mul_scalar(0.01)?;
            *tensor = tensor.f_add(&noise.f_to_device(device)?)?;
        }
        let rates = config.model.inner_loop.learning_rate.per_tensor(model.table().len());
        let rates = rates.map_err(|problem| TrainError::option("--inner-lr", problem))?;
        let persona = personas.first().ok_or_else(|| TrainError::option("--data", "holds no persona"))?;
        let examples: Vec<_> = persona.windows().take(2).collect();
        let batch = TokenBatch::of(&examples, 0, device)?;
        let (loss, gradient) = inner::loss_and_gradient(&model, &start, &batch)?;
        let order = (0..persona.dialogues.len()).collect();
        let draw = Draw { number: 1, persona, order, turn: 0 };
        let (outer, _) = Tasks { config }.learn(&model, &start, &rates, &draw)?;
        Ok((Computed { loss, gradient, outer: outer.gradient }, model.table().to_vec()))
    };
    let kind = config.outer.precision.kind();
    let (expected, table) = compute(Device::Cpu, Kind::Float)?;
    let (found, _) = compute(device, kind)?;
    let mut worst = (String::new(), 0.0);
    for ((spec, expected), found) in table.iter().zip(&expected.gradient).zip(&found.gradient) {
        let error = relative(std::slice::from_ref(expected), std::slice::from_ref(found))?;
        if error > worst.1 {
            worst = (spec.name.clone(), error);
        }
    }
    let name = if device.is_cuda() { "cuda" } else { "cpu" };
    let (most, word) = match config.outer.precision {
        Precision::Fp32 => (1e-3, "fp32"),
        // 8 significant bits, and sums over a dozen layers.
        Precision::Bf16 => (1e-1, "bf16"),
    };
    let check = DeviceCheck {
        device: format!("{word} on {name}"),
        expected_loss: expected.loss,
        loss: found.loss,
        gradient_error: relative(&expected.gradient, &found.gradient)?,
        worst,
        outer_error: relative(&expected.outer, &found.outer)?,
        most,
    };
    let same = (check.loss - check.expected_loss).abs() <= most * check.expected_loss.abs();
    if same && check.gradient_error <= most && check.outer_error <= most {
        return Ok(check);
    }
    let problem = format!("it does not compute what the processor does: {check}").replace('\n', ";");
    let remedy = "try --precision fp32, or another driver or device";
    Err(TrainError::Device { device: name, problem, remedy })
}

/// ‖expected − found‖ / ‖expected‖ over all tensors; 0 where both are 0.
fn relative(expected: &[Tensor], found: &[Tensor]) -> Result<f64> {
    let (mut difference, mut whole) = (0.0, 0.0);
    for (expected, found) in expected.iter().zip(found) {
        let found = found.f_to_device(Device::Cpu)?.f_to_kind(expected.kind())?;
        let norm =
            |tensor: &Tensor| -> Result<f64> { Ok(tensor.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?) };
        difference += norm(&expected.f_sub(&found)?)?;
        whole += norm(expected)?;
    }
    Ok(if difference == 0.0 { 0.0 } else { (difference / whole).sqrt() })
}
