//! What a graph may not contain, checked before ONNX Runtime parses it. Digests prove that a file is the manifest's; they
//! do not prove that whoever wrote both meant well.

mod literals;
mod size;

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message as _;

use super::manifest::{Dim, GraphInterface, Manifest, Operators, ValueInfo};
use super::operators::{self, MARIONETTE, MICROSOFT, ONNX, Operator};
use super::{WEIGHTS, format_1};
use crate::config::ModelConfig;
use crate::error::FileError;
use crate::files;
use crate::onnx::{
    AttributeProto, DATA_EXTERNAL, Dimension, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, ValueInfoProto, attribute_type, data_type,
};

/// The newest version of ONNX's operators that our graphs are written in.
const MAX_OPSET: i64 = 21;
/// The newest version of the format.
const MAX_IR: i64 = 10;
/// A constant in a graph has at most this many bytes: shapes and single numbers. All else lies in `weights.bin`.
const MAX_CONSTANT: usize = 1024;
/// Where each tensor begins in `weights.bin`, a multiple of this.
const ALIGNMENT: u64 = 4096;
/// All tensors of a graph together name at most this many times the bytes of `weights.bin`: a matrix may be the embedding, the head, and the
/// gradient of both, in two forms.
const MAX_VIEWS: u64 = 8;

/// What graphs of a model need at most: several times what those of the largest precision in standard operators do (500 nodes, 80 kB a
/// block).
#[derive(Debug, Clone, Copy)]
struct Limits {
    bytes: u64,
    /// Fields of all messages, each of which takes some hundred bytes.
    fields: usize,
    nodes: usize,
    initializers: usize,
    /// Elements of a tensor whose shape is written as numbers.
    elements: u64,
}

impl Limits {
    fn of(model: &ModelConfig) -> Self {
        let parts = model.n_layer.saturating_add(2);
        let rows = model.vocab_size.max(model.n_positions).max(model.n_inner);
        Self {
            bytes: (1 << 20) + (parts as u64).saturating_mul(1 << 18),
            fields: parts.saturating_mul(20_000).min(4_000_000),
            nodes: parts.saturating_mul(2048),
            initializers: parts.saturating_mul(256),
            elements: (rows as u64).saturating_mul(model.n_embd.max(model.n_inner) as u64),
        }
    }
}

/// Floating-point numbers of a graph that lie in `weights.bin`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Floats {
    /// Where they begin.
    pub offset: u64,
    /// How many bytes they take.
    pub length: u64,
    /// How many bytes each takes: 4 (f32) or 2 (f16).
    pub width: usize,
    /// The tensor.
    pub name: String,
}

/// Checks one graph: nothing that our messages do not have, known operators and attributes (ONNX's alone where the manifest says so), no
/// control flow, no functions but ours, no more of all that than a model of the manifest's shapes needs, no external data but
/// within the first `weights` bytes of `weights.bin`, and the inputs and outputs of the manifest. Gives its weights that are floating-point
/// numbers.
pub(super) fn graph(
    path: &Path,
    interface: &GraphInterface,
    manifest: &Manifest,
    weights: u64,
) -> crate::error::Result<Vec<Floats>> {
    let bytes = files::read_limited(path, Limits::of(&manifest.model).bytes)?;
    floats_of(path, &bytes, interface, manifest, weights).map_err(|error| match manifest.format_version {
        format_1::VERSION => error.remedy(format_1::REMEDY),
        _ => error,
    })
}

/// What opening a bundle checks of a graph, for those who have its bytes: `weights` is the length of `weights.bin`, `path` what errors
/// name.
///
/// # Errors
/// What the graph may not hold, and where.
pub fn audit(
    path: &Path,
    bytes: &[u8],
    interface: &GraphInterface,
    manifest: &Manifest,
    weights: u64,
) -> crate::error::Result<()> {
    floats_of(path, bytes, interface, manifest, weights).map(drop)
}

fn floats_of(
    path: &Path,
    bytes: &[u8],
    interface: &GraphInterface,
    manifest: &Manifest,
    weights: u64,
) -> crate::error::Result<Vec<Floats>> {
    let limits = Limits::of(&manifest.model);
    let whole = |problem: String| FileError::new(path, problem);
    size::count(size::Kind::Model, bytes, &mut limits.fields.clone()).map_err(whole)?;
    let model = ModelProto::decode(bytes).map_err(|error| whole(format!("is no ONNX model: {error}")))?;
    // Whatever our messages lack is lost on the way, wherever it was.
    if model.encode_to_vec() != bytes {
        return Err(whole("holds a field that no graph of a bundle has".into()));
    }
    check(&model, interface, manifest, limits, weights)
        .map_err(|(place, problem)| FileError::new(path, problem).at(place))
}

type Refusal = (String, String);

fn check(
    model: &ModelProto,
    interface: &GraphInterface,
    manifest: &Manifest,
    limits: Limits,
    weights: u64,
) -> Result<Vec<Floats>, Refusal> {
    let at = |place: &str| {
        let place = place.to_owned();
        move |problem: String| (place, problem)
    };
    if !(1..=MAX_IR).contains(&model.ir_version) {
        return Err(("ir_version".into(), format!("is {}, expected up to {MAX_IR}", model.ir_version)));
    }
    let domains = check_sets(&model.opset_import).map_err(at("opset_import"))?;
    if let Some(domain) = domains.iter().find(|domain| manifest.operators == Operators::Standard && **domain != ONNX) {
        return Err(("opset_import".into(), format!("imports \"{domain}\", but the manifest says standard operators")));
    }
    if !model.training_info.is_empty() {
        return Err(("model".into(), "holds training information, which no bundle has".into()));
    }
    let mut names = BTreeSet::new();
    for function in &model.functions {
        let place = format!("function {}", function.name);
        if !names.insert(function.name.as_str()) {
            return Err((place, "is there twice".into()));
        }
        check_function(function, manifest.format_version, limits).map_err(at(&place))?;
    }
    let Some(graph) = &model.graph else { return Err(("graph".into(), "is missing".into())) };
    let floats = check_graph(graph, &domains, manifest.format_version, limits, weights)?;
    check_values(&graph.input, &interface.inputs).map_err(at("inputs"))?;
    check_values(&graph.output, &interface.outputs).map_err(at("outputs"))?;
    Ok(floats)
}

fn check_graph(
    graph: &GraphProto,
    domains: &BTreeSet<&str>,
    format: u32,
    limits: Limits,
    weights: u64,
) -> Result<Vec<Floats>, Refusal> {
    let many = |place: &str, found: usize, most: usize| match found > most {
        true => Err((place.to_owned(), format!("are {found}, a model of this shape has less than {most}"))),
        false => Ok(()),
    };
    many("nodes", graph.node.len(), limits.nodes)?;
    many("initializers", graph.initializer.len(), limits.initializers)?;
    if !graph.sparse_initializer.is_empty() {
        return Err(("sparse_initializer".into(), "holds sparse tensors, which no bundle has".into()));
    }
    let mut names = BTreeSet::new();
    let mut once = |name: &str, place: &dyn Fn() -> String| match names.insert(name.to_owned()) || name.is_empty() {
        true => Ok(()),
        false => Err((place(), format!("the name \"{name}\" is there twice"))),
    };
    for input in &graph.input {
        once(&input.name, &|| "inputs".into())?;
    }
    let (mut floats, mut bytes) = (Vec::new(), 0_u64);
    for tensor in &graph.initializer {
        let place = || format!("initializer {}", tensor.name);
        once(&tensor.name, &place)?;
        let (offset, length) = check_tensor(tensor, weights).map_err(|problem| (place(), problem))?;
        let width = match (is_external(tensor), tensor.data_type) {
            (true, data_type::FLOAT) => 4,
            (true, data_type::FLOAT16) => 2,
            _ => continue,
        };
        bytes = bytes.saturating_add(length);
        floats.push(Floats { offset, length, width, name: tensor.name.clone() });
    }
    if bytes > weights.saturating_mul(MAX_VIEWS) {
        return Err(("initializers".into(), format!("name {bytes} bytes of {WEIGHTS}, which has {weights}")));
    }
    for node in &graph.node {
        check_node(node, format, domains, &[]).map_err(|problem| (place(node), problem))?;
        for output in &node.output {
            once(output, &|| place(node))?;
        }
    }
    literals::check(graph.initializer.iter(), &graph.node, limits.elements)
        .map_err(|(node, problem)| (place(node), problem))?;
    Ok(floats)
}

fn place(node: &NodeProto) -> String {
    format!("node {} ({})", node.name, node.op_type)
}

/// The domains of the operator sets, which must be known.
fn check_sets(sets: &[OperatorSetIdProto]) -> Result<BTreeSet<&str>, String> {
    let mut domains = BTreeSet::new();
    for set in sets {
        let known = match set.domain.as_str() {
            ONNX => (1..=MAX_OPSET).contains(&set.version),
            MICROSOFT | MARIONETTE => set.version == 1,
            _ => false,
        };
        if !known {
            return Err(format!("\"{}\" version {} is not known", set.domain, set.version));
        }
        if !domains.insert(set.domain.as_str()) {
            return Err(format!("\"{}\" is there twice", set.domain));
        }
    }
    Ok(domains)
}

/// A function is one of ours, and made of others' operators, so that none calls itself.
fn check_function(function: &FunctionProto, format: u32, limits: Limits) -> Result<(), String> {
    if function.domain != MARIONETTE {
        return Err(format!("is of the domain \"{}\", expected \"{MARIONETTE}\"", function.domain));
    }
    let ours =
        operators::function(format, &function.name).ok_or("is none of ours (export the model, or the run, again)")?;
    let attributes: Vec<&str> = function.attribute.iter().map(String::as_str).collect();
    let [least, most] = ours.inputs;
    let same = (least..=most).contains(&function.input.len())
        && function.output.len() == ours.outputs
        && attributes.iter().eq(ours.operator.attributes.iter().map(|(name, _)| name));
    if !same {
        return Err("takes or gives something else than ours of this name".into());
    }
    let domains = check_sets(&function.opset_import)?;
    if domains.contains(MARIONETTE) {
        return Err(format!("is made of operators of \"{MARIONETTE}\" itself"));
    }
    if function.node.len() > limits.nodes {
        return Err(format!("has {} nodes", function.node.len()));
    }
    for node in &function.node {
        check_node(node, format, &domains, &attributes).map_err(|problem| format!("{}: {problem}", place(node)))?;
    }
    literals::check(std::iter::empty(), &function.node, limits.elements)
        .map_err(|(node, problem)| format!("{}: {problem}", place(node)))
}

/// A node's operator and attributes are known; in a function, an attribute may be one of the function's.
fn check_node(node: &NodeProto, format: u32, domains: &BTreeSet<&str>, of_function: &[&str]) -> Result<(), String> {
    if !domains.contains(node.domain.as_str()) {
        return Err(format!("is of the domain \"{}\", which is not imported", node.domain));
    }
    let known = operators::operator(format, &node.domain, &node.op_type).ok_or("is an operator that no bundle has")?;
    let mut names = BTreeSet::new();
    for attribute in &node.attribute {
        if !names.insert(attribute.name.as_str()) {
            return Err(format!("the attribute {} is there twice", attribute.name));
        }
        check_attribute(attribute, known, of_function)
            .map_err(|problem| format!("attribute {}: {problem}", attribute.name))?;
    }
    Ok(())
}

fn check_attribute(attribute: &AttributeProto, operator: Operator, of_function: &[&str]) -> Result<(), String> {
    if !operator.attributes.contains(&(attribute.name.as_str(), attribute.r#type)) {
        return Err("is none that this operator has in a bundle".into());
    }
    let nothing = || AttributeProto { name: attribute.name.clone(), r#type: attribute.r#type, ..Default::default() };
    if !attribute.ref_attr_name.is_empty() {
        let refers = AttributeProto { ref_attr_name: attribute.ref_attr_name.clone(), ..nothing() };
        let is_one = of_function.contains(&attribute.ref_attr_name.as_str());
        return if is_one && *attribute == refers { Ok(()) } else { Err("refers to nothing of its function".into()) };
    }
    let value = match attribute.r#type {
        attribute_type::FLOAT => AttributeProto { f: attribute.f, ..nothing() },
        attribute_type::INT => AttributeProto { i: attribute.i, ..nothing() },
        attribute_type::INTS => AttributeProto { ints: attribute.ints.clone(), ..nothing() },
        attribute_type::STRING => AttributeProto { s: attribute.s.clone(), ..nothing() },
        attribute_type::TENSOR => {
            let tensor = attribute.t.as_ref().ok_or("has no tensor")?;
            if is_external(tensor) {
                return Err("holds outside data".into());
            }
            check_tensor(tensor, 0)?;
            AttributeProto { t: Some(tensor.clone()), ..nothing() }
        }
        _ => return Err("has an unknown type".into()),
    };
    // What is not of its type: graphs, sparse tensors, and whatever a reader might take instead.
    if *attribute == value { Ok(()) } else { Err("holds more than its type".into()) }
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == DATA_EXTERNAL || !tensor.external_data.is_empty()
}

/// A tensor has the bytes of its shape: few in the graph itself, or within `weights.bin`. Gives where there they begin, and how many they
/// are.
fn check_tensor(tensor: &TensorProto, weights: u64) -> Result<(u64, u64), String> {
    let unknown = || format!("has the unknown type {}", tensor.data_type);
    let bits = data_type::bits(tensor.data_type).ok_or_else(unknown)?;
    let expected = tensor
        .dims
        .iter()
        .try_fold(bits, |size, &dim| size.checked_mul(u64::try_from(dim).ok()?))
        .map(|bits| bits.div_ceil(8))
        .ok_or_else(|| format!("has the impossible shape {:?}", tensor.dims))?;
    if !is_external(tensor) {
        let length = tensor.raw_data.as_ref().map_or(0, Vec::len);
        return match length as u64 == expected && length <= MAX_CONSTANT && tensor.data_location == 0 {
            true => Ok((0, expected)),
            false => Err(format!("holds {length} bytes, its shape takes {expected}, the most is {MAX_CONSTANT}")),
        };
    }
    if tensor.raw_data.is_some() {
        return Err("has its bytes in two places".into());
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
    if tensor.external_data.len() != 3 {
        return Err("external data has a field twice, or lacks one".into());
    }
    match location {
        Some(WEIGHTS) => {}
        other => return Err(format!("external data lies in \"{}\", expected {WEIGHTS}", other.unwrap_or(""))),
    }
    match (offset, length) {
        (Some(offset), Some(length))
            if length == expected
                && offset.is_multiple_of(ALIGNMENT)
                && offset.checked_add(length).is_some_and(|end| end <= weights) =>
        {
            Ok((offset, length))
        }
        _ => Err(format!(
            "external data does not lie within {WEIGHTS}, from a multiple of {ALIGNMENT}, with the {expected} bytes of its shape"
        )),
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
