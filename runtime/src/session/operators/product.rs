//! Products with frozen integers.

use std::cell::RefCell;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::{DynTensorValueType, TensorElementType, ValueRef};

use super::{in_parallel, inputs, misfit, tensor};
use crate::kernels::product::{self, Direction, Matrix, Rounded};

/// Enough elements for a thread to be worth waking.
const LEAST_SHARE: usize = 16 * 1024;

thread_local! {
    /// Kept, since fresh memory costs more than rounding does.
    static ROUNDED: RefCell<Rounded> = RefCell::default();
}

/// One operator: of a kind of matrix, in a direction, with or without a bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    name: &'static str,
    /// Whether the matrix is 4-bit integers in blocks, and not bytes.
    in_blocks: bool,
    direction: Direction,
    bias: bool,
}

/// All of them.
pub(super) fn all() -> [Product; 6] {
    use Direction::{Back, Forward};
    let of = |name, in_blocks, direction, bias| Product { name, in_blocks, direction, bias };
    [
        of("QuantizedMatMul", false, Forward, false),
        of("QuantizedLinear", false, Forward, true),
        of("QuantizedMatMulGradient", false, Back, false),
        of("BlockQuantizedMatMul", true, Forward, false),
        of("BlockQuantizedLinear", true, Forward, true),
        of("BlockQuantizedMatMulGradient", true, Back, false),
    ]
}

impl Operator for Product {
    type Kernel<'attr> = Self;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float32, Uint4, Uint8};
        let matrix: &[TensorElementType] = if self.in_blocks { &[Uint4, Float32, Uint4] } else { &[Uint8, Float32] };
        let bias = self.bias.then_some(Float32);
        [Float32].into_iter().chain(matrix.iter().copied()).chain(bias).map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self> {
        Ok(*self)
    }
}

impl Kernel for Product {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let values = inputs(context)?;
        let at = |index: usize| values.get(index).ok_or_else(misfit);
        let ([rows, depth], x) = matrix(at(0)?)?;
        let (_, scales) = tensor::<f32>(at(2)?)?;
        let bias = if self.bias { Some(tensor::<f32>(values.last().ok_or_else(misfit)?)?.1) } else { None };
        let (columns, weights);
        let [outer, inner] = if self.in_blocks {
            let (shape, integers) = four_bits(at(1)?)?;
            columns = product::column_scales(scales, scales.len().checked_div(shape[0]).unwrap_or(0));
            weights = Matrix::of_halves(integers, scales, &columns);
            shape
        } else {
            let (shape, integers) = tensor::<u8>(at(1)?)?;
            weights = Matrix::of_bytes(integers, scales);
            shape.try_into().map_err(|_| misfit())?
        };
        let weights = weights.filter(|weights| weights.shape() == [outer, inner]).ok_or_else(misfit)?;
        let (width, factors) = match self.direction {
            Direction::Forward => (outer, None),
            Direction::Back => (inner, Some(weights.scales())),
        };
        if depth + width != outer + inner {
            return Err(misfit());
        }
        let mut output = context.output(0, [rows as i64, width as i64])?.ok_or_else(misfit)?;
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        ROUNDED.with_borrow_mut(|rounded| {
            let share = LEAST_SHARE.div_ceil(depth.max(1));
            let mut places: Vec<_> = rounded.rows(rows, depth).collect();
            in_parallel(context, places.chunks_mut(share), |index, places| {
                for (place, x) in places.iter_mut().zip(x[index * share * depth..].chunks(depth.max(1))) {
                    place.round(x, factors);
                }
            })?;
            let strips = |number: usize, compute: &(dyn Fn(usize) + Send + Sync)| context.par_for(number, 0, compute);
            let done = product::multiply(weights, self.direction, rounded, bias, y, strips)?;
            if done { Ok(()) } else { Err(misfit()) }
        })
    }
}

fn matrix<'a>(value: &'a ValueRef<'_>) -> ort::Result<([usize; 2], &'a [f32])> {
    let (shape, values) = tensor::<f32>(value)?;
    Ok((shape.try_into().map_err(|_| misfit())?, values))
}

/// The shape of a matrix of 4-bit integers, and its bytes of two.
fn four_bits<'a>(value: &'a ValueRef<'_>) -> ort::Result<([usize; 2], &'a [u8])> {
    let value = value.view().downcast::<DynTensorValueType>()?;
    let shape: Vec<usize> = value.shape().iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
    let shape: [usize; 2] = shape.try_into().map_err(|_| misfit())?;
    if *value.data_type() != TensorElementType::Uint4 || !value.memory_info().is_cpu_accessible() {
        return Err(misfit());
    }
    // SAFETY: a tensor of so many integers has them there, two in a byte, as long as the value lives.
    let bytes = unsafe { std::slice::from_raw_parts(value.data_ptr().cast(), (shape[0] * shape[1]).div_ceil(2)) };
    Ok((shape, bytes))
}
