//! What the operators that work element by element share.

use marionette_models::bundle::DataType;

use crate::ops::arity;
use crate::shape::{TensorType, broadcast};

/// One input of f32, one output of the same type.
pub(super) fn unary(inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
    let [x] = arity(inputs)?;
    if x.dtype != DataType::F32 {
        return Err("expected f32".into());
    }
    Ok(vec![x.clone()])
}

/// Two inputs of one type, broadcast to one output of that type.
pub(super) fn arithmetic(inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
    let [a, b] = arity(inputs)?;
    if a.dtype != b.dtype || a.dtype == DataType::Bool {
        return Err("expected numbers of one type".into());
    }
    Ok(vec![a.reshaped(broadcast(&a.shape, &b.shape)?)])
}

/// Two inputs of one type, broadcast to one output of truth values.
pub(super) fn comparison(inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
    let shape = arithmetic(inputs)?.remove(0).shape;
    Ok(vec![TensorType { dtype: DataType::Bool, shape }])
}

/// Two inputs of truth values, broadcast to one output of truth values.
pub(super) fn logic(inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
    let [a, b] = arity(inputs)?;
    if a.dtype != DataType::Bool || b.dtype != DataType::Bool {
        return Err("expected truth values".into());
    }
    Ok(vec![a.reshaped(broadcast(&a.shape, &b.shape)?)])
}

/// Applies `f` to each pair of elements, broadcasting.
pub(super) fn zip(inputs: &[&crate::array::Array], f: impl Fn(f64, f64) -> f64) -> Vec<crate::array::Array> {
    let shape = crate::array::broadcast_shape(inputs);
    let [a, b] = [0, 1].map(|i| inputs[i].broadcast(shape.clone()).unwrap());
    vec![ndarray::Zip::from(&a).and(&b).map_collect(|&x, &y| f(x, y))]
}
