//! What the data is: dialogues, personas as tasks, encoding and metrics.

mod byte_level;
mod chat_template;
mod conversation;
mod dialogue;
mod difference;
mod distractors;
mod encode;
mod encoded;
mod error;
mod evaluate;
mod in_context;
mod interval;
mod likeness;
mod metrics;
mod overlap;
pub mod panics;
mod rank;
mod readers;
mod redact;
mod report;
mod split;
mod summary;
pub mod synthetic;
mod tasks;
mod text;
mod tokenizer;

pub use conversation::{Found, Rules, Speakers};
pub use dialogue::{Dialogue, Exchange};
pub use difference::{Change, Difference};
pub use distractors::DISTRACTORS;
pub use encode::Encoder;
pub use encoded::{Batch, Example, Prompt, Ranking, Sequence};
pub use error::{DataError, EncodeError};
pub use evaluate::{
    EvaluateError, Judge, Learner, Options, Passes, PlanError, Progress, evaluate, evaluate_judged, reference,
};
pub use in_context::Context;
pub use interval::ratio_interval;
pub use metrics::{Tally, f1, hits_at_1, normalise};
pub use overlap::Overlap;
pub use rank::{RankBy, best_candidate, mean_scores, pmi_scores, sum_scores};
pub use readers::{
    Format, LeftOut, Reading, SILENCE, read_chat, read_dialogues, read_file, read_persona, split_part, write_chat,
    write_convai2,
};
pub use redact::{Redacted, Redaction, Redactor, Replaced};
pub use report::{
    Candidates, Cell, Cost, Evaluation, Intervals, Likeness, Outcome, Sample, ShotCost, ShotResult, TooFew,
};
pub use split::PersonaSplit;
pub use summary::{Bin, Counts, Distribution, FileSummary, Largest, Personas, Summary, Tokens};
pub use tasks::{Fold, Grouping, SPLIT_SEED, Share, Task, TaskError, group_by_persona, hold_out, leave_one_out};
pub use text::clean;
pub use tokenizer::{
    END_OF_TEXT, StreamDecoder, Tokenizer, load_tokenizer, save_tokenizer, tokenizer_from_bytes, train_bpe,
};
