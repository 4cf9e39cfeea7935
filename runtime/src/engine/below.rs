//! What lies below the first block with adapters: no step changes it, so it is computed once a batch.

use std::collections::HashMap;

use marionette_dialogues::Batch;
use marionette_models::bundle;

use super::Engine;
use crate::error::Result;
use crate::session::{Buffer, Graph};

/// How many bytes of it are kept where memory is not limited: of SmolLM2 as many as some 110,000 tokens take.
const ROOM: u64 = 256 << 20;

/// What the graph below made of the batches of some dialogues.
pub(super) struct Below {
    graph: Option<Graph>,
    /// By the number of rows and the tokens.
    known: HashMap<(usize, Vec<i64>), Buffer>,
    /// That of a batch for which there is no room.
    other: Option<Buffer>,
    held: u64,
    room: u64,
}

impl Default for Below {
    fn default() -> Self {
        Self { graph: None, known: HashMap::new(), other: None, held: 0, room: ROOM }
    }
}

impl Engine {
    /// Other dialogues are to come, of which so many bytes may be kept beside what a step takes (256 MiB where nothing is said): what
    /// lies below the adapters, [T, D] each. Of the first that there is room for, since each pass comes to all of them again.
    pub fn forget_dialogues(&mut self, room: Option<u64>) {
        let graph = self.below.graph.take();
        self.below = Below { graph, room: room.unwrap_or(ROOM), ..Below::default() };
    }

    /// The bytes of what lies below the adapters of a batch: none where there is nothing.
    pub(crate) fn hidden_bytes(&self, batch: &Batch) -> u64 {
        match self.manifest.adapter.first_block {
            0 => 0,
            _ => bytes(batch, self.manifest.model.n_embd),
        }
    }

    /// Opens the graph below, where there is one.
    pub(super) fn prepare_below(&mut self) -> Result<()> {
        if self.manifest.adapter.first_block > 0 && self.below.graph.is_none() {
            self.below.graph = Some(self.open_graph(bundle::BELOW)?);
        }
        Ok(())
    }

    /// What the first block with adapters takes of a batch, [B, T, D]; none where that is the embedding.
    pub(super) fn hidden(&mut self, batch: &Batch) -> Result<Option<&Buffer>> {
        self.prepare_below()?;
        let Below { graph: Some(graph), known, other, held, room } = &mut self.below else { return Ok(None) };
        let key = (batch.rows, batch.ids.clone());
        if !known.contains_key(&key) {
            let shape = [batch.rows, batch.length, self.manifest.model.n_embd];
            let mut buffer = Buffer::zeros(&shape)?;
            graph.input("input_ids", &shape[..2], &batch.ids)?;
            graph.output_buffer("hidden", &mut buffer)?;
            graph.run()?;
            let bytes = bytes(batch, shape[2]);
            if held.saturating_add(bytes) > *room {
                return Ok(Some(other.insert(buffer)));
            }
            *held += bytes;
            known.insert(key.clone(), buffer);
        }
        Ok(known.get(&key))
    }
}

fn bytes(batch: &Batch, width: usize) -> u64 {
    4 * (batch.rows * batch.length * width) as u64
}
