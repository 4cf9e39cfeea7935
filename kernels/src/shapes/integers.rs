//! The shapes of products with frozen integers.

use super::{Input, MOST_ELEMENTS, Misfit, inputs, product};
use crate::product::Direction;

/// How an operator takes its matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Bytes \[N, K\], scales \[N\].
    Bytes,
    /// 4-bit integers \[N, K\], scales and minima \[N, blocks\].
    Affine,
    /// Bytes \[N, blocks, K / blocks\], scales \[N · blocks\]: for few rows.
    FewBytes,
    /// 4-bit integers as bytes \[N, blocks, K / 2 / blocks\], scales and minima \[N, blocks\]: for few rows.
    FewAffine,
}

impl Form {
    /// Whether the integers have 4 bits, two in a byte.
    pub fn is_affine(self) -> bool {
        matches!(self, Self::Affine | Self::FewAffine)
    }

    /// Whether it is for few rows: in blocks, each a dimension.
    pub fn is_for_few(self) -> bool {
        matches!(self, Self::FewBytes | Self::FewAffine)
    }
}

/// Rows of f32 times a matrix of integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegerProduct {
    /// M.
    pub rows: usize,
    /// What is summed over: K forward, N back.
    pub depth: usize,
    /// Outputs of a row: N forward, K back.
    pub width: usize,
    /// N.
    pub columns: usize,
    /// K.
    pub inner: usize,
    /// Scales of a column.
    pub blocks: usize,
}

impl IntegerProduct {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 || self.width == 0
    }

    /// The output's shape.
    pub fn output(&self) -> Vec<i64> {
        vec![self.rows as i64, self.width as i64]
    }
}

/// The products with integers, from x \[M, K\] or back from dy \[M, N\], the matrix, its scales, of 4 bits its minima, and where there is
/// one a bias \[N\].
///
/// # Errors
/// The shapes do not fit.
pub fn integer_product(
    form: Form,
    direction: Direction,
    bias: bool,
    shapes: &[&[i64]],
) -> Result<IntegerProduct, Misfit> {
    let expected = 3 + usize::from(form.is_affine()) + usize::from(bias);
    let (Some(matrix), true) = (shapes.get(..3), shapes.len() == expected) else {
        return Err(Misfit::Number { found: shapes.len(), expected });
    };
    let [x, integers, scales] = inputs(["x", "integers", "scales"], matrix)?;
    let [rows, depth] = x.matrix()?;
    let [columns, inner] = match (form, &integers.dims[..]) {
        (Form::FewBytes | Form::FewAffine, [columns, _, _]) => [*columns, depth],
        (Form::FewBytes | Form::FewAffine, _) => return Err(integers.misfit("[N, blocks, bytes of a block]")),
        (Form::Bytes | Form::Affine, _) => integers.matrix()?,
    };
    let (found, width) = match direction {
        Direction::Forward => (inner, columns),
        Direction::Back => (columns, inner),
    };
    if found != depth {
        return Err(x.misfit(format_args!("rows of {found} values")));
    }
    let all = product(&[columns, inner]);
    match form {
        Form::Bytes | Form::Affine => {}
        Form::FewBytes => integers.holds(all)?,
        // An odd number of integers is of no pairs.
        Form::FewAffine => integers.holds(all.filter(|all| all.is_multiple_of(2)).map(|all| all / 2))?,
    }
    let blocks = scales.elements.checked_div(columns).unwrap_or(0);
    let product = IntegerProduct { rows, depth, width, columns, inner, blocks };
    if form.is_affine()
        && let Some(shape) = shapes.get(3)
    {
        Input::new("minima", shape)?.holds(scales.elements)?;
    }
    if bias && let Some(shape) = shapes.last() {
        Input::new("bias", shape)?.holds(columns)?;
    }
    if product.is_empty() {
        return Ok(product);
    }
    // Rows are rounded in room of whole vectors.
    let room = depth.checked_next_multiple_of(64).and_then(|width| width.checked_mul(rows));
    if depth == 0 || self::product(&[rows, width]).is_none() || room.is_none_or(|room| room > MOST_ELEMENTS) {
        return Err(x.misfit(format_args!("rows of one value or more, whose product with {width} columns can be")));
    }
    scales.holds(columns.checked_mul(if form == Form::Bytes { 1 } else { blocks }))?;
    if form.is_for_few() && integers.dims[1] != blocks {
        return Err(integers.misfit(format_args!("[{columns}, {blocks}, bytes of a block]")));
    }
    let in_blocks = blocks.checked_mul(16).is_some_and(|least| inner.checked_rem(least) == Some(0));
    if form != Form::Bytes && !in_blocks {
        return Err(scales.misfit(format_args!("blocks of a multiple of 16 of {inner} values")));
    }
    Ok(product)
}
