//! What must not allocate: a token is drawn some hundred times a second.

#![allow(missing_docs, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use marionette_runtime::sampling::{Sampler, Sampling};

/// The system's allocator, which counts for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn drawing_allocates_nothing_after_the_first_token() {
    let logits: Vec<f32> = (0..50_257).map(|i| ((i * 7919) % 10_007) as f32 / 1000.0).collect();
    let history: Vec<u32> = (0..900).collect();
    for options in [
        Sampling::GREEDY,
        Sampling { temperature: 1.3, top_p: 0.9, top_k: 0, min_p: 0.05, repetition_penalty: 1.2, seed: 1 },
        Sampling { temperature: 0.7, top_p: 1.0, top_k: 40, min_p: 0.0, repetition_penalty: 1.0, seed: 1 },
    ] {
        let mut sampler = Sampler::new(options).unwrap();
        sampler.sample(&logits, &history).unwrap();
        let before = ALLOCATIONS.get();
        for _ in 0..20 {
            sampler.sample(&logits, &history).unwrap();
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "{options:?}");
    }
    // And it does count.
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![1]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
