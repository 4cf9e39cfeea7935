//! What the graphs of a bundle are made of: every operator, with its attributes, that the exporter writes. Opening a bundle refuses
//! all others; the exporter's tests hold both sides together.

use super::format_1;
use crate::onnx::attribute_type::{FLOAT, INT, INTS, STRING, TENSOR};

/// An operator that a graph of ours may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operator {
    /// Its operator set: empty for ONNX's own.
    pub domain: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The names of its attributes, and their types ([`crate::onnx::attribute_type`]).
    pub attributes: &'static [(&'static str, i32)],
}

/// A function of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// The operator that it is.
    pub operator: Operator,
    /// The number of its inputs, least and most: more than one where a model has more or fewer parts.
    pub inputs: [usize; 2],
    /// The number of its outputs.
    pub outputs: usize,
}

/// ONNX's operator set (ONNX `docs/Operators.md`, version 21).
pub const ONNX: &str = "";
/// ONNX Runtime's (`docs/ContribOperators.md`).
pub const MICROSOFT: &str = "com.microsoft";
/// Ours: functions that a graph brings with it.
pub const MARIONETTE: &str = "marionette";

const fn onnx(name: &'static str, attributes: &'static [(&'static str, i32)]) -> Operator {
    Operator { domain: ONNX, name, attributes }
}

const fn microsoft(name: &'static str, attributes: &'static [(&'static str, i32)]) -> Operator {
    Operator { domain: MICROSOFT, name, attributes }
}

const fn ours(
    name: &'static str,
    [inputs, outputs]: [usize; 2],
    attributes: &'static [(&'static str, i32)],
) -> Function {
    Function { operator: Operator { domain: MARIONETTE, name, attributes }, inputs: [inputs; 2], outputs }
}

/// A whole block: with x, a cache, lengths, and two normalisations and four matrices; with angles or not, each normalisation
/// of one or two vectors, each matrix of up to three parts and with a bias or not; with so many `others`: adapters, and of the last one rows.
const fn block(name: &'static str, others: usize) -> Function {
    let operator = Operator { domain: MARIONETTE, name, attributes: BLOCK_PARTS };
    Function { operator, inputs: [11 + others, 27 + others], outputs: 3 }
}

const AXIS: (&str, i32) = ("axis", INT);
const KEEP: &[(&str, i32)] = &[("keepdims", INT)];
const HEADS: &[(&str, i32)] = &[("num_heads", INT), ("kv_num_heads", INT)];
const QUERY_HEADS: &[(&str, i32)] = &[("num_heads", INT)];
const BLOCK: &[(&str, i32)] = &[("block_size", INT)];
const BLOCK_PARTS: &[(&str, i32)] = &[
    ("num_heads", INT),
    ("kv_num_heads", INT),
    ("epsilon", FLOAT),
    ("norm", STRING),
    ("mlp", STRING),
    ("rotary", INT),
    ("bias", INT),
];
const FEW_ROWS: &[(&str, i32)] = &[("K", INT), ("N", INT), ("bits", INT), ("block_size", INT)];

/// The operators of others.
pub const OPERATORS: [Operator; 48] = [
    onnx("Abs", &[]),
    onnx("Add", &[]),
    onnx("And", &[]),
    onnx("BitShift", &[("direction", STRING)]),
    onnx("BitwiseAnd", &[]),
    onnx("Cast", &[("to", INT)]),
    onnx("Concat", &[AXIS]),
    onnx("Constant", &[("value", TENSOR)]),
    onnx("ConstantOfShape", &[]),
    onnx("DequantizeLinear", &[AXIS, ("block_size", INT)]),
    onnx("Div", &[]),
    onnx("Equal", &[]),
    onnx("Exp", &[]),
    onnx("Expand", &[]),
    onnx("Gather", &[AXIS]),
    onnx("GatherElements", &[AXIS]),
    onnx("Gelu", &[("approximate", STRING)]),
    onnx("Gemm", &[("transA", INT), ("transB", INT)]),
    onnx("LayerNormalization", &[AXIS, ("epsilon", FLOAT)]),
    onnx("LessOrEqual", &[]),
    onnx("Log", &[]),
    onnx("MatMul", &[]),
    onnx("MatMulInteger", &[]),
    onnx("MaxPool", &[("ceil_mode", INT), ("kernel_shape", INTS), ("strides", INTS)]),
    onnx("Mul", &[]),
    onnx("NonZero", &[]),
    onnx("Or", &[]),
    onnx("QuantizeLinear", &[]),
    onnx("Range", &[]),
    onnx("ReduceMax", KEEP),
    onnx("ReduceMean", KEEP),
    onnx("ReduceSum", KEEP),
    onnx("ReduceSumSquare", KEEP),
    onnx("Reshape", &[]),
    onnx("ScatterElements", &[AXIS, ("reduction", STRING)]),
    onnx("ScatterND", &[("reduction", STRING)]),
    onnx("Shape", &[("start", INT), ("end", INT)]),
    onnx("Sigmoid", &[]),
    onnx("Slice", &[]),
    onnx("Softmax", &[AXIS]),
    onnx("Split", &[AXIS, ("num_outputs", INT)]),
    onnx("Sqrt", &[]),
    onnx("Sub", &[]),
    onnx("Transpose", &[("perm", INTS)]),
    onnx("Where", &[]),
    microsoft(
        "GatherBlockQuantized",
        &[("bits", INT), ("block_size", INT), ("gather_axis", INT), ("quantize_axis", INT)],
    ),
    microsoft("GroupQueryAttention", HEADS),
    microsoft("MatMulNBits", &[("K", INT), ("N", INT), ("accuracy_level", INT), ("bits", INT), ("block_size", INT)]),
];

/// Ours.
pub const FUNCTIONS: [Function; 26] = [
    ours("AdapterDownGradient", [3, 1], &[]),
    ours("AdapterUp", [5, 1], &[]),
    ours("AffineLinear", [5, 1], BLOCK),
    ours("AffineMatMul", [4, 1], BLOCK),
    ours("AffineMatMulGradient", [4, 1], BLOCK),
    block("BareDecoderBlock", 0),
    ours("BranchedAttention", [2, 2], HEADS),
    ours("CausalAttention", [1, 2], HEADS),
    ours("CausalAttentionGradient", [4, 1], HEADS),
    block("DecoderBlock", 8),
    ours("FewRowsAffineMatMul", [4, 1], FEW_ROWS),
    ours("FewRowsMatMul", [3, 1], FEW_ROWS),
    ours("GeluGradient", [2, 1], &[]),
    block("LastDecoderBlock", 9),
    ours("LayerNormalizationGradient", [5, 1], &[]),
    ours("QuantizedLinear", [4, 1], &[]),
    ours("QuantizedMatMul", [3, 1], &[]),
    ours("QuantizedMatMulGradient", [3, 1], &[]),
    ours("RmsNormalization", [2, 2], &[("epsilon", FLOAT)]),
    ours("RmsNormalizationGradient", [4, 1], &[]),
    ours("Rotary", [3, 1], &[("num_heads", INT)]),
    ours("RowAdapters", [6, 1], &[]),
    ours("SwiGlu", [1, 1], &[]),
    ours("SwiGluGradient", [2, 1], &[]),
    ours("TargetLogProb", [2, 2], &[]),
    ours("TargetLogProbGradient", [4, 1], &[]),
];

/// Those of format 1 that were others: heads of keys and values were as many as those of queries.
const FORMER: [Function; 3] = [
    ours("BranchedAttention", [2, 2], QUERY_HEADS),
    ours("CausalAttention", [1, 2], QUERY_HEADS),
    ours("CausalAttentionGradient", [4, 1], QUERY_HEADS),
];

/// Those that are read still, and written no more: blocks that products with biases are in have become one operator.
const READ: [Function; 2] = [ours("FewRowsAffineLinear", [5, 1], FEW_ROWS), ours("FewRowsLinear", [4, 1], FEW_ROWS)];

/// The operator of this name in a bundle of this format, where it is one of these.
pub fn operator(format: u32, domain: &str, name: &str) -> Option<Operator> {
    match domain == MARIONETTE {
        true => function(format, name).map(|function| function.operator),
        false => OPERATORS.into_iter().find(|operator| operator.domain == domain && operator.name == name),
    }
}

/// The function of this name in a bundle of this format, where it is one of ours.
pub fn function(format: u32, name: &str) -> Option<Function> {
    let former = FORMER.into_iter().filter(|_| format == format_1::VERSION);
    former.chain(FUNCTIONS).chain(READ).find(|function| function.operator.name == name)
}
