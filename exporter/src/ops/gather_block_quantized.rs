//! Rows of a matrix of 8- or 4-bit integers.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GatherBlockQuantized>

use marionette_models::bundle::DataType;

use super::{Attribute, Domain, Op, arity};
use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, TensorType};

/// y\[i…, :\] = (q\[indices\[i…\], :\] − 128) s, q \[V, D\] bytes, s \[V, D / block\].
#[derive(Debug, Clone, Copy)]
struct GatherBlockQuantized {
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
            ("bits", Attribute::Int(8)),
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
                if rows == same && *bytes == blocks * self.block =>
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
        let values = graph.reshape(stored, &all)?;
        let values = graph.cast(values, DataType::F32)?;
        let middle = graph.scalar(128.0);
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
        let value = |row: usize, d: usize| (inputs[0][[row, d]] - 128.0) * inputs[2][[row, d / self.block]];
        let rows = inputs[1].iter().flat_map(|&row| (0..width).map(move |d| value(row as usize, d)));
        let shape = [inputs[1].shape(), &[width]].concat();
        vec![crate::array::Array::from_shape_vec(shape, rows.collect()).unwrap()]
    }
}

impl Graph {
    /// The rows of a matrix of 8-bit integers whose numbers `indices` holds.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn gather_block_quantized(
        &mut self,
        [integers, scales]: [Value; 2],
        indices: Value,
        block: usize,
    ) -> Result<Value, GraphError> {
        self.apply_one(GatherBlockQuantized { block }, &[integers, indices, scales])
    }

    /// The rows of a matrix of 4-bit integers whose numbers `indices` holds: of q s + m, q \[V, D / 2\] bytes, the lower half first, s
    /// and m f16\[V, D / block\].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn gather_affine(
        &mut self,
        [integers, scales, minima]: [Value; 3],
        indices: Value,
    ) -> Result<Value, GraphError> {
        let rows = self.shape(indices).to_vec();
        let stored = self.gather(integers, indices)?;
        let (Some(&Dim::Fixed(bytes)), Some(&Dim::Fixed(blocks))) =
            (self.shape(stored).last(), self.shape(scales).last())
        else {
            return Err(GraphError::UnknownDimension("of a row of integers".into()));
        };
        let (mask, four) = (self.byte(15), self.byte(4));
        let halves = [self.bitwise_and(stored, mask)?, self.shift_right(stored, four)?];
        let apart = [&rows[..], &[bytes.into(), 1.into()]].concat();
        let halves = [self.reshape(halves[0], &apart)?, self.reshape(halves[1], &apart)?];
        let values = self.concat(&halves, -1)?;
        let values = self.cast(values, DataType::F32)?;
        let in_blocks = [&rows[..], &[blocks.into(), (2 * bytes / blocks.max(1)).into()]].concat();
        let values = self.reshape(values, &in_blocks)?;
        let each = [&rows[..], &[blocks.into(), 1.into()]].concat();
        let [scales, minima] = [self.gather(scales, indices)?, self.gather(minima, indices)?];
        let [scales, minima] = [self.cast(scales, DataType::F32)?, self.cast(minima, DataType::F32)?];
        let [scales, minima] = [self.reshape(scales, &each)?, self.reshape(minima, &each)?];
        let values = self.mul(values, scales)?;
        let values = self.add(values, minima)?;
        self.reshape(values, &[&rows[..], &[(2 * bytes).into()]].concat())
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::bundle::DataType;

    use std::collections::BTreeMap;

    use super::GatherBlockQuantized;
    use crate::graph::Graph;
    use crate::shape::{Dim, TensorType};
    use crate::testing::{Sample, check_body, evaluate, float, indices_of, integers};

    #[test]
    fn the_body_is_what_the_operator_is() {
        let bytes: Vec<i64> = (0..3 * 8).map(|i| i * 97 % 256).collect();
        let stored = Sample::Given(DataType::U8, integers(&[3, 8], &bytes));
        let wanted = indices_of(&[2, 2], &[2, 0, 1, 2]);
        check_body(GatherBlockQuantized { block: 4 }, &[stored, wanted, float(&[3, 2])], 1e-6);
    }

    #[test]
    fn rows_of_4_bits_are_those_worked_by_hand() {
        let mut graph = Graph::new();
        let type_of = |dtype, shape: [usize; 2]| TensorType { dtype, shape: shape.map(Dim::from).to_vec() };
        let stored = graph.input("stored", type_of(DataType::U8, [2, 2]));
        let [scales, minima] = ["scales", "minima"].map(|name| graph.input(name, type_of(DataType::F16, [2, 2])));
        let ids = graph.input("ids", TensorType::i64([3.into()]));
        let rows = graph.gather_affine([stored, scales, minima], ids).unwrap();
        let feeds = BTreeMap::from([
            ("stored".to_owned(), integers(&[2, 2], &[0x21, 0x43, 0xf0, 0x08])),
            ("scales".to_owned(), integers(&[2, 2], &[10, 100, 1, -2])),
            ("minima".to_owned(), integers(&[2, 2], &[1, 2, -3, 4])),
            ("ids".to_owned(), integers(&[3], &[1, 0, 1])),
        ]);
        let second = [-3.0, 12.0, -12.0, 4.0];
        let expected = [second, [11.0, 21.0, 302.0, 402.0], second];
        assert_eq!(evaluate(&graph, &feeds, &[rows])[0], ndarray::arr2(&expected).into_dyn());
    }
}
