//! Rows of a matrix of 4- or 8-bit integers.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GatherBlockQuantized>

use marionette_models::bundle::DataType;

use super::{Attribute, Domain, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// y\[i…, :\] = (q\[indices\[i…\], :\] − 2^(bits − 1)) s, q \[V, D · bits / 8\] bytes, s \[V, D / block\].
#[derive(Debug, Clone, Copy)]
struct GatherBlockQuantized {
    bits: usize,
    block: usize,
}

impl Op for GatherBlockQuantized {
    fn name(&self) -> &'static str {
        "GatherBlockQuantized"
    }

    fn domain(&self) -> Domain {
        Domain::Microsoft
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![
            ("bits", Attribute::Int(self.bits as i64)),
            ("block_size", Attribute::Int(self.block as i64)),
            ("gather_axis", Attribute::Int(0)),
            ("quantize_axis", Attribute::Int(1)),
        ]
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let [integers, indices, scales] = arity(inputs)?;
        if integers.dtype != DataType::U8 || indices.dtype != DataType::I64 || scales.dtype != DataType::F32 {
            return Err("expected integers of u8, indices of i64 and scales of f32".into());
        }
        match (&integers.shape[..], &scales.shape[..]) {
            ([rows, Dim::Fixed(bytes)], [same, Dim::Fixed(blocks)])
                if rows == same && bytes * 8 / self.bits == blocks * self.block =>
            {
                Ok(vec![TensorType::f32([&indices.shape[..], &[Dim::Fixed(blocks * self.block)]].concat())])
            }
            _ => Err("the scales do not fit the integers".into()),
        }
    }

    fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let [integers, indices, scales] = [inputs[0], inputs[1], inputs[2]];
        let rows = graph.shape(indices).to_vec();
        let blocks = graph.shape(scales)[1];
        let all = [&rows[..], &[blocks, self.block.into()]].concat();
        let stored = graph.gather(integers, indices)?;
        let (values, middle) = if self.bits == 8 {
            (stored, 128.0)
        } else {
            let (mask, four) = (graph.byte(15), graph.byte(4));
            let halves = [graph.bitwise_and(stored, mask)?, graph.shift_right(stored, four)?];
            let apart = [&rows[..], &[graph.shape(stored)[rows.len()], 1.into()]].concat();
            let halves = [graph.reshape(halves[0], &apart)?, graph.reshape(halves[1], &apart)?];
            (graph.concat(&halves, -1)?, 8.0)
        };
        let values = graph.reshape(values, &all)?;
        let values = graph.cast(values, DataType::F32)?;
        let middle = graph.scalar(middle);
        let values = graph.sub(values, middle)?;
        let scales = graph.gather(scales, indices)?;
        let scales = graph.reshape(scales, &[&rows[..], &[blocks, 1.into()]].concat())?;
        let values = graph.mul(values, scales)?;
        let width = match blocks {
            Dim::Fixed(blocks) => blocks * self.block,
            _ => self.block,
        };
        Ok(vec![graph.reshape(values, &[&rows[..], &[width.into()]].concat())?])
    }

    fn evaluate(&self, inputs: &[&crate::array::Array]) -> Vec<crate::array::Array> {
        let width = inputs[2].shape()[1] * self.block;
        let value = |row: usize, d: usize| {
            let byte = inputs[0][[row, d * self.bits / 8]];
            crate::array::quantised(self.bits, byte, d) * inputs[2][[row, d / self.block]]
        };
        let rows = inputs[1].iter().flat_map(|&row| (0..width).map(move |d| value(row as usize, d)));
        let shape = [inputs[1].shape(), &[width]].concat();
        vec![crate::array::Array::from_shape_vec(shape, rows.collect()).unwrap()]
    }
}

impl Graph {
    /// The rows of a quantised matrix whose numbers `indices` holds.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn gather_block_quantized(
        &mut self,
        [integers, scales]: [Value; 2],
        indices: Value,
        bits: usize,
        block: usize,
    ) -> Result<Value, GraphError> {
        self.apply_one(GatherBlockQuantized { bits, block }, &[integers, indices, scales])
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::bundle::DataType;

    use super::GatherBlockQuantized;
    use crate::testing::{Sample, check_body, float, indices_of, integers};

    #[test]
    fn the_body_is_what_the_operator_is() {
        for bits in [4, 8] {
            let bytes: Vec<i64> = (0..3 * 8 * bits / 8).map(|i| i as i64 * 97 % 256).collect();
            let stored = Sample::Given(DataType::U8, integers(&[3, 8 * bits / 8], &bytes));
            let wanted = indices_of(&[2, 2], &[2, 0, 1, 2]);
            check_body(GatherBlockQuantized { bits, block: 4 }, &[stored, wanted, float(&[3, 2])], 1e-6);
        }
    }
}
