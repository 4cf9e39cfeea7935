//! What a version of a persona says of itself, in the metadata of its adapters' file.

use std::collections::BTreeMap;
use std::path::Path;

use marionette_models::{FileError, LearningRate};
use serde::{Deserialize, Serialize};

/// The version of the file that this code writes and the newest it reads.
pub const FORMAT_VERSION: u32 = 2;

/// What a persona was learned from, and how. Losses are means over reply tokens, in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// How many dialogues it was adapted on.
    pub dialogues: usize,
    /// The SHA-256 of what was learned from in these dialogues.
    pub dialogues_sha256: String,
    /// The sentences that describe the persona in these dialogues.
    pub persona: Vec<String>,
    /// α.
    pub learning_rate: LearningRate,
    /// The loss before each step, on that step's batch; as many as steps.
    pub losses: Vec<f32>,
    /// The loss on the first step's batch after the last step.
    pub loss_after: f32,
    /// The loss on dialogues that were not learned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
    /// The version that the adaptation began with, as `ann@2`; the bundle's own start where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// How long it took, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// The loss on dialogues that were held out, in nats a token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// How many: those after the ones that were learned from.
    pub dialogues: usize,
    /// Before the first step.
    pub before: f32,
    /// With the adapters that were kept.
    pub after: f32,
}

/// What stands in the metadata of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub(super) base_sha256: String,
    /// RFC 3339, in UTC; former files have none.
    pub(super) created: Option<String>,
    pub(super) record: Record,
}

impl Facts {
    pub(super) fn write(&self) -> BTreeMap<String, String> {
        let Self { base_sha256, created, record } = self;
        let mut entries = BTreeMap::from([
            ("format_version".to_owned(), FORMAT_VERSION.to_string()),
            ("base_sha256".to_owned(), base_sha256.clone()),
            ("record".to_owned(), serde_json::json!(record).to_string()),
        ]);
        entries.extend(created.clone().map(|created| ("created".to_owned(), created)));
        entries
    }

    pub(super) fn read(path: &Path, entries: &BTreeMap<String, String>) -> Result<Self, FileError> {
        let metadata = Metadata { path, entries };
        let record = match metadata.json("format_version")? {
            1_u32 => metadata.former()?,
            FORMAT_VERSION => metadata.json("record")?,
            version => {
                let problem = format!("is {version}, this program reads {FORMAT_VERSION}");
                let remedy = "use the marionette that wrote it, or adapt again";
                return Err(metadata.wrong("format_version", problem).remedy(remedy));
            }
        };
        let created = entries.get("created").cloned();
        Ok(Self { base_sha256: metadata.text("base_sha256")?.to_owned(), created, record })
    }
}

struct Metadata<'a> {
    path: &'a Path,
    entries: &'a BTreeMap<String, String>,
}

impl Metadata<'_> {
    fn wrong(&self, key: &str, problem: String) -> FileError {
        FileError::new(self.path, problem).at(format!("metadata {key}"))
    }

    fn text(&self, key: &str) -> Result<&str, FileError> {
        let missing = || self.wrong(key, "is missing: expected a file that `marionette adapt` wrote".into());
        self.entries.get(key).map(String::as_str).ok_or_else(missing)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T, FileError> {
        let text = self.text(key)?;
        serde_json::from_str(text).map_err(|error| self.wrong(key, format!("is wrong: {error}")))
    }

    /// The record of format 1, which had an entry for each field.
    fn former(&self) -> Result<Record, FileError> {
        Ok(Record {
            dialogues: self.json("dialogues")?,
            dialogues_sha256: self.text("dialogues_sha256")?.to_owned(),
            persona: self.json("persona")?,
            learning_rate: self.json("learning_rate")?,
            losses: self.json("losses")?,
            loss_after: self.json("loss_after")?,
            held_out: None,
            from: None,
            seconds: None,
        })
    }
}
