//! The generate graph: the next token's logits, with a KV cache that is updated in place.

use marionette_models::bundle;

use super::{Bound, Engine};
use crate::error::Result;
use crate::generate::LanguageModel;
use crate::session::{Buffer, Graph, Provider};

pub(super) struct Generation {
    bound: Bound,
    /// Keys and values of all layers, \[1, heads, positions, head width\] each, bound as past and as present.
    cache: Vec<(CacheNames, Buffer)>,
    /// Logits of the last position, \[1, V\].
    logits: Buffer,
    /// The tokens whose keys and values the cache holds.
    tokens: Vec<u32>,
}

struct CacheNames {
    past: String,
    present: String,
}

impl Generation {
    /// Empties the cache.
    pub(super) fn forget(&mut self) {
        self.tokens.clear();
    }

    fn bind_cache(&mut self) -> Result<()> {
        for (names, buffer) in &mut self.cache {
            self.bound.graph.input_buffer(&names.past, buffer)?;
            self.bound.graph.output_buffer(&names.present, buffer)?;
        }
        Ok(())
    }
}

impl Engine {
    fn open_generation(&self, graph: Graph) -> Result<Generation> {
        let model = &self.manifest.model;
        let shape = [1, model.n_kv_head, model.n_positions, model.head_dim];
        let mut cache = Vec::with_capacity(2 * model.n_layer);
        for layer in 0..model.n_layer {
            for what in ["key", "value"] {
                let names =
                    CacheNames { past: format!("past.{layer}.{what}"), present: format!("present.{layer}.{what}") };
                cache.push((names, Buffer::zeros(&shape)?));
            }
        }
        let logits = Buffer::zeros(&[1, model.vocab_size])?;
        let mut generation = Generation { bound: Bound::new(graph), cache, logits, tokens: Vec::new() };
        generation.bound.graph.output_buffer("logits", &mut generation.logits)?;
        generation.bind_cache()?;
        Ok(generation)
    }

    /// Reads tokens.
    fn run_generation(&self, generation: &mut Generation, tokens: &[u32]) -> Result<()> {
        if self.options.provider != Provider::Cpu {
            // Binding copies to the device's memory there, and what the last run wrote must be in the copy.
            generation.bind_cache()?;
        }
        let Generation { bound, tokens: cached, .. } = generation;
        bound.bind_adapters(&self.table, &self.adapters, self.version)?;
        let first = cached.len() as i64;
        let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
        let positions: Vec<i64> = (first..first + ids.len() as i64).collect();
        let shape = [1, ids.len()];
        bound.graph.input("input_ids", &shape, &ids)?;
        bound.graph.input("positions", &shape, &positions)?;
        bound.graph.run()?;
        cached.extend_from_slice(tokens);
        Ok(())
    }
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
