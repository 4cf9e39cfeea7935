//! Kernels of what ends an adapter.

use std::cell::RefCell;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::{in_parallel, inputs, misfit, pair, tensor};
use crate::kernels::adapter::{self, Narrow};

thread_local! {
    /// Kept, since fresh memory costs more than laying out does.
    static NARROW: RefCell<Narrow> = RefCell::default();
}

/// The ends of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddProduct {
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
