//! Whole blocks of a decoder.

use std::num::NonZeroUsize;

use half::f16;
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::{DynValueTypeMarker, TensorElementType, ValueRef};

use super::guard::continued;
use super::product::misfit;
use super::{Inputs, failed, output, par_for, refused, room};
use crate::kernels::Calls;
use crate::kernels::adapter::{Adapter, Adapters};
use crate::kernels::block::{self, Block, Linear, Mlp, Norm, Places};
use crate::kernels::product::{Affine, Bytes, Few, Instructions};
use crate::kernels::shapes::block::{AdaptersAt, BlockParts, BlockShape, CACHES, Element, LAST, MatrixAt, X};
use crate::kernels::shapes::{self, HeadCounts};

/// Which of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// One without adapters.
    Below,
    /// One with adapters.
    Among,
    /// The last one, with adapters.
    Last,
}

/// A block, computed with these instructions by about so many threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecoderBlock {
    place: Place,
    instructions: Instructions,
    threads: NonZeroUsize,
}

/// All of them.
pub(super) fn all(instructions: Instructions, threads: NonZeroUsize) -> [DecoderBlock; 3] {
    [Place::Below, Place::Among, Place::Last].map(|place| DecoderBlock { place, instructions, threads })
}

/// An input's shape, and what its elements are.
type Given = (Vec<i64>, Element);

pub(super) struct BlockKernel<'a> {
    operator: DecoderBlock,
    parts: BlockParts,
    epsilon: f32,
    /// The inputs that are the same in each call, and of the others nothing.
    constants: Vec<Option<ValueRef<'a>>>,
    /// The inputs of the last call, which fitted, and what they were found to be: to look at all of them again takes a tenth of a token's
    /// time.
    known: Option<(Vec<Given>, BlockShape)>,
}

impl Operator for DecoderBlock {
    type Kernel<'attr> = BlockKernel<'attr>;

    fn name(&self) -> &str {
        match self.place {
            Place::Below => "BareDecoderBlock",
            Place::Among => "DecoderBlock",
            Place::Last => "LastDecoderBlock",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        // As many as a model's block has parts, of several types.
        [OperatorInput::variadic(1)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        (0..3).map(|_| OperatorOutput::required(TensorElementType::Float32))
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<BlockKernel<'attr>> {
        let missing = |name: &str| ort::Error::new(format!("the attribute {name} is missing"));
        let integer = |name: &str| context.get::<i64>(name).ok_or_else(|| missing(name));
        let text = |name: &str| context.get::<String>(name).ok_or_else(|| missing(name));
        let one_of = |name: &str, no: &str, yes: &str| match text(name)? {
            value if value == no => Ok(false),
            value if value == yes => Ok(true),
            value => Err(ort::Error::new(format!("the attribute {name} is {value}, expected {no} or {yes}"))),
        };
        let parts = BlockParts {
            counts: HeadCounts::new(integer("num_heads")?, integer("kv_num_heads")?).map_err(refused)?,
            shift: one_of("norm", "rms", "layer")?,
            gated: one_of("mlp", "gelu", "swiglu")?,
            rotary: integer("rotary")? != 0,
            bias: integer("bias")? != 0,
            adapters: self.place != Place::Below,
            rows: self.place == Place::Last,
        };
        let epsilon = context.get::<f32>("epsilon").ok_or_else(|| missing("epsilon"))?;
        let constant = |input| context.constant_input::<DynValueTypeMarker>(input).ok();
        let constants = (0..context.inputs()?.len()).map(constant).collect();
        Ok(BlockKernel { operator: *self, parts, epsilon, constants, known: None })
    }
}

impl BlockKernel<'_> {
    /// The block's tensors among the inputs.
    fn block<'a>(&self, shape: &BlockShape, inputs: &'a Inputs<'_>) -> ort::Result<Block<'a>> {
        let values = |index: usize| inputs.values::<f32>(index);
        let norm = |at: usize| match self.parts.shift {
            true => Ok::<_, ort::Error>(Norm::Layer([values(at)?, values(at + 1)?])),
            false => Ok(Norm::Rms(values(at)?)),
        };
        let linear = |MatrixAt { first, affine, size, bias }: MatrixAt| {
            let integers = inputs.values::<u8>(first)?;
            let halves = |index: usize| inputs.values::<f16>(index);
            let weights = match affine {
                true => Affine::new(integers, [halves(first + 1)?, halves(first + 2)?], size).map(Few::Affine),
                false => Bytes::new(integers, values(first + 1)?, size).map(Few::Bytes),
            };
            let bias = bias.map(values).transpose()?;
            Ok::<_, ort::Error>(Linear { weights: weights.ok_or_else(misfit)?, bias })
        };
        let adapters = |at: Option<AdaptersAt>| {
            let adapters = |AdaptersAt { first, number }: AdaptersAt| {
                let down = [values(first)?, values(first + 1)?];
                let up = [values(first + 2)?, values(first + 3)?];
                Adapters::new(Adapter { down, up }, number).ok_or_else(misfit)
            };
            at.map(adapters).transpose()
        };
        let [qkv, projection, fc, mlp_projection] = shape.matrices;
        Ok(Block {
            instructions: self.operator.instructions,
            threads: self.operator.threads,
            heads: shape.heads,
            epsilon: self.epsilon,
            norm_1: norm(shape.norms[0])?,
            qkv: linear(qkv)?,
            projection: linear(projection)?,
            adapter_1: adapters(shape.adapters[0])?,
            norm_2: norm(shape.norms[1])?,
            fc: linear(fc)?,
            mlp: if self.parts.gated { Mlp::SwiGlu } else { Mlp::Gelu },
            mlp_projection: linear(mlp_projection)?,
            adapter_2: adapters(shape.adapters[1])?,
        })
    }
}

impl Kernel for BlockKernel<'_> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = Inputs::beside(context, &self.constants)?;
        let element = |found: Option<TensorElementType>| match found {
            Some(TensorElementType::Float32) => Element::Single,
            Some(TensorElementType::Float16) => Element::Half,
            Some(TensorElementType::Uint8) => Element::Byte,
            _ => Element::Other,
        };
        let given: Vec<_> = inputs.shapes()?.into_iter().zip(inputs.elements().map(element)).collect();
        let is_known = |known: &[Given]| {
            known.len() == given.len()
                && known.iter().zip(&given).all(|(known, given)| (&known.0[..], known.1) == *given)
        };
        if !self.known.as_ref().is_some_and(|(known, _)| is_known(known)) {
            let shape = shapes::block::block(self.parts, &given).map_err(refused)?;
            let given = given.iter().map(|&(shape, element)| (shape.to_vec(), element)).collect();
            self.known = Some((given, shape));
        }
        let Some((_, shape)) = &self.known else { return Err(misfit()) };
        let mut y = output(context, 0, &shape.output)?;
        let mut keys = continued(context, &inputs, [CACHES[0], 1])?;
        let mut values = continued(context, &inputs, [CACHES[1], 2])?;
        let &BlockShape { batch, tokens, capacity, .. } = shape;
        let rows = shape.rows.map(|at| some_rows(inputs.values::<i64>(at)?, batch * tokens)).transpose()?;
        if shape.is_empty() || shape.output.contains(&0) {
            return Ok(());
        }
        let angles = match shape.angles {
            Some(at) => Some([inputs.values::<f32>(at)?, inputs.values::<f32>(at + 1)?]),
            None => None,
        };
        let block = self.block(shape, &inputs)?;
        let places = Places::new(tokens, capacity, inputs.values::<i32>(LAST)?, angles);
        let places = places.map_err(refused)?;
        let x = inputs.values::<f32>(X)?;
        let cache = [keys.try_extract_tensor_mut::<f32>()?.1, values.try_extract_tensor_mut::<f32>()?.1];
        let y = y.try_extract_tensor_mut::<f32>()?.1;
        let threads = |number: usize, calls: Calls<'_>| par_for(context, number, calls);
        let all = rows.as_deref().is_none_or(|rows| rows.iter().copied().eq(0..batch));
        let result = if tokens == 1 && batch <= block::FEW_ROWS && all {
            block::of_a_token_each(&block, places, x, cache, y, threads)
        } else {
            block::of_tokens(&block, places, x, rows.as_deref(), cache, y, threads)
        };
        result.map_err(failed)
    }
}

/// Places of rows, counted from the end where they are negative, as `Gather` counts.
fn some_rows(rows: &[i64], all: usize) -> ort::Result<Vec<usize>> {
    let mut places = room(rows.len())?;
    for &row in rows {
        let place = if row < 0 { row.checked_add(all as i64) } else { Some(row) };
        let place = place.and_then(|place| usize::try_from(place).ok()).filter(|&place| place < all);
        places.push(place.ok_or_else(|| ort::Error::new(format!("row {row} is asked for, expected one of {all}")))?);
    }
    Ok(places)
}
