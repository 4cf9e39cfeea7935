//! Kernels for the functions of the domain `marionette` in a bundle's graphs: with them, ONNX Runtime does not execute a function's
//! body on the processor, but [`crate::kernels`].

use std::sync::Mutex;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::{PrimitiveTensorElementType, TensorElementType, ValueRef};

use crate::kernels;

mod adapter;
mod attention;
mod decoder;
#[cfg(target_arch = "x86_64")]
mod product;
mod targets;

use adapter::AddProduct;
use attention::Attention;
use decoder::{Normalization, Rotary};
use targets::TargetLogProb;

/// Enough rows for a thread to be worth waking, counted in elements.
const LEAST_SHARE: usize = 16 * 1024;

/// All our operators.
///
/// # Errors
/// ONNX Runtime refuses one.
pub(super) fn domain() -> ort::Result<OperatorDomain> {
    let domain = OperatorDomain::new("marionette")?
        .add(Rowwise::GeluGradient)?
        .add(Rowwise::LayerNormalizationGradient)?
        .add(Rowwise::RmsNormalizationGradient)?
        .add(Rowwise::SwiGlu)?
        .add(Rowwise::SwiGluGradient)?
        .add(Normalization)?
        .add(Rotary)?
        .add(AddProduct::AdapterUp)?
        .add(AddProduct::AdapterDownGradient)?
        .add(Attention::Causal)?
        .add(Attention::Branched)?
        .add(Attention::CausalGradient)?
        .add(TargetLogProb::Forward)?
        .add(TargetLogProb::Gradient)?;
    #[cfg(target_arch = "x86_64")]
    if let Some(instructions) = kernels::product::Instructions::best() {
        return product::all(instructions).into_iter().try_fold(domain, OperatorDomain::add);
    }
    Ok(domain)
}

/// What an operator says of inputs that do not fit; the graph, which is the bundle's, is wrong then.
fn misfit() -> ort::Error {
    ort::Error::new("the inputs do not fit")
}

/// The shape and values of an input.
fn tensor<'a, T: PrimitiveTensorElementType>(value: &'a ValueRef<'_>) -> ort::Result<(Vec<usize>, &'a [T])> {
    let (shape, values) = value.try_extract_tensor::<T>()?;
    Ok((shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect(), values))
}

/// Operators of f32 that compute each row of their output by itself, from the same row of their inputs.
#[derive(Debug, Clone, Copy)]
enum Rowwise {
    /// dy, x -> dx
    GeluGradient,
    /// dy, x, scale, mean, inverse deviation -> dx
    LayerNormalizationGradient,
    /// dy, x, scale, inverse root mean square -> dx
    RmsNormalizationGradient,
    /// x -> y, half as wide
    SwiGlu,
    /// dy, x -> dx
    SwiGluGradient,
}

impl Operator for Rowwise {
    type Kernel<'attr> = Self;

    fn name(&self) -> &str {
        match self {
            Self::GeluGradient => "GeluGradient",
            Self::LayerNormalizationGradient => "LayerNormalizationGradient",
            Self::RmsNormalizationGradient => "RmsNormalizationGradient",
            Self::SwiGlu => "SwiGlu",
            Self::SwiGluGradient => "SwiGluGradient",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let number = match self {
            Self::SwiGlu => 1,
            Self::GeluGradient | Self::SwiGluGradient => 2,
            Self::RmsNormalizationGradient => 4,
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
        let values = inputs(context)?;
        let inputs = values.iter().map(tensor::<f32>).collect::<ort::Result<Vec<_>>>()?;
        let last = inputs.get(1).or(inputs.first()).ok_or_else(misfit)?;
        let mut shape: Vec<i64> = last.0.iter().map(|&dim| dim as i64).collect();
        let width = last.0.last().map_or(1, |&last| last.max(1));
        if let (Self::SwiGlu, Some(last)) = (*self, shape.last_mut()) {
            *last /= 2;
        }
        let mut output = context.output(0, shape)?.ok_or_else(misfit)?;
        let (_, out) = output.try_extract_tensor_mut::<f32>()?;
        match (*self, &inputs[..]) {
            (Self::GeluGradient, [(_, dy), (_, x)]) if dy.len() == x.len() => {
                in_shares(context, width, out, |range, dx| {
                    kernels::gelu_gradient(&dy[range.clone()], &x[range], dx);
                })
            }
            (Self::LayerNormalizationGradient, [(_, dy), (_, x), (_, scale), (_, mean), (_, inverse)])
                if dy.len() == x.len()
                    && scale.len() == width
                    && mean.len() * width == x.len()
                    && inverse.len() == mean.len() =>
            {
                in_shares(context, width, out, |range, dx| {
                    let rows = range.start / width..range.end / width;
                    let statistics = [&mean[rows.clone()], &inverse[rows]];
                    kernels::layer_normalization_gradient(&dy[range.clone()], &x[range], scale, statistics, dx);
                })
            }
            (Self::RmsNormalizationGradient, [(_, dy), (_, x), (_, scale), (_, inverse)])
                if dy.len() == x.len() && scale.len() == width && inverse.len() * width == x.len() =>
            {
                in_shares(context, width, out, |range, dx| {
                    let inverse = &inverse[range.start / width..range.end / width];
                    kernels::rms_normalization_gradient(&dy[range.clone()], &x[range], scale, inverse, dx);
                })
            }
            (Self::SwiGlu, [(_, x)]) if width.is_multiple_of(2) => in_shares(context, width / 2, out, |range, y| {
                kernels::swi_glu(&x[2 * range.start..2 * range.end], width / 2, y);
            }),
            (Self::SwiGluGradient, [(_, dy), (_, x)]) if width.is_multiple_of(2) && 2 * dy.len() == x.len() => {
                in_shares(context, width, out, |range, dx| {
                    kernels::swi_glu_gradient(&dy[range.start / 2..range.end / 2], &x[range], width / 2, dx);
                })
            }
            _ => Err(misfit()),
        }
    }
}

/// All inputs, which must be there.
fn inputs<'a>(context: &'a ComputeContext) -> ort::Result<Vec<ValueRef<'a>>> {
    (0..context.num_inputs()?).map(|index| context.input(index)?.ok_or_else(misfit)).collect()
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
    in_parallel(context, output.chunks_mut(share), |index, part| {
        let start = index * share;
        compute(start..start + part.len(), part);
    })
}

/// The two dimensions of a matrix.
fn pair(shape: &[usize]) -> ort::Result<[usize; 2]> {
    shape.try_into().map_err(|_| misfit())
}

/// Lets ONNX Runtime's threads compute the shares of an output; `compute` gets a share's number and the share.
fn in_parallel<T: Send>(
    context: &ComputeContext,
    shares: impl Iterator<Item = T>,
    compute: impl Fn(usize, &mut T) + Send + Sync,
) -> ort::Result<()> {
    let shares: Vec<Mutex<T>> = shares.map(Mutex::new).collect();
    if shares.is_empty() {
        return Ok(());
    }
    context.par_for(shares.len(), 0, |index| {
        // Each share is asked for once: no thread waits.
        if let Some(Ok(mut share)) = shares.get(index).map(Mutex::lock) {
            compute(index, &mut share);
        }
    })
}
