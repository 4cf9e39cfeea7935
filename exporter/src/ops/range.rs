//! Numbers in equal steps. <https://onnx.ai/onnx/operators/onnx__Range.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// start, start + step, … below limit: i64\[`count`\] from three scalars.
#[derive(Debug, Clone, Copy)]
struct Range {
    count: Dim,
}

impl Op for Range {
    fn name(&self) -> &'static str {
        "Range"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [start, limit, step] = arity(inputs)?;
        if [start, limit, step].iter().any(|x| x.rank() != 0 || x.dtype != DataType::I64) {
            return Err("expected scalars of i64".into());
        }
        Ok(vec![TensorType::i64([self.count])])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let [start, limit, step] = [0, 1, 2].map(|i| inputs[i].sum());
        vec![ndarray::Array::range(start, limit, step).into_dyn()]
    }
}

impl Graph {
    /// start, start + step, … below limit, i64\[`count`\]: the caller says how many that are.
    ///
    /// # Errors
    /// They are not scalars of i64.
    pub fn range(&mut self, start: Value, limit: Value, step: Value, count: Dim) -> Result<Value, GraphError> {
        self.apply_one(Range { count }, &[start, limit, step])
    }
}
