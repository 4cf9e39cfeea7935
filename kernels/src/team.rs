//! Threads that go through the phases of one computation together. Each runs the same program; what a phase shares out is taken part by
//! part by whoever is there, and the next phase begins when all of it is done. A thread that comes late, or never, holds nobody up: one
//! alone computes everything.

use std::cell::Cell;
use std::hint;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// The threads of one computation of at most `N` phases.
pub(super) struct Team<const N: usize> {
    phases: [Phase; N],
    broken: AtomicBool,
}

/// How many parts of a phase are taken, and how many are done.
/// (Alone in its line of the cache, and the one beside it, which is fetched too.)
#[derive(Default)]
#[repr(align(128))]
struct Phase {
    taken: AtomicUsize,
    done: AtomicUsize,
}

/// A thread of a team.
pub(super) struct Member<'a> {
    phases: &'a [Phase],
    broken: &'a AtomicBool,
    next: Cell<usize>,
}

/// Another thread panicked, or there are more phases than were said: the computation is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

impl<const N: usize> Team<N> {
    pub(super) fn new() -> Self {
        Self { phases: std::array::from_fn(|_| Phase::default()), broken: AtomicBool::new(false) }
    }

    /// How many parts of the last phase are done.
    pub(super) fn done(&self) -> usize {
        self.phases.last().map_or(0, |last| last.done.load(Ordering::Acquire))
    }

    pub(super) fn member(&self) -> Member<'_> {
        Member { phases: &self.phases, broken: &self.broken, next: Cell::new(0) }
    }
}

impl Member<'_> {
    /// The next phase: calls `compute` with those of the numbers below `parts` that nobody else takes, and returns when all of them are
    /// done. What was written by then is seen after it. To take a part is to wait until what was asked of memory before is there, so
    /// they should be few.
    ///
    /// # Errors
    /// Some part will never be done.
    pub(super) fn share(&self, parts: usize, mut compute: impl FnMut(usize)) -> Result<(), Broken> {
        /// Tries before another thread may have the processor.
        const PATIENCE: usize = 2000;
        let Phase { taken, done } = self.phases.get(self.next.replace(self.next.get() + 1)).ok_or(Broken)?;
        loop {
            let part = taken.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                break;
            }
            let unfinished = Unfinished(self.broken);
            compute(part);
            std::mem::forget(unfinished);
            done.fetch_add(1, Ordering::Release);
        }
        let mut tries = 0;
        while done.load(Ordering::Acquire) < parts {
            if self.broken.load(Ordering::Relaxed) {
                return Err(Broken);
            }
            tries += 1;
            if tries % PATIENCE == 0 { thread::yield_now() } else { hint::spin_loop() }
        }
        Ok(())
    }
}

/// Dropped where a part panics.
struct Unfinished<'a>(&'a AtomicBool);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Values that a team writes, each part of a phase its own, and reads in later phases.
pub(super) struct Shared<'a> {
    first: *mut f32,
    length: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: the callers of its methods see to it that no thread writes what another reads or writes.
unsafe impl Send for Shared<'_> {}
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(values: &'a mut [f32]) -> Self {
        Self { first: values.as_mut_ptr(), length: values.len(), borrowed: PhantomData }
    }

    /// Where they begin.
    pub(super) fn pointer(&self) -> *mut f32 {
        self.first
    }

    /// Some of the values, to be read.
    ///
    /// # Safety
    /// None of them is written while the slice lives.
    ///
    /// # Panics
    /// There are not so many.
    pub(super) unsafe fn read(&self, range: Range<usize>) -> &[f32] {
        assert!(range.start <= range.end && range.end <= self.length);
        // SAFETY: within the values; the caller's promise.
        unsafe { std::slice::from_raw_parts(self.first.add(range.start), range.len()) }
    }

    /// Some of the values, to be written.
    ///
    /// # Safety
    /// None of them is read or written otherwise while the slice lives.
    ///
    /// # Panics
    /// There are not so many.
    #[allow(clippy::mut_from_ref)] // It is what the type is for.
    pub(super) unsafe fn write(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.length);
        // SAFETY: within the values; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Phases in each of which every part adds up all that the phase before wrote.
    fn sums(threads: usize) -> Vec<f32> {
        const PHASES: usize = 50;
        const PARTS: usize = 7;
        let mut values = vec![0.0; (PHASES + 1) * PARTS];
        values[..PARTS].fill(1.0);
        let shared = Shared::new(&mut values);
        let team = Team::<PHASES>::new();
        thread::scope(|scope| {
            for late in 0..threads {
                let (shared, team) = (&shared, &team);
                scope.spawn(move || {
                    thread::sleep(std::time::Duration::from_micros(20 * late as u64));
                    let member = team.member();
                    for phase in 0..PHASES {
                        // SAFETY: each part writes its own value; those of the phase before are written.
                        let result = member.share(PARTS, |part| unsafe {
                            let before = shared.read(phase * PARTS..(phase + 1) * PARTS);
                            let at = (phase + 1) * PARTS + part;
                            shared.write(at..at + 1)[0] = before.iter().sum::<f32>() / PARTS as f32 + 1.0;
                        });
                        result.unwrap();
                    }
                    assert_eq!(member.share(1, |_| ()), Err(Broken));
                });
            }
        });
        values
    }

    #[test]
    fn each_phase_sees_all_of_the_one_before() {
        let expected: Vec<f32> = (0..51).flat_map(|phase| [phase as f32 + 1.0; 7]).collect();
        for threads in [1, 2, 5, 12] {
            for _ in 0..20 {
                assert_eq!(sums(threads), expected);
            }
        }
    }

    #[test]
    fn a_panic_ends_all_and_keeps_nobody() {
        let team = Team::<2>::new();
        let ends: Vec<bool> = thread::scope(|scope| {
            let run = |_| {
                scope.spawn(|| {
                    let member = team.member();
                    let panicking = AssertUnwindSafe(|| member.share(9, |part| assert!(part != 4)));
                    catch_unwind(panicking).is_ok_and(|result| result.is_ok())
                })
            };
            let all: Vec<_> = (0..3).map(run).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(ends, [false; 3]);
        assert_eq!(team.done(), 0);
    }
}
