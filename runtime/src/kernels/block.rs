//! A whole block of a decoder over a cache of keys and values, with frozen matrices of integers: normalisation, queries, keys and
//! values, attention, projection, adapter, and the same with the MLP in attention's place.
//!
//! A token by itself takes as long as its weights take to be read, if nothing else does: all threads go through the block as one
//! [team](super::team), are woken once, and what is not shared out each computes for itself, which takes less than telling others.

use std::cell::RefCell;
use std::collections::TryReserveError;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Mutex;

use super::adapter::{self, Narrow};
use super::attention::{self, Head, Heads};
use super::product::{self, Direction, FEW, Few, Instructions, Rounded, Spread};
use super::team::{Broken, Member, Shared, Team};

/// Which numbers are calls of a function for, on any threads.
pub type Calls<'a> = &'a (dyn Fn(usize) + Send + Sync);

/// A normalisation.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// With scale and shift \[D\].
    Layer([&'a [f32]; 2]),
    /// By the root mean square, with scale \[D\].
    Rms(&'a [f32]),
}

/// What is between an MLP's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// GELU, in its tanh approximation.
    Gelu,
    /// silu(u) ⊙ v, u and v side by side.
    SwiGlu,
}

/// A frozen matrix.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// N columns of K integers.
    pub weights: Few<'a>,
    /// \[N\].
    pub bias: Option<&'a [f32]>,
}

/// x + gelu(x D + d) U + u.
#[derive(Debug, Clone, Copy)]
pub struct Adapter<'a> {
    /// D \[D, R\] and d \[R\].
    pub down: [&'a [f32]; 2],
    /// U \[R, D\] and u \[D\].
    pub up: [&'a [f32]; 2],
}

/// A block's tensors.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// What products of integers are computed with.
    pub instructions: Instructions,
    /// About how many threads there are: matrices are cut into as many parts.
    pub threads: NonZeroUsize,
    /// Heads of attention.
    pub heads: Heads,
    /// Of both normalisations.
    pub epsilon: f32,
    /// Before attention.
    pub norm_1: Norm<'a>,
    /// To queries, keys and values side by side.
    pub qkv: Linear<'a>,
    /// Of what attention gives.
    pub projection: Linear<'a>,
    /// After it.
    pub adapter_1: Adapter<'a>,
    /// Before the MLP.
    pub norm_2: Norm<'a>,
    /// The MLP's first matrix.
    pub fc: Linear<'a>,
    /// What follows it.
    pub mlp: Mlp,
    /// The MLP's second matrix.
    pub mlp_projection: Linear<'a>,
    /// After it.
    pub adapter_2: Adapter<'a>,
}

/// Where tokens stand.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// B.
    pub batch: usize,
    /// T.
    pub tokens: usize,
    /// C, for how many positions the cache has room.
    pub capacity: usize,
    /// Each row's last position, T − 1 or more and below C.
    pub last: &'a [i32],
    /// Cosines and sines, \[A, dh / 2\], where queries and keys are turned: A is T or B T.
    pub angles: Option<[&'a [f32]; 2]>,
}

impl Places<'_> {
    fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// Where a row begins.
    fn first(&self, row: usize) -> usize {
        self.last[row] as usize + 1 - self.tokens
    }
}

/// Why there is no result.
#[derive(Debug)]
pub enum Failure<E> {
    /// A matrix is of no size that there are products for, or another thread panicked.
    Misfit,
    /// There is no memory.
    Memory(TryReserveError),
    /// What shares out calls failed.
    Threads(E),
}

impl<E> From<TryReserveError> for Failure<E> {
    fn from(error: TryReserveError) -> Self {
        Self::Memory(error)
    }
}

impl Block<'_> {
    /// D.
    fn width(&self) -> usize {
        self.projection.weights.shape()[0]
    }

    /// The values of a token's hidden layer.
    fn hidden(&self) -> usize {
        self.mlp_projection.weights.shape()[1]
    }

    /// How many of so many outputs make a part of a phase, a multiple of `unit`, and how many parts there are: one a thread.
    fn parts(&self, outputs: usize, unit: usize) -> (usize, usize) {
        let of_part = outputs.div_ceil(self.threads.get()).next_multiple_of(unit);
        (of_part, outputs.div_ceil(of_part))
    }

    fn norm(&self, norm: Norm<'_>, x: &[f32], y: &mut [f32]) {
        match norm {
            Norm::Layer(parts) => super::layer_normalization(x, parts, self.epsilon, y),
            Norm::Rms(scale) => {
                let mut unwanted = [0.0; 64];
                let width = scale.len().max(1);
                for (x, y) in x.chunks(width * unwanted.len()).zip(y.chunks_mut(width * unwanted.len())) {
                    super::rms_normalization(x, scale, self.epsilon, y, &mut unwanted);
                }
            }
        }
    }
}

thread_local! {
    /// Kept, since fresh memory costs more than what is done in it.
    static ROOM: RefCell<Room> = RefCell::default();
}

#[derive(Default)]
struct Room {
    rounded: Option<Rounded>,
    narrow: Narrow,
    normal: Vec<f32>,
    scores: Vec<f32>,
    shared: Vec<f32>,
}

/// The phases of a token: queries, keys and values; attention; the MLP's first matrix; and twice a projection and an adapter's end.
const PHASES: usize = 7;
/// More than there are threads.
const MEMBERS: usize = 256;
/// Values whose products with an adapter's first matrix are one sum, whichever thread adds it up: a model gives the same with any number
/// of threads.
const SUMMED: usize = 32;
/// Parts of an output begin with a line of the cache.
const LINE: usize = 16;

/// One token: x \[D\] to y \[D\], its keys and values \[G, C, dh\] put into the cache. `threads` calls a function [`MEMBERS`] times, or as
/// often as it likes, once at least.
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
    /// 5, \[F\].
    hidden: Shared<'a>,
}

impl<'a> Buffers<'a> {
    fn lengths(block: &Block<'_>) -> [usize; 8] {
        let width = block.width();
        let [down_1, down_2] =
            [block.adapter_1, block.adapter_2].map(|adapter| width.div_ceil(SUMMED) * adapter.down[1].len());
        [block.heads.all(), block.heads.output(), width, width, down_1, down_2, width, block.fc.weights.shape()[0]]
            .map(|length| length.next_multiple_of(LINE))
    }

    fn new(memory: &'a mut [f32], lengths: [usize; 8]) -> Self {
        let mut rest = memory;
        let [qkv, attended, projected_1, projected_2, down_1, down_2, middle, hidden] = lengths.map(|length| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(length);
            rest = others;
            Shared::new(part)
        });
        let (projected, down) = ([projected_1, projected_2], [down_1, down_2]);
        Self { qkv, attended, projected, down, middle, hidden }
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
                spread.columns(columns.start, block.fc.bias, unsafe { buffers.hidden.write(columns) });
            })?;
            // 6, 7
            // SAFETY: of phase 5.
            let fc = unsafe { buffers.hidden.read(0..of_fc) };
            match block.mlp {
                Mlp::Gelu => {
                    set(&mut room.normal, fc);
                    super::gelu(&mut room.normal);
                }
                Mlp::SwiGlu => {
                    room.normal.resize(hidden, 0.0);
                    super::swi_glu(fc, hidden, &mut room.normal);
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
        adapter: Adapter<'_>,
    ) -> Result<(), Broken> {
        let Buffers { projected, down, .. } = &self.buffers;
        let bottleneck = adapter.down[1].len();
        self.product(member, room, linear, self.block.width(), SUMMED, |spread, columns| {
            // SAFETY: a part's, which is of whole sums.
            let y = unsafe { projected[which].write(columns.clone()) };
            spread.columns(columns.start, linear.bias, y);
            let rows = adapter.down[0][columns.start * bottleneck..].chunks(SUMMED * bottleneck);
            for ((sum, x), rows) in (columns.start / SUMMED..).zip(y.chunks(SUMMED)).zip(rows) {
                // SAFETY: as before.
                let sums = unsafe { down[which].write(sum * bottleneck..(sum + 1) * bottleneck) };
                adapter::add_product_of_one(x, rows, 0, bottleneck, &[], sums);
            }
        })
    }

    /// A phase: y = residual + x + gelu(x D + d) U + u, x being the first or second of the projections.
    fn adapt(
        &self,
        member: &Member<'_>,
        which: usize,
        Adapter { down, up }: Adapter<'_>,
        residual: &[f32],
        y: &Shared<'_>,
    ) -> Result<(), Broken> {
        let (width, bottleneck) = (self.block.width(), down[1].len());
        // SAFETY: of the phase before.
        let (x, sums) = unsafe {
            let sums = width.div_ceil(SUMMED) * bottleneck;
            (self.buffers.projected[which].read(0..width), self.buffers.down[which].read(0..sums))
        };
        let mut hidden = down[1].to_vec();
        for sums in sums.chunks_exact(bottleneck) {
            hidden.iter_mut().zip(sums).for_each(|(hidden, sum)| *hidden += sum);
        }
        super::gelu(&mut hidden);
        let (of_part, number) = self.block.parts(width, LINE);
        member.share(number, |part| {
            let columns = part * of_part..width.min((part + 1) * of_part);
            let addends = [residual, x, up[1]].map(|addend| &addend[columns.clone()]);
            // SAFETY: a part's.
            let y = unsafe { y.write(columns.clone()) };
            adapter::add_product_of_one(&hidden, up[0], columns.start, width, &addends, y);
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
                Some([cosines, sines]) => super::rotate(x, cosines, sines, room),
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

fn set(room: &mut Vec<f32>, values: &[f32]) {
    room.clear();
    room.extend_from_slice(values);
}

/// Any number of tokens: x \[B T, D\] to y, of all of them or of `rows` alone, \[N, D\]; their keys and values \[B, G, C, dh\] put into the
/// cache.
///
/// # Errors
/// As [`of_one_token`].
pub fn of_tokens<E>(
    block: &Block<'_>,
    places: Places<'_>,
    x: &[f32],
    rows: Option<&[usize]>,
    cache: [&mut [f32]; 2],
    y: &mut [f32],
    threads: impl Fn(usize, Calls<'_>) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    let tokens = Tokens { block, threads };
    let width = block.width();
    let mut normal = room(x.len())?;
    tokens.shares([(x, width)], &mut normal, width, |[x], y| block.norm(block.norm_1, x, y))?;
    let mut qkv = tokens.product(block.qkv, &normal)?;
    tokens.turn(places, &mut qkv)?;
    let mut attended = room(places.rows() * block.heads.output())?;
    tokens.attend(places, &qkv, cache, &mut attended)?;
    let (mut some, mut of_rows) = (Vec::new(), Vec::new());
    let (x, attended) = match rows {
        Some(rows) => {
            some.try_reserve(rows.len() * width)?;
            of_rows.try_reserve(rows.len() * block.heads.output())?;
            for &row in rows {
                some.extend_from_slice(&x[row * width..][..width]);
                of_rows.extend_from_slice(&attended[row * block.heads.output()..][..block.heads.output()]);
            }
            (&some[..], &of_rows[..])
        }
        None => (x, &attended[..]),
    };
    let projected = tokens.product(block.projection, attended)?;
    let mut middle = room(x.len())?;
    tokens.adapter(block.adapter_1, &projected, x, &mut middle)?;
    let mut normal = room(x.len())?;
    tokens.shares([(&middle, width)], &mut normal, width, |[x], y| block.norm(block.norm_2, x, y))?;
    let fc = tokens.product(block.fc, &normal)?;
    let hidden = block.hidden();
    let mut activated = room(x.len() / width.max(1) * hidden)?;
    let of_fc = block.fc.weights.shape()[0];
    tokens.shares([(&fc, of_fc)], &mut activated, hidden, |[x], y| match block.mlp {
        Mlp::Gelu => {
            y.copy_from_slice(x);
            super::gelu(y);
        }
        Mlp::SwiGlu => super::swi_glu(x, hidden, y),
    })?;
    let projected = tokens.product(block.mlp_projection, &activated)?;
    tokens.adapter(block.adapter_2, &projected, &middle, y)
}

/// Zeros.
fn room(length: usize) -> Result<Vec<f32>, TryReserveError> {
    let mut room = Vec::new();
    room.try_reserve_exact(length)?;
    room.resize(length, 0.0);
    Ok(room)
}

/// What the parts of a block need where there are many tokens.
struct Tokens<'a, F> {
    block: &'a Block<'a>,
    threads: F,
}

impl<E, F: Fn(usize, Calls<'_>) -> Result<(), E>> Tokens<'_, F> {
    /// Computes rows of y, of so many values, from the same rows of the inputs.
    fn shares<const N: usize>(
        &self,
        inputs: [(&[f32], usize); N],
        y: &mut [f32],
        of_y: usize,
        compute: impl Fn([&[f32]; N], &mut [f32]) + Send + Sync,
    ) -> Result<(), Failure<E>> {
        const ROWS: usize = 32;
        let of_y = of_y.max(1);
        self.each(y.chunks_mut(ROWS * of_y).collect(), |index, y| {
            let rows = index * ROWS..index * ROWS + y.len() / of_y;
            compute(inputs.map(|(x, of_x)| &x[rows.start * of_x..rows.end * of_x]), y);
        })
    }

    fn each<T: Send>(&self, parts: Vec<T>, compute: impl Fn(usize, &mut T) + Send + Sync) -> Result<(), Failure<E>> {
        let parts: Vec<Mutex<T>> = parts.into_iter().map(Mutex::new).collect();
        let result = (self.threads)(parts.len(), &|index| {
            // Each is asked for once: no thread waits.
            if let Some(Ok(mut part)) = parts.get(index).map(Mutex::lock) {
                compute(index, &mut part);
            }
        });
        result.map_err(Failure::Threads)
    }

    fn product(&self, linear: Linear<'_>, x: &[f32]) -> Result<Vec<f32>, Failure<E>> {
        let [columns, inner] = linear.weights.shape();
        let rows = x.len() / inner.max(1);
        let mut y = room(rows * columns)?;
        let mut kept = ROOM.with_borrow_mut(|room| room.rounded.take());
        let rounded = Rounded::kept(&mut kept, self.block.instructions);
        rounded.try_reserve(rows, inner)?;
        let places = rounded.rows(rows, inner, Direction::Forward).into_iter().zip(x.chunks(inner.max(1)));
        let mut places: Vec<_> = places.collect();
        self.each(places.chunks_mut(16).collect(), |_, places| {
            places.iter_mut().for_each(|(place, x)| place.round(x, None));
        })?;
        let mut scales = Vec::new();
        let threads = |number: usize, calls: Calls<'_>| (self.threads)(number, calls);
        let fits = if rows <= FEW {
            product::multiply_few(linear.weights, rounded, linear.bias, &mut y, threads)
        } else {
            let matrix = linear.weights.many(&mut scales).ok_or(Failure::Misfit)?;
            product::multiply(matrix, Direction::Forward, rounded, linear.bias, &mut y, threads)
        };
        let fits = fits.map_err(Failure::Threads)?;
        ROOM.with_borrow_mut(|room| room.rounded = kept);
        if fits { Ok(y) } else { Err(Failure::Misfit) }
    }

    /// Turns queries and keys, in place.
    fn turn(&self, places: Places<'_>, qkv: &mut [f32]) -> Result<(), Failure<E>> {
        let Some([cosines, sines]) = places.angles else { return Ok(()) };
        let heads = self.block.heads;
        let (turned, half) = ((heads.queries + heads.shared) * heads.width, heads.width / 2);
        let known = cosines.len() / half.max(1);
        self.each(qkv.chunks_mut(heads.all()).collect(), |token, row| {
            let angles = token % known.max(1) * half..(token % known.max(1) + 1) * half;
            let x = row[..turned].to_vec();
            super::rotate(&x, &cosines[angles.clone()], &sines[angles], &mut row[..turned]);
        })
    }

    /// Puts keys and values into the cache, and attends to it.
    fn attend(
        &self,
        places: Places<'_>,
        qkv: &[f32],
        [keys, values]: [&mut [f32]; 2],
        y: &mut [f32],
    ) -> Result<(), Failure<E>> {
        let heads @ Heads { queries, shared, width } = self.block.heads;
        let Places { tokens, capacity, .. } = places;
        let of_head = capacity * width;
        for (token, qkv) in qkv.chunks_exact(heads.all()).enumerate() {
            let (row, at) = (token / tokens, places.first(token / tokens) + token % tokens);
            for group in 0..shared {
                let place = (row * shared + group) * of_head + at * width;
                let part = |place: usize| &qkv[place * width..][..width];
                keys[place..place + width].copy_from_slice(part(queries + group));
                values[place..place + width].copy_from_slice(part(queries + shared + group));
            }
        }
        let (keys, values) = (&*keys, &*values);
        // A head of a row is a part, its outputs a slice a token.
        let mut parts: Vec<Vec<&mut [f32]>> = (0..places.batch * queries).map(|_| Vec::new()).collect();
        for (index, slice) in y.chunks_mut(width).enumerate() {
            let (token, head) = (index / queries, index % queries);
            parts[token / tokens * queries + head].push(slice);
        }
        self.each(parts, |index, y| {
            let (row, head) = (index / queries, index % queries);
            let start = (row * shared + head / heads.sharing()) * of_head;
            let before = places.first(row);
            let seen = |tokens: usize| [keys, values].map(|cache| &cache[start..][..tokens * width]);
            let qkv = &qkv[row * tokens * heads.all()..][..tokens * heads.all()];
            if tokens > FEW {
                let head = Head { qkv, branch: None, index: head, heads, cache: Some(seen(before + tokens)) };
                attention::forward(head, y, &mut vec![0.0; tokens]);
                return;
            }
            let mut scores = Vec::new();
            for ((token, qkv), y) in qkv.chunks_exact(heads.all()).enumerate().zip(y) {
                let [keys, values] = seen(before + token + 1);
                let query = &qkv[head * width..][..width];
                attention::of_one_query(query, [keys, &[]], [values, &[]], &mut scores, y);
            }
        })
    }

    /// y = residual + x + gelu(x D + d) U + u.
    fn adapter(
        &self,
        Adapter { down, up }: Adapter<'_>,
        x: &[f32],
        residual: &[f32],
        y: &mut [f32],
    ) -> Result<(), Failure<E>> {
        let (bottleneck, width) = (down[1].len(), up[1].len());
        let rows = x.len() / width.max(1);
        let mut hidden = room(rows * bottleneck)?;
        let mut narrow = ROOM.with_borrow_mut(|room| std::mem::take(&mut room.narrow));
        narrow.try_reserve([width, bottleneck])?;
        narrow.lay_out(down[0], [width, bottleneck], false);
        self.shares([(x, width)], &mut hidden, bottleneck, |[x], y| {
            adapter::add_product(x, &narrow, Some(down[1]), &[], bottleneck, y);
            super::gelu(y);
        })?;
        narrow.try_reserve([bottleneck, width])?;
        narrow.lay_out(up[0], [bottleneck, width], false);
        self.shares([(&hidden, bottleneck), (x, width), (residual, width)], y, width, |[hidden, x, r], y| {
            adapter::add_product(hidden, &narrow, Some(up[1]), &[x, r], width, y);
        })?;
        ROOM.with_borrow_mut(|room| room.narrow = narrow);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
