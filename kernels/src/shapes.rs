//! What our operators ask of the shapes of their inputs, in one place. A bundle's graph gives attributes and shapes, and nobody
//! else looks at them: before a kernel allocates, cuts or points to anything, they become one of the descriptions here, in which
//! every product was computed with a check and every input has as many elements as its place in the formula.
//!
//! A dimension of 0 makes an output of no elements, which is given without work: wherever a description is not empty, none of its
//! numbers is 0 and none exceeds [`MOST_ELEMENTS`].

use std::fmt;

use super::attention::Heads;

/// The most elements of a tensor, of whatever type: a slice has isize::MAX bytes at most, and no element more than 8.
pub const MOST_ELEMENTS: usize = isize::MAX as usize / 8;

/// An input or an attribute that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The shape of an input.
    #[error("{input} has the shape {shape:?}, expected {expected}")]
    Shape {
        /// The input, as the operator's definition names it.
        input: &'static str,
        /// Its shape.
        shape: Vec<i64>,
        /// What would fit.
        expected: String,
    },
    /// The number of inputs.
    #[error("{found} inputs, expected {expected}")]
    Number {
        /// How many there are.
        found: usize,
        /// How many belong there.
        expected: usize,
    },
    /// Attributes.
    #[error("the attributes {attributes}, expected {expected}")]
    Attributes {
        /// Their names and values.
        attributes: String,
        /// What would fit.
        expected: &'static str,
    },
}

/// The number of elements of a shape, 0 where a dimension is 0; `None` where one is negative or there are more than
/// [`MOST_ELEMENTS`].
pub fn elements(shape: &[i64]) -> Option<usize> {
    if shape.iter().any(|&dim| dim < 0) {
        return None;
    }
    count(shape.iter().map(|&dim| usize::try_from(dim).ok()))
}

fn product(dims: &[usize]) -> Option<usize> {
    count(dims.iter().map(|&dim| Some(dim)))
}

fn count(dims: impl Iterator<Item = Option<usize>> + Clone) -> Option<usize> {
    if dims.clone().any(|dim| dim == Some(0)) {
        return Some(0);
    }
    let all = dims.into_iter().try_fold(1_usize, |all, dim| all.checked_mul(dim?));
    all.filter(|&all| all <= MOST_ELEMENTS)
}

/// An input whose elements could be counted.
struct Input<'a> {
    name: &'static str,
    shape: &'a [i64],
    dims: Vec<usize>,
    elements: usize,
}

impl<'a> Input<'a> {
    fn new(name: &'static str, shape: &'a [i64]) -> Result<Self, Misfit> {
        let dims: Vec<usize> = shape.iter().filter_map(|&dim| usize::try_from(dim).ok()).collect();
        let Some(elements) = elements(shape) else {
            let expected = format!("no negative dimension, and at most {MOST_ELEMENTS} elements");
            return Err(Misfit::Shape { input: name, shape: shape.to_vec(), expected });
        };
        Ok(Self { name, shape, dims, elements })
    }

    fn misfit(&self, expected: impl fmt::Display) -> Misfit {
        Misfit::Shape { input: self.name, shape: self.shape.to_vec(), expected: expected.to_string() }
    }

    /// Refuses another number of elements; `None` is one that cannot be.
    fn holds(&self, elements: impl Into<Option<usize>>) -> Result<(), Misfit> {
        match elements.into() {
            Some(elements) if elements == self.elements => Ok(()),
            Some(elements) => Err(self.misfit(format_args!("{elements} elements"))),
            None => Err(self.misfit("other dimensions beside it")),
        }
    }

    fn matrix(&self) -> Result<[usize; 2], Misfit> {
        self.dims[..].try_into().map_err(|_| self.misfit("a matrix"))
    }

    /// All dimensions but the last one as rows.
    fn rows(&self) -> Rows {
        let width = self.dims.last().copied().unwrap_or(1);
        Rows { output: self.shape.to_vec(), rows: self.elements.checked_div(width).unwrap_or(0), width }
    }
}

/// The inputs of an operator that has these.
fn inputs<'a, const N: usize>(names: [&'static str; N], shapes: &[&'a [i64]]) -> Result<[Input<'a>; N], Misfit> {
    let inputs: Vec<Input<'a>> =
        names.iter().zip(shapes).map(|(name, shape)| Input::new(name, shape)).collect::<Result<_, _>>()?;
    let wrong = Misfit::Number { found: shapes.len(), expected: N };
    if shapes.len() == N { inputs.try_into().map_err(|_| wrong) } else { Err(wrong) }
}

/// An output whose rows are computed each by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Its shape.
    pub output: Vec<i64>,
    /// How many rows there are; 0 where they have no elements.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
}

impl Rows {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }
}

/// `GeluGradient`, from dy and x.
///
/// # Errors
/// They have not as many elements as each other.
pub fn gelu_gradient(shapes: &[&[i64]]) -> Result<Rows, Misfit> {
    let [dy, x] = inputs(["dy", "x"], shapes)?;
    dy.holds(x.elements)?;
    Ok(x.rows())
}

/// `LayerNormalizationGradient`, from dy, x \[.., D\], scale \[D\], and mean and inverse deviation, one a row.
///
/// # Errors
/// The shapes do not fit.
pub fn layer_normalization_gradient(shapes: &[&[i64]]) -> Result<Rows, Misfit> {
    let [dy, x, scale, mean, inverse] = inputs(["dy", "x", "scale", "mean", "inverse deviation"], shapes)?;
    let rows = x.rows();
    dy.holds(x.elements)?;
    scale.holds(rows.width)?;
    mean.holds(rows.rows)?;
    inverse.holds(rows.rows)?;
    Ok(rows)
}

/// `RmsNormalizationGradient`, from dy, x \[.., D\], scale \[D\], and the inverse root mean square, one a row.
///
/// # Errors
/// The shapes do not fit.
pub fn rms_normalization_gradient(shapes: &[&[i64]]) -> Result<Rows, Misfit> {
    let [dy, x, scale, inverse] = inputs(["dy", "x", "scale", "inverse root mean square"], shapes)?;
    let rows = x.rows();
    dy.holds(x.elements)?;
    scale.holds(rows.width)?;
    inverse.holds(rows.rows)?;
    Ok(rows)
}

/// `RmsNormalization`, from x \[.., D\] and scale \[D\]; and the shape of its second output \[.., 1\].
///
/// # Errors
/// The shapes do not fit, or D is 0: the second output would have elements of nothing.
pub fn rms_normalization(shapes: &[&[i64]]) -> Result<(Rows, Vec<i64>), Misfit> {
    let [x, scale] = inputs(["x", "scale"], shapes)?;
    let rows = x.rows();
    let mut statistics = rows.output.clone();
    match statistics.last_mut() {
        Some(last) if *last > 0 => *last = 1,
        _ => return Err(x.misfit("rows of one value or more")),
    }
    scale.holds(rows.width)?;
    Ok((rows, statistics))
}

/// `SwiGlu`, from x \[.., 2 D\]; the rows are those of the output, \[.., D\].
///
/// # Errors
/// The width is odd.
pub fn swi_glu(shapes: &[&[i64]]) -> Result<Rows, Misfit> {
    let [x] = inputs(["x"], shapes)?;
    let Rows { mut output, rows, width } = x.rows();
    match output.last_mut() {
        Some(last) if width.is_multiple_of(2) => *last /= 2,
        _ => return Err(x.misfit("rows of an even number of values")),
    }
    Ok(Rows { output, rows, width: width / 2 })
}

/// `SwiGluGradient`, from dy \[.., D\] and x \[.., 2 D\].
///
/// # Errors
/// The shapes do not fit.
pub fn swi_glu_gradient(shapes: &[&[i64]]) -> Result<Rows, Misfit> {
    let [dy, x] = inputs(["dy", "x"], shapes)?;
    let rows = x.rows();
    if !rows.width.is_multiple_of(2) {
        return Err(x.misfit("rows of an even number of values"));
    }
    dy.holds(x.elements / 2)?;
    Ok(rows)
}

/// Rows of heads, the first of which are turned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turned {
    /// The output, which is as the input.
    pub rows: Rows,
    /// Values of a row that are turned.
    pub turned: usize,
    /// Angles of a token, half of a head's width.
    pub half: usize,
    /// For how many tokens there are angles; they serve again for as many rows.
    pub known: usize,
}

/// `Rotary`, which turns `num_heads` heads of x \[.., D\] by the angles with cosines and sines \[.., dh / 2\].
///
/// # Errors
/// The shapes do not fit.
pub fn rotary(num_heads: i64, shapes: &[&[i64]]) -> Result<Turned, Misfit> {
    let [x, cosines, sines] = inputs(["x", "cosines", "sines"], shapes)?;
    let (rows, angles) = (x.rows(), cosines.rows());
    let (half, known) = (angles.width, angles.rows);
    sines.holds(cosines.elements)?;
    let turned = usize::try_from(num_heads).ok().and_then(|heads| heads.checked_mul(half)?.checked_mul(2));
    let Some(turned) = turned.filter(|&turned| turned > 0 && turned <= rows.width) else {
        return Err(x.misfit(format_args!("rows that hold {num_heads} heads of twice {half} values")));
    };
    if !rows.is_empty() && rows.rows.checked_rem(known).is_none_or(|rest| rest != 0) {
        return Err(cosines.misfit(format_args!("rows that divide {}", rows.rows)));
    }
    Ok(Turned { rows, turned, half, known })
}

/// The end of an adapter: A \[M, K\] times B, plus what has the output's shape \[M, N\].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// M.
    pub rows: usize,
    /// K.
    pub depth: usize,
    /// N.
    pub width: usize,
}

impl Sum {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 || self.width == 0
    }

    /// The output's shape.
    pub fn output(&self) -> Vec<i64> {
        vec![self.rows as i64, self.width as i64]
    }

    fn new(a: &Input<'_>, [rows, depth]: [usize; 2], width: usize) -> Result<Self, Misfit> {
        let sum = Self { rows, depth, width };
        if product(&[rows, width]).is_none() || (depth == 0 && !sum.is_empty()) {
            return Err(a.misfit(format_args!("rows of one value or more, whose product with {width} columns can be")));
        }
        Ok(sum)
    }
}

/// `AdapterUp`, from hidden \[M, K\], weight \[K, N\], bias \[N\], x \[M, N\] and residual \[M, N\].
///
/// # Errors
/// The shapes do not fit.
pub fn adapter_up(shapes: &[&[i64]]) -> Result<Sum, Misfit> {
    let [hidden, weight, bias, x, residual] = inputs(["hidden", "weight", "bias", "x", "residual"], shapes)?;
    let ([rows, depth], [_, width]) = (hidden.matrix()?, residual.matrix()?);
    if weight.matrix()? != [depth, width] {
        return Err(weight.misfit(format_args!("[{depth}, {width}]")));
    }
    bias.holds(width)?;
    x.holds(product(&[rows, width]))?;
    residual.holds(product(&[rows, width]))?;
    Sum::new(&hidden, [rows, depth], width)
}

/// `AdapterDownGradient`, from dz \[M, K\], weight \[N, K\] and dy \[M, N\].
///
/// # Errors
/// The shapes do not fit.
pub fn adapter_down_gradient(shapes: &[&[i64]]) -> Result<Sum, Misfit> {
    let [dz, weight, dy] = inputs(["dz", "weight", "dy"], shapes)?;
    let ([rows, depth], [_, width]) = (dz.matrix()?, dy.matrix()?);
    if weight.matrix()? != [width, depth] {
        return Err(weight.misfit(format_args!("[{width}, {depth}]")));
    }
    dy.holds(product(&[rows, width]))?;
    Sum::new(&dz, [rows, depth], width)
}

/// What `RowAdapters` computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfRows {
    /// M, a multiple of the batch's rows.
    pub rows: usize,
    /// D.
    pub width: usize,
    /// B, how many adapters there are: M / B rows have each.
    pub batch: usize,
}

impl OfRows {
    /// The output.
    pub fn output(self) -> [i64; 2] {
        [self.rows as i64, self.width as i64]
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(self) -> bool {
        self.rows == 0
    }
}

/// `RowAdapters`, from x and residual \[M, D\], D \[B, D, R\], d \[B, R\], U \[B, R, D\] and u \[B, D\].
///
/// # Errors
/// The shapes do not fit.
pub fn row_adapters(shapes: &[&[i64]]) -> Result<OfRows, Misfit> {
    let [x, residual, down, down_bias, up, up_bias] =
        inputs(["x", "residual", "down", "bias of down", "up", "bias of up"], shapes)?;
    let [rows, width] = x.matrix()?;
    if residual.shape != x.shape {
        return Err(residual.misfit(format_args!("{:?}", x.shape)));
    }
    let (batch, bottleneck) = match down.dims[..] {
        [batch, found, bottleneck] if found == width && width > 0 && bottleneck > 0 => (batch, bottleneck),
        _ => return Err(down.misfit(format_args!("[B, {width}, R], of one value or more a row"))),
    };
    if rows.checked_rem(batch).unwrap_or(rows) > 0 {
        return Err(x.misfit(format_args!("as many rows for each of {batch} adapters")));
    }
    let others: [(&Input<'_>, &[usize]); 3] =
        [(&down_bias, &[batch, bottleneck]), (&up, &[batch, bottleneck, width]), (&up_bias, &[batch, width])];
    match others.into_iter().find(|(input, expected)| input.dims != *expected) {
        Some((input, expected)) => Err(input.misfit(format_args!("{expected:?}"))),
        None => Ok(OfRows { rows, width, batch }),
    }
}

/// Numbers of heads that can be, H of queries and G of keys and of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadCounts {
    queries: usize,
    shared: usize,
    /// H + 2 G.
    all: usize,
}

impl HeadCounts {
    /// Checks the attributes.
    ///
    /// # Errors
    /// One is not above 0, H is no multiple of G, or H + 2 G is more than [`MOST_ELEMENTS`].
    pub fn new(num_heads: i64, kv_num_heads: i64) -> Result<Self, Misfit> {
        let counts = || {
            let queries = usize::try_from(num_heads).ok().filter(|&queries| queries > 0)?;
            let shared = usize::try_from(kv_num_heads).ok().filter(|&shared| shared > 0)?;
            let all = shared.checked_mul(2)?.checked_add(queries)?;
            (queries.is_multiple_of(shared) && all <= MOST_ELEMENTS).then_some(Self { queries, shared, all })
        };
        counts().ok_or_else(|| Misfit::Attributes {
            attributes: format!("num_heads = {num_heads} and kv_num_heads = {kv_num_heads}"),
            expected: "both above 0, and the first a multiple of the second",
        })
    }
}

/// What attention is computed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attended {
    /// B.
    pub batch: usize,
    /// T.
    pub tokens: usize,
    /// H, G and dh.
    pub heads: Heads,
}

impl Attended {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.batch == 0 || self.tokens == 0
    }

    /// The shape of the outputs of all heads, \[B, T, H dh\].
    pub fn outputs(&self) -> Vec<i64> {
        [self.batch, self.tokens, self.heads.output()].map(|dim| dim as i64).to_vec()
    }

    /// The shape of the logarithms of sums, \[B, H, T\].
    pub fn sums(&self) -> Vec<i64> {
        [self.batch, self.heads.queries, self.tokens].map(|dim| dim as i64).to_vec()
    }

    /// The shape of queries, keys and values side by side, \[B, T, (H + 2 G) dh\].
    pub fn all(&self) -> Vec<i64> {
        [self.batch, self.tokens, self.heads.all()].map(|dim| dim as i64).to_vec()
    }

    fn new(counts: HeadCounts, qkv: &Input<'_>) -> Result<Self, Misfit> {
        let HeadCounts { queries, shared, all } = counts;
        match qkv.dims[..] {
            [batch, tokens, width] if width > 0 && width <= MOST_ELEMENTS && width.is_multiple_of(all) => {
                Ok(Self { batch, tokens, heads: Heads { queries, shared, width: width / all } })
            }
            _ => Err(qkv.misfit(format_args!("[B, T, {all} dh]"))),
        }
    }
}

/// `CausalAttention`, from queries, keys and values side by side \[B, T, (H + 2 G) dh\]; and `BranchedAttention`, which has each
/// token's branch \[B, T\] too.
///
/// # Errors
/// The shapes do not fit.
pub fn attention(counts: HeadCounts, branched: bool, shapes: &[&[i64]]) -> Result<Attended, Misfit> {
    if !branched {
        let [qkv] = inputs(["qkv"], shapes)?;
        return Attended::new(counts, &qkv);
    }
    let [qkv, branch] = inputs(["qkv", "branch"], shapes)?;
    let attended = Attended::new(counts, &qkv)?;
    branch.holds(product(&[attended.batch, attended.tokens]))?;
    Ok(attended)
}

/// `CausalAttentionGradient`, from dy and y \[B, T, H dh\], qkv \[B, T, (H + 2 G) dh\] and the logarithms of sums \[B, H, T\].
///
/// # Errors
/// The shapes do not fit.
pub fn attention_gradient(counts: HeadCounts, shapes: &[&[i64]]) -> Result<Attended, Misfit> {
    let [dy, y, qkv, sums] = inputs(["dy", "y", "qkv", "logarithms of sums"], shapes)?;
    let attended @ Attended { batch, tokens, heads } = Attended::new(counts, &qkv)?;
    let outputs = product(&[batch, tokens, heads.output()]);
    dy.holds(outputs)?;
    y.holds(outputs)?;
    sums.holds(product(&[batch, heads.queries, tokens]))?;
    Ok(attended)
}

/// Rows of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logits {
    /// N.
    pub rows: usize,
    /// C, at least 1 where there are rows.
    pub classes: usize,
}

impl Logits {
    fn new(logits: &Input<'_>, targets: &Input<'_>) -> Result<Self, Misfit> {
        let [rows, classes] = logits.matrix()?;
        if classes == 0 && rows > 0 {
            return Err(logits.misfit("rows of one value or more"));
        }
        targets.holds(rows)?;
        Ok(Self { rows, classes })
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }
}

/// `TargetLogProb`, from logits \[N, C\] and targets \[N\].
///
/// # Errors
/// The shapes do not fit.
pub fn target_log_prob(shapes: &[&[i64]]) -> Result<Logits, Misfit> {
    let [logits, targets] = inputs(["logits", "targets"], shapes)?;
    Logits::new(&logits, &targets)
}

/// `TargetLogProbGradient`, from dy \[N\], logits \[N, C\], targets \[N\] and the logarithms of sums \[N\].
///
/// # Errors
/// The shapes do not fit.
pub fn target_log_prob_gradient(shapes: &[&[i64]]) -> Result<Logits, Misfit> {
    let [dy, logits, targets, sums] = inputs(["dy", "logits", "targets", "logarithms of sums"], shapes)?;
    let all = Logits::new(&logits, &targets)?;
    dy.holds(all.rows)?;
    sums.holds(all.rows)?;
    Ok(all)
}

pub mod block;
mod integers;
pub use integers::{Form, IntegerProduct, integer_product};

#[cfg(test)]
mod tests;
