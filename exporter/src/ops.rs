//! The operators, one file each: formula, shapes, gradient, and the specification it follows. Adding one is adding its file
//! and its line below.

// Inputs of `Op::evaluate` are of the shapes that `infer` has accepted.
#![allow(clippy::unwrap_used)]

use crate::error::GraphError;
use crate::graph::{Attribute, Backward, Domain, Graph, Op, Value};
use crate::shape::TensorType;

mod elementwise;
mod reduction;
mod sizes;

mod abs;
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
mod decoder_block;
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
mod max_pool;
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
mod row_adapters;
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

pub(crate) use add_product::AddProduct;
pub use causal_attention::Heads;
pub(crate) use decoder_block::DecoderBlock;
pub use gemm::Transposed;
pub use group_query_attention::Cached;
pub use quantized_mat_mul::Matrix;

/// The operator set of the standard operators, <https://onnx.ai/onnx/operators>: the first with 4-bit integers.
pub const OPSET: i64 = 21;

fn no_gradient(operator: &'static str, problem: impl Into<String>) -> GraphError {
    GraphError::NoGradient { operator, scope: String::new(), problem: problem.into() }
}

/// Takes an operator's inputs apart, which must be as many as it has.
fn arity<'a, const N: usize>(inputs: &[&'a TensorType]) -> Result<[&'a TensorType; N], String> {
    inputs.try_into().map_err(|_| format!("{} inputs, expected {N}", inputs.len()))
}

impl Backward<'_> {
    /// The gradient with respect to an output: zeros where the loss does not depend on it.
    ///
    /// # Errors
    /// A dimension is not known.
    pub fn gradient(&self, graph: &mut Graph, output: usize) -> Result<Value, GraphError> {
        match self.output_gradients[output] {
            Some(gradient) => Ok(gradient),
            None => {
                let shape = graph.shape(self.outputs[output]).to_vec();
                graph.zeros(&shape)
            }
        }
    }
}
