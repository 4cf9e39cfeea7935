//! What an operator is to a graph.

use std::fmt::Debug;

use super::{Graph, Value};
use crate::array::Array;
use crate::error::GraphError;
use crate::shape::TensorType;

/// Where an operator is specified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Domain {
    /// By ONNX, in [`crate::ops::OPSET`].
    Onnx,
    /// By ONNX Runtime, <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>.
    Microsoft,
    /// By us: a model-local function whose body, [`Op::body`], is operators of the others. ONNX Runtime executes the body, unless it
    /// is given a kernel for the whole, as our runtime does on the processor.
    Marionette,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// A number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// Integers.
    Ints(Vec<i64>),
    /// A text.
    Text(&'static str),
}

/// An operator with its attributes.
pub trait Op: Debug {
    /// Its name in ONNX (`op_type`).
    fn name(&self) -> &'static str;

    /// Who specifies it.
    fn domain(&self) -> Domain {
        Domain::Onnx
    }

    /// Its attributes.
    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        Vec::new()
    }

    /// Which of its inputs are left empty, by ONNX's numbers: those it is applied to are the others.
    fn empty_inputs(&self) -> &'static [usize] {
        &[]
    }

    /// How many of its outputs have to be named; those after may be left out where nothing reads them. ONNX Runtime wants all of a
    /// function's.
    fn required_outputs(&self) -> usize {
        usize::MAX
    }

    /// The types of the outputs.
    ///
    /// # Errors
    /// What is wrong with the inputs.
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String>;

    /// Its meaning in ONNX's own operators, for an operator of another domain: adds them and gives the outputs.
    ///
    /// # Errors
    /// The operator has none; the inputs do not fit.
    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let _ = (graph, inputs);
        Err(GraphError::NoBody { operator: self.name() })
    }

    /// Adds the nodes that compute the gradient with respect to each wanted input; `None` for the others. Called only
    /// where the loss depends on at least one output.
    ///
    /// # Errors
    /// The operator has no gradient.
    fn gradient(&self, graph: &mut Graph, node: &Backward<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let _ = (graph, node);
        Err(GraphError::NoGradient {
            operator: self.name(),
            scope: String::new(),
            problem: "the operator is not used in a forward pass that is differentiated".to_owned(),
        })
    }

    /// The outputs, computed in f64, of inputs that [`Op::infer`] has accepted.
    fn evaluate(&self, inputs: &[&Array]) -> Vec<Array>;
}

/// A node as its gradient sees it.
#[derive(Debug)]
pub struct Backward<'a> {
    /// What it took.
    pub inputs: &'a [Value],
    /// What it gave.
    pub outputs: &'a [Value],
    /// The gradient of the loss with respect to each output; `None` where the loss does not depend on it.
    pub output_gradients: &'a [Option<Value>],
    /// Which inputs' gradients are asked for. The others need no nodes.
    pub wanted: &'a [bool],
}
