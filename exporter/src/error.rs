//! What can go wrong while a graph is built and exported.

use marionette_dialogues::{DataError, EncodeError};
use marionette_models::FileError;
use marionette_models::bundle::Precision;

/// A graph that does not fit together: a fault of whoever builds it, with what is needed to find it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// An operator refuses its inputs.
    #[error("{operator} in \"{scope}\" of ({inputs}): {problem}")]
    Invalid {
        /// The operator.
        operator: &'static str,
        /// The part of the model being built.
        scope: String,
        /// The types of the inputs.
        inputs: String,
        /// What is wrong with them.
        problem: String,
    },
    /// The gradient has to go through an operator that has none.
    #[error("{operator} in \"{scope}\" has no gradient: {problem}")]
    NoGradient {
        /// The operator.
        operator: &'static str,
        /// The part of the model it is in.
        scope: String,
        /// Why not.
        problem: String,
    },
    /// An operator cannot be said in ONNX's own.
    #[error("{operator} has no form in ONNX's own operators")]
    NoBody {
        /// The operator.
        operator: &'static str,
    },
    /// Two applications of an operator mean different things, where one function must serve both.
    #[error("{operator} has one function in a model, and its body in \"{scope}\" differs from those before")]
    TwoBodies {
        /// The operator.
        operator: &'static str,
        /// The part of the model where it differs.
        scope: String,
    },
    /// The loss is no scalar of f32.
    #[error("the loss is {0}, expected a scalar of f32")]
    NotALoss(String),
    /// The loss does not depend on what it is to be differentiated by.
    #[error("the loss does not depend on \"{0}\"")]
    Unreached(String),
    /// Two checkpoints between which activations are to be computed again are of different shapes.
    #[error("checkpoints are matrices of one shape, not {0} and {1}")]
    Checkpoint(String, String),
    /// A name is used for two values.
    #[error("the name \"{0}\" is there twice")]
    DuplicateName(String),
    /// A size that no value of the graph has.
    #[error("no value of the graph has the dimension {0}")]
    UnknownDimension(String),
    /// A matrix that cannot be cut into blocks of integers.
    #[error("{precision} needs widths that are multiples of 16, and \"{tensor}\" has {width}; take fp32 or fp16")]
    Width {
        /// What was asked for.
        precision: Precision,
        /// The matrix.
        tensor: String,
        /// The length of its columns.
        width: usize,
    },
    /// A weight that is too large for 16 bits.
    #[error("{precision} holds values up to 65,504, and \"{tensor}\" has {value}; take fp32 or int8")]
    Range {
        /// What was asked for.
        precision: Precision,
        /// The tensor.
        tensor: String,
        /// Its value, in words.
        value: String,
    },
    /// The weights have no tensor of that name, or not of that shape.
    #[error("the weights have no tensor \"{0}\"")]
    UnknownWeight(String),
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file that is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// A tokenizer that is not what it should be.
    #[error(transparent)]
    Tokenizer(#[from] DataError),
    /// A tokenizer that cannot be written.
    #[error("the tokenizer cannot be written: {0}")]
    Encode(#[from] EncodeError),
    /// The user has interrupted.
    #[error("interrupted, nothing is written")]
    Interrupted,
    /// The user has interrupted while the error of the precision was measured.
    #[error("interrupted; the bundle is written, what its precision costs is not measured")]
    Unmeasured,
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// The graph of this model cannot be built.
    #[error("the graph cannot be built: {0}")]
    Graph(#[from] GraphError),
}
