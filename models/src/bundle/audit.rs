//! What a graph may not contain, checked before ONNX Runtime parses it. Digests prove that a file is the manifest's; they
//! do not prove that whoever wrote both meant well.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message as _;

use super::WEIGHTS;
use super::manifest::{Dim, GraphInterface, Operators, ValueInfo};
use crate::error::FileError;
use crate::files;
use crate::onnx::{
    DATA_EXTERNAL, Dimension, FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    data_type,
};

/// A graph of more than this many bytes is refused: weights lie outside, GPT-2 XL's graphs have a few MB.
const MAX_GRAPH: u64 = 256 << 20;
/// The newest version of ONNX's operators that our graphs are written in, and the one of ONNX Runtime's.
const MAX_OPSET: i64 = 21;
const MICROSOFT: &str = "com.microsoft";
/// Our own operators: functions that the graph brings with it.
const OURS: &str = "marionette";

/// Checks one graph: known operator sets (ONNX's alone where the manifest says so), no control flow, no functions but of our own domain, no external data but within the first
/// `weights` bytes of `weights.bin`, and the inputs and outputs of the manifest.
pub(super) fn graph(
    path: &Path,
    interface: &GraphInterface,
    operators: Operators,
    weights: u64,
) -> crate::error::Result<()> {
    let bytes = files::read_limited(path, MAX_GRAPH)?;
    let model =
        ModelProto::decode(&bytes[..]).map_err(|error| FileError::new(path, format!("is no ONNX model: {error}")))?;
    let refuse = |place: &str, problem: String| Err(FileError::new(path, problem).at(place));
    let domains = match check_sets(&model.opset_import) {
        Ok(domains) => domains,
        Err(problem) => return refuse("opset_import", problem),
    };
    if let Some(domain) = domains.iter().find(|domain| operators == Operators::Standard && !is_onnx(domain)) {
        return refuse("opset_import", format!("imports \"{domain}\", but the manifest says standard operators"));
    }
    if !model.training_info.is_empty() {
        return refuse("model", "holds training information, which no bundle has".into());
    }
    for function in &model.functions {
        check_function(function).or_else(|problem| refuse(&format!("function {}", function.name), problem))?;
    }
    let Some(graph) = &model.graph else { return refuse("graph", "is missing".into()) };
    if !graph.sparse_initializer.is_empty() {
        return refuse("sparse_initializer", "holds sparse tensors, which no bundle has".into());
    }
    for tensor in &graph.initializer {
        check_tensor(tensor, weights).or_else(|problem| refuse(&format!("initializer {}", tensor.name), problem))?;
    }
    for node in &graph.node {
        check_node(node, &domains)
            .or_else(|problem| refuse(&format!("node {} ({})", node.name, node.op_type), problem))?;
    }
    check_values(&graph.input, &interface.inputs).or_else(|problem| refuse("inputs", problem))?;
    check_values(&graph.output, &interface.outputs).or_else(|problem| refuse("outputs", problem))
}

/// The domains of the operator sets, which must be known.
fn check_sets(sets: &[OperatorSetIdProto]) -> Result<BTreeSet<&str>, String> {
    let mut domains = BTreeSet::new();
    for set in sets {
        let known = match set.domain.as_str() {
            domain if is_onnx(domain) => (1..=MAX_OPSET).contains(&set.version),
            MICROSOFT | OURS => set.version == 1,
            _ => false,
        };
        if !known {
            return Err(format!("\"{}\" version {} is not known", set.domain, set.version));
        }
        domains.insert(set.domain.as_str());
    }
    Ok(domains)
}

/// A function is of our domain, and made of others' operators, so that none calls itself.
fn check_function(function: &FunctionProto) -> Result<(), String> {
    if function.domain != OURS {
        return Err(format!("is of the domain \"{}\", expected \"{OURS}\"", function.domain));
    }
    let domains = check_sets(&function.opset_import)?;
    if domains.contains(OURS) {
        return Err(format!("is made of operators of \"{OURS}\" itself"));
    }
    function.node.iter().try_for_each(|node| check_node(node, &domains))
}

fn is_onnx(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

fn check_node(node: &NodeProto, domains: &BTreeSet<&str>) -> Result<(), String> {
    if !domains.contains(node.domain.as_str()) {
        return Err(format!("is of the domain \"{}\", which is not imported", node.domain));
    }
    for attribute in &node.attribute {
        let nested = attribute.g.is_some()
            || !attribute.graphs.is_empty()
            || attribute.sparse_tensor.is_some()
            || !attribute.sparse_tensors.is_empty()
            || !attribute.tensors.is_empty();
        let external = attribute.t.as_ref().is_some_and(is_external);
        if nested || external {
            return Err(format!("attribute {} holds a graph or outside data", attribute.name));
        }
    }
    Ok(())
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == DATA_EXTERNAL || !tensor.external_data.is_empty()
}

fn check_tensor(tensor: &TensorProto, weights: u64) -> Result<(), String> {
    if !is_external(tensor) {
        return Ok(());
    }
    let (mut offset, mut length, mut location) = (Some(0), None, None);
    for entry in &tensor.external_data {
        match entry.key.as_str() {
            "location" => location = Some(entry.value.as_str()),
            "offset" => offset = entry.value.parse::<u64>().ok(),
            "length" => length = entry.value.parse::<u64>().ok(),
            other => return Err(format!("external data has the unknown field \"{other}\"")),
        }
    }
    match location {
        Some(WEIGHTS) => {}
        other => return Err(format!("external data lies in \"{}\", expected {WEIGHTS}", other.unwrap_or(""))),
    }
    let unknown = || format!("has the unknown type {}", tensor.data_type);
    let bits = data_type::bits(tensor.data_type).ok_or_else(unknown)?;
    let expected = tensor
        .dims
        .iter()
        .try_fold(bits, |size, &dim| size.checked_mul(u64::try_from(dim).ok()?))
        .map(|bits| bits.div_ceil(8))
        .ok_or_else(|| format!("has the impossible shape {:?}", tensor.dims))?;
    match (offset, length) {
        (Some(offset), Some(length))
            if length == expected && offset.checked_add(length).is_some_and(|end| end <= weights) =>
        {
            Ok(())
        }
        _ => Err(format!("external data does not lie within {WEIGHTS} with the {expected} bytes of its shape")),
    }
}

fn check_values(found: &[ValueInfoProto], expected: &[ValueInfo]) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("are {}, the manifest says {}", found.len(), expected.len()));
    }
    for (found, expected) in found.iter().zip(expected) {
        let tensor = found.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
        let shape: Option<Vec<Dim>> = tensor.and_then(|t| t.shape.as_ref()).map(|shape| {
            let dim = |value: &Option<Dimension>| match value {
                Some(Dimension::Value(value)) => Dim::Fixed(u64::try_from(*value).unwrap_or(u64::MAX)),
                Some(Dimension::Parameter(name)) => Dim::Symbol(name.clone()),
                None => Dim::Symbol(String::new()),
            };
            shape.dim.iter().map(|d| dim(&d.value)).collect()
        });
        let same = found.name == expected.name
            && tensor.is_some_and(|t| t.elem_type == expected.dtype.onnx())
            && shape.as_ref() == Some(&expected.shape);
        if !same {
            return Err(format!("\"{}\" differs from \"{}\" of the manifest", found.name, expected.name));
        }
    }
    Ok(())
}
