//! Personas side by side: one thread each, because the matrices of one persona are too small to share out.

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
        mut take: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let (workers, threads) = (self.workers.max(1), self.threads_each());
        let task = &task;
        // One wave after the other, so that only as many results wait as there are workers.
        for wave in items.chunks(workers) {
            let results: Vec<Result<T>> = thread::scope(|scope| {
                let spawn = |item| {
                    let model = model.handle();
                    let parameters: Vec<Tensor> = parameters.iter().map(Tensor::shallow_clone).collect();
                    scope.spawn(move || {
                        // libtorch counts threads for each thread that calls it.
                        tch::set_num_threads(threads as i32);
                        task(&model, &parameters, item)
                    })
                };
                let handles: Vec<_> = wave.iter().map(spawn).collect();
                let panicked = |_| Err(TrainError::Torch("a worker thread panicked".to_owned()));
                handles.into_iter().map(|handle| handle.join().unwrap_or_else(panicked)).collect()
            });
            for result in results {
                take(result?)?;
            }
        }
        Ok(())
    }
}
