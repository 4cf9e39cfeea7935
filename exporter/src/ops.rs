//! The operators, one file each: formula, shapes, gradient, and the specification it follows. Adding one is adding its file
//! and its line below.

// Inputs of [`Op::evaluate`] are of the shapes that `infer` has accepted.
#![allow(clippy::unwrap_used)]

use std::fmt::Debug;

use crate::autodiff::Backward;
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

mod elementwise;
mod reduction;

mod add;
mod add_product;
mod and;
mod bit_shift;
mod bitwise_and;
mod cast;
mod causal_attention;
mod causal_attention_gradient;
mod concat;
mod constant_of_shape;
mod dequantize_linear;
mod div;
mod equal;
mod exp;
mod expand;
mod few_rows_mat_mul;
mod gather;
mod gather_block_quantized;
mod gather_elements;
mod gelu;
mod gelu_gradient;
mod gemm;
mod group_query_attention;
mod layer_normalization;
mod layer_normalization_gradient;
mod less_or_equal;
mod log;
mod mat_mul;
mod mat_mul_integer;
mod mat_mul_n_bits;
mod mul;
mod non_zero;
mod or;
mod quantize_linear;
mod quantized_mat_mul;
mod quantized_mat_mul_gradient;
mod range;
mod reduce_max;
mod reduce_mean;
mod reduce_sum;
mod reduce_sum_square;
mod reshape;
mod rms_normalization;
mod rms_normalization_gradient;
mod rotary;
mod scatter_elements;
mod scatter_nd;
mod shape_of;
mod sigmoid;
mod slice;
mod softmax;
mod split;
mod sqrt;
mod sub;
mod swi_glu;
mod swi_glu_gradient;
mod target_log_prob;
mod target_log_prob_gradient;
mod transpose;
mod where_;

pub use causal_attention::Heads;
pub use gemm::Transposed;
pub use group_query_attention::Cached;
pub use quantized_mat_mul::Matrix;

/// The operator set of the standard operators, <https://onnx.ai/onnx/operators>: the first with 4-bit integers.
pub const OPSET: i64 = 21;

/// Where an operator is specified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Domain {
    /// By ONNX, in [`OPSET`].
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
        Err(no_gradient(self.name(), "the operator is not used in a forward pass that is differentiated"))
    }

    /// The outputs, computed in f64, of inputs that [`Op::infer`] has accepted.
    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array>;
}

fn no_gradient(operator: &'static str, problem: impl Into<String>) -> GraphError {
    GraphError::NoGradient { operator, scope: String::new(), problem: problem.into() }
}

/// Takes an operator's inputs apart, which must be as many as it has.
fn arity<'a, const N: usize>(inputs: &[&'a TensorType]) -> Result<[&'a TensorType; N], String> {
    inputs.try_into().map_err(|_| format!("{} inputs, expected {N}", inputs.len()))
}
