//! Kernels of attention.

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{Inputs, failed, output, par_for, refused, room};
use crate::kernels::Calls;
use crate::kernels::attention::batch;
use crate::kernels::shapes::{self, HeadCounts};

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
        let qkv = inputs.values::<f32>(0)?;
        let branch = if branched { Some(inputs.values::<i64>(1)?) } else { None };
        let mut unwanted: Vec<f32>;
        let sums = match &mut sums {
            Some(sums) => sums.try_extract_tensor_mut::<f32>()?.1,
            None => {
                let number = attended.batch * attended.heads.queries * attended.tokens;
                unwanted = room(number)?;
                unwanted.resize(number, 0.0);
                &mut unwanted[..]
            }
        };
        let y = y.try_extract_tensor_mut::<f32>()?.1;
        let threads = |number: usize, calls: Calls<'_>| par_for(context, number, calls);
        batch::forward(attended, qkv, branch, [y, sums], threads).map_err(failed)
    }

    fn backward(&self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = Inputs::of(context)?;
        let attended = shapes::attention_gradient(self.counts, &inputs.shapes()?).map_err(refused)?;
        let mut output = output(context, 0, &attended.all())?;
        if attended.is_empty() {
            return Ok(());
        }
        let values = |index| inputs.values::<f32>(index);
        let (dy, y, qkv, sums) = (values(0)?, values(1)?, values(2)?, values(3)?);
        let output = output.try_extract_tensor_mut::<f32>()?.1;
        let threads = |number: usize, calls: Calls<'_>| par_for(context, number, calls);
        batch::backward(attended, qkv, [dy, y], sums, output, threads).map_err(failed)
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
