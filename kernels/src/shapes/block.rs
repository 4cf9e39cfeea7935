//! `DecoderBlock` and `LastDecoderBlock`, whose inputs are as many as a model's block has parts.

use super::{HeadCounts, Input, Misfit, product};
use crate::attention::Heads;

/// What the elements of an input are, as far as it tells matrices apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// f32.
    Single,
    /// f16.
    Half,
    /// u8.
    Byte,
    /// Something else.
    Other,
}

/// A block's parts, as the attributes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockParts {
    /// How many heads attention has.
    pub counts: HeadCounts,
    /// Whether normalisations have a shift.
    pub shift: bool,
    /// Whether the MLP's first matrix gives two values for each one of the second.
    pub gated: bool,
    /// Whether queries and keys are turned.
    pub rotary: bool,
    /// Whether matrices have biases.
    pub bias: bool,
    /// Whether there are adapters.
    pub adapters: bool,
    /// Whether some rows alone are asked for.
    pub rows: bool,
}

/// A matrix of N columns of K integers: its first part's place among the inputs, where its bias is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixAt {
    /// Integers; scales are next, and of 4 bits minima after them.
    pub first: usize,
    /// Whether the integers have 4 bits.
    pub affine: bool,
    /// N and K.
    pub size: [usize; 2],
    /// The bias.
    pub bias: Option<usize>,
}

/// The adapters of a place: D, d, U and u.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptersAt {
    /// The place of D among the inputs; the others are next.
    pub first: usize,
    /// How many there are: 1, or one for each row of the batch.
    pub number: usize,
}

/// Where a block's inputs are, whose shapes fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockShape {
    /// B.
    pub batch: usize,
    /// T.
    pub tokens: usize,
    /// C.
    pub capacity: usize,
    /// Of attention.
    pub heads: Heads,
    /// Cosines, and sines after them.
    pub angles: Option<usize>,
    /// Which rows are asked for.
    pub rows: Option<usize>,
    /// Scales of the two normalisations; a shift is next.
    pub norms: [usize; 2],
    /// To queries, keys and values; the projection; and those of the MLP.
    pub matrices: [MatrixAt; 4],
    /// Where there are adapters, each two's.
    pub adapters: [Option<AdaptersAt>; 2],
    /// The shape of x after the block.
    pub output: Vec<i64>,
}

impl BlockShape {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.batch == 0 || self.tokens == 0
    }
}

/// x, the caches, last positions and their number.
pub const X: usize = 0;
/// Keys and values.
pub const CACHES: [usize; 2] = [1, 2];
/// The last positions.
pub const LAST: usize = 3;

struct Cursor<'a> {
    inputs: &'a [(&'a [i64], Element)],
    next: usize,
}

impl<'a> Cursor<'a> {
    fn next(&mut self, name: &'static str, element: Element) -> Result<Input<'a>, Misfit> {
        let place = self.next;
        self.next += 1;
        let number = Misfit::Number { found: self.inputs.len(), expected: place + 1 };
        let &(shape, found) = self.inputs.get(place).ok_or(number)?;
        let input = Input::new(name, shape)?;
        if found == element { Ok(input) } else { Err(input.misfit(format_args!("elements of the type {element:?}"))) }
    }

    /// Vectors of f32.
    fn vector(&mut self, name: &'static str, length: usize) -> Result<(), Misfit> {
        self.next(name, Element::Single)?.holds(length)
    }

    /// A normalisation.
    fn norm(&mut self, names: [&'static str; 2], shift: bool, width: usize) -> Result<usize, Misfit> {
        let first = self.next;
        self.vector(names[0], width)?;
        if shift {
            self.vector(names[1], width)?;
        }
        Ok(first)
    }

    /// A matrix with K values a column, and N columns where that is known.
    fn matrix(
        &mut self,
        [integers, scales, minima, bias_name]: [&'static str; 4],
        [columns, inner]: [Option<usize>; 2],
        bias: bool,
    ) -> Result<MatrixAt, Misfit> {
        let first = self.next;
        let integers = self.next(integers, Element::Byte)?;
        let [number, blocks, bytes] =
            integers.dims[..].try_into().map_err(|_| integers.misfit("[N, blocks, bytes of a block]"))?;
        let affine = self.inputs.get(self.next).is_some_and(|(_, element)| *element == Element::Half);
        let found = product(&[blocks, bytes, if affine { 2 } else { 1 }]);
        let Some(found) = found.filter(|&found| found > 0 && inner.is_none_or(|inner| inner == found)) else {
            return Err(integers.misfit(format_args!("columns of {} values", inner.unwrap_or(1))));
        };
        if number == 0 || columns.is_some_and(|columns| columns != number) {
            return Err(integers.misfit(format_args!("{} columns", columns.unwrap_or(1))));
        }
        if affine {
            self.next(scales, Element::Half)?.holds(product(&[number, blocks]))?;
            self.next(minima, Element::Half)?.holds(product(&[number, blocks]))?;
        } else {
            self.vector(scales, number)?;
        }
        let bias_at = bias.then_some(self.next);
        if bias {
            self.vector(bias_name, number)?;
        }
        Ok(MatrixAt { first, affine, size: [number, found], bias: bias_at })
    }

    /// Matrices and vectors of one adapter, or with one more dimension of one for each row of the batch.
    fn adapters(&mut self, names: [&'static str; 4], [batch, width]: [usize; 2]) -> Result<AdaptersAt, Misfit> {
        let first = self.next;
        let down = self.next(names[0], Element::Single)?;
        let (number, found, bottleneck) = match down.dims[..] {
            [found, bottleneck] => (1, found, bottleneck),
            [number, found, bottleneck] if number == batch => (number, found, bottleneck),
            _ => return Err(down.misfit(format_args!("[{width}, R], or [{batch}, {width}, R]"))),
        };
        if found != width || bottleneck == 0 {
            return Err(down.misfit(format_args!("{width} rows of one value or more")));
        }
        let of_each = |size: &[i64]| [&[number as i64][..], size].concat();
        let has_each = down.dims.len() == 3;
        let mut is = |name: &'static str, size: &[usize]| {
            let size: Vec<i64> = size.iter().map(|&size| size as i64).collect();
            let expected = if has_each { of_each(&size) } else { size };
            let input = self.next(name, Element::Single)?;
            if input.shape == expected { Ok(()) } else { Err(input.misfit(format_args!("{expected:?}"))) }
        };
        is(names[1], &[bottleneck])?;
        is(names[2], &[bottleneck, width])?;
        is(names[3], &[width])?;
        Ok(AdaptersAt { first, number })
    }
}

/// Of x \[B, T, D\]; past keys and values \[B, G, C, dh\]; last positions \[B\] and their number \[1\]; cosines and sines \[.., dh / 2\], where
/// there are; rows \[N\], where there are; then normalisations, matrices and, where there are, adapters
/// in their order, of all rows or, with one more dimension, \[B, ..\], of each.
///
/// # Errors
/// The shapes do not fit.
pub fn block(parts: BlockParts, inputs: &[(&[i64], Element)]) -> Result<BlockShape, Misfit> {
    use Element::{Other, Single};
    let mut cursor = Cursor { inputs, next: 0 };
    let x = cursor.next("x", Single)?;
    let [batch, tokens, width] = x.dims[..].try_into().map_err(|_| x.misfit("[B, T, D]"))?;
    if width == 0 {
        return Err(x.misfit("rows of one value or more"));
    }
    let keys = cursor.next("past keys", Single)?;
    let HeadCounts { queries, shared, all } = parts.counts;
    let (capacity, head) = match keys.dims[..] {
        [of_rows, groups, capacity, head] if of_rows == batch && groups == shared && head > 0 => (capacity, head),
        _ => return Err(keys.misfit(format_args!("[{batch}, {shared}, C, dh]"))),
    };
    let values = cursor.next("past values", Single)?;
    if values.shape != keys.shape {
        return Err(values.misfit(format_args!("{:?}", keys.shape)));
    }
    cursor.next("last positions", Other)?.holds(batch)?;
    cursor.next("number of positions", Other)?.holds(1)?;
    let mut angles = None;
    if parts.rotary {
        angles = Some(cursor.next);
        let cosines = cursor.next("cosines", Single)?;
        let known = cosines.rows();
        let all = product(&[batch, tokens]).unwrap_or(0);
        let serves = known.rows > 0 && all.is_multiple_of(known.rows);
        if known.width.checked_mul(2) != Some(head) || (all > 0 && !serves) {
            return Err(cosines.misfit(format_args!("rows of half of {head}, as many as divide {all}")));
        }
        cursor.next("sines", Single)?.holds(cosines.elements)?;
    }
    let (mut rows, mut output) = (None, x.shape.to_vec());
    if parts.rows {
        rows = Some(cursor.next);
        output = vec![cursor.next("rows", Other)?.elements as i64, width as i64];
    }
    let of_all = product(&[all, head]);
    let Some(qkv) = of_all else { return Err(keys.misfit("narrower heads")) };
    let norm_1 = cursor.norm(["scale of norm 1", "shift of norm 1"], parts.shift, width)?;
    let names = ["integers of qkv", "scales of qkv", "minima of qkv", "bias of qkv"];
    let qkv = cursor.matrix(names, [Some(qkv), Some(width)], parts.bias)?;
    let names = [
        "integers of the projection",
        "scales of the projection",
        "minima of the projection",
        "bias of the projection",
    ];
    let projection = cursor.matrix(names, [Some(width), Some(queries * head)], parts.bias)?;
    let names = ["down of adapter 1", "bias of down 1", "up of adapter 1", "bias of up 1"];
    let adapter_1 = parts.adapters.then(|| cursor.adapters(names, [batch, width])).transpose()?;
    let norm_2 = cursor.norm(["scale of norm 2", "shift of norm 2"], parts.shift, width)?;
    let names = ["integers of fc", "scales of fc", "minima of fc", "bias of fc"];
    let fc = cursor.matrix(names, [None, Some(width)], parts.bias)?;
    let hidden = if parts.gated { fc.size[0] / 2 } else { fc.size[0] };
    let names = [
        "integers of the MLP's projection",
        "scales of the MLP's projection",
        "minima of the MLP's projection",
        "bias of the MLP's projection",
    ];
    let mlp_projection = cursor.matrix(names, [Some(width), Some(hidden)], parts.bias)?;
    if parts.gated && fc.size[0] != 2 * hidden {
        return Err(x.misfit("an even number of gates and values"));
    }
    let names = ["down of adapter 2", "bias of down 2", "up of adapter 2", "bias of up 2"];
    let adapter_2 = parts.adapters.then(|| cursor.adapters(names, [batch, width])).transpose()?;
    if cursor.next != inputs.len() {
        return Err(Misfit::Number { found: inputs.len(), expected: cursor.next });
    }
    Ok(BlockShape {
        batch,
        tokens,
        capacity,
        heads: Heads { queries, shared, width: head },
        angles,
        rows,
        norms: [norm_1, norm_2],
        matrices: [qkv, projection, fc, mlp_projection],
        adapters: [adapter_1, adapter_2],
        output,
    })
}
