//! Kernels of the log-probabilities of targets.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{Inputs, in_parallel, output, refused, room};
use crate::kernels;
use crate::kernels::shapes::{self, Logits};

/// The log-probability of one class of each row of logits.
#[derive(Debug, Clone, Copy)]
pub(super) enum TargetLogProb {
    /// logits, targets -> log-probabilities, logarithms of sums
    Forward,
    /// dy, logits, targets, logarithms of sums -> dlogits
    Gradient,
}

impl Operator for TargetLogProb {
    type Kernel<'attr> = Self;

    fn name(&self) -> &str {
        match self {
            Self::Forward => "TargetLogProb",
            Self::Gradient => "TargetLogProbGradient",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float32, Int64};
        let types: &[TensorElementType] = match self {
            Self::Forward => &[Float32, Int64],
            Self::Gradient => &[Float32, Float32, Int64, Float32],
        };
        types.iter().map(|&element| OperatorInput::required(element))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let first = OperatorOutput::required(TensorElementType::Float32);
        let sums = OperatorOutput::optional(TensorElementType::Float32);
        [first].into_iter().chain(matches!(self, Self::Forward).then_some(sums))
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self> {
        Ok(*self)
    }
}

impl Kernel for TargetLogProb {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = Inputs::of(context)?;
        let given = inputs.shapes()?;
        let (all, place) = match self {
            Self::Forward => (shapes::target_log_prob(&given).map_err(refused)?, 0),
            Self::Gradient => (shapes::target_log_prob_gradient(&given).map_err(refused)?, 1),
        };
        let Logits { rows, classes } = all;
        let dims = match self {
            Self::Forward => vec![rows as i64],
            Self::Gradient => vec![rows as i64, classes as i64],
        };
        let mut output = output(context, 0, &dims)?;
        let sums = if matches!(self, Self::Forward) { context.output(1, dims)? } else { None };
        if all.is_empty() {
            return Ok(());
        }
        let (logits, given) = (inputs.values::<f32>(place)?, inputs.values::<i64>(place + 1)?);
        let logits = |row: usize| &logits[row * classes..(row + 1) * classes];
        let mut targets: Vec<usize> = room(rows)?;
        targets.extend(given.iter().filter_map(|&target| usize::try_from(target).ok().filter(|&t| t < classes)));
        if targets.len() != rows {
            return Err(ort::Error::new("a target is no class"));
        }
        let (_, out) = output.try_extract_tensor_mut::<f32>()?;
        match self {
            Self::Forward => {
                let mut log_sums = room(rows)?;
                log_sums.resize(rows, 0.0);
                in_parallel(context, log_sums.iter_mut().zip(out), |row, (sum, log_prob)| {
                    **sum = kernels::logits::log_sum_exp(logits(row));
                    **log_prob = logits(row)[targets[row]] - **sum;
                })?;
                if let Some(mut wanted) = sums {
                    wanted.try_extract_tensor_mut::<f32>()?.1.copy_from_slice(&log_sums);
                }
                Ok(())
            }
            Self::Gradient => {
                let (dy, sums) = (inputs.values::<f32>(0)?, inputs.values::<f32>(3)?);
                in_parallel(context, out.chunks_mut(classes), |row, gradient| {
                    kernels::logits::target_log_prob_gradient(dy[row], logits(row), targets[row], sums[row], gradient);
                })
            }
        }
    }
}
