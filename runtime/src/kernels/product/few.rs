//! Products of few rows, for each of which the integers are read once.

use std::sync::Mutex;

use super::{GROUP, Instructions, Matrix, Rounded, STRIP, column_scales};

mod avx2;
mod vnni;

/// Columns of integers in blocks of one scale each, for few rows at a time: what counts then is how fast the integers are read.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    /// \[N, K bits / 8\], as of [`Matrix`].
    integers: &'a [u8],
    /// \[N, blocks\].
    scales: &'a [f32],
    columns: usize,
    inner: usize,
    /// Of 4 bits, and not of 8.
    halves: bool,
}

impl<'a> Blocks<'a> {
    /// N columns of K integers of 8 bits, or of 4.
    pub fn new(integers: &'a [u8], scales: &'a [f32], [columns, inner]: [usize; 2], halves: bool) -> Option<Self> {
        let number = scales.len().checked_div(columns)?;
        let block = inner.checked_div(number)?;
        let fits = number * columns == scales.len()
            && block * number == inner
            && block.is_power_of_two()
            && block >= 16
            && integers.len() == columns * inner / if halves { 2 } else { 1 }
            && (!halves || block <= 2 * STRIP);
        fits.then_some(Self { integers, scales, columns, inner, halves })
    }

    /// As bytes with a scale a column, for many rows; `columns` is room for the scales.
    pub fn many(self, columns: &'a mut Vec<f32>) -> Option<Matrix<'a>> {
        let number = self.scales.len() / self.columns.max(1);
        if self.halves {
            *columns = column_scales(self.scales, number);
            return Matrix::of_halves(self.integers, self.scales, columns);
        }
        columns.clear();
        columns.extend(self.scales.iter().step_by(number.max(1)));
        let same =
            self.scales.chunks(number.max(1)).zip(&*columns).all(|(scales, first)| scales.iter().all(|s| s == first));
        if same { Matrix::of_bytes(self.integers, columns) } else { None }
    }
}

/// y = x W + b as [`super::multiply`], for each row by itself and with each block's own scale.
pub fn multiply_few<E>(
    blocks: Blocks<'_>,
    rows: &Rounded,
    bias: Option<&[f32]>,
    y: &mut [f32],
    in_parallel: impl Fn(usize, &(dyn Fn(usize) + Send + Sync)) -> Result<(), E>,
) -> Result<bool, E> {
    let Blocks { columns, inner, .. } = blocks;
    let fits = rows.width == inner.next_multiple_of(64).max(64)
        && y.len() == rows.number() * columns
        && bias.is_none_or(|bias| bias.len() == columns);
    if !fits {
        return Ok(false);
    }
    let block = inner * columns / blocks.scales.len();
    for (row, y) in y.chunks_mut(columns.max(1)).enumerate() {
        let scales = &rows.scales[row * (rows.width / GROUP)..][..rows.width / GROUP];
        let row = row * rows.width..row * rows.width + inner;
        // SAFETY: there are rows, so the processor has their instructions.
        let line = unsafe {
            match rows.instructions {
                Instructions::Vnni => Line::Vnni(vnni::Spread::new(&rows.bytes[row], scales, block, blocks.halves)),
                Instructions::Avx2 => Line::Avx2(avx2::Spread::new(&rows.words[row], scales, block, blocks.halves)),
            }
        };
        let parts: Vec<Mutex<&mut [f32]>> = y.chunks_mut(STRIP).map(Mutex::new).collect();
        in_parallel(parts.len(), &|index| {
            if let Some(Ok(mut part)) = parts.get(index).map(Mutex::lock) {
                let first = index * STRIP;
                // SAFETY: as before.
                unsafe {
                    match &line {
                        Line::Vnni(line) => blocks.columns_vnni(first, line, &mut part),
                        Line::Avx2(line) => blocks.columns_avx2(first, line, &mut part),
                    }
                }
                if let Some(bias) = bias {
                    part.iter_mut().zip(&bias[first..]).for_each(|(y, bias)| *y += bias);
                }
            }
        })?;
    }
    Ok(true)
}

/// A row as columns in blocks meet it.
enum Line {
    Vnni(vnni::Spread),
    Avx2(avx2::Spread),
}
