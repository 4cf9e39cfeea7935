//! Why a persona cannot be used.

use marionette_dialogues::DataError;
use marionette_models::FileError;

use crate::persona_name::PersonaName;

/// Why a persona cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PersonaError {
    /// Another process works on it.
    #[error("persona {name} is busy: another marionette changes it; wait for it to end")]
    Busy {
        /// The persona.
        name: PersonaName,
    },
    /// There is none of this name.
    #[error("there is no persona {name} in {folder} ({there}); make it with `marionette adapt`")]
    Unknown {
        /// The name.
        name: PersonaName,
        /// Where it was looked for.
        folder: String,
        /// Which there are.
        there: String,
    },
    /// It has no such version.
    #[error(
        "persona {name} has no version {version} (it has {there}); `marionette personas history {name}` lists them"
    )]
    UnknownVersion {
        /// The persona.
        name: PersonaName,
        /// The version that was asked for.
        version: usize,
        /// Which there are.
        there: String,
    },
    /// There is one already.
    #[error("there is a persona {name} already; choose another name, or remove that one first")]
    Taken {
        /// The name.
        name: PersonaName,
    },
    /// There is one whose name differs only in case.
    #[error("persona {name} differs only in case from {other}, which is there already; choose another name")]
    Case {
        /// The name.
        name: PersonaName,
        /// The one that is there.
        other: String,
    },
    /// It was learned on another base model.
    #[error(
        "{path}: was adapted on another base model (SHA-256 {found}…, the bundle's is {expected}…); `marionette personas readapt` learns it again with this bundle"
    )]
    OtherBase {
        /// The file.
        path: String,
        /// The digest that the file names, its beginning.
        found: String,
        /// The bundle's, its beginning.
        expected: String,
    },
    /// Its dialogues were not kept.
    #[error("{name}, version {version}, was saved without its dialogues; adapt again with `--dialogues`")]
    NoDialogues {
        /// The persona.
        name: PersonaName,
        /// The version.
        version: usize,
    },
    /// The version that is in use is not removed.
    #[error(
        "{name}, version {version}, is the current one; revert to another before it is removed, or remove the persona"
    )]
    Current {
        /// The persona.
        name: PersonaName,
        /// The version.
        version: usize,
    },
    /// No home folder is known.
    #[error("no folder for personas is known: neither XDG_DATA_HOME nor HOME is an absolute path; give --home")]
    NoHome,
    /// A file is wrong or cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The dialogues of a version cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
}
