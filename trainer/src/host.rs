//! Tensors of f32 on the processor as slices, and threads, for the kernels that the device has.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Mutex;

use marionette_kernels::{Calls, Failure, each_share};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use tch::{Device, Kind, Tensor};

use crate::error::{Result, TrainError};

/// Whether kernels can compute with tensors of this kind on this device.
pub(crate) fn computes(kind: Kind, device: Device) -> bool {
    kind == Kind::Float && device == Device::Cpu
}

/// Calls a function with each index below a number: on as many threads as libtorch would take, or on this one alone.
pub(crate) fn on_threads(number: usize, calls: Calls<'_>) -> Result<(), Infallible> {
    match tch::get_num_threads() {
        1 => (0..number).for_each(calls),
        _ => (0..number).into_par_iter().for_each(calls),
    }
    Ok(())
}

/// Why a kernel has no result.
pub(crate) fn failed(failure: Failure<Infallible>) -> TrainError {
    match failure {
        Failure::Misfit => TrainError::Torch("the shapes of a kernel's tensors do not fit".to_owned()),
        Failure::Memory(error) => TrainError::Torch(error.to_string()),
        Failure::Threads(never) => match never {},
    }
}

fn place(x: &Tensor) -> Result<*mut f32> {
    if !computes(x.kind(), x.device()) || !x.is_contiguous() {
        return Err(TrainError::Torch(format!("{x:?} is given to a kernel, expected f32 on the processor")));
    }
    Ok(match x.numel() {
        // It may lie nowhere.
        0 => std::ptr::NonNull::dangling().as_ptr(),
        _ => x.data_ptr().cast::<f32>(),
    })
}

/// The values of a contiguous tensor of f32 on the processor.
///
/// # Errors
/// It is another.
pub(crate) fn values(x: &Tensor) -> Result<&[f32]> {
    let place = place(x)?;
    // SAFETY: so many numbers lie there, as long as the tensor is held; while they are read nothing writes to them, since no tensor that
    // shares its values with another is ever given to `new` or `changed`.
    Ok(unsafe { std::slice::from_raw_parts(place, x.numel()) })
}

/// New tensors of these sizes, filled by a function.
///
/// # Errors
/// What the function and libtorch say.
pub(crate) fn new<const N: usize>(
    sizes: [&[i64]; N],
    fill: impl FnOnce([&mut [f32]; N]) -> Result<()>,
) -> Result<[Tensor; N]> {
    let mut all = Vec::with_capacity(N);
    for size in sizes {
        all.push(Tensor::f_empty(size, (Kind::Float, Device::Cpu))?);
    }
    let count = || TrainError::Torch(format!("{N} tensors were to be made"));
    let mut all: [Tensor; N] = all.try_into().map_err(|_| count())?;
    let mut slices = Vec::with_capacity(N);
    for tensor in &mut all {
        slices.push(changed(tensor)?);
    }
    fill(slices.try_into().map_err(|_| count())?)?;
    Ok(all)
}

/// The values of a contiguous tensor of f32 on the processor that shares them with no other.
///
/// # Errors
/// It is another.
pub(crate) fn changed(x: &mut Tensor) -> Result<&mut [f32]> {
    let (place, count) = (place(x)?, x.numel());
    // SAFETY: so many numbers lie there, whatever they are, as long as the tensor is held, and nobody else has them.
    Ok(unsafe { std::slice::from_raw_parts_mut(place, count) })
}

/// Lets threads change the same rows of several matrices; `compute` gets which rows a share has, and those of each matrix.
pub(crate) fn rows<const N: usize>(
    rows: usize,
    all: [&mut [f32]; N],
    compute: impl Fn(Range<usize>, [&mut [f32]; N]) + Send + Sync,
) {
    /// Enough for a thread to be worth waking, counted in values.
    const LEAST: usize = 16 * 1024;
    let widths = all.each_ref().map(|values| values.len() / rows.max(1));
    let share = LEAST.div_ceil(widths.iter().copied().max().unwrap_or(0).max(1));
    let mut parts = all.into_iter().zip(widths).map(|(values, width)| values.chunks_mut((share * width).max(1)));
    let mut parts: [_; N] = std::array::from_fn(|_| parts.next());
    let mut shares = Vec::new();
    for first in (0..rows).step_by(share) {
        let part = parts.each_mut().map(|parts| parts.as_mut().and_then(Iterator::next).unwrap_or_default());
        shares.push(Mutex::new((first..rows.min(first + share), part)));
    }
    let Ok(()) =
        each_share(&shares, on_threads, |_, (range, part)| compute(range.clone(), part.each_mut().map(|p| &mut **p)));
}
