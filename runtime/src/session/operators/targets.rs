//! Kernels of the log-probabilities of targets.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{in_parallel, inputs, misfit, tensor};
use crate::kernels;

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
        let values = inputs(context)?;
        let at = |index: usize| values.get(index).ok_or_else(misfit);
        let place = match self {
            Self::Forward => 0,
            Self::Gradient => 1,
        };
        let (shape, logits) = tensor::<f32>(at(place)?)?;
        let (_, targets) = tensor::<i64>(at(place + 1)?)?;
        let [rows, classes] = shape[..] else { return Err(misfit()) };
        let targets: Vec<usize> = targets.iter().filter_map(|&target| usize::try_from(target).ok()).collect();
        if classes == 0 || targets.len() != rows || targets.iter().any(|&target| target >= classes) {
            return Err(ort::Error::new("a target is no class"));
        }
        let logits = |row: usize| &logits[row * classes..(row + 1) * classes];
        match self {
            Self::Forward => {
                let mut log_probs = context.output(0, [rows as i64])?.ok_or_else(misfit)?;
                let (_, log_probs) = log_probs.try_extract_tensor_mut::<f32>()?;
                let mut sums = vec![0.0; rows];
                in_parallel(context, sums.iter_mut().zip(log_probs), |row, (sum, log_prob)| {
                    **sum = kernels::log_sum_exp(logits(row));
                    **log_prob = logits(row)[targets[row]] - **sum;
                })?;
                if let Some(mut wanted) = context.output(1, [rows as i64])? {
                    wanted.try_extract_tensor_mut::<f32>()?.1.copy_from_slice(&sums);
                }
                Ok(())
            }
            Self::Gradient => {
                let ((_, dy), (_, sums)) = (tensor::<f32>(at(0)?)?, tensor::<f32>(at(3)?)?);
                if dy.len() != rows || sums.len() != rows {
                    return Err(misfit());
                }
                let mut output = context.output(0, [rows as i64, classes as i64])?.ok_or_else(misfit)?;
                let (_, gradient) = output.try_extract_tensor_mut::<f32>()?;
                in_parallel(context, gradient.chunks_mut(classes), |row, gradient| {
                    kernels::target_log_prob_gradient(dy[row], logits(row), targets[row], sums[row], gradient);
                })
            }
        }
    }
}
