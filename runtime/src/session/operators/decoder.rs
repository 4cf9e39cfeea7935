//! Kernels of root mean square normalisation and of rotary positions.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{LEAST_SHARE, in_parallel, in_shares, inputs, misfit, tensor};
use crate::kernels;

/// x, scale -> y, inverse root mean square
#[derive(Debug, Clone, Copy)]
pub(super) struct Normalization;

/// ε.
pub(super) struct NormalizationKernel(f32);

impl Operator for Normalization {
    type Kernel<'attr> = NormalizationKernel;

    fn name(&self) -> &str {
        "RmsNormalization"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(TensorElementType::Float32), OperatorInput::required(TensorElementType::Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        // Nothing needs the second where there is no gradient.
        [OperatorOutput::required(TensorElementType::Float32), OperatorOutput::optional(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<NormalizationKernel> {
        let epsilon = context.get::<f32>("epsilon").ok_or_else(|| ort::Error::new("epsilon is missing"))?;
        Ok(NormalizationKernel(epsilon))
    }
}

impl Kernel for NormalizationKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let values = inputs(context)?;
        let inputs = values.iter().map(tensor::<f32>).collect::<ort::Result<Vec<_>>>()?;
        let [(shape, x), (_, scale)] = &inputs[..] else { return Err(misfit()) };
        let width = scale.len().max(1);
        let Some((&last, rest)) = shape.split_last() else { return Err(misfit()) };
        if last != width {
            return Err(misfit());
        }
        let dims = |last: usize| rest.iter().chain([&last]).map(|&dim| dim as i64).collect::<Vec<_>>();
        let mut y = context.output(0, dims(width))?.ok_or_else(misfit)?;
        let mut statistics = context.output(1, dims(1))?;
        let mut unwanted = Vec::new();
        let inverse = match &mut statistics {
            Some(statistics) => statistics.try_extract_tensor_mut::<f32>()?.1,
            None => {
                unwanted.resize(x.len() / width, 0.0);
                &mut unwanted[..]
            }
        };
        let rows = LEAST_SHARE.div_ceil(width);
        let shares = y.try_extract_tensor_mut::<f32>()?.1.chunks_mut(rows * width).zip(inverse.chunks_mut(rows));
        in_parallel(context, shares, |index, (y, inverse)| {
            let start = index * rows * width;
            kernels::rms_normalization(&x[start..start + y.len()], scale, self.0, y, inverse);
        })
    }
}

/// x, cosines, sines -> y, of which the first heads are turned
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotary;

/// How many heads are turned.
pub(super) struct RotaryKernel(usize);

impl Operator for Rotary {
    type Kernel<'attr> = RotaryKernel;

    fn name(&self) -> &str {
        "Rotary"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        (0..3).map(|_| OperatorInput::required(TensorElementType::Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<RotaryKernel> {
        let heads = context.get::<i64>("num_heads").and_then(|heads| usize::try_from(heads).ok());
        heads.map(RotaryKernel).ok_or_else(|| ort::Error::new("num_heads is missing"))
    }
}

impl Kernel for RotaryKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let values = inputs(context)?;
        let inputs = values.iter().map(tensor::<f32>).collect::<ort::Result<Vec<_>>>()?;
        let [(shape, x), (angles, cosines), (_, sines)] = &inputs[..] else { return Err(misfit()) };
        let (Some(&width), Some(&half)) = (shape.last(), angles.last()) else { return Err(misfit()) };
        let turned = 2 * half * self.0;
        // One angle for each token of a row, or of all rows.
        let (tokens, known) = (x.len() / width.max(1), cosines.len() / half.max(1));
        if half == 0 || turned > width || sines.len() != cosines.len() || known == 0 || tokens % known != 0 {
            return Err(misfit());
        }
        let mut output =
            context.output(0, shape.iter().map(|&dim| dim as i64).collect::<Vec<_>>())?.ok_or_else(misfit)?;
        in_shares(context, width, output.try_extract_tensor_mut::<f32>()?.1, |range, y| {
            let rows = x[range.clone()].chunks_exact(width).zip(y.chunks_exact_mut(width));
            for (token, (x, y)) in (range.start / width..).zip(rows) {
                let place = token % known * half;
                let (cosines, sines) = (&cosines[place..place + half], &sines[place..place + half]);
                kernels::rotate(&x[..turned], cosines, sines, &mut y[..turned]);
                y[turned..].copy_from_slice(&x[turned..]);
            }
        })
    }
}
