//! Kernels of attention.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{in_parallel, inputs, misfit, tensor};
use crate::kernels::attention::{self, Head};

/// Attention of all heads, from queries, keys and values side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attention {
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

pub(super) struct AttentionKernel {
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
