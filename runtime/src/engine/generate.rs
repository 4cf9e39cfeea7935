//! The generate graph: the next token's logits, with a KV cache that is updated in place.

use marionette_models::{ModelConfig, TensorSpec, bundle};

use super::{Bound, Engine};
use crate::error::Result;
use crate::generate::LanguageModel;
use crate::session::{Buffer, Graph, Provider};

pub(super) struct Generation {
    bound: Bound,
    cache: Cache,
    /// Logits of the last position, \[1, V\].
    logits: Buffer,
    /// The tokens whose keys and values the cache holds.
    tokens: Vec<u32>,
}

/// Keys and values of all layers and rows, \[rows, heads, positions, head width\] each, bound as past and as present.
pub(super) struct Cache {
    parts: Vec<(CacheNames, Buffer)>,
    of_row: [usize; 3],
}

struct CacheNames {
    past: String,
    present: String,
}

impl Cache {
    /// For so many rows.
    pub(super) fn new(model: &ModelConfig, rows: usize) -> Result<Self> {
        let of_row = [model.n_kv_head, model.n_positions, model.head_dim];
        let [heads, positions, width] = of_row;
        let mut parts = Vec::with_capacity(2 * model.n_layer);
        for layer in 0..model.n_layer {
            for what in ["key", "value"] {
                let names =
                    CacheNames { past: format!("past.{layer}.{what}"), present: format!("present.{layer}.{what}") };
                parts.push((names, Buffer::zeros(&[rows, heads, positions, width])?));
            }
        }
        Ok(Self { parts, of_row })
    }

    /// Binds so many rows, from one on.
    pub(super) fn bind(&mut self, graph: &mut Graph, first: usize, rows: usize) -> Result<()> {
        let [heads, positions, width] = self.of_row;
        let (first, shape) = (first * self.of_row.iter().product::<usize>(), [rows, heads, positions, width]);
        for (names, buffer) in &mut self.parts {
            graph.input_part(&names.past, buffer, first, &shape)?;
            graph.output_part(&names.present, buffer, first, &shape)?;
        }
        Ok(())
    }

    /// Copies the first positions of a row to another one.
    pub(super) fn copy(&mut self, from: usize, to: usize, tokens: usize) {
        let [heads, positions, width] = self.of_row;
        for (_, buffer) in &mut self.parts {
            let values = buffer.values_mut();
            for head in 0..heads {
                let at = |row: usize| (row * heads + head) * positions * width;
                values.copy_within(at(from)..at(from) + tokens * width, at(to));
            }
        }
    }
}

/// The shape of an adapter's tensor, with a dimension for the rows of a batch before its own.
pub(super) fn of_rows(rows: usize, spec: &TensorSpec) -> Vec<usize> {
    [&[rows], &spec.shape[..]].concat()
}

impl Generation {
    /// Empties the cache.
    pub(super) fn forget(&mut self) {
        self.tokens.clear();
    }
}

impl Engine {
    fn open_generation(&self, graph: Graph) -> Result<Generation> {
        let model = &self.manifest.model;
        let cache = Cache::new(model, 1)?;
        let logits = Buffer::zeros(&[1, model.vocab_size])?;
        let bound = Bound { of_each_row: self.has_rows(), ..Bound::new(graph) };
        let mut generation = Generation { bound, cache, logits, tokens: Vec::new() };
        generation.bound.graph.output_buffer("logits", &mut generation.logits)?;
        generation.cache.bind(&mut generation.bound.graph, 0, 1)?;
        Ok(generation)
    }

    /// Reads tokens.
    fn run_generation(&self, generation: &mut Generation, tokens: &[u32]) -> Result<()> {
        if self.options.provider != Provider::Cpu {
            // Binding copies to the device's memory there, and what the last run wrote must be in the copy.
            generation.cache.bind(&mut generation.bound.graph, 0, 1)?;
        }
        let Generation { bound, tokens: cached, .. } = generation;
        bound.bind_adapters(&self.table, &self.adapters, self.version)?;
        run(&mut bound.graph, [1, tokens.len()], tokens, &[cached.len()])?;
        cached.extend_from_slice(tokens);
        Ok(())
    }
}

/// Reads tokens \[B, T\], of each row after those that it has before.
pub(super) fn run(graph: &mut Graph, shape: [usize; 2], tokens: &[u32], before: &[usize]) -> Result<()> {
    let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
    let positions: Vec<i64> = before.iter().flat_map(|&first| (first..first + shape[1]).map(|at| at as i64)).collect();
    graph.input("input_ids", &shape, &ids)?;
    graph.input("positions", &shape, &positions)?;
    Ok(graph.run()?)
}

impl LanguageModel for Engine {
    fn context(&self) -> usize {
        self.manifest.model.n_positions
    }

    fn cached(&self) -> &[u32] {
        self.generate.as_ref().map_or(&[], |generation| &generation.tokens)
    }

    fn truncate(&mut self, length: usize) {
        if let Some(generation) = &mut self.generate {
            generation.tokens.truncate(length);
        }
    }

    fn advance(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        let mut generation = match self.generate.take() {
            Some(generation) => generation,
            None => self.open_generation(self.open_graph(bundle::GENERATE)?)?,
        };
        let run = self.run_generation(&mut generation, tokens);
        if run.is_err() {
            // Part of the cache may have been written.
            generation.forget();
        }
        let generation = self.generate.insert(generation);
        run.map(|()| generation.logits.values())
    }
}
