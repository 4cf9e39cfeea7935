//! Kernels of adapters, and of what ends one.

use std::cell::RefCell;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use super::product::misfit;
use super::{Inputs, failed, in_parallel, output, par_for, refused, room};
use crate::kernels::Calls;
use crate::kernels::adapter::{self, Adapter, Adapters, Narrow};
use crate::kernels::shapes::{self, OfRows, Sum};

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
        let inputs = Inputs::of(context)?;
        let is_up = *self == Self::AdapterUp;
        let given = inputs.shapes()?;
        let sum = if is_up { shapes::adapter_up(&given) } else { shapes::adapter_down_gradient(&given) };
        let sum = sum.map_err(refused)?;
        let mut output = output(context, 0, &sum.output())?;
        if sum.is_empty() {
            return Ok(());
        }
        let Sum { depth, width, rows } = sum;
        let values = |index| inputs.values::<f32>(index);
        let (a, b) = (values(0)?, values(1)?);
        let (bias, addends) = match is_up {
            true => (Some(values(2)?), vec![values(3)?, values(4)?]),
            false => (None, vec![values(2)?]),
        };
        let (_, y) = output.try_extract_tensor_mut::<f32>()?;
        if rows == 1 && is_up {
            return in_parallel(context, y.chunks_mut(COLUMNS), |index, y| {
                let (first, count) = (index * COLUMNS, y.len());
                let addends = bias.iter().chain(&addends).map(|addend| &addend[first..first + count]);
                adapter::add_product_of_one(a, b, first, width, &addends.collect::<Vec<_>>(), y);
            });
        }
        NARROW.with_borrow_mut(|narrow| {
            narrow.try_reserve([depth, width]).map_err(refused)?;
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

/// x, residual, D, d, U, u -> y: an adapter for each row of the batch
#[derive(Debug, Clone, Copy)]
pub(super) struct RowAdapters;

impl Operator for RowAdapters {
    type Kernel<'attr> = Self;

    fn name(&self) -> &str {
        "RowAdapters"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        (0..6).map(|_| OperatorInput::required(TensorElementType::Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self> {
        Ok(*self)
    }
}

impl Kernel for RowAdapters {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let inputs = Inputs::of(context)?;
        let all @ OfRows { rows, batch, .. } = shapes::row_adapters(&inputs.shapes()?).map_err(refused)?;
        let mut output = output(context, 0, &all.output())?;
        if all.is_empty() {
            return Ok(());
        }
        let values = |index| inputs.values::<f32>(index);
        let all = Adapter { down: [values(2)?, values(3)?], up: [values(4)?, values(5)?] };
        let adapters = Adapters::new(all, batch).ok_or_else(misfit)?;
        let mut of_row = room(rows)?;
        of_row.extend((0..rows).map(|row| row / (rows / batch)));
        let y = output.try_extract_tensor_mut::<f32>()?.1;
        let threads = |number: usize, calls: Calls<'_>| par_for(context, number, calls);
        adapters.add(&of_row, [values(0)?, values(1)?], y, &threads).map_err(failed)
    }
}
