//! Bits moved to lower places, element by element, with broadcasting.
//! <https://onnx.ai/onnx/operators/onnx__BitShift.html>

use super::{Attribute, Op, elementwise};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// y = ⌊a / 2^b⌋.
#[derive(Debug, Clone, Copy)]
struct BitShift;

impl Op for BitShift {
    fn name(&self) -> &'static str {
        "BitShift"
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("direction", Attribute::Text("RIGHT"))]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        elementwise::arithmetic(inputs)
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        elementwise::zip(inputs, |a, b| f64::from(a as u8 >> b as u8))
    }
}

impl Graph {
    /// ⌊a / 2^b⌋, broadcast.
    ///
    /// # Errors
    /// The types do not fit or the shapes do not broadcast.
    pub fn shift_right(&mut self, a: Value, b: Value) -> Result<Value, GraphError> {
        self.apply_one(BitShift, &[a, b])
    }
}
