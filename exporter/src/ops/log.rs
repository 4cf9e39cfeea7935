//! ln x, element by element. <https://onnx.ai/onnx/operators/onnx__Log.html>

use super::{Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = ln x.
#[derive(Debug, Clone, Copy)]
struct Log;

impl Op for Log {
    fn name(&self) -> &'static str {
        "Log"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::unary(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        vec![inputs[0].mapv(|x| x.ln())]
    }
}

impl Graph {
    /// ln Σ eˣ along the last axis, which goes. Not ONNX's ReduceLogSumExp: ONNX Runtime's adds the terms one after the other, and
    /// is wrong by 1e-5 over a small vocabulary.
    ///
    /// # Errors
    /// x is not f32, or has no axis.
    pub fn log_sum_exp(&mut self, x: Value) -> Result<Value, GraphError> {
        let greatest = self.reduce_max(x, &[-1], true)?;
        let below = self.sub(x, greatest)?;
        let terms = self.exp(below)?;
        let sum = self.reduce_sum(terms, &[-1], true)?;
        let log = self.apply_one(Log, &[sum])?;
        let log_sum = self.add(log, greatest)?;
        let shape = self.shape(x).to_vec();
        self.reshape(log_sum, shape.split_last().map_or(&[], |(_, rows)| rows))
    }
}
