//! Types of values: what a dimension is, and the rules of shapes that several operators share.

use std::fmt;

use marionette_models::bundle::{self, DataType};

/// One dimension of a shape. A symbol is a number that is known only when the graph runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dim {
    /// A known number.
    Fixed(usize),
    /// A number known by name.
    Symbol(&'static str),
    /// The product of two numbers known by name, such as the positions of a batch.
    Product(&'static str, &'static str),
}

/// The dimensions of a tensor, outermost first; empty for a scalar.
pub type Shape = Vec<Dim>;

impl From<usize> for Dim {
    fn from(value: usize) -> Self {
        Self::Fixed(value)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(value) => write!(f, "{value}"),
            Self::Symbol(name) => f.write_str(name),
            Self::Product(a, b) => write!(f, "{a}*{b}"),
        }
    }
}

impl From<Dim> for bundle::Dim {
    fn from(dim: Dim) -> Self {
        match dim {
            Dim::Fixed(value) => Self::Fixed(value as u64),
            symbolic => Self::Symbol(symbolic.to_string()),
        }
    }
}

/// The type of a value: of its elements, and its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// The type of the elements.
    pub dtype: DataType,
    /// The shape.
    pub shape: Shape,
}

impl TensorType {
    /// A tensor of f32.
    pub fn f32(shape: impl Into<Shape>) -> Self {
        Self { dtype: DataType::F32, shape: shape.into() }
    }

    /// A tensor of i64.
    pub fn i64(shape: impl Into<Shape>) -> Self {
        Self { dtype: DataType::I64, shape: shape.into() }
    }

    /// The same elements in another shape.
    pub fn reshaped(&self, shape: impl Into<Shape>) -> Self {
        Self { dtype: self.dtype, shape: shape.into() }
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.shape.iter().map(Dim::to_string).collect();
        write!(f, "{}[{}]", format!("{:?}", self.dtype).to_lowercase(), dims.join(", "))
    }
}

/// The number of elements of a shape, as a number and the sorted symbols that it is to be multiplied by.
pub fn elements(shape: &[Dim]) -> (usize, Vec<&'static str>) {
    let mut number = 1;
    let mut symbols = Vec::new();
    for dim in shape {
        match *dim {
            Dim::Fixed(value) => number *= value,
            Dim::Symbol(name) => symbols.push(name),
            Dim::Product(a, b) => symbols.extend([a, b]),
        }
    }
    symbols.sort_unstable();
    (number, symbols)
}

/// The shape that two shapes broadcast to (ONNX `docs/Broadcasting.md`, multidirectional): aligned at the last dimension,
/// each pair equal or one of them 1.
///
/// # Errors
/// The pair of dimensions that do not fit.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Shape, String> {
    let rank = a.len().max(b.len());
    // Counted from the last dimension; a missing one is 1.
    let at = |shape: &[Dim], i: usize| shape.len().checked_sub(i + 1).map_or(Dim::Fixed(1), |index| shape[index]);
    (0..rank)
        .rev()
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (Dim::Fixed(1), other) | (other, Dim::Fixed(1)) => Ok(other),
            (x, y) => Err(format!("dimensions {x} and {y} do not broadcast")),
        })
        .collect()
}

/// The axis that `axis` means in a tensor of `rank` dimensions; a negative one counts from the end.
///
/// # Errors
/// There is no such axis.
pub fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let from_start = if axis < 0 { axis + rank as i64 } else { axis };
    match usize::try_from(from_start) {
        Ok(index) if index < rank => Ok(index),
        _ => Err(format!("axis {axis} is not one of {rank} dimensions")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: Dim = Dim::Symbol("batch");
    const T: Dim = Dim::Symbol("tokens");

    #[test]
    fn shapes_broadcast_from_the_last_dimension() {
        assert_eq!(broadcast(&[B, T, 5.into()], &[5.into()]).unwrap(), [B, T, 5.into()]);
        assert_eq!(broadcast(&[T, 1.into()], &[B, 1.into(), T]).unwrap(), [B, T, T]);
        assert!(broadcast(&[B], &[T]).unwrap_err().contains("batch and tokens"));
        assert!(broadcast(&[2.into()], &[3.into()]).is_err());
    }

    #[test]
    fn elements_do_not_depend_on_the_grouping() {
        assert_eq!(elements(&[Dim::Product("batch", "tokens"), 6.into()]), elements(&[T, 2.into(), B, 3.into()]));
    }
}
