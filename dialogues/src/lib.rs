//! What the data is: dialogues, personas as tasks, encoding and metrics.

mod byte_level;
mod dialogue;
mod encode;
mod encoded;
mod error;
mod evaluate;
mod metrics;
pub mod panics;
mod readers;
pub mod synthetic;
mod tasks;
mod tokenizer;

pub use dialogue::{Dialogue, Exchange};
pub use encode::Encoder;
pub use encoded::{Batch, Prompt, Ranking, Sequence};
pub use error::{DataError, EncodeError};
pub use evaluate::{EvaluateError, Learner, Options, Progress, evaluate};
pub use metrics::{Evaluation, ShotResult, Tally, best_candidate, f1, hits_at_1, normalise};
pub use readers::{SILENCE, read_dialogues, write_convai2};
pub use tasks::{Fold, Grouping, Share, Task, TaskError, group_by_persona, hold_out, leave_one_out};
pub use tokenizer::{
    END_OF_TEXT, StreamDecoder, Tokenizer, load_tokenizer, save_tokenizer, tokenizer_from_bytes, train_bpe,
};
