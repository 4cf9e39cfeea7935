//! Kernels of attention.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{in_parallel, inputs, misfit, tensor};
use crate::kernels::attention::{self, Gradients, Head, Heads};

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
        let number = |name: &str| -> ort::Result<usize> {
            let value = context.get::<i64>(name).and_then(|value| usize::try_from(value).ok());
            value.filter(|&value| value > 0).ok_or_else(|| ort::Error::new(format!("{name} is missing")))
        };
        let (queries, shared) = (number("num_heads")?, number("kv_num_heads")?);
        match queries.is_multiple_of(shared) {
            true => Ok(AttentionKernel { operator: *self, queries, shared }),
            false => Err(misfit()),
        }
    }
}

pub(super) struct AttentionKernel {
    operator: Attention,
    queries: usize,
    shared: usize,
}

/// B, T, and the heads.
#[derive(Debug, Clone, Copy)]
struct Dimensions {
    batch: usize,
    tokens: usize,
    heads: Heads,
}

impl AttentionKernel {
    fn dimensions(&self, qkv: &[usize]) -> ort::Result<Dimensions> {
        let places = self.queries + 2 * self.shared;
        match *qkv {
            [batch, tokens, all] if all > 0 && all.is_multiple_of(places) => {
                let heads = Heads { queries: self.queries, shared: self.shared, width: all / places };
                Ok(Dimensions { batch, tokens, heads })
            }
            _ => Err(misfit()),
        }
    }

    fn forward(&self, context: &ComputeContext) -> ort::Result<()> {
        let values = inputs(context)?;
        let (shape, qkv) = tensor::<f32>(values.first().ok_or_else(misfit)?)?;
        let branch = values.get(1).map(|value| Ok::<_, ort::Error>(tensor::<i64>(value)?.1)).transpose()?;
        let Dimensions { batch, tokens, heads } = self.dimensions(&shape)?;
        if branch.is_some_and(|branch| branch.len() != batch * tokens) {
            return Err(misfit());
        }
        let dims = |dims: [usize; 3]| dims.map(|dim| dim as i64);
        let mut y = context.output(0, dims([batch, tokens, heads.output()]))?.ok_or_else(misfit)?;
        let mut sums = context.output(1, dims([batch, heads.queries, tokens]))?;
        let mut unwanted = Vec::new();
        let sums = match &mut sums {
            Some(sums) => sums.try_extract_tensor_mut::<f32>()?.1,
            None => {
                unwanted.resize(batch * heads.queries * tokens, 0.0);
                &mut unwanted[..]
            }
        };
        let y = places(y.try_extract_tensor_mut::<f32>()?.1, [batch, tokens, heads.queries], heads.width);
        let shares = y.into_iter().zip(sums.chunks_mut(tokens.max(1)));
        in_parallel(context, shares, |index, (y, sums)| {
            let row = index / heads.queries * tokens..(index / heads.queries + 1) * tokens;
            let head = Head {
                qkv: &qkv[row.start * heads.all()..row.end * heads.all()],
                branch: branch.map(|branch| &branch[row]),
                index: index % heads.queries,
                heads,
            };
            attention::forward(head, y, sums);
        })
    }

    fn backward(&self, context: &ComputeContext) -> ort::Result<()> {
        let values = inputs(context)?;
        let inputs = values.iter().map(tensor::<f32>).collect::<ort::Result<Vec<_>>>()?;
        let [(_, dy), (_, y), (shape, qkv), (_, sums)] = &inputs[..] else { return Err(misfit()) };
        let Dimensions { batch, tokens, heads } = self.dimensions(shape)?;
        let width = heads.output();
        if [dy.len(), y.len()] != [batch * tokens * width; 2] || sums.len() != batch * heads.queries * tokens {
            return Err(misfit());
        }
        let mut output =
            context.output(0, shape.iter().map(|&dim| dim as i64).collect::<Vec<_>>())?.ok_or_else(misfit)?;
        let all = heads.all() / heads.width;
        let all_places = places(output.try_extract_tensor_mut::<f32>()?.1, [batch, tokens, all], heads.width);
        let (sharing, mut groups) = (heads.sharing(), Vec::with_capacity(batch * heads.shared));
        // Of each row the queries' heads, then the keys', then the values'.
        let mut all_places = all_places.into_iter();
        for _ in 0..batch {
            let mut queries = all_places.by_ref().take(heads.queries).collect::<Vec<_>>().into_iter();
            let keys: Vec<_> = all_places.by_ref().take(heads.shared).collect();
            for (keys, values) in keys.into_iter().zip(all_places.by_ref().take(heads.shared)) {
                groups.push(Gradients { queries: queries.by_ref().take(sharing).collect(), keys, values });
            }
        }
        in_parallel(context, groups.into_iter(), |index, gradients| {
            let row = index / heads.shared * tokens..(index / heads.shared + 1) * tokens;
            let first = Head {
                qkv: &qkv[row.start * heads.all()..row.end * heads.all()],
                branch: None,
                index: index % heads.shared * sharing,
                heads,
            };
            let outputs = [dy, y].map(|values| &values[row.start * width..row.end * width]);
            attention::backward(first, outputs, &sums[index * sharing * tokens..][..sharing * tokens], gradients);
        })
    }
}

/// \[B, T, places · dh\] as slices: for each row and place, one a token.
fn places(values: &mut [f32], [batch, tokens, places]: [usize; 3], width: usize) -> Vec<Vec<&mut [f32]>> {
    let mut result: Vec<Vec<&mut [f32]>> = Vec::with_capacity(batch * places);
    result.resize_with(batch * places, || Vec::with_capacity(tokens));
    for (index, slice) in values.chunks_mut(width).enumerate() {
        let (token, place) = (index / places, index % places);
        result[token / tokens * places + place].push(slice);
    }
    result
}

impl Kernel for AttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        match self.operator {
            Attention::Causal | Attention::Branched => self.forward(context),
            Attention::CausalGradient => self.backward(context),
        }
    }
}
