//! One token, which takes as long as a block's weights take to be read.

use std::ops::Range;

use super::{Adapter, Block, Linear, Mlp, Places, ROOM, Room};
use crate::Failure;
use crate::attention::{self, Heads};
use crate::mlp::{gelu, swi_glu};
use crate::product::{Direction, Rounded, Spread};
use crate::rotary::rotate;
use crate::team::{Broken, Member, Shared, Team};
use crate::{Calls, adapter};

/// The phases of a token: queries, keys and values; attention; the MLP's first matrix; and twice a projection and an adapter's end.
const PHASES: usize = 7;
/// More than there are threads.
const MEMBERS: usize = 256;
/// Values whose products with an adapter's first matrix are one sum, whichever thread adds it up: a model gives the same with any number
/// of threads.
const SUMMED: usize = 32;
/// Parts of an output begin with a line of the cache.
const LINE: usize = 16;

/// One token: x \[D\] to y \[D\], its keys and values \[G, C, dh\] put into the cache. `threads` calls a function as many times as it is
/// told, or as often as it likes, once at least.
///
/// # Errors
/// No memory, no threads, or a matrix that there are no products for.
pub fn of_one_token<E>(
    block: &Block<'_>,
    places: Places<'_>,
    x: &[f32],
    [keys, values]: [&mut [f32]; 2],
    y: &mut [f32],
    threads: impl FnOnce(usize, Calls<'_>) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    let mut memory = ROOM.with_borrow_mut(|room| std::mem::take(&mut room.shared));
    let lengths = Buffers::lengths(block);
    let all: usize = lengths.iter().sum();
    memory.try_reserve(all.saturating_sub(memory.len()))?;
    memory.resize(all.max(memory.len()), 0.0);
    let team = Team::<PHASES>::new();
    let result = {
        let buffers = Buffers::new(&mut memory, lengths);
        let shared = [keys, values, y].map(Shared::new);
        let [keys, values, y] = &shared;
        let token = Token { block, places, x, buffers, cache: [keys, values], y };
        threads(MEMBERS, &|_| {
            // Who comes late finds nothing to do; an error is the team's.
            if team.done() == 0 {
                let _ = token.compute(&team.member());
            }
        })
    };
    ROOM.with_borrow_mut(|room| room.shared = memory);
    match result {
        Ok(()) if team.done() == block.parts(block.width(), LINE).1 => Ok(()),
        Ok(()) => Err(Failure::Misfit),
        Err(error) => Err(Failure::Threads(error)),
    }
}

/// What the phases hand on: each is written in one, its parts by one thread each, and read in later ones.
struct Buffers<'a> {
    /// Phase 1, \[(H + 2 G) dh\].
    qkv: Shared<'a>,
    /// 2, \[H dh\].
    attended: Shared<'a>,
    /// 3 and 6, \[D\].
    projected: [Shared<'a>; 2],
    /// 3 and 6: sums of parts, \[.., R\].
    down: [Shared<'a>; 2],
    /// 4, \[D\]. (7 writes y.)
    middle: Shared<'a>,
    /// 5: what the MLP's first matrix gives, \[F\] or \[2 F\].
    fc: Shared<'a>,
}

impl<'a> Buffers<'a> {
    fn lengths(block: &Block<'_>) -> [usize; 8] {
        let width = block.width();
        let [down_1, down_2] =
            [block.adapter_1, block.adapter_2].map(|adapter| width.div_ceil(SUMMED) * bottleneck(adapter));
        [block.heads.all(), block.heads.output(), width, width, down_1, down_2, width, block.fc.weights.shape()[0]]
            .map(|length| length.next_multiple_of(LINE))
    }

    fn new(memory: &'a mut [f32], lengths: [usize; 8]) -> Self {
        let mut rest = memory;
        let [qkv, attended, projected_1, projected_2, down_1, down_2, middle, fc] = lengths.map(|length| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(length);
            rest = others;
            Shared::new(part)
        });
        let (projected, down) = ([projected_1, projected_2], [down_1, down_2]);
        Self { qkv, attended, projected, down, middle, fc }
    }
}

/// A token on its way through a block.
struct Token<'a> {
    block: &'a Block<'a>,
    places: Places<'a>,
    x: &'a [f32],
    buffers: Buffers<'a>,
    cache: [&'a Shared<'a>; 2],
    y: &'a Shared<'a>,
}

impl Token<'_> {
    /// What each thread does.
    fn compute(&self, member: &Member<'_>) -> Result<(), Broken> {
        ROOM.with_borrow_mut(|room| {
            let Self { block, buffers, .. } = self;
            let width = block.width();
            // 1
            room.normal.resize(width, 0.0);
            block.norm(block.norm_1, self.x, &mut room.normal);
            self.product(member, room, block.qkv, block.heads.all(), LINE, |spread, columns| {
                // SAFETY: a part's.
                spread.columns(columns.start, block.qkv.bias, unsafe { buffers.qkv.write(columns) });
            })?;
            // 2
            self.attend(member, &mut room.scores)?;
            // 3, 4
            // SAFETY: of phase 2.
            set(&mut room.normal, unsafe { buffers.attended.read(0..block.heads.output()) });
            self.project(member, room, 0, block.projection, block.adapter_1)?;
            self.adapt(member, 0, block.adapter_1, self.x, &buffers.middle)?;
            // 5
            // SAFETY: of phase 4.
            let middle = unsafe { buffers.middle.read(0..width) };
            room.normal.resize(width, 0.0);
            block.norm(block.norm_2, middle, &mut room.normal);
            let hidden = block.hidden();
            let of_fc = block.fc.weights.shape()[0];
            self.product(member, room, block.fc, of_fc, LINE, |spread, columns| {
                // SAFETY: a part's.
                spread.columns(columns.start, block.fc.bias, unsafe { buffers.fc.write(columns) });
            })?;
            // 6, 7
            // SAFETY: of phase 5.
            let fc = unsafe { buffers.fc.read(0..of_fc) };
            match block.mlp {
                Mlp::Gelu => {
                    set(&mut room.normal, fc);
                    gelu(&mut room.normal);
                }
                Mlp::SwiGlu => {
                    room.normal.resize(hidden, 0.0);
                    swi_glu(fc, hidden, &mut room.normal);
                }
            }
            self.project(member, room, 1, block.mlp_projection, block.adapter_2)?;
            self.adapt(member, 1, block.adapter_2, middle, self.y)
        })
    }

    /// A phase: the product of what is in `room.normal`; `compute` gets it, and which of so many outputs make a part.
    fn product(
        &self,
        member: &Member<'_>,
        room: &mut Room,
        linear: Linear<'_>,
        outputs: usize,
        unit: usize,
        compute: impl Fn(&Spread<'_>, Range<usize>),
    ) -> Result<(), Broken> {
        let inner = linear.weights.shape()[1];
        let rounded = Rounded::kept(&mut room.rounded, self.block.instructions);
        if room.normal.len() != inner {
            return Err(Broken);
        }
        rounded.rows(1, inner, Direction::Forward).iter_mut().for_each(|row| row.round(&room.normal, None));
        let spread = Spread::of_one(linear.weights, rounded).ok_or(Broken)?;
        let (of_part, number) = self.block.parts(outputs, unit);
        member.share(number, |part| compute(&spread, part * of_part..outputs.min((part + 1) * of_part)))
    }

    /// A phase: a projection, and of each part of it what an adapter's first matrix makes of it, since that one's rows are read by
    /// themselves.
    fn project(
        &self,
        member: &Member<'_>,
        room: &mut Room,
        which: usize,
        linear: Linear<'_>,
        adapter: Option<Adapter<'_>>,
    ) -> Result<(), Broken> {
        let Buffers { projected, down, .. } = &self.buffers;
        self.product(member, room, linear, self.block.width(), SUMMED, |spread, columns| {
            // SAFETY: a part's, which is of whole sums.
            let y = unsafe { projected[which].write(columns.clone()) };
            spread.columns(columns.start, linear.bias, y);
            let Some(adapter) = adapter else { return };
            let bottleneck = adapter.down[1].len();
            let rows = adapter.down[0][columns.start * bottleneck..].chunks(SUMMED * bottleneck);
            for ((sum, x), rows) in (columns.start / SUMMED..).zip(y.chunks(SUMMED)).zip(rows) {
                // SAFETY: as before.
                let sums = unsafe { down[which].write(sum * bottleneck..(sum + 1) * bottleneck) };
                adapter::add_product_of_one(x, rows, 0, bottleneck, &[], sums);
            }
        })
    }

    /// A phase: y = residual + x + gelu(x D + d) U + u, x being the first or second of the projections; without an adapter the sum of both.
    fn adapt(
        &self,
        member: &Member<'_>,
        which: usize,
        adapter: Option<Adapter<'_>>,
        residual: &[f32],
        y: &Shared<'_>,
    ) -> Result<(), Broken> {
        let (width, bottleneck) = (self.block.width(), bottleneck(adapter));
        // SAFETY: of the phase before.
        let (x, sums) = unsafe {
            let sums = width.div_ceil(SUMMED) * bottleneck;
            (self.buffers.projected[which].read(0..width), self.buffers.down[which].read(0..sums))
        };
        let mut hidden = adapter.map_or(Vec::new(), |adapter| adapter.down[1].to_vec());
        for sums in sums.chunks_exact(bottleneck.max(1)) {
            hidden.iter_mut().zip(sums).for_each(|(hidden, sum)| *hidden += sum);
        }
        gelu(&mut hidden);
        // Nothing times nothing is added where there is no adapter.
        let (up, bias) = adapter.map_or((&[][..], None), |adapter| (adapter.up[0], Some(adapter.up[1])));
        let (of_part, number) = self.block.parts(width, LINE);
        member.share(number, |part| {
            let columns = part * of_part..width.min((part + 1) * of_part);
            let addends = [residual, x].into_iter().chain(bias).map(|addend| &addend[columns.clone()]);
            let addends: Vec<&[f32]> = addends.collect();
            // SAFETY: a part's.
            let y = unsafe { y.write(columns.clone()) };
            adapter::add_product_of_one(&hidden, up, columns.start, width, &addends, y);
        })
    }

    /// A phase: attention, a head a part. The new key and value are not yet in the cache for the others of a group.
    fn attend(&self, member: &Member<'_>, scores: &mut Vec<f32>) -> Result<(), Broken> {
        let Self { block, places, buffers, .. } = self;
        let heads @ Heads { queries, shared, width } = block.heads;
        let position = places.first(0);
        // SAFETY: written in the phase before.
        let qkv = unsafe { buffers.qkv.read(0..heads.all()) };
        let turned = |place: usize, room: &mut [f32]| {
            let x = &qkv[place * width..][..width];
            match places.angles {
                Some([cosines, sines]) => rotate(x, cosines, sines, room),
                None => room.copy_from_slice(x),
            }
        };
        let (mut query, mut key) = (vec![0.0; width], vec![0.0; width]);
        let of_head = |head: usize| {
            let group = head / heads.sharing();
            turned(head, &mut query);
            turned(queries + group, &mut key);
            let value = &qkv[(queries + shared + group) * width..][..width];
            let start = group * places.capacity * width;
            let at = start + position * width;
            // SAFETY: a group's new key and value are written by its first head alone, and nobody reads them in this call; what was there
            // before is read alone. A head's output is written by its part.
            unsafe {
                let past = self.cache.map(|cache| cache.read(start..at));
                let y = buffers.attended.write(head * width..(head + 1) * width);
                attention::of_one_query(&query, [past[0], &key], [past[1], value], scores, y);
                if head.is_multiple_of(heads.sharing()) {
                    self.cache[0].write(at..at + width).copy_from_slice(&key);
                    self.cache[1].write(at..at + width).copy_from_slice(value);
                }
            }
        };
        member.share(queries, of_head)
    }
}

/// R, or 0 without an adapter.
fn bottleneck(adapter: Option<Adapter<'_>>) -> usize {
    adapter.map_or(0, |adapter| adapter.down[1].len())
}

fn set(room: &mut Vec<f32>, values: &[f32]) {
    room.clear();
    room.extend_from_slice(values);
}
