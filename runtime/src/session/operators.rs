//! Kernels for the functions of the domain `marionette` in a bundle's graphs: with them, ONNX Runtime does not execute a function's
//! body on the processor, but [`crate::kernels`].

use std::sync::Mutex;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use crate::kernels;

/// Enough rows for a thread to be worth waking, counted in elements.
const LEAST_SHARE: usize = 16 * 1024;

/// All our operators.
///
/// # Errors
/// ONNX Runtime refuses one.
pub(super) fn domain() -> ort::Result<OperatorDomain> {
    OperatorDomain::new("marionette")?.add(Rowwise::GeluGradient)?.add(Rowwise::LayerNormalizationGradient)
}

/// Operators of f32 that compute each row of their output by itself, from the same row of their inputs.
#[derive(Debug, Clone, Copy)]
enum Rowwise {
    /// dy, x -> dx
    GeluGradient,
    /// dy, x, scale, mean, inverse deviation -> dx
    LayerNormalizationGradient,
}

impl Operator for Rowwise {
    type Kernel<'attr> = Self;

    fn name(&self) -> &str {
        match self {
            Self::GeluGradient => "GeluGradient",
            Self::LayerNormalizationGradient => "LayerNormalizationGradient",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let number = match self {
            Self::GeluGradient => 2,
            Self::LayerNormalizationGradient => 5,
        };
        (0..number).map(|_| OperatorInput::required(TensorElementType::Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self> {
        Ok(*self)
    }
}

impl Kernel for Rowwise {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("an input is missing");
        let values = (0..context.num_inputs()?)
            .map(|index| context.input(index)?.ok_or_else(missing))
            .collect::<ort::Result<Vec<_>>>()?;
        let inputs = values.iter().map(|value| value.try_extract_tensor::<f32>()).collect::<ort::Result<Vec<_>>>()?;
        let [(_, dy), (shape, x), rest @ ..] = &inputs[..] else { return Err(missing()) };
        let mut output = context.output(0, shape.to_vec())?.ok_or_else(missing)?;
        let (_, dx) = output.try_extract_tensor_mut::<f32>()?;
        let width = shape.last().map_or(1, |&last| (last as usize).max(1));
        if dy.len() != x.len() || dx.len() != x.len() {
            return Err(ort::Error::new("the shapes differ"));
        }
        match (*self, rest) {
            (Self::GeluGradient, []) => in_shares(context, width, dx, |range, dx| {
                kernels::gelu_gradient(&dy[range.clone()], &x[range], dx);
            }),
            (Self::LayerNormalizationGradient, [(_, scale), (_, mean), (_, inverse)])
                if scale.len() == width && mean.len() * width == x.len() && inverse.len() == mean.len() =>
            {
                in_shares(context, width, dx, |range, dx| {
                    let rows = range.start / width..range.end / width;
                    let statistics = [&mean[rows.clone()], &inverse[rows]];
                    kernels::layer_normalization_gradient(&dy[range.clone()], &x[range], scale, statistics, dx);
                })
            }
            _ => Err(ort::Error::new("the shapes do not fit")),
        }
    }
}

/// Cuts the rows of an output into shares and lets ONNX Runtime's threads compute them; `compute` gets the range of a share's
/// elements, and the share.
fn in_shares(
    context: &ComputeContext,
    width: usize,
    output: &mut [f32],
    compute: impl Fn(std::ops::Range<usize>, &mut [f32]) + Send + Sync,
) -> ort::Result<()> {
    let share = LEAST_SHARE.div_ceil(width) * width;
    let shares: Vec<Mutex<&mut [f32]>> = output.chunks_mut(share).map(Mutex::new).collect();
    context.par_for(shares.len(), 0, |index| {
        // Each share is asked for once: no thread waits.
        if let Some(Ok(mut part)) = shares.get(index).map(Mutex::lock) {
            let start = index * share;
            compute(start..start + part.len(), &mut part);
        }
    })
}
