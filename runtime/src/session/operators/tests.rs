//! Each of our operators in a graph of its own, executed by ONNX Runtime: whatever a graph says, the process lives.

use std::path::Path;

use marionette_models::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorTypeProto, TypeProto,
    ValueInfoProto, attribute_type, data_type,
};
use prost::Message as _;

use super::super::{Graph, GraphOptions, OnnxRuntime, Provider, SessionError};

/// An input: its type and its shape; its values are zeros.
type Given<'a> = (i32, &'a [i64]);

const F: i32 = data_type::FLOAT;
const I: i32 = data_type::INT64;
const B: i32 = data_type::UINT8;
const H: i32 = data_type::UINT4;
const D: i32 = data_type::FLOAT16;
const S: i32 = data_type::INT32;

/// A model of one node, whose inputs are constants.
fn model(operator: &str, inputs: &[Given<'_>], attributes: &[(&str, i64)], outputs: usize) -> ModelProto {
    let names: Vec<String> = (0..inputs.len()).map(|index| format!("in{index}")).collect();
    let initializer = names.iter().zip(inputs).map(|(name, &(data_type, dims))| {
        let elements: i64 = if dims.contains(&0) { 0 } else { dims.iter().product() };
        let bytes = (elements as u64 * data_type::bits(data_type).unwrap()).div_ceil(8);
        TensorProto {
            dims: dims.to_vec(),
            data_type,
            name: name.clone(),
            raw_data: Some(vec![0; bytes as usize]),
            ..TensorProto::default()
        }
    });
    let integer = |&(name, i): &(&str, i64)| AttributeProto {
        name: name.to_owned(),
        i,
        r#type: attribute_type::INT,
        ..AttributeProto::default()
    };
    let output: Vec<String> = (0..outputs).map(|index| format!("out{index}")).collect();
    let float = TypeProto { tensor_type: Some(TensorTypeProto { elem_type: F, shape: None }) };
    let mut attribute: Vec<AttributeProto> = attributes.iter().map(integer).collect();
    if operator == "RmsNormalization" || operator.ends_with("DecoderBlock") {
        let (name, f, r#type) = ("epsilon".to_owned(), 1e-5, attribute_type::FLOAT);
        attribute.push(AttributeProto { name, f, r#type, ..AttributeProto::default() });
    }
    if operator.ends_with("DecoderBlock") {
        let is_gpt2 = attributes.contains(&("bias", 1));
        let text = |name: &str, text: &str| {
            let (name, s, r#type) = (name.to_owned(), text.as_bytes().to_vec(), attribute_type::STRING);
            AttributeProto { name, s, r#type, ..AttributeProto::default() }
        };
        attribute.push(text("norm", if is_gpt2 { "layer" } else { "rms" }));
        attribute.push(text("mlp", if is_gpt2 { "gelu" } else { "swiglu" }));
    }
    let set = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    ModelProto {
        ir_version: 10,
        opset_import: vec![set("", 21), set("marionette", 1)],
        graph: Some(GraphProto {
            name: operator.to_owned(),
            initializer: initializer.collect(),
            output: output
                .iter()
                .map(|name| ValueInfoProto { name: name.clone(), r#type: Some(float.clone()) })
                .collect(),
            node: vec![NodeProto {
                input: names,
                output,
                op_type: operator.to_owned(),
                attribute,
                domain: "marionette".to_owned(),
                ..NodeProto::default()
            }],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// ONNX Runtime, where it is there: `make test` fetches it, a bare `cargo test` may run without.
fn onnx_runtime() -> Option<&'static OnnxRuntime> {
    match OnnxRuntime::load() {
        Ok(runtime) => Some(runtime),
        Err(SessionError::Missing { .. }) => {
            eprintln!("skipped: no ONNX Runtime; scripts/native-deps.sh onnxruntime fetches it");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Runs a model: the numbers of its outputs' elements, or what is said of it.
fn run(runtime: &OnnxRuntime, model: &ModelProto) -> Result<Vec<usize>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    open_and_run(runtime, &path).map_err(|error| error.to_string())
}

fn open_and_run(runtime: &OnnxRuntime, path: &Path) -> Result<Vec<usize>, SessionError> {
    let options = GraphOptions {
        provider: Provider::Cpu,
        threads: std::num::NonZeroUsize::new(2),
        kernels: true,
        memory_pattern: true,
        prepacking: true,
        huge_pages_after: None,
    };
    let mut graph = Graph::open(runtime, path, options)?;
    let failed = |error: ort::Error| super::super::failure("graph", "failed", &error);
    let none: &[ort::session::SessionInputValue<'_>] = &[];
    let outputs = graph.session.run(none).map_err(failed)?;
    let mut elements = Vec::new();
    for (_, value) in &outputs {
        elements.push(value.try_extract_tensor::<f32>().map_err(failed)?.1.len());
    }
    Ok(elements)
}

/// An operator, its inputs, its attributes, and how many elements its outputs have.
type Fitting = (&'static str, Vec<Given<'static>>, &'static [(&'static str, i64)], Vec<usize>);

const HEADS: &[(&str, i64)] = &[("num_heads", 4), ("kv_num_heads", 2)];

/// Whether products of integers are ours here.
fn has_products() -> bool {
    !crate::kernels::product::Instructions::best().is_portable()
}

/// Every operator with shapes that fit.
fn fitting() -> Vec<Fitting> {
    let mut all: Vec<Fitting> = vec![
        ("GeluGradient", vec![(F, &[3, 8]), (F, &[3, 8])], &[], vec![24]),
        (
            "LayerNormalizationGradient",
            vec![(F, &[3, 8]), (F, &[3, 8]), (F, &[8]), (F, &[3, 1]), (F, &[3, 1])],
            &[],
            vec![24],
        ),
        ("RmsNormalizationGradient", vec![(F, &[3, 8]), (F, &[3, 8]), (F, &[8]), (F, &[3, 1])], &[], vec![24]),
        ("RmsNormalization", vec![(F, &[3, 8]), (F, &[8])], &[], vec![24, 3]),
        ("SwiGlu", vec![(F, &[3, 8])], &[], vec![12]),
        ("SwiGluGradient", vec![(F, &[3, 4]), (F, &[3, 8])], &[], vec![24]),
        ("Rotary", vec![(F, &[2, 3, 24]), (F, &[3, 2]), (F, &[3, 2])], &[("num_heads", 4)], vec![144]),
        ("AdapterUp", vec![(F, &[6, 4]), (F, &[4, 8]), (F, &[8]), (F, &[6, 8]), (F, &[6, 8])], &[], vec![48]),
        ("AdapterDownGradient", vec![(F, &[6, 4]), (F, &[8, 4]), (F, &[6, 8])], &[], vec![48]),
        (
            "RowAdapters",
            vec![(F, &[6, 8]), (F, &[6, 8]), (F, &[3, 8, 4]), (F, &[3, 4]), (F, &[3, 4, 8]), (F, &[3, 8])],
            &[],
            vec![48],
        ),
        ("CausalAttention", vec![(F, &[2, 3, 16])], HEADS, vec![48, 24]),
        ("CausalAttention", vec![(F, &[2, 3, 16])], HEADS, vec![48]),
        ("BranchedAttention", vec![(F, &[2, 3, 16]), (I, &[2, 3])], HEADS, vec![48]),
        (
            "CausalAttentionGradient",
            vec![(F, &[2, 3, 8]), (F, &[2, 3, 8]), (F, &[2, 3, 16]), (F, &[2, 4, 3])],
            HEADS,
            vec![96],
        ),
        ("TargetLogProb", vec![(F, &[6, 7]), (I, &[6])], &[], vec![6, 6]),
        ("TargetLogProbGradient", vec![(F, &[6]), (F, &[6, 7]), (I, &[6]), (F, &[6])], &[], vec![42]),
    ];
    if !has_products() {
        return all;
    }
    all.extend([
        ("QuantizedMatMul", vec![(F, &[6, 64][..]), (B, &[5, 64][..]), (F, &[5][..])], &[][..], vec![30]),
        ("QuantizedLinear", vec![(F, &[6, 64]), (B, &[5, 64]), (F, &[5]), (F, &[5])], &[], vec![30]),
        ("QuantizedMatMulGradient", vec![(F, &[6, 5]), (B, &[5, 64]), (F, &[5])], &[], vec![384]),
        ("AffineMatMul", vec![(F, &[6, 64]), (H, &[5, 64]), (D, &[5, 2]), (D, &[5, 2])], &[], vec![30]),
        ("AffineLinear", vec![(F, &[6, 64]), (H, &[5, 64]), (D, &[5, 2]), (D, &[5, 2]), (F, &[5])], &[], vec![30]),
        ("AffineMatMulGradient", vec![(F, &[6, 5]), (H, &[5, 64]), (D, &[5, 2]), (D, &[5, 2])], &[], vec![384]),
        ("FewRowsMatMul", vec![(F, &[3, 64]), (B, &[5, 2, 32]), (F, &[10])], &[], vec![15]),
        ("FewRowsMatMul", vec![(F, &[9, 64]), (B, &[5, 2, 32]), (F, &[10])], &[], vec![45]),
        ("FewRowsAffineMatMul", vec![(F, &[3, 64]), (B, &[5, 2, 16]), (D, &[5, 2]), (D, &[5, 2])], &[], vec![15]),
        (
            "FewRowsAffineLinear",
            vec![(F, &[9, 64]), (B, &[5, 2, 16]), (D, &[5, 2]), (D, &[5, 2]), (F, &[5])],
            &[],
            vec![45],
        ),
        ("FewRowsLinear", vec![(F, &[3, 64]), (B, &[5, 2, 32]), (F, &[10]), (F, &[5])], &[], vec![15]),
    ]);
    all.extend(blocks());
    all
}

/// Blocks 32 wide: of a Llama in 8 bits for one token, and of a GPT-2 in 4 bits for six rows of one.
fn blocks() -> Vec<Fitting> {
    const LLAMA: &[(&str, i64)] = &[("num_heads", 4), ("kv_num_heads", 2), ("rotary", 1), ("bias", 0)];
    const GPT2: &[(&str, i64)] = &[("num_heads", 2), ("kv_num_heads", 2), ("rotary", 0), ("bias", 1)];
    let adapter: [Given<'_>; 4] = [(F, &[32, 4]), (F, &[4]), (F, &[4, 32]), (F, &[32])];
    let bytes =
        |shape: &'static [i64], scales: &'static [i64]| -> Vec<Given<'static>> { vec![(B, shape), (F, scales)] };
    let halves = |shape: &'static [i64], parts: &'static [i64], bias: &'static [i64]| -> Vec<Given<'static>> {
        vec![(B, shape), (D, parts), (D, parts), (F, bias)]
    };
    let norm: Vec<Given<'_>> = vec![(F, &[32])];
    let llama = |start: Vec<Given<'static>>, adapter: &[Given<'static>]| {
        let first = [norm.clone(), bytes(&[64, 2, 16], &[64, 1]), bytes(&[32, 1, 32], &[32, 1]), adapter.to_vec()];
        let second = [norm.clone(), bytes(&[96, 1, 32], &[96, 1]), bytes(&[32, 3, 16], &[32, 1]), adapter.to_vec()];
        [vec![start], first.to_vec(), second.to_vec()].concat().concat()
    };
    let gpt2 = |start: Vec<Given<'static>>| {
        let norm = [norm.clone(), norm.clone()].concat();
        let square = halves(&[32, 2, 8], &[32, 2], &[32]);
        let first = [norm.clone(), halves(&[96, 2, 8], &[96, 2], &[96]), square, adapter.to_vec()];
        let second =
            [norm, halves(&[128, 1, 16], &[128, 1], &[128]), halves(&[32, 4, 16], &[32, 4], &[32]), adapter.to_vec()];
        [vec![start], first.to_vec(), second.to_vec()].concat().concat()
    };
    // Positions are zeros: one token a row.
    let one: [Given<'_>; 5] = [(F, &[1, 1, 32]), (F, &[1, 2, 7, 8]), (F, &[1, 2, 7, 8]), (S, &[1]), (S, &[1])];
    let angles: [Given<'_>; 2] = [(F, &[1, 1, 4]), (F, &[1, 1, 4])];
    let rows: Vec<Given<'_>> = vec![(I, &[1])];
    let six: [Given<'_>; 5] = [(F, &[6, 1, 32]), (F, &[6, 2, 7, 16]), (F, &[6, 2, 7, 16]), (S, &[6]), (S, &[1])];
    let turned = [one.to_vec(), angles.to_vec()].concat();
    vec![
        ("BareDecoderBlock", llama(turned.clone(), &[]), LLAMA, vec![32, 112, 112]),
        ("DecoderBlock", llama(turned.clone(), &adapter), LLAMA, vec![32, 112, 112]),
        ("LastDecoderBlock", llama([turned, rows.clone()].concat(), &adapter), LLAMA, vec![32, 112, 112]),
        ("DecoderBlock", gpt2(six.to_vec()), GPT2, vec![192, 1344, 1344]),
        ("LastDecoderBlock", gpt2([six.to_vec(), rows].concat()), GPT2, vec![32, 1344, 1344]),
    ]
}

#[test]
fn positions_beyond_the_cache_and_other_rows_are_refused() {
    let Some(runtime) = onnx_runtime().filter(|_| has_products()) else { return };
    for (operator, inputs, attributes, outputs) in blocks() {
        let with = |input: usize, bytes: Vec<u8>| {
            let mut model = model(operator, &inputs, attributes, outputs.len());
            model.graph.as_mut().unwrap().initializer[input].raw_data = Some(bytes);
            run(runtime, &model)
        };
        let rows = inputs[3].1[0] as usize;
        for (position, fits) in [(6_i32, true), (7, false), (-1, false), (i32::MIN, false)] {
            let found = with(3, position.to_le_bytes().repeat(rows));
            let refused =
                found.as_ref().is_err_and(|error| error.contains(&format!("position {position}, expected 0 to 6")));
            assert!(if fits { found == Ok(outputs.clone()) } else { refused }, "{operator} {position}: {found:?}");
        }
        if operator == "LastDecoderBlock" {
            let place = if attributes.contains(&("rotary", 1)) { 7 } else { 5 };
            for (row, fits) in [(-1_i64, true), (rows as i64, false), (i64::MIN, false)] {
                let found = with(place, row.to_le_bytes().to_vec());
                let refused = found.as_ref().is_err_and(|error| error.contains("expected one of"));
                assert!(if fits { found.is_ok() } else { refused }, "{operator} {row}: {found:?}");
            }
        }
    }
}

#[test]
fn every_operator_computes_shapes_that_fit() {
    let Some(runtime) = onnx_runtime() else { return };
    for (operator, inputs, attributes, outputs) in fitting() {
        let model = model(operator, &inputs, attributes, outputs.len());
        assert_eq!(run(runtime, &model), Ok(outputs), "{operator}");
    }
}

#[test]
fn a_dimension_of_nothing_makes_nothing_or_an_error() {
    let Some(runtime) = onnx_runtime() else { return };
    for (operator, inputs, attributes, outputs) in fitting() {
        for (input, &(_, shape)) in inputs.iter().enumerate() {
            for place in 0..shape.len() {
                let mut changed = shape.to_vec();
                changed[place] = 0;
                let mut inputs = inputs.clone();
                inputs[input].1 = &changed;
                match run(runtime, &model(operator, &inputs, attributes, outputs.len())) {
                    Ok(found) => {
                        // A cache is there without tokens.
                        let all = if operator.ends_with("DecoderBlock") { 1 } else { found.len() };
                        assert!(found[..all].iter().all(|&len| len == 0), "{operator} {inputs:?}: {found:?}")
                    }
                    Err(error) => assert!(error.contains("expected"), "{operator} {inputs:?}: {error}"),
                }
            }
        }
        // And all of them at once.
        let nothing: Vec<(i32, Vec<i64>)> = inputs.iter().map(|(kind, shape)| (*kind, vec![0; shape.len()])).collect();
        let inputs: Vec<Given<'_>> = nothing.iter().map(|(kind, shape)| (*kind, &shape[..])).collect();
        match run(runtime, &model(operator, &inputs, attributes, outputs.len())) {
            Ok(found) => assert!(found.iter().all(|&len| len == 0), "{operator}: {found:?}"),
            Err(error) => assert!(error.contains("expected"), "{operator}: {error}"),
        }
    }
}

#[test]
fn graphs_that_ended_the_process_are_errors_or_give_nothing() {
    let Some(runtime) = onnx_runtime() else { return };
    let refused = |operator: &str, inputs: &[Given<'_>], attributes: &[(&str, i64)], part: &str| {
        let error = run(runtime, &model(operator, inputs, attributes, 1)).expect_err(operator);
        assert!(error.contains(part), "{operator} {inputs:?}: {error}");
    };
    for columns in [1, 5, 64, 1 << 40] {
        let matrix: [Given<'_>; 3] = [(H, &[columns, 0]), (D, &[columns, 0]), (D, &[columns, 0])];
        let forward = [&[(F, &[2, 0][..])][..], &matrix].concat();
        refused("AffineMatMul", &forward, &[], "rows of one value or more");
    }
    let back: [Given<'_>; 4] = [(F, &[2, 5]), (H, &[5, 0]), (D, &[5, 0]), (D, &[5, 0])];
    assert_eq!(run(runtime, &model("AffineMatMulGradient", &back, &[], 1)), Ok(vec![0]));
    let heads = [("num_heads", 1), ("kv_num_heads", 1)];
    for shape in [&[1 << 40, 0, 576][..], &[1 << 40, 0, 3], &[0, 1 << 40, 576], &[0, i64::MAX, 3], &[i64::MAX, 0, 3]] {
        let found = run(runtime, &model("CausalAttention", &[(F, shape)], &heads, 1));
        assert!(found.as_ref().is_ok_and(|found| found == &[0]) || found.is_err(), "{shape:?}: {found:?}");
    }
    assert_eq!(run(runtime, &model("CausalAttention", &[(F, &[1 << 40, 0, 576])], &heads, 1)), Ok(vec![0]));
    for (queries, shared) in [(i64::MAX, i64::MAX), (i64::MAX, 1), (0, 1), (-4, -2), (3, 2)] {
        let heads = [("num_heads", queries), ("kv_num_heads", shared)];
        refused("CausalAttention", &[(F, &[2, 3, 16])], &heads, &format!("num_heads = {queries}"));
        refused("Rotary", &[(F, &[2, 3, 24]), (F, &[3, 50]), (F, &[3, 50])], &heads[..1], "expected");
    }
}

#[test]
fn a_panic_in_a_kernel_is_an_error_that_names_it() {
    // An error is made by ONNX Runtime.
    let Some(_) = onnx_runtime() else { return };
    let error = super::guard::guarded::<()>(|| panic!("{} is broken", "this")).unwrap_err();
    assert!(error.message().contains("panicked") && error.message().contains("this is broken"), "{error}");
}
