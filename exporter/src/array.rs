//! Values of tensors on the host, in f64.

use half::f16;
use marionette_models::bundle::DataType;
use ndarray::{ArrayD, IxDyn};

use crate::shape::{Dim, TensorType};

/// Every type's values: integers and truth values are f64 too.
pub type Array = ArrayD<f64>;

/// The values of a tensor of a fixed shape, from its bytes as ONNX stores them: little-endian, halves of bytes the lower one first.
pub(crate) fn decode(tensor: &TensorType, bytes: &[u8]) -> Array {
    let values: Vec<f64> = match tensor.dtype {
        DataType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        DataType::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f64::from(f16::from_le_bytes(*b))).collect(),
        DataType::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        DataType::I32 => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
        DataType::I64 => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        DataType::U8 | DataType::Bool => bytes.iter().map(|&byte| f64::from(byte)).collect(),
        DataType::U4 => bytes.iter().flat_map(|&byte| [byte & 15, byte >> 4]).map(f64::from).collect(),
    };
    let size = |dim: &Dim| if let Dim::Fixed(size) = dim { *size } else { 0 };
    let shape: Vec<usize> = tensor.shape.iter().map(size).collect();
    let count = shape.iter().product();
    let values = values.into_iter().take(count).collect::<Vec<f64>>();
    Array::from_shape_vec(IxDyn(&shape), values).unwrap_or_else(|_| Array::zeros(shape))
}

/// The integer of a quantised value, less the middle of its range: of the byte it lies in and its place in the block.
pub(crate) fn quantised(bits: usize, byte: f64, place: usize) -> f64 {
    match (bits, place % 2) {
        (8, _) => byte - 128.0,
        (_, 0) => f64::from(byte as u8 & 15) - 8.0,
        _ => f64::from(byte as u8 >> 4) - 8.0,
    }
}

pub(crate) fn to_shape(tensor: &Array) -> Vec<usize> {
    tensor.iter().map(|&dim| dim as usize).collect()
}

/// The shape that arrays broadcast to.
pub(crate) fn broadcast_shape(arrays: &[&Array]) -> Vec<usize> {
    let rank = arrays.iter().map(|array| array.ndim()).max().unwrap_or(0);
    let mut shape = vec![1; rank];
    for array in arrays {
        for (i, &dim) in array.shape().iter().enumerate() {
            let at = rank - array.ndim() + i;
            shape[at] = if dim == 1 { shape[at] } else { dim };
        }
    }
    shape
}
