//! The other side of a product, rounded.

use std::collections::TryReserveError;
use std::sync::Mutex;

use marionette_models::bundle::{BASE, RowRounding};

use super::{Direction, GROUP, Instructions, Set};
use crate::{Calls, each_share};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(any(target_arch = "x86_64", test))]
mod digits;
mod portable;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(any(target_arch = "x86_64", test))]
pub(super) use digits::Line;
#[cfg(target_arch = "x86_64")]
pub(super) use vnni::Finer;

/// The largest digit.
const MOST: f32 = 127.0;

/// Rows rounded to 8 bits, here and there to 15, as some instructions want them.
#[derive(Debug)]
pub struct Rounded {
    pub(super) instructions: Instructions,
    rows: usize,
    pub(super) width: usize,
    /// How many of a row's integers share a scale.
    pub(super) group: usize,
    /// For VNNI: the first digit, and the second, which only groups of rows forward have.
    pub(super) digits: [Digits; 2],
    /// For all others, in 16 bits: both.
    pub(super) words: Vec<i16>,
    /// What those are multiplied with, \[M, width / group\].
    pub(super) scales: Vec<f32>,
}

/// A digit of each value.
#[derive(Debug, Default)]
pub(super) struct Digits {
    /// \[M, width\], zeros after a row's values.
    pub bytes: Vec<i8>,
    /// What they are multiplied with, \[M, width / group\]: 0 where there are none.
    pub scales: Vec<f32>,
    /// −128 times the sum of each group, \[M, width / group\].
    pub corrections: Vec<i32>,
}

impl Rounded {
    /// No rows yet.
    pub fn new(instructions: Instructions) -> Self {
        let (digits, words, scales) = Default::default();
        Self { instructions, rows: 0, width: 0, group: GROUP, digits, words, scales }
    }

    /// Those that are kept in a room, or new ones where they are for other instructions.
    pub fn kept(room: &mut Option<Self>, instructions: Instructions) -> &mut Self {
        if room.as_ref().is_some_and(|kept| kept.instructions != instructions) {
            *room = None;
        }
        room.get_or_insert_with(|| Self::new(instructions))
    }

    /// Has memory for what [`Rounded::rows`] gives room for.
    ///
    /// # Errors
    /// There is none.
    pub fn try_reserve(&mut self, rows: usize, length: usize) -> Result<(), TryReserveError> {
        fn to<T>(room: &mut Vec<T>, length: usize) -> Result<(), TryReserveError> {
            room.try_reserve(length.saturating_sub(room.len()))
        }
        let width = length.checked_next_multiple_of(64).unwrap_or(usize::MAX).max(64);
        // At most: groups of gradients are longer.
        let (all, groups) = (rows.saturating_mul(width), rows.saturating_mul(width / GROUP));
        match self.instructions.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Vnni => self.digits.iter_mut().try_for_each(|digits| {
                to(&mut digits.scales, groups)?;
                to(&mut digits.corrections, groups)?;
                to(&mut digits.bytes, all)
            }),
            _ => {
                to(&mut self.scales, groups)?;
                to(&mut self.words, all)
            }
        }
    }

    /// How many rows there are.
    pub(super) fn number(&self) -> usize {
        self.rows
    }

    /// Room for `rows` rows of `length` values for a product in a direction, to be filled by [`RowToRound::round`], each row by itself.
    pub fn rows(&mut self, rows: usize, length: usize, direction: Direction) -> Vec<RowToRound<'_>> {
        (self.rows, self.width, self.group) = (rows, length.next_multiple_of(64).max(64), direction.rounding().group);
        let rounding = direction.rounding();
        let (width, groups) = (self.width, self.width / self.group);
        match self.instructions.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Vnni => {
                let [first, second] = self.digits.each_mut().map(|digits| {
                    digits.scales.resize(rows * groups, 0.0);
                    digits.corrections.resize(rows * groups, 0);
                    digits.bytes.resize(rows * width, 0);
                    let scales = digits.scales.chunks_mut(groups).zip(digits.corrections.chunks_mut(groups));
                    digits.bytes.chunks_mut(width).zip(scales)
                });
                let row = |(bytes, (scales, corrections))| vnni::DigitsOfRow { bytes, scales, corrections };
                let places = first.zip(second).map(|(first, second)| Place::Digits([row(first), row(second)]));
                places.map(|place| RowToRound { place, rounding }).collect()
            }
            set => {
                self.scales.resize(rows * groups, 0.0);
                self.words.resize(rows * width, 0);
                let places = self.words.chunks_mut(width).zip(self.scales.chunks_mut(groups));
                let places = places.map(|(words, scales)| Place::Words { set, words, scales });
                places.map(|place| RowToRound { place, rounding }).collect()
            }
        }
    }

    /// Rounds rows of `length` values, for which there is memory, each by itself: those of x, times `factors` where there are some
    /// ([`RowToRound::round`]). `threads` gets a number and calls a function with each index below it.
    ///
    /// # Errors
    /// Those of `threads`.
    pub fn round<E>(
        &mut self,
        x: &[f32],
        length: usize,
        direction: Direction,
        factors: Option<&[f32]>,
        threads: impl FnOnce(usize, Calls<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        /// Enough elements for a thread to be worth waking.
        const LEAST_SHARE: usize = 16 * 1024;
        let share = LEAST_SHARE.div_ceil(length);
        let mut places = self.rows(x.len() / length, length, direction);
        let shares: Vec<_> = places.chunks_mut(share).map(Mutex::new).collect();
        each_share(&shares, threads, |index, places| {
            for (place, x) in places.iter_mut().zip(x[index * share * length..].chunks(length)) {
                place.round(x, factors);
            }
        })
    }

    /// The sum of every so many values of a row, \[width / length\].
    pub(super) fn sums(&self, row: usize, length: usize) -> Vec<f32> {
        let share = self.group / length;
        let groups = self.width / self.group;
        if self.instructions.0.has_words() {
            let sum = |words: &[i16]| words.iter().map(|&word| i32::from(word)).sum::<i32>() as f32;
            let (words, scales) = self.words(row);
            return words.chunks(length).enumerate().map(|(at, words)| sum(words) * scales[at / share]).collect();
        }
        let here = row * groups..(row + 1) * groups;
        let [first, second] = &self.digits;
        if share == 1 {
            let value = |digits: &Digits, at: usize| digits.corrections[at] as f32 * (digits.scales[at] / -128.0);
            return here.map(|at| value(first, at) + value(second, at)).collect();
        }
        let value = |digits: &Digits, at: usize| {
            let bytes = &digits.bytes[at * length..][..length];
            bytes.iter().map(|&byte| i32::from(byte)).sum::<i32>() as f32 * digits.scales[at / share]
        };
        (here.start * share..here.end * share).map(|at| value(first, at) + value(second, at)).collect()
    }

    /// In 16 bits: a row's integers and its groups' scales.
    pub(super) fn words(&self, row: usize) -> (&[i16], &[f32]) {
        let groups = self.width / self.group;
        (&self.words[row * self.width..][..self.width], &self.scales[row * groups..][..groups])
    }
}

/// Where one row's integers belong. There is one only where the processor has the instructions.
#[derive(Debug)]
pub struct RowToRound<'a> {
    place: Place<'a>,
    rounding: RowRounding,
}

#[derive(Debug)]
enum Place<'a> {
    #[cfg(target_arch = "x86_64")]
    Digits([vnni::DigitsOfRow<'a>; 2]),
    Words {
        set: Set,
        words: &'a mut [i16],
        scales: &'a mut [f32],
    },
}

impl RowToRound<'_> {
    /// Rounds a row: x ⊙ `factors` where there are some, each group to the nearest multiples of 1/127 of its largest value, one with an
    /// outlier to those of 1/254 of that ([`RowRounding`]; there are no factors where there are outliers). A group with a value that is
    /// not finite gives a scale that is none.
    pub fn round(&mut self, x: &[f32], factors: Option<&[f32]>) {
        let RowRounding { group, outlier } = self.rounding;
        let parts = (0..).step_by(group).map(|at| (part(x, at, group), factors.map(|all| part(all, at, group))));
        let most = if outlier.is_finite() { outlier * mean_square(x).sqrt() } else { outlier };
        match &mut self.place {
            #[cfg(target_arch = "x86_64")]
            Place::Digits([first, second]) => {
                for ((x, factors), digits) in parts.zip(first.groups(group).zip(second.groups(group))) {
                    // SAFETY: the processor has the instructions.
                    unsafe { vnni::round(x, factors, most, digits.into()) };
                }
            }
            Place::Words { set, words, scales } => {
                for ((x, factors), (words, scale)) in parts.zip(words.chunks_mut(group).zip(scales.iter_mut())) {
                    *scale = match set {
                        // SAFETY: the processor has the instructions.
                        #[cfg(target_arch = "x86_64")]
                        Set::Avx2 => unsafe { avx2::round(x, factors, most, words) },
                        _ => portable::round(x, factors, most, words),
                    };
                }
            }
        }
    }
}

/// Of a row, added up in 16 parts, as compilers make vectors of.
fn mean_square(x: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    let rest: f32 = rest.iter().map(|x| x * x).sum();
    (sums.iter().sum::<f32>() + rest) / x.len() as f32
}

/// Up to `length` values from a place on: none beyond the last.
#[inline]
fn part(values: &[f32], start: usize, length: usize) -> &[f32] {
    let values = values.get(start..).unwrap_or_default();
    values.get(..length).unwrap_or(values)
}
