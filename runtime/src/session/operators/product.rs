//! Products with frozen integers.

use std::cell::RefCell;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::{DynTensorValueType, TensorElementType, ValueRef};

use super::{in_parallel, inputs, misfit, tensor};
use crate::kernels::product::{self, Blocks, Direction, Instructions, Matrix, Rounded};

/// Enough elements for a thread to be worth waking.
const LEAST_SHARE: usize = 16 * 1024;

thread_local! {
    /// Kept, since fresh memory costs more than rounding does.
    static ROUNDED: RefCell<Option<Rounded>> = const { RefCell::new(None) };
}

/// With so few rows the integers are read once for each; with more, they are laid out for all.
const FEW: usize = 4;

/// One operator: of a kind of matrix, in a direction, with or without a bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    name: &'static str,
    form: Form,
    direction: Direction,
    bias: bool,
    instructions: Instructions,
}

/// How an operator takes its matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Bytes \[N, K\], scales \[N\].
    Bytes,
    /// 4-bit integers \[N, K\], scales \[N, blocks\], zero points of no interest.
    Halves,
    /// Either as bytes \[N, blocks, K bits / 8 / blocks\], scales \[N · blocks\].
    Blocks,
}

/// All of them, computed with these instructions.
pub(super) fn all(instructions: Instructions) -> [Product; 8] {
    use Direction::{Back, Forward};
    let of = |name, form, direction, bias| Product { name, form, direction, bias, instructions };
    [
        of("QuantizedMatMul", Form::Bytes, Forward, false),
        of("QuantizedLinear", Form::Bytes, Forward, true),
        of("QuantizedMatMulGradient", Form::Bytes, Back, false),
        of("BlockQuantizedMatMul", Form::Halves, Forward, false),
        of("BlockQuantizedLinear", Form::Halves, Forward, true),
        of("BlockQuantizedMatMulGradient", Form::Halves, Back, false),
        of("FewRowsMatMul", Form::Blocks, Forward, false),
        of("FewRowsLinear", Form::Blocks, Forward, true),
    ]
}

impl Operator for Product {
    type Kernel<'attr> = Self;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float32, Uint4, Uint8};
        let matrix: &[TensorElementType] = match self.form {
            Form::Halves => &[Uint4, Float32, Uint4],
            Form::Bytes | Form::Blocks => &[Uint8, Float32],
        };
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
        let mut columns = Vec::new();
        let (weights, [outer, inner]) = match self.form {
            Form::Bytes => {
                let (shape, integers) = tensor::<u8>(at(1)?)?;
                (Matrix::of_bytes(integers, scales), shape.try_into().map_err(|_| misfit())?)
            }
            Form::Halves => {
                let (shape, integers) = four_bits(at(1)?)?;
                columns = product::column_scales(scales, scales.len().checked_div(shape[0]).unwrap_or(0));
                (Matrix::of_halves(integers, scales, &columns), shape)
            }
            Form::Blocks => {
                let (shape, integers) = tensor::<u8>(at(1)?)?;
                let shape = [*shape.first().ok_or_else(misfit)?, depth];
                let blocks = Blocks::new(integers, scales, shape, 2 * integers.len() == shape[0] * depth);
                let blocks = blocks.ok_or_else(misfit)?;
                if rows <= FEW {
                    let mut output = context.output(0, [rows as i64, shape[0] as i64])?.ok_or_else(misfit)?;
                    let (_, y) = output.try_extract_tensor_mut::<f32>()?;
                    return ROUNDED.with_borrow_mut(|room| {
                        let rounded = room.get_or_insert_with(|| Rounded::new(self.instructions));
                        for (place, x) in rounded.rows(rows, depth).iter_mut().zip(x.chunks(depth.max(1))) {
                            place.round(x, None);
                        }
                        fitting(product::multiply_few(blocks, rounded, bias, y, |number, compute| {
                            context.par_for(number, 0, compute)
                        })?)
                    });
                }
                (blocks.many(&mut columns), shape)
            }
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
        ROUNDED.with_borrow_mut(|room| {
            let rounded = room.get_or_insert_with(|| Rounded::new(self.instructions));
            let share = LEAST_SHARE.div_ceil(depth.max(1));
            let mut places = rounded.rows(rows, depth);
            in_parallel(context, places.chunks_mut(share), |index, places| {
                for (place, x) in places.iter_mut().zip(x[index * share * depth..].chunks(depth.max(1))) {
                    place.round(x, factors);
                }
            })?;
            let strips = |number: usize, compute: &(dyn Fn(usize) + Send + Sync)| context.par_for(number, 0, compute);
            fitting(product::multiply(weights, self.direction, rounded, bias, y, strips)?)
        })
    }
}

fn fitting(fits: bool) -> ort::Result<()> {
    if fits { Ok(()) } else { Err(misfit()) }
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
