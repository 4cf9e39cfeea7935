//! Where the truth is. <https://onnx.ai/onnx/operators/onnx__NonZero.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// The indices of the true elements of a list, i64\[1, `count`\], ascending. How many they are is known only when the graph
/// runs, so their number is a dimension of a name of its own.
#[derive(Debug, Clone, Copy)]
struct NonZero {
    count: &'static str,
}

impl Op for NonZero {
    fn name(&self) -> &'static str {
        "NonZero"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = arity(inputs)?;
        if x.dtype != DataType::Bool || x.rank() != 1 {
            return Err("expected a list of truth values".into());
        }
        Ok(vec![TensorType::i64([1.into(), Dim::Symbol(self.count)])])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let found: Vec<f64> =
            inputs[0].iter().enumerate().filter(|(_, value)| **value != 0.0).map(|(i, _)| i as f64).collect();
        vec![crate::array::Array::from_shape_vec(vec![1, found.len()], found).unwrap()]
    }
}

impl Graph {
    /// The indices of the true elements of a list, i64\[`count`\].
    ///
    /// # Errors
    /// x is no list of truth values.
    pub fn non_zero(&mut self, x: Value, count: &'static str) -> Result<Value, GraphError> {
        let found = self.apply_one(NonZero { count }, &[x])?;
        self.reshape(found, &[Dim::Symbol(count)])
    }
}
