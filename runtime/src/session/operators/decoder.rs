//! Kernels of root mean square normalisation and of rotary positions.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{Inputs, LEAST_SHARE, in_parallel, in_shares, output, refused, room};
use crate::kernels;
use crate::kernels::shapes::{self, Turned};

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
        let epsilon =
            context.get::<f32>("epsilon").ok_or_else(|| ort::Error::new("the attribute epsilon is missing"))?;
        Ok(NormalizationKernel(epsilon))
    }
}

impl Kernel for NormalizationKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = Inputs::of(context)?;
        let (all, statistics) = shapes::rms_normalization(&inputs.shapes()?).map_err(refused)?;
        let mut y = output(context, 0, &all.output)?;
        let mut statistics = context.output(1, statistics)?;
        if all.is_empty() {
            return Ok(());
        }
        let width = all.width;
        let (x, scale) = (inputs.values::<f32>(0)?, inputs.values::<f32>(1)?);
        let mut unwanted: Vec<f32>;
        let inverse = match &mut statistics {
            Some(statistics) => statistics.try_extract_tensor_mut::<f32>()?.1,
            None => {
                unwanted = room(all.rows)?;
                unwanted.resize(all.rows, 0.0);
                &mut unwanted[..]
            }
        };
        let rows = LEAST_SHARE.div_ceil(width);
        let shares = y.try_extract_tensor_mut::<f32>()?.1.chunks_mut(rows * width).zip(inverse.chunks_mut(rows));
        in_parallel(context, shares, |index, (y, inverse)| {
            let start = index * rows * width;
            kernels::norm::rms_normalization(&x[start..start + y.len()], scale, self.0, y, inverse);
        })
    }
}

/// x, cosines, sines -> y, of which the first heads are turned
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotary;

/// How many heads are turned.
pub(super) struct RotaryKernel(i64);

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
        let heads = context.get::<i64>("num_heads");
        heads.map(RotaryKernel).ok_or_else(|| ort::Error::new("the attribute num_heads is missing"))
    }
}

impl Kernel for RotaryKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = Inputs::of(context)?;
        let Turned { rows, turned, half, known } = shapes::rotary(self.0, &inputs.shapes()?).map_err(refused)?;
        let mut output = output(context, 0, &rows.output)?;
        if rows.is_empty() {
            return Ok(());
        }
        let width = rows.width;
        let values = |index| inputs.values::<f32>(index);
        let (x, cosines, sines) = (values(0)?, values(1)?, values(2)?);
        in_shares(context, width, output.try_extract_tensor_mut::<f32>()?.1, |range, y| {
            let rows = x[range.clone()].chunks_exact(width).zip(y.chunks_exact_mut(width));
            for (token, (x, y)) in (range.start / width..).zip(rows) {
                let place = token % known * half;
                let (cosines, sines) = (&cosines[place..place + half], &sines[place..place + half]);
                kernels::rotary::rotate(&x[..turned], cosines, sines, &mut y[..turned]);
                y[turned..].copy_from_slice(&x[turned..]);
            }
        })
    }
}
