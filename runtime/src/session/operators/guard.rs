//! What stands between ONNX Runtime and our kernels: no panic crosses into C, where it would end the process, and no memory is
//! seen but as a shape that was checked says.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::{DynTensorValueType, PrimitiveTensorElementType, TensorElementType, ValueRef, ValueRefMut, ValueType};

use crate::kernels::{Failure, shapes};

/// What the kernels say no to, or memory that cannot be had, as ONNX Runtime hears it.
pub(super) fn refused(misfit: impl Error) -> ort::Error {
    ort::Error::new(misfit.to_string())
}

/// Why a kernel that shares its work out has no result, as ONNX Runtime hears it.
pub(super) fn failed(failure: Failure<ort::Error>) -> ort::Error {
    match failure {
        Failure::Misfit => ort::Error::new("something is of a size that there is no kernel for"),
        Failure::Memory(error) => ort::Error::new(error.to_string()),
        Failure::Threads(error) => error,
    }
}

/// An operator, or its kernel, whose panics become errors.
pub(super) struct Guarded<T>(pub(super) T);

impl<O: Operator> Operator for Guarded<O> {
    type Kernel<'attr> = Guarded<O::Kernel<'attr>>;

    fn name(&self) -> &str {
        self.0.name()
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        self.0.inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        self.0.outputs()
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        guarded(|| self.0.create_kernel(context)).map(Guarded)
    }
}

impl<K: Kernel> Kernel for Guarded<K> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        guarded(|| self.0.compute(context))
    }
}

/// What `compute` gives, or its panic as an error. What it was working on is thrown away: kernels keep nothing between calls but
/// rooms, which each call makes anew.
pub(super) fn guarded<T>(compute: impl FnOnce() -> ort::Result<T>) -> ort::Result<T> {
    catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(|payload| Err(panicked(&*payload)))
}

fn panicked(payload: &(dyn Any + Send)) -> ort::Error {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("for no reason given");
    ort::Error::new(format!("a kernel of marionette panicked, which is a defect of it: {text}"))
}

/// Lets ONNX Runtime's threads call `compute` with each index below a number.
pub(super) fn par_for(
    context: &ComputeContext,
    number: usize,
    compute: &(dyn Fn(usize) + Send + Sync),
) -> ort::Result<()> {
    if number == 0 {
        return Ok(());
    }
    let failure = Mutex::new(None);
    context.par_for(number, 0, |index| {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| compute(index)))
            && let Ok(mut failure) = failure.lock()
        {
            *failure = Some(panicked(&*payload));
        }
    })?;
    failure.into_inner().ok().flatten().map_or(Ok(()), Err)
}

/// The inputs of a call, all of which must be there.
pub(super) struct Inputs<'a>(Vec<ValueRef<'a>>);

impl<'a> Inputs<'a> {
    pub(super) fn of(context: &'a ComputeContext) -> ort::Result<Self> {
        (0..context.num_inputs()?).map(|index| given(context, index)).collect::<ort::Result<_>>().map(Self)
    }

    /// Those of an operator that knows some of them from when it was made.
    pub(super) fn beside(context: &'a ComputeContext, constants: &'a [Option<ValueRef<'a>>]) -> ort::Result<Self> {
        let input = |(index, constant): (usize, &'a Option<ValueRef<'a>>)| match constant {
            Some(constant) => Ok(constant.view()),
            None => given(context, index),
        };
        constants.iter().enumerate().map(input).collect::<ort::Result<_>>().map(Self)
    }

    /// Their shapes, as they are given.
    pub(super) fn shapes(&self) -> ort::Result<Vec<&[i64]>> {
        self.0.iter().map(shape).collect()
    }

    /// What the elements of each are.
    pub(super) fn elements(&self) -> impl Iterator<Item = Option<TensorElementType>> {
        self.0.iter().map(|value| value.dtype().tensor_type())
    }

    fn value(&self, index: usize) -> ort::Result<&ValueRef<'a>> {
        self.0.get(index).ok_or_else(|| ort::Error::new(format!("input {index} is missing")))
    }

    /// The values of one of them.
    pub(super) fn values<T: PrimitiveTensorElementType>(&self, index: usize) -> ort::Result<&[T]> {
        let value = self.value(index)?;
        elements(value)?;
        Ok(value.try_extract_tensor::<T>()?.1)
    }

    /// The bytes of one of 4-bit integers, two in each.
    pub(super) fn halves(&self, index: usize) -> ort::Result<&[u8]> {
        let value = self.value(index)?;
        let elements = elements(value)?;
        let value = value.view().downcast::<DynTensorValueType>()?;
        if *value.data_type() != TensorElementType::Uint4 || !value.memory_info().is_cpu_accessible() {
            return Err(ort::Error::new(format!("input {index} has no 4-bit integers in the processor's memory")));
        }
        // A tensor of no elements may lie nowhere.
        let data = value.data_ptr().cast::<u8>();
        if elements == 0 || data.is_null() {
            return if elements == 0 { Ok(&[]) } else { Err(ort::Error::new(format!("input {index} lies nowhere"))) };
        }
        // SAFETY: a tensor of so many integers has them there, two in a byte, as long as the value lives.
        Ok(unsafe { std::slice::from_raw_parts(data, elements.div_ceil(2)) })
    }
}

fn given(context: &ComputeContext, index: usize) -> ort::Result<ValueRef<'_>> {
    context.input(index)?.ok_or_else(|| ort::Error::new(format!("input {index} is missing")))
}

fn shape<'v>(value: &'v ValueRef<'_>) -> ort::Result<&'v [i64]> {
    match value.dtype() {
        ValueType::Tensor { shape, .. } => Ok(shape),
        other => Err(ort::Error::new(format!("an input is {other}, expected a tensor"))),
    }
}

/// The number of elements of a tensor.
fn elements(value: &ValueRef<'_>) -> ort::Result<usize> {
    let shape = shape(value)?;
    shapes::elements(shape).ok_or_else(|| ort::Error::new(format!("an input has the shape {shape:?}")))
}

/// An output of this shape.
pub(super) fn output<'a>(context: &'a ComputeContext, index: usize, shape: &[i64]) -> ort::Result<ValueRefMut<'a>> {
    let output = context.output(index, shape.to_vec())?;
    output.ok_or_else(|| ort::Error::new(format!("the output {index} is missing")))
}

/// An output that goes on where an input ends: one of the input's shape, with its values. Where both are one buffer, nothing is
/// copied.
pub(super) fn continued<'a>(
    context: &'a ComputeContext,
    inputs: &Inputs<'a>,
    [input, index]: [usize; 2],
) -> ort::Result<ValueRefMut<'a>> {
    let value = inputs.value(input)?;
    let (shape, number) = (shape(value)?, elements(value)?);
    let mut output = output(context, index, shape)?;
    let tensor = value.view().downcast::<DynTensorValueType>()?;
    if *tensor.data_type() != TensorElementType::Float32 || !tensor.memory_info().is_cpu_accessible() {
        return Err(ort::Error::new(format!("input {input} has no f32 in the processor's memory")));
    }
    let from = tensor.data_ptr().cast::<f32>();
    let to = output.try_extract_tensor_mut::<f32>()?.1;
    if to.len() != number {
        return Err(ort::Error::new(format!("output {index} has {} elements, expected {number}", to.len())));
    }
    if number > 0 && !std::ptr::eq(from, to.as_ptr()) {
        // SAFETY: so many numbers lie in both, in whatever way they overlap.
        unsafe { std::ptr::copy(from, to.as_mut_ptr(), number) };
    }
    Ok(output)
}

/// Room for so many elements, which is an error where there is no memory.
pub(super) fn room<T>(elements: usize) -> ort::Result<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(elements).map_err(refused)?;
    Ok(room)
}
