//! Products with frozen integers.

use std::cell::RefCell;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{Inputs, failed, output, par_for, refused};
use crate::kernels::product::{self, Affine, Bytes, Direction, Few, Instructions, Matrix, Rounded};
use crate::kernels::shapes::{self, Form};

thread_local! {
    /// Kept, since fresh memory costs more than rounding does.
    static ROUNDED: RefCell<Option<Rounded>> = const { RefCell::new(None) };
}

/// One operator: of a kind of matrix, in a direction, with or without a bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    name: &'static str,
    form: Form,
    direction: Direction,
    bias: bool,
    instructions: Instructions,
}

/// All of them, computed with these instructions.
pub(super) fn all(instructions: Instructions) -> [Product; 10] {
    use Direction::{Back, Forward};
    let of = |name, form, direction, bias| Product { name, form, direction, bias, instructions };
    [
        of("QuantizedMatMul", Form::Bytes, Forward, false),
        of("QuantizedLinear", Form::Bytes, Forward, true),
        of("QuantizedMatMulGradient", Form::Bytes, Back, false),
        of("AffineMatMul", Form::Affine, Forward, false),
        of("AffineLinear", Form::Affine, Forward, true),
        of("AffineMatMulGradient", Form::Affine, Back, false),
        of("FewRowsMatMul", Form::FewBytes, Forward, false),
        of("FewRowsLinear", Form::FewBytes, Forward, true),
        of("FewRowsAffineMatMul", Form::FewAffine, Forward, false),
        of("FewRowsAffineLinear", Form::FewAffine, Forward, true),
    ]
}

impl Operator for Product {
    type Kernel<'attr> = Self;

    fn name(&self) -> &str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float16, Float32, Uint4, Uint8};
        let matrix: &[TensorElementType] = match self.form {
            Form::Bytes | Form::FewBytes => &[Uint8, Float32],
            Form::Affine => &[Uint4, Float16, Float16],
            Form::FewAffine => &[Uint8, Float16, Float16],
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
        let inputs = Inputs::of(context)?;
        let shape =
            shapes::integer_product(self.form, self.direction, self.bias, &inputs.shapes()?).map_err(refused)?;
        let mut output = output(context, 0, &shape.output())?;
        if shape.is_empty() {
            return Ok(());
        }
        let (rows, depth) = (shape.rows, shape.depth);
        let x = inputs.values::<f32>(0)?;
        let bias = match self.bias {
            true => Some(inputs.values::<f32>(if self.form.is_affine() { 4 } else { 3 })?),
            false => None,
        };
        let integers = if self.form == Form::Affine { inputs.halves(1)? } else { inputs.values::<u8>(1)? };
        let size = [shape.columns, shape.inner];
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        let strips = |number: usize, compute: &(dyn Fn(usize) + Send + Sync)| par_for(context, number, compute);
        let mut columns = Vec::new();
        let in_blocks = match self.form {
            Form::Bytes => None,
            Form::FewBytes => Some(Few::Bytes(Bytes::new(integers, inputs.values(2)?, size).ok_or_else(misfit)?)),
            Form::Affine | Form::FewAffine => {
                let affine = Affine::new(integers, [inputs.values(2)?, inputs.values(3)?], size);
                Some(Few::Affine(affine.ok_or_else(misfit)?))
            }
        };
        let weights = match in_blocks {
            Some(few) if self.form.is_for_few() => {
                return ROUNDED.with_borrow_mut(|room| {
                    let rounded = room.get_or_insert_with(|| Rounded::new(self.instructions));
                    product::multiply_rows(few, x, rounded, bias, y, strips).map_err(failed)
                });
            }
            Some(Few::Affine(affine)) if self.direction == Direction::Back => {
                columns = affine.column_scales(self.instructions);
                Matrix::of_affine_back(affine, &columns)
            }
            Some(blocks) => blocks.many(&mut columns),
            None => Matrix::of_bytes(integers, inputs.values(2)?),
        };
        let weights = weights.filter(|weights| weights.shape() == [shape.columns, shape.inner]).ok_or_else(misfit)?;
        let factors = (self.direction == Direction::Back).then(|| weights.scales());
        ROUNDED.with_borrow_mut(|room| {
            let rounded = room.get_or_insert_with(|| Rounded::new(self.instructions));
            rounded.try_reserve(rows, depth).map_err(refused)?;
            rounded.round(x, depth, self.direction, factors, strips)?;
            fitting(product::multiply(weights, self.direction, rounded, bias, y, strips)?)
        })
    }
}

/// What the kernels say no to by themselves: integers in blocks that they have no instructions for.
pub(super) fn misfit() -> ort::Error {
    ort::Error::new("the blocks of integers are of no size that there are products for")
}

fn fitting(fits: bool) -> ort::Result<()> {
    if fits { Ok(()) } else { Err(misfit()) }
}
