//! Parquet tables (Apache Parquet 2), as data sets are kept: a dialogue a row.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::schema::types::Type;

use super::{Text, spool};
use crate::readers::source::unreadable;
use crate::{DataError, panics};

/// How a table begins.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// The columns that fine-tuning files have as fields.
const COLUMNS: [&str; 14] = [
    "messages",
    "conversations",
    "conversation",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "persona",
    "personality",
];
/// Those of them in which words are.
const WORDS: [&str; 6] = ["messages", "conversations", "conversation", "instruction", "prompt", "chosen"];

/// The rows as chat JSONL, so that a row is a line.
///
/// # Errors
/// The table cannot be read, or none of its columns has dialogues.
pub(super) fn lines(path: &Path, file: File) -> Result<Text, DataError> {
    let refuse = |problem: String| DataError::file(path, problem, "write it again as Parquet, or as JSONL");
    let broken = |error: &dyn std::fmt::Display| refuse(format!("is a Parquet table that cannot be read: {error}"));
    // The library panics on some tables that are broken.
    let read = panics::caught(|| {
        let reader = SerializedFileReader::new(file).map_err(|error| broken(&error))?;
        let schema = reader.metadata().file_metadata().schema();
        let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
        if !names.iter().any(|name| WORDS.contains(name)) {
            let wanted = WORDS.map(|name| format!("`{name}`")).join(", ");
            let problem = format!("has the columns {}, expected one of {wanted}", names.join(", "));
            return Err(DataError::file(path, problem, "rename the column with the messages"));
        }
        let kept = schema.get_fields().iter().filter(|field| COLUMNS.contains(&field.name())).cloned().collect();
        let wanted = Type::group_type_builder(schema.name()).with_fields(kept).build();
        let rows =
            reader.get_row_iter(Some(wanted.map_err(|error| broken(&error))?)).map_err(|error| broken(&error))?;
        let mut failed = None;
        let text = spool(|file| {
            let mut out = BufWriter::new(file);
            for row in rows {
                match row {
                    Ok(row) => writeln!(out, "{}", row.to_json_value())?,
                    Err(error) => {
                        failed = Some(broken(&error));
                        break;
                    }
                }
            }
            out.flush()
        });
        match failed {
            Some(error) => Err(error),
            None => text.map_err(|error| unreadable(path, &error)),
        }
    });
    read.unwrap_or_else(|panic| Err(broken(&panic)))
}
