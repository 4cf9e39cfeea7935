//! Memory that graphs read and write without copies.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use ort::AsPointer as _;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::value::Tensor;

use super::{SessionError, failure};

/// f32s that no graph's binding outlives.
pub(super) struct Memory {
    first: NonNull<f32>,
    layout: Layout,
}

// SAFETY: it is memory, which who has the one buffer, or runs the graphs that it is bound to, may write.
unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeros, which take memory where they are written.
    fn zeros(length: usize) -> Option<Self> {
        let layout = Layout::array::<f32>(length.max(1)).ok()?;
        // SAFETY: the layout has one f32 at least.
        let first = unsafe { alloc_zeroed(layout) };
        Some(Self { first: NonNull::new(first.cast())?, layout })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated so.
        unsafe { dealloc(self.first.as_ptr().cast(), self.layout) };
    }
}

/// An f32 tensor that graphs read and write without copies.
pub struct Buffer {
    pub(super) memory: Arc<Memory>,
    shape: Vec<usize>,
    length: usize,
}

impl Buffer {
    /// A tensor of zeros, which takes memory where it is written: a cache for a long context costs what is in it.
    ///
    /// # Errors
    /// [`SessionError::Graph`] where there is no memory for it.
    pub fn zeros(shape: &[usize]) -> Result<Self, SessionError> {
        let memory = values_of(shape).and_then(|length| Some((Memory::zeros(length)?, length)));
        let Some((memory, length)) = memory else {
            let error = ort::Error::new("there is no memory for it");
            return Err(failure("a tensor", &format!("cannot allocate {shape:?}"), &error));
        };
        Ok(Self { memory: Arc::new(memory), shape: shape.to_vec(), length })
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        // SAFETY: so many were allocated, and only runs of graphs, and who has the buffer alone, write them.
        unsafe { slice::from_raw_parts(self.memory.first.as_ptr(), self.length) }
    }

    /// The values, to be written.
    pub fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as before.
        unsafe { slice::from_raw_parts_mut(self.memory.first.as_ptr(), self.length) }
    }

    /// All of it.
    pub(super) fn tensor(&self) -> ort::Result<Tensor<f32>> {
        self.part(0, &self.shape)
    }

    /// The values from `first` on, in a shape. It is valid as long as the memory is held.
    pub(super) fn part(&self, first: usize, shape: &[usize]) -> ort::Result<Tensor<f32>> {
        let Some(length) =
            values_of(shape).filter(|length| first.checked_add(*length).is_some_and(|end| end <= self.length))
        else {
            return Err(ort::Error::new(format!("{shape:?} from {first} on is not in a buffer of {:?}", self.shape)));
        };
        let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
        let dims: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        let bytes = length * size_of::<f32>();
        let mut value = ptr::null_mut();
        // SAFETY: the values are there; ONNX Runtime copies the shape, and takes what describes the memory for as long as the call lasts.
        let status = unsafe {
            let data = self.memory.first.as_ptr().add(first).cast();
            let kind = ort::sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
            let create = ort::api().CreateTensorWithDataAsOrtValue;
            create(info.ptr(), data, bytes, dims.as_ptr(), dims.len(), kind, &mut value)
        };
        // SAFETY: the status is that call's, and the value, where there is one, is its tensor of f32.
        unsafe {
            ort::Error::result_from_status(status)?;
            let value = NonNull::new(value).ok_or_else(|| ort::Error::new("ONNX Runtime gives no tensor"))?;
            Ok(Tensor::from_ptr(value, Some(&Allocator::default())))
        }
    }
}

/// How many values a shape has.
fn values_of(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |length, &dim| length.checked_mul(dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zeros_that_can_be_written() {
        let mut buffer = Buffer::zeros(&[2, 3]).unwrap();
        assert_eq!(buffer.values(), [0.0; 6]);
        buffer.values_mut()[4] = 1.5;
        assert_eq!(buffer.values(), [0.0, 0.0, 0.0, 0.0, 1.5, 0.0]);
        assert_eq!(Buffer::zeros(&[]).unwrap().values(), [0.0]);
        assert!(Buffer::zeros(&[3, 0]).unwrap().values().is_empty());
        // A long cache costs what is in it.
        let held = || crate::memory::resident().map(|held| held.now);
        let (before, long) = (held(), Buffer::zeros(&[1 << 28]).unwrap());
        assert!(
            long.values()[1 << 27] == 0.0 && held().zip(before).is_none_or(|(now, before)| now < before + (1 << 29))
        );
        for shape in [&[usize::MAX][..], &[1 << 40, 1 << 40], &[usize::MAX / 4]] {
            assert!(Buffer::zeros(shape).is_err(), "{shape:?}");
        }
    }
}
