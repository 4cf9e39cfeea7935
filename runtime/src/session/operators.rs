//! Kernels for the functions of the domain `marionette` in a bundle's graphs: with them, ONNX Runtime does not execute a function's
//! body on the processor, but [`crate::kernels`].

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use crate::kernels::{self, shapes};

mod adapter;
mod attention;
mod block;
mod decoder;
mod guard;
mod product;
mod targets;

use adapter::{AddProduct, RowAdapters};
use attention::Attention;
use decoder::{Normalization, Rotary};
use guard::{Guarded, Inputs, failed, output, par_for, refused, room};
use targets::TargetLogProb;

/// Enough rows for a thread to be worth waking, counted in elements.
const LEAST_SHARE: usize = 16 * 1024;

/// All our operators, for sessions of so many threads within an operator; one a core where nobody says.
///
/// # Errors
/// ONNX Runtime refuses one.
pub(super) fn domain(threads: Option<NonZeroUsize>) -> ort::Result<OperatorDomain> {
    let domain = OperatorDomain::new("marionette")?
        .add(Guarded(Rowwise::GeluGradient))?
        .add(Guarded(Rowwise::LayerNormalizationGradient))?
        .add(Guarded(Rowwise::RmsNormalizationGradient))?
        .add(Guarded(Rowwise::SwiGlu))?
        .add(Guarded(Rowwise::SwiGluGradient))?
        .add(Guarded(Normalization))?
        .add(Guarded(Rotary))?
        .add(Guarded(AddProduct::AdapterUp))?
        .add(Guarded(AddProduct::AdapterDownGradient))?
        .add(Guarded(RowAdapters))?
        .add(Guarded(Attention::Causal))?
        .add(Guarded(Attention::Branched))?
        .add(Guarded(Attention::CausalGradient))?
        .add(Guarded(TargetLogProb::Forward))?
        .add(Guarded(TargetLogProb::Gradient))?;
    let instructions = kernels::product::Instructions::best();
    if instructions.is_portable() {
        // ONNX Runtime's are made for such a processor, and ours were not measured beside them.
        return Ok(domain);
    }
    let threads = threads.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let domain = block::all(instructions, threads).into_iter().map(Guarded).try_fold(domain, OperatorDomain::add)?;
    product::all(instructions).into_iter().map(Guarded).try_fold(domain, OperatorDomain::add)
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
        let inputs = Inputs::of(context)?;
        let given = inputs.shapes()?;
        let rows = match self {
            Self::GeluGradient => shapes::gelu_gradient(&given),
            Self::LayerNormalizationGradient => shapes::layer_normalization_gradient(&given),
            Self::RmsNormalizationGradient => shapes::rms_normalization_gradient(&given),
            Self::SwiGlu => shapes::swi_glu(&given),
            Self::SwiGluGradient => shapes::swi_glu_gradient(&given),
        }
        .map_err(refused)?;
        let mut output = output(context, 0, &rows.output)?;
        if rows.is_empty() {
            return Ok(());
        }
        let width = rows.width;
        let values = |index| inputs.values::<f32>(index);
        let (_, out) = output.try_extract_tensor_mut::<f32>()?;
        match self {
            Self::GeluGradient => {
                let (dy, x) = (values(0)?, values(1)?);
                in_shares(context, width, out, |range, dx| {
                    kernels::mlp::gelu_gradient(&dy[range.clone()], &x[range], dx);
                })
            }
            Self::LayerNormalizationGradient => {
                let (dy, x, scale, mean, inverse) = (values(0)?, values(1)?, values(2)?, values(3)?, values(4)?);
                in_shares(context, width, out, |range, dx| {
                    let rows = range.start / width..range.end / width;
                    let statistics = [&mean[rows.clone()], &inverse[rows]];
                    kernels::norm::layer_normalization_gradient(&dy[range.clone()], &x[range], scale, statistics, dx);
                })
            }
            Self::RmsNormalizationGradient => {
                let (dy, x, scale, inverse) = (values(0)?, values(1)?, values(2)?, values(3)?);
                in_shares(context, width, out, |range, dx| {
                    let inverse = &inverse[range.start / width..range.end / width];
                    kernels::norm::rms_normalization_gradient(&dy[range.clone()], &x[range], scale, inverse, dx);
                })
            }
            Self::SwiGlu => {
                let x = values(0)?;
                in_shares(context, width, out, |range, y| {
                    kernels::mlp::swi_glu(&x[2 * range.start..2 * range.end], width, y);
                })
            }
            Self::SwiGluGradient => {
                let (dy, x) = (values(0)?, values(1)?);
                in_shares(context, width, out, |range, dx| {
                    kernels::mlp::swi_glu_gradient(&dy[range.start / 2..range.end / 2], &x[range], width / 2, dx);
                })
            }
        }
    }
}

/// Cuts the rows of an output into shares and lets ONNX Runtime's threads compute them; `compute` gets the range of a share's
/// elements, and the share.
fn in_shares(
    context: &ComputeContext,
    width: usize,
    output: &mut [f32],
    compute: impl Fn(Range<usize>, &mut [f32]) + Send + Sync,
) -> ort::Result<()> {
    let share = LEAST_SHARE.div_ceil(width) * width;
    in_parallel(context, output.chunks_mut(share), |index, part| {
        let start = index * share;
        compute(start..start + part.len(), part);
    })
}

/// Lets ONNX Runtime's threads compute the shares of an output; `compute` gets a share's number and the share.
fn in_parallel<T: Send>(
    context: &ComputeContext,
    shares: impl ExactSizeIterator<Item = T>,
    compute: impl Fn(usize, &mut T) + Send + Sync,
) -> ort::Result<()> {
    let mut all: Vec<Mutex<T>> = room(shares.len())?;
    all.extend(shares.map(Mutex::new));
    kernels::each_share(&all, |number, calls| par_for(context, number, calls), compute)
}

#[cfg(test)]
mod tests;
