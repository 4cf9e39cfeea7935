//! Products of rows of f32 with a frozen matrix of 8- or 4-bit integers, which is read as it lies in its file: no other copy of it is
//! made or kept. Rows are rounded to 8 bits with a scale for each group of values ([`Direction::rounding`]), groups with outliers to two
//! such digits, so that the products are those of integers.
//!
//! 64 outputs are computed at a time, for all rows: what they need of the matrix is laid out for the processor's products of integers
//! (AVX-512's dot products of four bytes, VNNI, AVX2's of two 16-bit numbers, or, everywhere else, of 16-bit numbers in plain Rust, of
//! which compilers make vectors) in a scratch strip, which takes as long as a few
//! rows, and is then multiplied with tiles of rows whose sums stay in registers (Goto & van de Geijn 2008, "Anatomy of
//! high-performance matrix multiplication").

use std::fmt;

use marionette_models::bundle::{ROWS, ROWS_OF_GRADIENTS, RowRounding};

/// So few rows meet the integers as they lie; for more they are laid out.
pub const FEW: usize = 2;

mod affine;
mod few;
mod many;
mod portable;
mod rounded;
#[cfg(target_arch = "x86_64")]
mod vectors;

pub use affine::Affine;
pub use few::{Bytes, Few, Spreads, multiply_few, multiply_rows};
pub use many::multiply;
pub(crate) use many::{Output, Product};
pub use rounded::{Rounded, RowToRound};

/// How many values of a row forward share a scale.
const GROUP: usize = ROWS.group;
/// Outputs of a strip.
pub(crate) const STRIP: usize = 64;
/// How many columns ahead of those that are laid out the next ones are fetched, and how many bytes ahead of those that few rows meet:
/// memory takes so long.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 16;
#[cfg(target_arch = "x86_64")]
const FAR: usize = 2048;

/// What this processor multiplies integers with. There are none that it lacks: who has one may compute with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Instructions(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    /// AVX-512 with dot products of four bytes.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AVX2 with numbers of 16 bits (FMA, F16C), with products of 16 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Those that a compiler knows that every processor of its kind has (SSE2, NEON), with products of 16 bits.
    Portable,
}

impl Set {
    /// All that there are here, the fastest first.
    const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Vnni,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        Self::Portable,
    ];

    fn is_supported(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            Self::Portable => true,
        }
    }

    /// Whether rows are rounded to 16 bits for it, not to digits of 8.
    fn has_words(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => true,
            Self::Portable => true,
        }
    }
}

impl Instructions {
    /// All that this processor has, the fastest first: one at least.
    pub fn supported() -> impl Iterator<Item = Self> {
        Set::ALL.iter().copied().filter(|set| set.is_supported()).map(Self)
    }

    /// The fastest that this processor has.
    pub fn best() -> Self {
        Self::supported().next().unwrap_or(Self(Set::Portable))
    }

    /// Whether they are those of every processor, beside which others' products may be the faster ones.
    pub fn is_portable(self) -> bool {
        self.0 == Set::Portable
    }

    /// What they are called.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Vnni => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "AVX2",
            Set::Portable => "portable",
        }
    }
}

impl fmt::Debug for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// N columns of K integers.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    integers: &'a [u8],
    /// What a column's integers of 8 bits are multiplied with, \[N\]; none where those of 4 bits are multiplied forward.
    scales: &'a [f32],
    columns: usize,
    /// What those of 4 bits are.
    affine: Option<Affine<'a>>,
    inner: usize,
}

/// Which way a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From K values a row to N.
    Forward,
    /// From N values a row to K.
    Back,
}

impl Direction {
    /// How rows are rounded.
    pub fn rounding(self) -> RowRounding {
        match self {
            Self::Forward => ROWS,
            Self::Back => ROWS_OF_GRADIENTS,
        }
    }
}

impl<'a> Matrix<'a> {
    /// Of bytes \[N, K\], each 128 more than its integer, and a scale a column.
    pub fn of_bytes(integers: &'a [u8], scales: &'a [f32]) -> Option<Self> {
        let inner = integers.len().checked_div(scales.len())?;
        let columns = scales.len();
        (inner * columns == integers.len()).then_some(Self { integers, scales, columns, affine: None, inner })
    }

    /// Of 4 bits, forward: as they are, each block with its scale and minimum.
    pub fn of_affine(affine: Affine<'a>) -> Self {
        let Affine { integers, columns, inner, .. } = affine;
        Self { integers, scales: &[], columns, affine: Some(affine), inner }
    }

    /// Of 4 bits, for both ways: back, where a sum is over columns, as bytes, a value over its column's scale, rounded. `scales` are
    /// those, \[N\], as [`Affine::column_scales`] gives them.
    pub fn of_affine_back(affine: Affine<'a>, scales: &'a [f32]) -> Option<Self> {
        (scales.len() == affine.columns).then_some(Self { scales, ..Self::of_affine(affine) })
    }

    /// N and K.
    pub fn shape(&self) -> [usize; 2] {
        [self.columns, self.inner]
    }

    /// What a column's integers of 8 bits are multiplied with, \[N\].
    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }

    fn outputs(&self, direction: Direction) -> usize {
        match direction {
            Direction::Forward => self.columns,
            Direction::Back => self.inner,
        }
    }

    fn depth(&self, direction: Direction) -> usize {
        match direction {
            Direction::Forward => self.inner,
            Direction::Back => self.columns,
        }
    }
}

#[cfg(test)]
mod tests;
