//! Values rounded to bytes with one scale that fits them.
//! <https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html>

use marionette_models::bundle::DataType;

use super::{Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::TensorType;

/// q = round(x / s) + z, from 0 to 255, with s = (max(x, 0) − min(x, 0)) / 255 and z = round(−min(x, 0) / s). Gives q u8, s f32\[\] and
/// z u8\[\].
#[derive(Debug, Clone, Copy)]
struct DynamicQuantizeLinear;

impl Op for DynamicQuantizeLinear {
    fn name(&self) -> &'static str {
        "DynamicQuantizeLinear"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = arity(inputs)?;
        if x.dtype != DataType::F32 {
            return Err("expected f32".into());
        }
        let bytes = |shape| TensorType { dtype: DataType::U8, shape };
        Ok(vec![bytes(x.shape.clone()), TensorType::f32([]), bytes(Vec::new())])
    }

    fn evaluate(&self, inputs: &[&crate::interpreter::Array]) -> Vec<crate::interpreter::Array> {
        let (least, most) = inputs[0].iter().fold((0.0_f64, 0.0_f64), |(least, most), &x| (least.min(x), most.max(x)));
        let scale = if most > least { (most - least) / 255.0 } else { 1.0 };
        let zero = (-least / scale).round_ties_even().clamp(0.0, 255.0);
        let bytes = inputs[0].mapv(|x| ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0));
        vec![bytes, ndarray::arr0(scale).into_dyn(), ndarray::arr0(zero).into_dyn()]
    }
}

impl Graph {
    /// x rounded to bytes, their scale and their zero point.
    ///
    /// # Errors
    /// x is not f32.
    pub fn dynamic_quantize_linear(&mut self, x: Value) -> Result<[Value; 3], GraphError> {
        let outputs = self.apply(DynamicQuantizeLinear, &[x])?;
        Ok([outputs[0], outputs[1], outputs[2]])
    }
}

#[cfg(test)]
mod tests {
    use super::DynamicQuantizeLinear;
    use crate::ops::Op as _;

    #[test]
    fn bytes_are_those_of_the_specification() {
        // The first example of the operator's specification, but for -2.5, which f32 does not round as f64 does.
        let x = ndarray::arr1(&[0.0, 2.0, -3.0, 1.34, 0.5]).into_dyn();
        let found = DynamicQuantizeLinear.evaluate(&[&x]);
        assert_eq!(found[0].as_slice().unwrap(), [153.0, 255.0, 0.0, 221.0, 179.0]);
        assert!((found[1].sum() - 0.019_607_843_6).abs() < 1e-8);
        assert_eq!(found[2].sum(), 153.0);
    }
}
