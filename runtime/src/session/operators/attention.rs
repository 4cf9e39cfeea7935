//! Kernels of attention.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{Inputs, in_parallel, output, refused, room};
use crate::kernels::attention::{self, Gradients, Head};
use crate::kernels::shapes::{self, Attended, HeadCounts};

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
        let queries = context.get("num_heads").ok_or_else(|| ort::Error::new("the attribute num_heads is missing"))?;
        // Bundles of format 1 had one number for all.
        let counts = HeadCounts::new(queries, context.get("kv_num_heads").unwrap_or(queries)).map_err(refused)?;
        Ok(AttentionKernel { operator: *self, counts })
    }
}

pub(super) struct AttentionKernel {
    operator: Attention,
    counts: HeadCounts,
}

impl AttentionKernel {
    fn forward(&self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = Inputs::of(context)?;
        let branched = self.operator == Attention::Branched;
        let attended = shapes::attention(self.counts, branched, &inputs.shapes()?).map_err(refused)?;
        let mut y = output(context, 0, &attended.outputs())?;
        let mut sums = context.output(1, attended.sums())?;
        if attended.is_empty() {
            return Ok(());
        }
        let Attended { batch, tokens, heads } = attended;
        let qkv = inputs.values::<f32>(0)?;
        let branch = if branched { Some(inputs.values::<i64>(1)?) } else { None };
        let mut unwanted: Vec<f32>;
        let sums = match &mut sums {
            Some(sums) => sums.try_extract_tensor_mut::<f32>()?.1,
            None => {
                let number = batch * heads.queries * tokens;
                unwanted = room(number)?;
                unwanted.resize(number, 0.0);
                &mut unwanted[..]
            }
        };
        let y = y.try_extract_tensor_mut::<f32>()?.1;
        let y = attention::places(y, [batch, tokens, heads.queries], heads.width).map_err(refused)?;
        let shares = y.into_iter().zip(sums.chunks_mut(tokens));
        in_parallel(context, shares, |index, (y, sums)| {
            let row = index / heads.queries * tokens..(index / heads.queries + 1) * tokens;
            let head = Head {
                qkv: &qkv[row.start * heads.all()..row.end * heads.all()],
                branch: branch.map(|branch| &branch[row]),
                index: index % heads.queries,
                heads,
                cache: None,
            };
            attention::forward(head, y, sums);
        })
    }

    fn backward(&self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = Inputs::of(context)?;
        let attended = shapes::attention_gradient(self.counts, &inputs.shapes()?).map_err(refused)?;
        let mut output = output(context, 0, &attended.all())?;
        if attended.is_empty() {
            return Ok(());
        }
        let Attended { batch, tokens, heads } = attended;
        let width = heads.output();
        let values = |index| inputs.values::<f32>(index);
        let (dy, y, qkv, sums) = (values(0)?, values(1)?, values(2)?, values(3)?);
        let all = heads.all() / heads.width;
        let output = output.try_extract_tensor_mut::<f32>()?.1;
        let all_places = attention::places(output, [batch, tokens, all], heads.width).map_err(refused)?;
        let (sharing, mut groups) = (heads.sharing(), room(batch * heads.shared)?);
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
                cache: None,
            };
            let outputs = [dy, y].map(|values| &values[row.start * width..row.end * width]);
            attention::backward(first, outputs, &sums[index * sharing * tokens..][..sharing * tokens], gradients);
        })
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
