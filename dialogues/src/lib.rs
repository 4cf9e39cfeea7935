//! What the data is: dialogues, personas as tasks, encoding and metrics.

mod dialogue;

pub use dialogue::{Dialogue, Exchange};
