//! What all products in plain Rust are made of.

/// Added to a number below 2²², it rounds it to an integer, ties to even, which is then in its low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

// Loops over units are functions of their own, which add up one number: inlined, or where each unit's sum is stored, compilers make
// vectors of several units, which takes two to three times as long; and with units of 64 too.

/// Σ s Σ x w: of a row's integers x and a column's w, of the same number. The row has a scale s for each group of `UNITS` times 32.
#[inline(never)]
pub(super) fn products<const UNITS: usize>(row: &[i16], column: &[i16], scales: &[f32]) -> f32 {
    let [row, column] = [row, column].map(|words| words.as_chunks::<32>().0.as_chunks::<UNITS>().0);
    let group =
        |row: &[_; UNITS], column: &[_; UNITS]| -> i32 { row.iter().zip(column).map(|(x, w)| product(x, w)).sum() };
    row.iter().zip(column).zip(scales).map(|((row, column), scale)| group(row, column) as f32 * scale).sum()
}

/// Σ s t Σ x w, with the scales s and t of each `UNIT` integers of the row and of the column.
#[inline(never)]
pub(super) fn products_in_units<const UNIT: usize>(
    [row, column]: [&[i16]; 2],
    [row_scales, column_scales]: [&[f32]; 2],
) -> f32 {
    let units = row.as_chunks::<UNIT>().0.iter().zip(column.as_chunks::<UNIT>().0);
    units.zip(row_scales.iter().zip(column_scales)).map(|((x, w), (s, t))| product(x, w) as f32 * (s * t)).sum()
}

/// Σ x w.
#[inline(always)]
fn product<const UNIT: usize>(x: &[i16; UNIT], w: &[i16; UNIT]) -> i32 {
    x.iter().zip(w).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum()
}

/// Σ a b.
pub(super) fn products_of_floats(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (a, b) = ((a.as_chunks::<8>()), (b.as_chunks::<8>()));
    for (a, b) in a.0.iter().zip(b.0) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + a.1.iter().zip(b.1).map(|(a, b)| a * b).sum::<f32>()
}
