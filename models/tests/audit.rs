//! Hostile graphs, with digests that fit: refused before ONNX Runtime sees them.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

mod support;

use marionette_models::bundle::{Bundle, Manifest, Operators};
use marionette_models::onnx::{
    self, AttributeProto, FunctionProto, ModelProto, NodeProto, TensorProto, attribute_type,
};
use prost::Message as _;
use support::{graph, manifest, write, write_with};

/// The error of opening a bundle with these graphs and weights.
fn refusal_of(graph: &[u8], weights: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("b");
    write_with(&dir, graph, weights, manifest()).unwrap();
    let error = Bundle::open(&dir).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// The error of opening a bundle whose graphs were changed by `change`, with digests that fit.
fn graph_refusal(change: impl FnOnce(&mut ModelProto)) -> String {
    let mut graph = graph();
    change(&mut graph);
    refusal_of(&graph.encode_to_vec(), &[0; 32])
}

fn inner(graph: &mut ModelProto) -> &mut onnx::GraphProto {
    graph.graph.as_mut().unwrap()
}

fn weight(graph: &mut ModelProto) -> &mut TensorProto {
    &mut inner(graph).initializer[0]
}

fn node(graph: &mut ModelProto) -> &mut NodeProto {
    &mut inner(graph).node[0]
}

fn external(key: &str, value: &str) -> impl FnOnce(&mut ModelProto) {
    move |graph| {
        let entry = weight(graph).external_data.iter_mut().find(|entry| entry.key == key).unwrap();
        entry.value = value.to_owned();
    }
}

fn set(domain: &str, version: i64) -> onnx::OperatorSetIdProto {
    onnx::OperatorSetIdProto { domain: domain.into(), version }
}

fn named(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    NodeProto { op_type: op_type.into(), input: names(inputs), output: names(&[output]), ..Default::default() }
}

fn numbers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        dims: vec![values.len() as i64],
        data_type: onnx::data_type::INT64,
        name: name.into(),
        raw_data: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        ..Default::default()
    }
}

fn an_int(name: &str) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: attribute_type::INT, i: 1, ..Default::default() }
}

/// A function of ours.
fn function() -> FunctionProto {
    FunctionProto {
        name: "CausalAttention".into(),
        domain: "marionette".into(),
        input: vec!["qkv".into()],
        output: vec!["y".into(), "sums".into()],
        attribute: vec!["num_heads".into(), "kv_num_heads".into()],
        node: vec![named("Add", &["qkv", "qkv"], "y")],
        opset_import: vec![set("", 20)],
        doc_string: String::new(),
    }
}

/// Adds it, but for one change.
fn with_function(change: impl FnOnce(&mut FunctionProto)) -> impl FnOnce(&mut ModelProto) {
    move |graph| {
        let mut function = function();
        change(&mut function);
        graph.functions.push(function);
    }
}

#[test]
fn a_graph_that_is_as_it_should_be_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = graph();
    graph.functions.push(function());
    let dir = folder.path().join("b");
    write(&dir, &graph, manifest()).unwrap();
    Bundle::open(&dir).unwrap();
}

#[test]
fn outside_data_lies_in_the_weights_where_a_tensor_begins() {
    for path in ["../weights.bin", "/etc/passwd", "C:\\weights.bin", "adapters.safetensors", ""] {
        let error = graph_refusal(external("location", path));
        assert!(error.contains("initializer w: external data lies in"), "{error}");
    }
    let offsets = ["-1", "1", "16", "4096", "18446744073709551615"].map(|offset| ("offset", offset));
    for (key, value) in offsets.into_iter().chain([("length", "15"), ("length", "17")]) {
        let error = graph_refusal(external(key, value));
        assert!(error.contains("does not lie within weights.bin"), "{key} {value}: {error}");
    }
    for (error, expected) in [
        (graph_refusal(|g| weight(g).dims = vec![-4]), "impossible shape"),
        (graph_refusal(|g| weight(g).dims = vec![i64::MAX, i64::MAX]), "impossible shape"),
        (graph_refusal(|g| weight(g).data_type = onnx::data_type::INT64), "does not lie within"),
        (graph_refusal(|g| weight(g).data_type = 8), "unknown type 8"),
        (graph_refusal(|g| weight(g).external_data.push(Default::default())), "unknown field"),
        (graph_refusal(|g| drop(weight(g).external_data.pop())), "lacks one"),
        (graph_refusal(|g| weight(g).raw_data = Some(vec![0; 16])), "in two places"),
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let mut weights = [0; 32];
    weights[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let error = refusal_of(&graph().encode_to_vec(), &weights);
    assert!(error.contains("weights.bin: w: value 2 is NaN or infinite"), "{error}");
    // Beside the tensor nothing is a number.
    weights.swap(8, 24);
    weights.swap(9, 25);
    weights.swap(10, 26);
    weights.swap(11, 27);
    let folder = tempfile::tempdir().unwrap();
    write_with(&folder.path().join("b"), &graph().encode_to_vec(), &weights, manifest()).unwrap();
    Bundle::open(&folder.path().join("b")).unwrap();
}

#[test]
fn operators_attributes_and_functions_that_no_bundle_has_are_refused() {
    let with_graph = |g: &mut ModelProto| {
        node(g).op_type = "Concat".into();
        node(g).attribute = vec![AttributeProto { g: Some(onnx::Opaque {}), ..an_int("axis") }];
    };
    for (error, expected) in [
        (graph_refusal(|g| g.opset_import[0].version = 99), "version 99 is not known"),
        (graph_refusal(|g| g.opset_import[0].domain = "evil.ops".into()), "\"evil.ops\" version 20 is not known"),
        (graph_refusal(|g| g.opset_import.push(set("", 21))), "is there twice"),
        (graph_refusal(|g| g.ir_version = 99), "ir_version: is 99"),
        (graph_refusal(|g| node(g).domain = "com.microsoft".into()), "is not imported"),
        (graph_refusal(|g| node(g).op_type = "Loop".into()), "(Loop): is an operator that no bundle has"),
        (graph_refusal(|g| node(g).op_type = "If".into()), "is an operator that no bundle has"),
        (graph_refusal(|g| node(g).attribute = vec![an_int("axis")]), "attribute axis: is none that this operator has"),
        (graph_refusal(with_graph), "holds more than its type"),
        (graph_refusal(|g| g.training_info.push(onnx::Opaque {})), "training information"),
        (graph_refusal(|g| inner(g).sparse_initializer.push(onnx::Opaque {})), "sparse tensors"),
        (graph_refusal(with_function(|f| f.domain = "ai.onnx".into())), "is of the domain \"ai.onnx\""),
        (graph_refusal(with_function(|f| f.name = "Evil".into())), "function Evil: is none of ours"),
        (graph_refusal(with_function(|f| f.input.push("more".into()))), "takes or gives something else"),
        (graph_refusal(with_function(|f| f.attribute.clear())), "takes or gives something else"),
        (graph_refusal(with_function(|f| f.opset_import = vec![set("marionette", 1)])), "made of operators of"),
        (graph_refusal(with_function(|f| f.node[0].domain = "marionette".into())), "is not imported"),
        (graph_refusal(with_function(|f| f.node[0].op_type = "Loop".into())), "(Loop): is an operator that no bundle"),
        (graph_refusal(|g| g.functions = vec![function(), function()]), "CausalAttention: is there twice"),
        (graph_refusal(|g| inner(g).input[0].name = "y".into()), "the name \"y\" is there twice"),
        (graph_refusal(|g| inner(g).input[0].name = "z".into()), "\"z\" differs from \"x\""),
        (graph_refusal(|g| inner(g).input.clear()), "are 0, the manifest says 1"),
        (graph_refusal(|g| weight(g).name = "y".into()), "the name \"y\" is there twice"),
        (graph_refusal(|g| g.graph = None), "graph: is missing"),
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // In a function an attribute may stand for one of the function's, and for nothing else.
    let refers = |to: &str| {
        let to = to.to_owned();
        graph_refusal(with_function(move |f| {
            f.node[0].op_type = "Gather".into();
            f.node[0].attribute = vec![AttributeProto { ref_attr_name: to, i: 0, ..an_int("axis") }];
        }))
    };
    assert!(refers("elsewhere").contains("refers to nothing"), "{}", refers("elsewhere"));
}

/// A field that our messages do not have, at every level; what follows is what it would be in ONNX.
#[test]
fn fields_that_our_messages_lack_hide_nothing() {
    let field = |number: u32, content: &[u8]| {
        let mut bytes = Vec::new();
        prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
        prost::encoding::encode_varint(content.len() as u64, &mut bytes);
        bytes.extend_from_slice(content);
        bytes
    };
    let hidden = "holds a field that no graph of a bundle has";
    // FunctionProto.attribute_proto: an attribute of the function that has a default, a tensor outside or a graph.
    let attribute = AttributeProto { t: Some(weight(&mut graph()).clone()), ..an_int("num_heads") };
    let mut evil = function().encode_to_vec();
    evil.extend(field(11, &attribute.encode_to_vec()));
    let mut bytes = graph().encode_to_vec();
    bytes.extend(field(25, &evil));
    assert!(refusal_of(&bytes, &[0; 32]).contains(hidden), "{}", refusal_of(&bytes, &[0; 32]));
    // ModelProto.metadata_props, GraphProto.metadata_props and quantization_annotation, NodeProto.overload.
    for number in [14, 26] {
        let bytes = [graph().encode_to_vec(), field(number, b"")].concat();
        assert!(refusal_of(&bytes, &[0; 32]).contains(hidden));
    }
    for number in [14, 16] {
        let whole = graph();
        let inner = [whole.graph.as_ref().unwrap().encode_to_vec(), field(number, b"")].concat();
        let bytes = [ModelProto { graph: None, ..whole }.encode_to_vec(), field(7, &inner)].concat();
        assert!(refusal_of(&bytes, &[0; 32]).contains(hidden));
    }
    let node = [node(&mut graph()).encode_to_vec(), field(8, b"overload")].concat();
    let bytes = [graph().encode_to_vec(), field(7, &field(1, &node))].concat();
    assert!(refusal_of(&bytes, &[0; 32]).contains(hidden));
    // The same message otherwise written: two readers may see two graphs.
    let bytes = [graph().encode_to_vec(), graph().encode_to_vec()].concat();
    assert!(refusal_of(&bytes, &[0; 32]).contains(hidden));
}

#[test]
fn no_more_is_made_than_such_a_model_needs() {
    let refusal = |constants: &[TensorProto], nodes: &[NodeProto]| {
        graph_refusal(|g| {
            inner(g).initializer.extend_from_slice(constants);
            inner(g).node.extend_from_slice(nodes);
        })
    };
    let shape = [numbers("shape", &[1_500_000_000])];
    for (error, expected) in [
        (refusal(&shape, &[named("ConstantOfShape", &["shape"], "zeros")]), "makes 1500000000 elements"),
        (refusal(&shape, &[named("Expand", &["x", "shape"], "many")]), "makes 1500000000 elements"),
        (refusal(&shape, &[named("Reshape", &["x", "shape"], "many")]), "makes 1500000000 elements"),
        (
            refusal(
                &[numbers("a", &[50]), numbers("b", &[60])],
                &[named("Concat", &["a", "b", "x"], "shape"), named("ConstantOfShape", &["shape"], "zeros")],
            ),
            "makes 3000 elements, the largest of such a model has 64",
        ),
        (
            refusal(
                &[numbers("a", &[0]), numbers("b", &[1 << 40]), numbers("c", &[1])],
                &[named("Range", &["a", "b", "c"], "many")],
            ),
            "makes 1099511627776 elements",
        ),
        (refusal(&[numbers("big", &[7; 200])], &[]), "holds 1600 bytes, its shape takes 1600, the most is 1024"),
        (refusal(&[TensorProto { dims: vec![2], ..numbers("short", &[7]) }], &[]), "holds 8 bytes, its shape takes 16"),
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let many: Vec<_> = (0..300_000).map(|i| numbers(&format!("n{i}"), &[])).collect();
    assert!(refusal(&many, &[]).contains("is larger than"), "{}", refusal(&many, &[]));
    assert!(refusal(&many[..50_000], &[]).contains("holds more than any graph of such a model needs"));
    assert!(refusal(&many[..1000], &[]).contains("initializers: are 1001"), "{}", refusal(&many[..1000], &[]));
    let many: Vec<_> = (0..7000).map(|_| NodeProto::default()).collect();
    assert!(refusal(&[], &many).contains("nodes: are 7001"), "{}", refusal(&[], &many));
    // Two bytes each that would be two hundred.
    let bytes = [graph().encode_to_vec(), [0x3a, 0x02, 0x0a, 0x00].repeat(1 << 17)].concat();
    assert!(refusal_of(&bytes, &[0; 32]).contains("holds more than"));
    // One tensor, named again and again.
    let views: Vec<_> =
        (0..40).map(|i| TensorProto { name: format!("v{i}"), ..weight(&mut graph()).clone() }).collect();
    assert!(refusal(&views, &[]).contains("name 656 bytes of weights.bin, which has 32"), "{}", refusal(&views, &[]));
}

#[test]
fn other_operators_than_the_manifest_says_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = graph();
    graph.opset_import.push(onnx::OperatorSetIdProto { domain: "com.microsoft".into(), version: 1 });
    let standard = Manifest { operators: Operators::Standard, ..manifest() };
    write(&folder.path().join("b"), &graph, standard).unwrap();
    let error = Bundle::open(&folder.path().join("b")).unwrap_err().to_string();
    assert!(error.contains("imports \"com.microsoft\", but the manifest says standard"), "{error}");
    // Without it the same graph is taken.
    write(&folder.path().join("c"), &graph, manifest()).unwrap();
    assert!(Bundle::open(&folder.path().join("c")).is_ok());
}
