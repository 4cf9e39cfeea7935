//! Between the table's tensors and those of a file, which may hold them in parts and transposed.

use std::collections::BTreeMap;

use crate::families::Stored;
use crate::params::{HostTensor, TensorSpec, Tensors};
use crate::safetensors_file::RawTensor;

/// The tensors of a table from those of a file: exactly the ones that `stored`, in the table's order, names.
///
/// # Errors
/// The tensor that is missing, misshapen or left over, and the problem.
pub(crate) fn gather(table: &[TensorSpec], stored: &[Stored], mut found: Tensors) -> Result<Tensors, (String, String)> {
    let mut tensors = Tensors::new();
    for (spec, stored) in table.iter().zip(stored) {
        let tensor = gather_one(spec, stored, |name, expected| {
            let tensor = found
                .remove(name)
                .ok_or_else(|| (name.to_owned(), format!("is missing, expected shape {expected:?}")))?;
            match tensor.shape == expected {
                true => Ok(tensor),
                false => Err((name.to_owned(), format!("has shape {:?}, expected {expected:?}", tensor.shape))),
            }
        })?;
        tensors.insert(spec.name.clone(), tensor);
    }
    match found.into_keys().next() {
        Some(name) => Err((name, "does not belong to this model".to_owned())),
        None => Ok(tensors),
    }
}

/// A tensor of a table from its parts in a file; `part` gives one by its name, of the shape that it is told.
///
/// # Errors
/// Those of `part`.
pub(crate) fn gather_one<E>(
    spec: &TensorSpec,
    stored: &Stored,
    mut part: impl FnMut(&str, &[usize]) -> Result<HostTensor, E>,
) -> Result<HostTensor, E> {
    let mut parts = Vec::with_capacity(stored.parts.len());
    for (name, columns) in &stored.parts {
        parts.push((part(name, &shape(spec, *columns, stored.transposed))?, *columns));
    }
    Ok(match (stored.transposed, parts.len()) {
        (false, 1) => parts.pop().map(|(tensor, _)| tensor).unwrap_or_default(),
        _ => side_by_side(spec, &parts, stored.transposed),
    })
}

/// The tensors of a file from those of a table, each stored by `store`.
pub(crate) fn scatter(
    table: &[TensorSpec],
    stored: &[Stored],
    tensors: &Tensors,
    store: impl Fn(&HostTensor) -> RawTensor,
) -> BTreeMap<String, RawTensor> {
    let mut raw = BTreeMap::new();
    for (spec, stored) in table.iter().zip(stored) {
        let Some(tensor) = tensors.get(&spec.name) else { continue };
        let mut first = 0;
        for (name, columns) in &stored.parts {
            let part = match (stored.transposed, stored.parts.len()) {
                (false, 1) => store(tensor),
                _ => store(&columns_of(tensor, spec, first, *columns, stored.transposed)),
            };
            raw.insert(name.clone(), part);
            first += columns;
        }
    }
    raw
}

/// The stored shape of a part of a tensor.
pub(crate) fn shape(spec: &TensorSpec, columns: usize, transposed: bool) -> Vec<usize> {
    match (&spec.shape[..], transposed) {
        ([rows, _], true) => vec![columns, *rows],
        ([rows, _], false) => vec![*rows, columns],
        _ => vec![columns],
    }
}

/// Rows and columns of a tensor of the table; a vector is one row.
fn size(spec: &TensorSpec) -> (usize, usize) {
    let columns = spec.shape.last().copied().unwrap_or(1).max(1);
    (spec.len() / columns, columns)
}

fn side_by_side(spec: &TensorSpec, parts: &[(HostTensor, usize)], transposed: bool) -> HostTensor {
    let (rows, width) = size(spec);
    let mut values = vec![0.0; spec.len()];
    let mut first = 0;
    for (part, columns) in parts {
        for row in 0..rows {
            let place = &mut values[row * width + first..][..*columns];
            for (column, value) in place.iter_mut().enumerate() {
                *value = part.values[if transposed { column * rows + row } else { row * columns + column }];
            }
        }
        first += columns;
    }
    HostTensor { shape: spec.shape.clone(), values }
}

fn columns_of(tensor: &HostTensor, spec: &TensorSpec, first: usize, columns: usize, transposed: bool) -> HostTensor {
    let (rows, width) = size(spec);
    let mut values = vec![0.0; rows * columns];
    for row in 0..rows {
        for (column, value) in tensor.values[row * width + first..][..columns].iter().enumerate() {
            values[if transposed { column * rows + row } else { row * columns + column }] = *value;
        }
    }
    HostTensor { shape: shape(spec, columns, transposed), values }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Init;

    #[test]
    fn parts_lie_side_by_side_and_come_back() {
        let spec = TensorSpec { name: "w".into(), shape: vec![2, 3], init: Init::Zeros };
        let stored = Stored { parts: vec![("q".into(), 2), ("k".into(), 1)], transposed: true };
        let tensor = |shape: &[usize], values: &[f32]| HostTensor { shape: shape.to_vec(), values: values.to_vec() };
        // q is [2 outputs, 2 inputs], k [1, 2].
        let found = Tensors::from([
            ("q".to_owned(), tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0])),
            ("k".to_owned(), tensor(&[1, 2], &[5.0, 6.0])),
        ]);
        let (table, layout) = ([spec], [stored]);
        let gathered = gather(&table, &layout, found.clone()).unwrap();
        assert_eq!(gathered["w"], tensor(&[2, 3], &[1.0, 3.0, 5.0, 2.0, 4.0, 6.0]));
        let back = scatter(&table, &layout, &gathered, |t| RawTensor::f32(&t.shape, &t.values));
        for (name, tensor) in &found {
            assert_eq!(back[name].to_f32().unwrap(), *tensor);
        }
        let misshapen =
            Tensors::from([("q".to_owned(), tensor(&[4], &[0.0; 4])), ("k".to_owned(), tensor(&[1, 2], &[0.0; 2]))]);
        let (name, problem) = gather(&table, &layout, misshapen).unwrap_err();
        assert_eq!((name.as_str(), problem.as_str()), ("q", "has shape [4], expected [2, 2]"));
    }
}
