//! Personas side by side: one thread each, because the matrices of one persona are too small to share out.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tch::{Device, Tensor};

use crate::error::{Result, TrainError};
use crate::model::Model;

/// What a program computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    /// The device.
    pub device: Device,
    /// Threads altogether; 1 or more.
    pub threads: usize,
    /// Personas computed side by side, each with its own share of the threads and its own memory; 1 or more.
    pub workers: usize,
}

impl Compute {
    /// As many workers as there are threads on a processor, one on a GPU.
    pub fn new(device: Device, threads: usize) -> Self {
        Self { device, threads, workers: if device == Device::Cpu { threads } else { 1 } }
    }

    /// Threads of one worker.
    pub fn threads_each(&self) -> usize {
        (self.threads / self.workers.max(1)).max(1)
    }

    /// Computes `task` for each item, and gives the results to `take` in the order of the items. They do not depend on the
    /// number of workers as long as each has one thread.
    ///
    /// # Errors
    /// The first error, in the order of the items.
    pub fn map<I: Sync, T: Send>(
        &self,
        model: &Model,
        parameters: &[Tensor],
        items: &[I],
        task: impl Fn(&Model, &[Tensor], &I) -> Result<T> + Sync,
        take: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let (workers, threads) = (self.workers.max(1), self.threads_each());
        let turns = Turns::new(items.len(), workers);
        let (task, turns) = (&task, &turns);
        thread::scope(|scope| {
            let (give, results) = channel();
            let begin = |_| {
                let (model, give) = (model.handle(), give.clone());
                let parameters: Vec<Tensor> = parameters.iter().map(Tensor::shallow_clone).collect();
                scope.spawn(move || {
                    // Whatever happens to a worker, the others do not wait for it.
                    let _last = turns.until_dropped();
                    // libtorch counts threads for each thread that calls it.
                    tch::set_num_threads(threads as i32);
                    while let Some(place) = turns.next() {
                        if give.send((place, task(&model, &parameters, &items[place]))).is_err() {
                            break;
                        }
                    }
                })
            };
            let begun: Vec<_> = (0..workers.min(items.len())).map(begin).collect();
            drop(give);
            let result = turns.in_order(results, take);
            // Whether one panicked, the results say.
            for worker in begun {
                let _ = worker.join();
            }
            result
        })
    }
}

/// Whose turn it is: items are begun in order, and none so far ahead of the first that is not taken yet that results of more than two
/// a worker wait.
struct Turns {
    state: Mutex<State>,
    moved: Condvar,
    items: usize,
    ahead: usize,
}

struct State {
    next: usize,
    taken: usize,
    end: usize,
}

impl Turns {
    fn new(items: usize, workers: usize) -> Self {
        let state = Mutex::new(State { next: 0, taken: 0, end: items });
        Self { state, moved: Condvar::new(), items, ahead: 2 * workers }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of the next item, once it may be begun; none at the end.
    fn next(&self) -> Option<usize> {
        let far = |state: &mut State| state.next < state.end && state.next >= state.taken + self.ahead;
        let mut state = self.moved.wait_while(self.state(), far).unwrap_or_else(PoisonError::into_inner);
        let place = (state.next < state.end).then_some(state.next)?;
        state.next += 1;
        Some(place)
    }

    fn taken(&self) {
        self.state().taken += 1;
        self.moved.notify_all();
    }

    /// Gives results to `take` in the order of their items.
    fn in_order<T>(&self, results: Receiver<(usize, Result<T>)>, mut take: impl FnMut(T) -> Result<()>) -> Result<()> {
        let _last = self.until_dropped();
        let mut waiting = BTreeMap::new();
        for place in 0..self.items {
            let result = loop {
                if let Some(result) = waiting.remove(&place) {
                    break result;
                }
                let panicked = |_| TrainError::Torch("a worker thread panicked".to_owned());
                let (place, result) = results.recv().map_err(panicked)?;
                waiting.insert(place, result);
            };
            take(result?)?;
            self.taken();
        }
        Ok(())
    }

    /// When it is dropped, nothing more is begun.
    fn until_dropped(&self) -> impl Drop + '_ {
        struct Last<'a>(&'a Turns);
        impl Drop for Last<'_> {
            fn drop(&mut self) {
                let mut state = self.0.state();
                state.end = state.next;
                self.0.moved.notify_all();
            }
        }
        Last(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use marionette_models::{Gpt2Shape, ModelConfig};
    use tch::Kind;

    use super::*;
    use crate::method::Method;
    use crate::tensors::NamedTensors;

    fn model() -> Model {
        let config: ModelConfig = Gpt2Shape { vocab_size: 9, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 }.into();
        let parts = Method::InPlace.parts();
        Model::new(&config, parts, NamedTensors::new(), Vec::new(), Kind::Float, Device::Cpu).unwrap()
    }

    fn compute(workers: usize) -> Compute {
        Compute { device: Device::Cpu, threads: workers, workers }
    }

    #[test]
    fn results_are_taken_in_order_and_few_of_them_wait() {
        for workers in [1, 2, 3] {
            let (model, items): (_, Vec<usize>) = (model(), (0..20).collect());
            let (begun, mut taken) = (AtomicUsize::new(0), Vec::new());
            let task = |_: &Model, _: &[Tensor], item: &usize| {
                begun.fetch_add(1, Ordering::SeqCst);
                // The first of each five takes longest.
                std::thread::sleep(Duration::from_millis(if item.is_multiple_of(5) { 5 } else { 0 }));
                Ok(*item)
            };
            let take = |item| {
                assert!(begun.load(Ordering::SeqCst) <= taken.len() + 2 * workers, "{item}");
                taken.push(item);
                Ok(())
            };
            compute(workers).map(&model, &[], &items, task, take).unwrap();
            assert_eq!(taken, items);
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        let (model, items): (_, Vec<usize>) = (model(), (0..50).collect());
        let (begun, mut taken) = (AtomicUsize::new(0), Vec::new());
        let task = |_: &Model, _: &[Tensor], item: &usize| {
            begun.fetch_add(1, Ordering::SeqCst);
            if *item == 7 || *item == 8 { Err(TrainError::Torch(item.to_string())) } else { Ok(*item) }
        };
        let take = |item| {
            taken.push(item);
            Ok(())
        };
        let error = compute(2).map(&model, &[], &items, task, take).unwrap_err();
        assert!(error.to_string().contains('7') && taken.len() == 7, "{error}");
        assert!(begun.load(Ordering::SeqCst) <= 7 + 4);
    }

    #[test]
    fn a_panic_is_an_error() {
        let items: Vec<usize> = (0..9).collect();
        let task = |_: &Model, _: &[Tensor], item: &usize| -> Result<()> {
            assert_ne!(*item, 4, "on purpose");
            Ok(())
        };
        let error = compute(2).map(&model(), &[], &items, task, |()| Ok(())).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }

    #[test]
    fn no_items_are_no_work() {
        let task = |_: &Model, _: &[Tensor], item: &usize| Ok(*item);
        compute(2).map(&model(), &[], &[], task, |_| Ok(())).unwrap();
    }
}
