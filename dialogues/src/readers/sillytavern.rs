//! SillyTavern's chats: JSONL, whose first line says who the character is.

use std::path::Path;

use serde::Deserialize;

use super::lines::Lines;
use super::{LeftOut, Source};
use crate::DataError;
use crate::conversation::{About, Mark, Message, Sink, Speaker};
use crate::error::without_place;

const REMEDY: &str = "export the chat again, from SillyTavern as JSONL";

/// The first line.
#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    character_name: Option<String>,
}

/// Each other line.
#[derive(Deserialize)]
struct Written {
    name: String,
    mes: String,
    #[serde(default)]
    is_system: bool,
    #[serde(default)]
    swipes: Option<Vec<String>>,
    #[serde(default)]
    swipe_id: Option<usize>,
}

/// Reads the messages of a file.
///
/// # Errors
/// [`DataError`].
pub(super) fn read(path: &Path, source: &Source, sink: &mut dyn Sink) -> Result<Vec<LeftOut>, DataError> {
    let mut lines = Lines::new(path, source.open()?);
    let (mut begun, mut bad, mut seen) = (false, source.bad(), 0);
    while let Some((line, text)) = lines.next()? {
        if text.trim().is_empty() {
            continue;
        }
        if !begun {
            let Header { character_name } = serde_json::from_str(text)
                .map_err(|error| DataError::line(path, line, without_place(&error), REMEDY))?;
            sink.begin(About { owner: character_name, whole: true, ..About::default() });
            begun = true;
            continue;
        }
        seen += 1;
        match serde_json::from_str(text) {
            Err(error) => bad.add(line, without_place(&error), REMEDY),
            Ok(Written { name, mes, is_system, swipes, swipe_id }) => {
                // Of several versions of a reply, the one that was kept.
                let kept = swipes
                    .zip(swipe_id)
                    .and_then(|(mut swipes, place)| (place < swipes.len()).then(|| swipes.swap_remove(place)));
                let mark = is_system.then_some(Mark::Notice);
                let speaker = Speaker { name, id: None };
                sink.message(Message { mark, ..Message::of(speaker, kept.unwrap_or(mes), line) });
            }
        }
    }
    Ok(vec![bad.judge(path, "messages", seen)?])
}
