//! A token of each of a few rows, which takes as long as a block's weights take to be read: the frozen ones once for all rows, and
//! the adapters of each row, where it has its own.

use std::ops::Range;

use super::{Block, Linear, Mlp, Places, ROOM, Room};
use crate::Failure;
use crate::adapter::Adapters;
use crate::attention::{self, Heads};
use crate::mlp::{gelu, swi_glu};
use crate::product::{Direction, Output, Product, Rounded, STRIP, Spreads};
use crate::rotary::rotate;
use crate::team::{Broken, Member, Shared, Team};
use crate::{Calls, adapter};

/// The phases: queries, keys and values; attention; the MLP's first matrix; and twice a projection and an adapter's end.
const PHASES: usize = 7;
/// So many rows meet the integers as they lie; for more, strips of them are laid out.
const APART: usize = 2;
/// More than there are threads.
const MEMBERS: usize = 256;
/// Values whose products with an adapter's first matrix are one sum, whichever thread adds it up: a model gives the same with any number
/// of threads.
const SUMMED: usize = 32;
/// Parts of an output begin with a line of the cache.
const LINE: usize = 16;

/// A token of each row: x \[B, D\] to y \[B, D\], their keys and values put into the cache \[B, G, C, dh\]. `threads` calls a function as
/// many times as it is told, or as often as it likes, once at least.
///
/// # Errors
/// No memory, no threads, a matrix that there are no products for, or rows of other numbers than the places and the adapters are of.
pub fn of_a_token_each<E>(
    block: &Block<'_>,
    places: Places<'_>,
    x: &[f32],
    [keys, values]: [&mut [f32]; 2],
    y: &mut [f32],
    threads: impl FnOnce(usize, Calls<'_>) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    if places.tokens != 1 || x.len() != places.batch * block.width() || !block.has_adapters_for(places.batch) {
        return Err(Failure::Misfit);
    }
    let mut memory = ROOM.with_borrow_mut(|room| std::mem::take(&mut room.shared));
    let lengths = Buffers::lengths(block);
    let all = lengths.iter().sum::<usize>() * places.batch;
    memory.try_reserve(all.saturating_sub(memory.len()))?;
    memory.resize(all.max(memory.len()), 0.0);
    let team = Team::<PHASES>::new();
    let result = {
        let buffers = Buffers::new(&mut memory, lengths, places.batch);
        let cache = [keys, values].map(Shared::new);
        let y = Rows { values: Shared::new(y), each: block.width() };
        let tokens = Tokens { block, places, x, buffers, cache, y };
        threads(MEMBERS, &|_| {
            // Who comes late finds nothing to do; an error is the team's.
            if team.done() == 0 {
                let _ = tokens.compute(&team.member());
            }
        })
    };
    ROOM.with_borrow_mut(|room| room.shared = memory);
    match result {
        Ok(()) if team.done() == places.batch * block.parts(block.width(), LINE).1 => Ok(()),
        Ok(()) => Err(Failure::Misfit),
        Err(error) => Err(Failure::Threads(error)),
    }
}

/// Values that a team writes, so many for each row.
struct Rows<'a> {
    values: Shared<'a>,
    each: usize,
}

impl Rows<'_> {
    /// Some of a row's values, to be read.
    ///
    /// # Safety
    /// As [`Shared::read`].
    unsafe fn read(&self, row: usize, range: Range<usize>) -> &[f32] {
        // SAFETY: the caller's promise.
        unsafe { self.values.read(row * self.each + range.start..row * self.each + range.end) }
    }

    /// Some of a row's values, to be written.
    ///
    /// # Safety
    /// As [`Shared::write`].
    #[allow(clippy::mut_from_ref)] // It is what the type is for.
    unsafe fn write(&self, row: usize, range: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.values.write(row * self.each + range.start..row * self.each + range.end) }
    }
}

/// What the phases hand on, of each row: each is written in one, its parts by one thread each, and read in later ones.
struct Buffers<'a> {
    /// Phase 1, \[(H + 2 G) dh\].
    qkv: Rows<'a>,
    /// 2, \[H dh\].
    attended: Rows<'a>,
    /// 3 and 6, \[D\].
    projected: [Rows<'a>; 2],
    /// 3 and 6: sums of parts, \[.., R\].
    down: [Rows<'a>; 2],
    /// 4, \[D\]. (7 writes y.)
    middle: Rows<'a>,
    /// 5: what the MLP's first matrix gives, \[F\] or \[2 F\].
    fc: Rows<'a>,
}

impl<'a> Buffers<'a> {
    /// How many values there are of a row.
    fn lengths(block: &Block<'_>) -> [usize; 8] {
        let width = block.width();
        let [down_1, down_2] =
            [block.adapter_1, block.adapter_2].map(|adapters| width.div_ceil(SUMMED) * bottleneck(adapters));
        [block.heads.all(), block.heads.output(), width, width, down_1, down_2, width, block.fc.weights.shape()[0]]
            .map(|length| length.next_multiple_of(LINE))
    }

    fn new(memory: &'a mut [f32], lengths: [usize; 8], rows: usize) -> Self {
        let mut rest = memory;
        let [qkv, attended, projected_1, projected_2, down_1, down_2, middle, fc] = lengths.map(|each| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(each * rows);
            rest = others;
            Rows { values: Shared::new(part), each }
        });
        let (projected, down) = ([projected_1, projected_2], [down_1, down_2]);
        Self { qkv, attended, projected, down, middle, fc }
    }
}

/// A token of each row on its way through a block.
struct Tokens<'a> {
    block: &'a Block<'a>,
    places: Places<'a>,
    x: &'a [f32],
    buffers: Buffers<'a>,
    cache: [Shared<'a>; 2],
    y: Rows<'a>,
}

impl Tokens<'_> {
    /// What each thread does.
    fn compute(&self, member: &Member<'_>) -> Result<(), Broken> {
        ROOM.with_borrow_mut(|room| {
            let Self { block, buffers, places, .. } = self;
            let (width, rows) = (block.width(), places.batch);
            // 1
            room.normal.resize(rows * width, 0.0);
            block.norm(block.norm_1, self.x, &mut room.normal);
            self.product(member, room, block.qkv, &buffers.qkv, LINE, |_| ())?;
            // 2
            self.attend(member, &mut room.scores)?;
            // 3, 4
            room.normal.clear();
            for row in 0..rows {
                // SAFETY: of phase 2.
                room.normal.extend_from_slice(unsafe { buffers.attended.read(row, 0..block.heads.output()) });
            }
            self.project(member, room, 0, block.projection, block.adapter_1)?;
            self.adapt(member, 0, block.adapter_1, |row, columns| &self.x[row * width..][columns], &buffers.middle)?;
            // 5
            room.normal.resize(rows * width, 0.0);
            for (row, normal) in room.normal.chunks_exact_mut(width).enumerate() {
                // SAFETY: of phase 4.
                block.norm(block.norm_2, unsafe { buffers.middle.read(row, 0..width) }, normal);
            }
            self.product(member, room, block.fc, &buffers.fc, LINE, |_| ())?;
            // 6, 7
            let hidden = block.hidden();
            room.normal.resize(rows * hidden, 0.0);
            for (row, activated) in room.normal.chunks_exact_mut(hidden).enumerate() {
                // SAFETY: of phase 5.
                let fc = unsafe { buffers.fc.read(row, 0..block.fc.weights.shape()[0]) };
                match block.mlp {
                    Mlp::Gelu => {
                        activated.copy_from_slice(fc);
                        gelu(activated);
                    }
                    Mlp::SwiGlu => swi_glu(fc, hidden, activated),
                }
            }
            self.project(member, room, 1, block.mlp_projection, block.adapter_2)?;
            // SAFETY: of phase 4.
            let middle = |row: usize, columns: Range<usize>| unsafe { buffers.middle.read(row, columns) };
            self.adapt(member, 1, block.adapter_2, middle, &self.y)
        })
    }

    /// A phase: the products of the rows in `room.normal`, to `y`; `then` gets the columns of each part that is done.
    fn product(
        &self,
        member: &Member<'_>,
        room: &mut Room,
        linear: Linear<'_>,
        y: &Rows<'_>,
        unit: usize,
        then: impl Fn(Range<usize>),
    ) -> Result<(), Broken> {
        let [outputs, inner] = linear.weights.shape();
        let rows = self.places.batch;
        let rounded = Rounded::kept(&mut room.rounded, self.block.instructions);
        // Of more outputs than there is room for, a row's would lie among the next one's.
        if room.normal.len() != rows * inner || outputs > y.each {
            return Err(Broken);
        }
        let places = rounded.rows(rows, inner, Direction::Forward);
        places.into_iter().zip(room.normal.chunks_exact(inner)).for_each(|(mut row, x)| row.round(x, None));
        if rows > APART {
            let mut scales = Vec::new();
            let matrix = linear.weights.many(&mut scales);
            let product = matrix.and_then(|matrix| Product::new(matrix, Direction::Forward, rounded, linear.bias));
            let product = product.ok_or(Broken)?;
            let output = Output { first: y.values.pointer(), width: y.each };
            return member.share(product.strips(), |strip| {
                // SAFETY: y has the rows, each of as many values, and a strip is a part's.
                unsafe { product.strip(strip, &output) };
                then(strip * STRIP..outputs.min((strip + 1) * STRIP));
            });
        }
        let spreads = Spreads::new(linear.weights, rounded).ok_or(Broken)?;
        let (of_part, number) = self.block.parts(outputs, unit);
        member.share(number, |part| {
            let columns = part * of_part..outputs.min((part + 1) * of_part);
            // SAFETY: a part's.
            let mut y: Vec<_> = (0..rows).map(|row| unsafe { y.write(row, columns.clone()) }).collect();
            spreads.columns(columns.start, linear.bias, &mut y);
            drop(y);
            then(columns);
        })
    }

    /// A phase: a projection, and of each part of it what an adapter's first matrix makes of it, since that one's rows are read by
    /// themselves.
    fn project(
        &self,
        member: &Member<'_>,
        room: &mut Room,
        which: usize,
        linear: Linear<'_>,
        adapters: Option<Adapters<'_>>,
    ) -> Result<(), Broken> {
        let Buffers { projected, down, .. } = &self.buffers;
        self.product(member, room, linear, &projected[which], SUMMED, |columns| {
            let Some(adapters) = adapters else { return };
            for row in 0..self.places.batch {
                // SAFETY: what this part wrote.
                let y = unsafe { projected[which].read(row, columns.clone()) };
                let adapter = adapters.of(row);
                let bottleneck = adapter.down[1].len();
                let rows = adapter.down[0][columns.start * bottleneck..].chunks(SUMMED * bottleneck);
                for ((sum, x), rows) in (columns.start / SUMMED..).zip(y.chunks(SUMMED)).zip(rows) {
                    // SAFETY: a part's, which is of whole sums.
                    let sums = unsafe { down[which].write(row, sum * bottleneck..(sum + 1) * bottleneck) };
                    adapter::add_product_of_one(x, rows, 0, bottleneck, &[], sums);
                }
            }
        })
    }

    /// A phase: y = residual + x + gelu(x D + d) U + u, x being the first or second of the projections; without an adapter the sum of both.
    fn adapt<'r>(
        &self,
        member: &Member<'_>,
        which: usize,
        adapters: Option<Adapters<'_>>,
        residual: impl Fn(usize, Range<usize>) -> &'r [f32],
        y: &Rows<'_>,
    ) -> Result<(), Broken> {
        let (width, bottleneck) = (self.block.width(), bottleneck(adapters));
        let (of_part, number) = self.block.parts(width, LINE);
        member.share(self.places.batch * number, |part| {
            let (row, part) = (part / number, part % number);
            let columns = part * of_part..width.min((part + 1) * of_part);
            // SAFETY: of the phase before.
            let (x, sums) = unsafe {
                let sums = width.div_ceil(SUMMED) * bottleneck;
                (self.buffers.projected[which].read(row, columns.clone()), self.buffers.down[which].read(row, 0..sums))
            };
            let adapter = adapters.map(|adapters| adapters.of(row));
            let hidden = adapter.map_or(Vec::new(), |adapter| adapter.hidden(sums));
            // Nothing times nothing is added where there is no adapter.
            let (up, bias) = adapter.map_or((&[][..], None), |adapter| (adapter.up[0], Some(adapter.up[1])));
            let bias = bias.map(|bias| &bias[columns.clone()]);
            let addends: Vec<&[f32]> = [residual(row, columns.clone()), x].into_iter().chain(bias).collect();
            // SAFETY: a part's.
            let y = unsafe { y.write(row, columns.clone()) };
            adapter::add_product_of_one(&hidden, up, columns.start, width, &addends, y);
        })
    }

    /// A phase: attention, a head of a row a part. The new key and value are not yet in the cache for the others of a group.
    fn attend(&self, member: &Member<'_>, scores: &mut Vec<f32>) -> Result<(), Broken> {
        let Self { block, places, buffers, .. } = self;
        let heads @ Heads { queries, shared, width } = block.heads;
        let (mut query, mut key) = (vec![0.0; width], vec![0.0; width]);
        let of_head = |part: usize| {
            let (row, head) = (part / queries, part % queries);
            let position = places.first(row);
            // SAFETY: written in the phase before.
            let qkv = unsafe { buffers.qkv.read(row, 0..heads.all()) };
            let turned = |place: usize, room: &mut [f32]| {
                let x = &qkv[place * width..][..width];
                match places.angles_of(row, width / 2) {
                    Some([cosines, sines]) => rotate(x, cosines, sines, room),
                    None => room.copy_from_slice(x),
                }
            };
            let group = head / heads.sharing();
            turned(head, &mut query);
            turned(queries + group, &mut key);
            let value = &qkv[(queries + shared + group) * width..][..width];
            let start = (row * shared + group) * places.capacity * width;
            let at = start + position * width;
            // SAFETY: a group's new key and value are written by its first head alone, and nobody reads them in this call; what was there
            // before is read alone. A head's output is written by its part.
            unsafe {
                let past = self.cache.each_ref().map(|cache| cache.read(start..at));
                let y = buffers.attended.write(row, head * width..(head + 1) * width);
                attention::of_one_query(&query, [past[0], &key], [past[1], value], scores, y);
                if head.is_multiple_of(heads.sharing()) {
                    self.cache[0].write(at..at + width).copy_from_slice(&key);
                    self.cache[1].write(at..at + width).copy_from_slice(value);
                }
            }
        };
        member.share(places.batch * queries, of_head)
    }
}

/// R, or 0 without adapters.
fn bottleneck(adapters: Option<Adapters<'_>>) -> usize {
    adapters.map_or(0, |adapters| adapters.of(0).down[1].len())
}
