//! Kernels for the functions of the domain `marionette` in a bundle's graphs: with them, ONNX Runtime does not execute a function's
//! body on the processor, but [`crate::kernels`].

use std::cell::RefCell;
use std::sync::Mutex;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::{PrimitiveTensorElementType, TensorElementType, ValueRef};

use crate::kernels;
use crate::kernels::adapter::{self, Narrow};
use crate::kernels::attention::{self, Head};

#[cfg(target_arch = "x86_64")]
mod product;

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
        .add(AddProduct::AdapterUp)?
        .add(AddProduct::AdapterDownGradient)?
        .add(Attention::Causal)?
        .add(Attention::Branched)?
        .add(Attention::CausalGradient)?
        .add(TargetLogProb::Forward)?
        .add(TargetLogProb::Gradient)?;
    #[cfg(target_arch = "x86_64")]
    if kernels::product::is_supported() {
        return product::all().into_iter().try_fold(domain, OperatorDomain::add);
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
        let values = inputs(context)?;
        let inputs = values.iter().map(tensor::<f32>).collect::<ort::Result<Vec<_>>>()?;
        let [(_, dy), (shape, x), rest @ ..] = &inputs[..] else { return Err(misfit()) };
        let mut output =
            context.output(0, shape.iter().map(|&dim| dim as i64).collect::<Vec<_>>())?.ok_or_else(misfit)?;
        let (_, dx) = output.try_extract_tensor_mut::<f32>()?;
        let width = shape.last().map_or(1, |&last| last.max(1));
        if dy.len() != x.len() || dx.len() != x.len() {
            return Err(misfit());
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

thread_local! {
    /// Kept, since fresh memory costs more than laying out does.
    static NARROW: RefCell<Narrow> = RefCell::default();
}

/// The ends of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddProduct {
    /// hidden, weight, bias, x, residual -> y
    AdapterUp,
    /// dz, weight, dy -> dx
    AdapterDownGradient,
}

impl Operator for AddProduct {
    type Kernel<'attr> = Self;

    fn name(&self) -> &str {
        match self {
            Self::AdapterUp => "AdapterUp",
            Self::AdapterDownGradient => "AdapterDownGradient",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let number = if *self == Self::AdapterUp { 5 } else { 3 };
        (0..number).map(|_| OperatorInput::required(TensorElementType::Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self> {
        Ok(*self)
    }
}

impl Kernel for AddProduct {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        /// Rows of a share, and columns where there is one row.
        const ROWS: usize = 32;
        const COLUMNS: usize = 128;
        let values = inputs(context)?;
        let inputs = values.iter().map(tensor::<f32>).collect::<ort::Result<Vec<_>>>()?;
        let is_up = *self == Self::AdapterUp;
        let [(a_shape, a), (b_shape, b), rest @ .., (shape, _)] = &inputs[..] else { return Err(misfit()) };
        let ([rows, depth], [_, width]) = (pair(a_shape)?, pair(shape)?);
        let bias = if is_up { rest.first().map(|(_, bias)| *bias) } else { None };
        let addends: Vec<&[f32]> = inputs[2 + usize::from(is_up)..].iter().map(|(_, addend)| *addend).collect();
        let fits = pair(b_shape)? == if is_up { [depth, width] } else { [width, depth] }
            && bias.is_none_or(|bias| bias.len() == width)
            && addends.iter().all(|addend| addend.len() == rows * width);
        if !fits || depth * width == 0 {
            return Err(misfit());
        }
        let mut output = context.output(0, [rows as i64, width as i64])?.ok_or_else(misfit)?;
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        if rows == 1 && is_up {
            return in_parallel(context, y.chunks_mut(COLUMNS), |index, y| {
                let (first, count) = (index * COLUMNS, y.len());
                let addends = bias.iter().chain(&addends).map(|addend| &addend[first..first + count]);
                adapter::add_product_of_one(a, b, first, width, &addends.collect::<Vec<_>>(), y);
            });
        }
        NARROW.with_borrow_mut(|narrow| {
            narrow.lay_out(b, [depth, width], !is_up);
            in_parallel(context, y.chunks_mut(ROWS * width), |index, y| {
                let (first, count) = (index * ROWS, y.len() / width);
                let addends: Vec<&[f32]> =
                    addends.iter().map(|addend| &addend[first * width..(first + count) * width]).collect();
                adapter::add_product(&a[first * depth..(first + count) * depth], narrow, bias, &addends, width, y);
            })
        })
    }
}

/// The two dimensions of a matrix.
fn pair(shape: &[usize]) -> ort::Result<[usize; 2]> {
    shape.try_into().map_err(|_| misfit())
}

/// Attention of all heads, from queries, keys and values side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attention {
    /// qkv -> y, logarithms of sums
    Causal,
    /// qkv, branch -> y, logarithms of sums
    Branched,
    /// dy, y, qkv, logarithms of sums -> dqkv
    CausalGradient,
}

impl Operator for Attention {
    type Kernel<'attr> = AttentionKernel;

    fn name(&self) -> &str {
        match self {
            Self::Causal => "CausalAttention",
            Self::Branched => "BranchedAttention",
            Self::CausalGradient => "CausalAttentionGradient",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let types: &[TensorElementType] = match self {
            Self::Causal => &[TensorElementType::Float32],
            Self::Branched => &[TensorElementType::Float32, TensorElementType::Int64],
            Self::CausalGradient => &[TensorElementType::Float32; 4],
        };
        types.iter().map(|&element| OperatorInput::required(element))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let first = OperatorOutput::required(TensorElementType::Float32);
        // Nothing needs the sums where there is no gradient.
        let sums = OperatorOutput::optional(TensorElementType::Float32);
        [first].into_iter().chain((*self != Self::CausalGradient).then_some(sums))
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<AttentionKernel> {
        let heads = context.get::<i64>("num_heads").and_then(|heads| usize::try_from(heads).ok());
        let heads = heads.filter(|&heads| heads > 0).ok_or_else(|| ort::Error::new("num_heads is missing"))?;
        Ok(AttentionKernel { operator: *self, heads })
    }
}

struct AttentionKernel {
    operator: Attention,
    heads: usize,
}

/// B, T, D and dh.
#[derive(Debug, Clone, Copy)]
struct Dimensions {
    batch: usize,
    tokens: usize,
    width: usize,
    head_dim: usize,
}

impl AttentionKernel {
    fn dimensions(&self, qkv: &[usize]) -> ort::Result<Dimensions> {
        match *qkv {
            [batch, tokens, all] if all > 0 && all % (3 * self.heads) == 0 => {
                Ok(Dimensions { batch, tokens, width: all / 3, head_dim: all / 3 / self.heads })
            }
            _ => Err(misfit()),
        }
    }

    fn forward(&self, context: &ComputeContext) -> ort::Result<()> {
        let values = inputs(context)?;
        let (shape, qkv) = tensor::<f32>(values.first().ok_or_else(misfit)?)?;
        let branch = values.get(1).map(|value| Ok::<_, ort::Error>(tensor::<i64>(value)?.1)).transpose()?;
        let size @ Dimensions { batch, tokens, width, head_dim } = self.dimensions(&shape)?;
        if branch.is_some_and(|branch| branch.len() != batch * tokens) {
            return Err(misfit());
        }
        let dims = |dims: [usize; 3]| dims.map(|dim| dim as i64);
        let mut y = context.output(0, dims([batch, tokens, width]))?.ok_or_else(misfit)?;
        let mut sums = context.output(1, dims([batch, self.heads, tokens]))?;
        let mut unwanted = Vec::new();
        let sums = match &mut sums {
            Some(sums) => sums.try_extract_tensor_mut::<f32>()?.1,
            None => {
                unwanted.resize(batch * self.heads * tokens, 0.0);
                &mut unwanted[..]
            }
        };
        let y = self.by_head(y.try_extract_tensor_mut::<f32>()?.1, size, 1);
        let shares = y.into_iter().flatten().zip(sums.chunks_mut(tokens.max(1)));
        in_parallel(context, shares, |index, (y, sums)| {
            let row = index / self.heads * tokens..(index / self.heads + 1) * tokens;
            let head = Head {
                qkv: &qkv[row.start * 3 * width..row.end * 3 * width],
                branch: branch.map(|branch| &branch[row]),
                index: index % self.heads,
                width,
                head_dim,
            };
            attention::forward(head, y, sums);
        })
    }

    fn backward(&self, context: &ComputeContext) -> ort::Result<()> {
        let values = inputs(context)?;
        let inputs = values.iter().map(tensor::<f32>).collect::<ort::Result<Vec<_>>>()?;
        let [(_, dy), (_, y), (shape, qkv), (_, sums)] = &inputs[..] else { return Err(misfit()) };
        let size @ Dimensions { batch, tokens, width, head_dim } = self.dimensions(shape)?;
        if [dy.len(), y.len()] != [batch * tokens * width; 2] || sums.len() != batch * self.heads * tokens {
            return Err(misfit());
        }
        let mut output =
            context.output(0, shape.iter().map(|&dim| dim as i64).collect::<Vec<_>>())?.ok_or_else(misfit)?;
        let shares = self.by_head(output.try_extract_tensor_mut::<f32>()?.1, size, 3);
        in_parallel(context, shares.into_iter(), |index, parts| {
            let row = index / self.heads * tokens..(index / self.heads + 1) * tokens;
            let head = Head {
                qkv: &qkv[row.start * 3 * width..row.end * 3 * width],
                branch: None,
                index: index % self.heads,
                width,
                head_dim,
            };
            if let [query, key, value] = &mut parts[..] {
                attention::backward(
                    head,
                    [dy, y].map(|values| &values[row.start * width..row.end * width]),
                    &sums[index * tokens..][..tokens],
                    [query, key, value],
                );
            }
        })
    }

    /// \[B, T, `parts`, H, dh\] as slices: for each row and head, for each part, one a token.
    fn by_head<'a>(&self, values: &'a mut [f32], size: Dimensions, parts: usize) -> Vec<Vec<Vec<&'a mut [f32]>>> {
        let Dimensions { batch, tokens, head_dim, .. } = size;
        let mut result: Vec<Vec<Vec<&mut [f32]>>> = Vec::with_capacity(batch * self.heads);
        result.resize_with(batch * self.heads, || {
            let part = || Vec::with_capacity(tokens);
            std::iter::repeat_with(part).take(parts).collect()
        });
        for (index, slice) in values.chunks_mut(head_dim).enumerate() {
            let (token, head) = (index / self.heads / parts, index % self.heads);
            result[token / tokens * self.heads + head][index / self.heads % parts].push(slice);
        }
        result
    }
}

impl Kernel for AttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        match self.operator {
            Attention::Causal | Attention::Branched => self.forward(context),
            Attention::CausalGradient => self.backward(context),
        }
    }
}

/// The log-probability of one class of each row of logits.
#[derive(Debug, Clone, Copy)]
enum TargetLogProb {
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
