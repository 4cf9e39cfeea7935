//! A graph as an ONNX model.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use marionette_models::bundle::{self, GraphInterface, RunMemory, ValueInfo, WEIGHTS};
use marionette_models::onnx::{
    AttributeProto, DATA_EXTERNAL, Dimension, DimensionProto, FunctionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, attribute_type, data_type,
};

use crate::error::GraphError;
use crate::graph::{Attribute, Domain, Graph, Node, Origin, Used, Value};
use crate::ops::OPSET;
use crate::shape::{Dim, TensorType, elements};
use crate::weights::Weights;

/// The version of the format that goes with [`OPSET`] (ONNX `docs/Versioning.md`).
const IR_VERSION: i64 = 10;
/// Who writes it.
const PRODUCER: &str = "marionette-export";

/// The model of a graph: its nodes in the order they were added, without those that no output needs. The same graph gives
/// the same model.
///
/// # Errors
/// The graph uses a weight that `weights` does not have, or one name for two values.
pub fn model(graph: &Graph, name: &str, doc: &str, weights: &Weights) -> Result<ModelProto, GraphError> {
    let used = Used::of(graph);
    let mut initializer = Vec::new();
    for value in used.values() {
        let data = graph.data(value);
        match &data.origin {
            Origin::Constant(bytes) => {
                initializer.push(TensorProto { raw_data: Some(bytes.clone()), ..tensor(&data.name, &data.tensor) })
            }
            Origin::Weight(part) => initializer.push(external(&data.name, part, &data.tensor, weights)?),
            Origin::Input | Origin::Node => {}
        }
    }
    let between =
        used.values().filter(|value| graph.data(*value).origin == Origin::Node && !graph.outputs.contains(value));
    let graph_proto = GraphProto {
        node: used.nodes.iter().map(|node| node_proto(graph, node, &used)).collect(),
        name: name.to_owned(),
        initializer,
        doc_string: doc.to_owned(),
        input: graph.inputs.iter().map(|value| value_info(graph, *value)).collect(),
        output: graph.outputs.iter().map(|value| value_info(graph, *value)).collect(),
        value_info: between.map(|value| value_info(graph, value)).collect(),
        sparse_initializer: Vec::new(),
    };
    refuse_duplicates(&graph_proto)?;
    Ok(ModelProto {
        ir_version: IR_VERSION,
        producer_name: PRODUCER.to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: doc.to_owned(),
        graph: Some(graph_proto),
        opset_import: operator_sets(&used),
        functions: functions(graph, &used)?,
        ..ModelProto::default()
    })
}

/// The bodies of the operators of [`Domain::Marionette`], each one once. A function is found by its name alone, so all applications
/// of an operator must have the same.
fn functions(graph: &Graph, used: &Used<'_>) -> Result<Vec<FunctionProto>, GraphError> {
    let mut functions: BTreeMap<&str, FunctionProto> = BTreeMap::new();
    for node in used.nodes.iter().filter(|node| node.op.domain() == Domain::Marionette) {
        let body = function(graph, node)?;
        match functions.entry(node.op.name()) {
            Entry::Vacant(place) => drop(place.insert(body)),
            Entry::Occupied(first) if *first.get() == body => {}
            Entry::Occupied(_) => {
                return Err(GraphError::TwoBodies { operator: node.op.name(), scope: node.scope.clone() });
            }
        }
    }
    Ok(functions.into_values().collect())
}

/// A function has no types, so it can fit every application of its operator.
fn function(graph: &Graph, node: &Node) -> Result<FunctionProto, GraphError> {
    let mut body = Graph::new();
    let inputs: Vec<Value> = (0..)
        .zip(&node.inputs)
        .map(|(i, &input): (usize, _)| body.input(&format!("input_{i}"), graph.tensor(input).clone()))
        .collect();
    for (i, output) in (0..).zip(node.op.body(&mut body, &inputs)?) {
        let i: usize = i;
        body.output(output, &format!("output_{i}"))?;
    }
    let used = Used::of(&body);
    let mut nodes = Vec::new();
    for value in used.values() {
        let data = body.data(value);
        if let Origin::Constant(bytes) = &data.origin {
            let tensor = TensorProto { raw_data: Some(bytes.clone()), ..tensor("", &data.tensor) };
            nodes.push(NodeProto {
                output: vec![data.name.clone()],
                op_type: "Constant".to_owned(),
                attribute: vec![AttributeProto {
                    name: "value".to_owned(),
                    r#type: attribute_type::TENSOR,
                    t: Some(tensor),
                    ..AttributeProto::default()
                }],
                ..NodeProto::default()
            });
        }
    }
    let attributes = node.op.attributes();
    nodes.extend(used.nodes.iter().map(|inner| {
        let mut proto = node_proto(&body, inner, &used);
        // An attribute that the function has too is the function's.
        for ((name, value), proto) in inner.op.attributes().into_iter().zip(&mut proto.attribute) {
            if attributes.contains(&(name, value)) {
                let (name, r#type) = (proto.name.clone(), proto.r#type);
                *proto = AttributeProto { ref_attr_name: name.clone(), name, r#type, ..AttributeProto::default() };
            }
        }
        proto
    }));
    let names = |values: &[Value]| values.iter().map(|&value| body.name(value).to_owned()).collect();
    Ok(FunctionProto {
        name: node.op.name().to_owned(),
        input: names(&body.inputs),
        output: names(&body.outputs),
        attribute: attributes.into_iter().map(|(name, _)| name.to_owned()).collect(),
        node: nodes,
        doc_string: String::new(),
        opset_import: operator_sets(&used),
        domain: domain(Domain::Marionette).to_owned(),
    })
}

/// What a graph takes and gives, for the manifest.
pub fn interface(graph: &Graph, file: &str, memory: Option<RunMemory>) -> GraphInterface {
    let info = |value: &Value| ValueInfo {
        name: graph.name(*value).to_owned(),
        dtype: graph.tensor(*value).dtype,
        shape: graph.shape(*value).iter().map(|&dim| bundle::Dim::from(dim)).collect(),
    };
    GraphInterface {
        file: file.to_owned(),
        inputs: graph.inputs.iter().map(info).collect(),
        outputs: graph.outputs.iter().map(info).collect(),
        memory,
    }
}

fn node_proto(graph: &Graph, node: &Node, used: &Used<'_>) -> NodeProto {
    let names = |values: &[Value]| values.iter().map(|&value| graph.name(value).to_owned()).collect();
    let mut input: Vec<String> = names(&node.inputs);
    for &place in node.op.empty_inputs() {
        input.insert(place, String::new());
    }
    NodeProto {
        input,
        output: names(used.named_outputs(node)),
        name: node.name.clone(),
        op_type: node.op.name().to_owned(),
        attribute: node.op.attributes().into_iter().map(|(name, value)| attribute(name, value)).collect(),
        domain: domain(node.op.domain()).to_owned(),
    }
}

fn attribute(name: &str, value: Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    proto.r#type = match value {
        Attribute::Float(value) => {
            proto.f = value;
            attribute_type::FLOAT
        }
        Attribute::Int(value) => {
            proto.i = value;
            attribute_type::INT
        }
        Attribute::Ints(values) => {
            proto.ints = values;
            attribute_type::INTS
        }
        Attribute::Text(text) => {
            proto.s = text.as_bytes().to_vec();
            attribute_type::STRING
        }
    };
    proto
}

fn domain(domain: Domain) -> &'static str {
    match domain {
        Domain::Onnx => "",
        Domain::Microsoft => "com.microsoft",
        Domain::Marionette => "marionette",
    }
}

/// The operator sets of the nodes, and ONNX's own.
fn operator_sets(used: &Used<'_>) -> Vec<OperatorSetIdProto> {
    let mut domains: Vec<Domain> = used.nodes.iter().map(|node| node.op.domain()).collect();
    domains.push(Domain::Onnx);
    domains.sort_unstable();
    domains.dedup();
    domains.into_iter().map(operator_set).collect()
}

fn operator_set(of: Domain) -> OperatorSetIdProto {
    let version = match of {
        Domain::Onnx => OPSET,
        Domain::Microsoft | Domain::Marionette => 1,
    };
    OperatorSetIdProto { domain: domain(of).to_owned(), version }
}

fn tensor(name: &str, tensor: &TensorType) -> TensorProto {
    let dims = tensor.shape.iter().map(|dim| if let Dim::Fixed(value) = dim { *value as i64 } else { -1 }).collect();
    TensorProto { dims, data_type: tensor.dtype.onnx(), name: name.to_owned(), ..TensorProto::default() }
}

fn external(name: &str, part: &str, of: &TensorType, weights: &Weights) -> Result<TensorProto, GraphError> {
    let entry = weights.entry(part)?;
    let length = bytes(of).filter(|length| *length <= entry.length);
    let length = length.ok_or_else(|| GraphError::UnknownWeight(format!("{part} as {of}")))?;
    let place =
        [("location", WEIGHTS.to_owned()), ("offset", entry.offset.to_string()), ("length", length.to_string())];
    Ok(TensorProto {
        data_location: DATA_EXTERNAL,
        external_data: place
            .into_iter()
            .map(|(key, value)| StringStringEntryProto { key: key.to_owned(), value })
            .collect(),
        ..tensor(name, of)
    })
}

/// The bytes that a tensor of a fixed shape takes.
pub(crate) fn bytes(tensor: &TensorType) -> Option<u64> {
    let bits = data_type::bits(tensor.dtype.onnx())?;
    let (number, symbols) = elements(&tensor.shape);
    symbols.is_empty().then(|| (number as u64 * bits).div_ceil(8))
}

fn value_info(graph: &Graph, value: Value) -> ValueInfoProto {
    let tensor = graph.tensor(value);
    let dimension = |dim: &Dim| match dim {
        Dim::Fixed(value) => Dimension::Value(*value as i64),
        symbolic => Dimension::Parameter(symbolic.to_string()),
    };
    let dim = tensor.shape.iter().map(|dim| DimensionProto { value: Some(dimension(dim)) }).collect();
    let tensor_type = TensorTypeProto { elem_type: tensor.dtype.onnx(), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: graph.name(value).to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

/// Inputs, initializers and nodes' outputs share one space of names.
fn refuse_duplicates(graph: &GraphProto) -> Result<(), GraphError> {
    let inputs = graph.input.iter().map(|value| &value.name);
    let initializers = graph.initializer.iter().map(|tensor| &tensor.name);
    let mut names: Vec<&String> =
        inputs.chain(initializers).chain(graph.node.iter().flat_map(|node| &node.output)).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(GraphError::DuplicateName(pair[0].clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::bundle::{DataType, Operators, Precision};
    use marionette_models::{Gpt2Shape, ModelConfig};

    use super::*;
    use crate::array::Array;
    use crate::graph::Op;

    /// Adds its input to itself or not, under one name.
    #[derive(Debug)]
    struct Ambiguous {
        twice: bool,
    }

    impl Op for Ambiguous {
        fn name(&self) -> &'static str {
            "Ambiguous"
        }

        fn domain(&self) -> Domain {
            Domain::Marionette
        }

        fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, String> {
            Ok(vec![inputs[0].clone()])
        }

        fn body(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
            let x = inputs[0];
            Ok(vec![if self.twice { graph.add(x, x)? } else { graph.mul(x, x)? }])
        }

        fn evaluate(&self, inputs: &[&Array]) -> Vec<Array> {
            vec![inputs[0] + inputs[0]]
        }
    }

    #[test]
    fn two_bodies_of_one_name_are_refused() {
        let config: ModelConfig = Gpt2Shape { vocab_size: 7, n_positions: 5, n_embd: 4, n_layer: 1, n_head: 2 }.into();
        let weights = Weights::new(&config, Precision::Fp32, Operators::Ort).unwrap();
        let result = |second: bool| {
            let mut graph = Graph::new();
            let tensor = |width: usize| TensorType { dtype: DataType::F32, shape: vec![width.into()] };
            // Of other shapes: a body that fits both is one.
            let (x, y) = (graph.input("x", tensor(3)), graph.input("y", tensor(4)));
            let first = graph.apply_one(Ambiguous { twice: true }, &[x]).unwrap();
            graph.output(first, "first").unwrap();
            graph.set_scope("there");
            let second = graph.apply_one(Ambiguous { twice: second }, &[y]).unwrap();
            graph.output(second, "second").unwrap();
            model(&graph, "test", "", &weights)
        };
        assert_eq!(result(true).unwrap().functions.len(), 1);
        let error = result(false).unwrap_err();
        assert_eq!(error, GraphError::TwoBodies { operator: "Ambiguous", scope: "there".to_owned() });
    }
}
