//! The one error of this crate. Each displays as one line that ends with what to do about it.

use marionette_dialogues::{DataError, EncodeError};
use marionette_models::FileError;

use crate::personas::PersonaError;
use crate::sampling::SamplingError;
use crate::session::SessionError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of a bundle, or a persona's file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A dialogue file.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Text that cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// ONNX Runtime.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A persona that cannot be used.
    #[error(transparent)]
    Persona(#[from] PersonaError),
    /// A token that cannot be drawn.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The numbers of an adaptation ran away.
    #[error("step {step} of {steps}: the {what} is {value}; nothing was saved: try a smaller --inner-lr")]
    Diverged {
        /// The step, from 1; one more than `steps` for the check after the last one.
        step: usize,
        /// How many steps there are.
        steps: usize,
        /// What is not a finite number.
        what: &'static str,
        /// Its value.
        value: f32,
    },
    /// The adapters learned nothing, or unlearned something.
    #[error(
        "the loss on the {on} went from {before:.4} to {after:.4}, so nothing was saved: try a smaller --inner-lr or fewer --epochs, or --even-if-worse to save it all the same"
    )]
    Worse {
        /// On what: the dialogues, or those of them that were held out.
        on: &'static str,
        /// The loss over all of them before, in nats a token.
        before: f32,
        /// And after.
        after: f32,
    },
    /// The user asked to stop.
    #[error("interrupted: nothing was saved")]
    Interrupted,
    /// The user asked to stop, and what there was by then is saved.
    #[error("interrupted: the best so far is saved")]
    Stopped,
    /// Something the user asked for is impossible.
    #[error("{0}")]
    Impossible(String),
    /// Results could not be written.
    #[error("the output cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

/// The result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;
