//! A typed graph builder: every value knows its type, and an operator whose inputs do not fit is refused where it is added.

use std::collections::BTreeMap;
use std::rc::Rc;

use marionette_models::bundle::DataType;

use crate::error::GraphError;
use crate::shape::{Dim, TensorType};

mod op;
mod used;

pub use op::{Attribute, Backward, Domain, Op};
pub(crate) use used::Used;

/// A handle to a value of the one graph that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value(usize);

impl Value {
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Origin {
    Input,
    /// A frozen weight: a part of `weights.bin`.
    Weight(String),
    Constant(Vec<u8>),
    /// A node's output.
    Node,
}

#[derive(Debug)]
pub(crate) struct ValueData {
    pub name: String,
    pub tensor: TensorType,
    pub origin: Origin,
}

/// An operator's application.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub op: Rc<dyn Op>,
    pub name: String,
    pub scope: String,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
}

/// A graph being built. Nodes are in topological order by construction: an operator can only be given values that exist.
#[derive(Debug, Default)]
pub struct Graph {
    pub(crate) values: Vec<ValueData>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) inputs: Vec<Value>,
    pub(crate) outputs: Vec<Value>,
    scope: String,
    /// Equal constants are one; so are uses of one weight.
    constants: BTreeMap<(i32, Vec<usize>, Vec<u8>), Value>,
    /// By the part and the type.
    weights: BTreeMap<(String, String), Value>,
    /// For every symbolic dimension, the first value that has it, and where: what tells its number when the graph runs.
    pub(crate) dimensions: BTreeMap<Dim, (Value, usize)>,
    /// The same, read out into an i64 tensor of one element.
    pub(crate) sizes: BTreeMap<Dim, Value>,
    pub(crate) shapes: BTreeMap<Vec<Option<Dim>>, Value>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says which part of the model the following nodes belong to; their names begin with it.
    pub fn set_scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Adds an input of the graph.
    pub fn input(&mut self, name: &str, tensor: TensorType) -> Value {
        let value = self.push(name.to_owned(), tensor, Origin::Input);
        self.inputs.push(value);
        value
    }

    /// Makes a node's output an output of the graph, under the given name.
    ///
    /// # Errors
    /// The value has a name already: it is an input, a constant or another output.
    pub fn output(&mut self, value: Value, name: &str) -> Result<(), GraphError> {
        if self.values[value.0].origin != Origin::Node || self.outputs.contains(&value) {
            return Err(GraphError::DuplicateName(name.to_owned()));
        }
        name.clone_into(&mut self.values[value.0].name);
        self.outputs.push(value);
        Ok(())
    }

    /// A frozen weight: the beginning of a part of `weights.bin`, read as a tensor of a type. One part may be read in several ways.
    pub fn weight(&mut self, part: &str, tensor: TensorType) -> Value {
        let key = (part.to_owned(), tensor.to_string());
        if let Some(&value) = self.weights.get(&key) {
            return value;
        }
        let is_first = !self.weights.keys().any(|(other, _)| other == part);
        let name = if is_first { part.to_owned() } else { format!("{part} as {tensor}") };
        let value = self.push(name, tensor, Origin::Weight(part.to_owned()));
        self.weights.insert(key, value);
        value
    }

    /// The weight that is read from a part, which has been added.
    ///
    /// # Errors
    /// It has not.
    pub(crate) fn weight_named(&self, part: &str) -> Result<Value, GraphError> {
        let found = self.weights.iter().find(|((name, _), _)| name == part);
        found.map(|(_, &value)| value).ok_or_else(|| GraphError::UnknownWeight(part.to_owned()))
    }

    /// The part of `weights.bin` that a value is read from, where it is.
    #[cfg(test)]
    pub(crate) fn part(&self, value: Value) -> Option<&str> {
        match &self.values[value.0].origin {
            Origin::Weight(part) => Some(part),
            _ => None,
        }
    }

    /// A scalar of u8.
    pub fn byte(&mut self, value: u8) -> Value {
        self.constant(DataType::U8, &[], vec![value])
    }

    /// A scalar of f32.
    pub fn scalar(&mut self, value: f32) -> Value {
        self.constant(DataType::F32, &[], value.to_le_bytes().to_vec())
    }

    /// Numbers of f32, as many as the shape has.
    pub fn floats(&mut self, shape: &[usize], values: &[f32]) -> Value {
        self.constant(DataType::F32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// A scalar of i64.
    pub fn integer(&mut self, value: i64) -> Value {
        self.constant(DataType::I64, &[], value.to_le_bytes().to_vec())
    }

    /// A list of i64.
    pub fn integers(&mut self, values: &[i64]) -> Value {
        self.constant(DataType::I64, &[values.len()], values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub(crate) fn constant(&mut self, dtype: DataType, shape: &[usize], bytes: Vec<u8>) -> Value {
        let key = (dtype.onnx(), shape.to_vec(), bytes);
        if let Some(&value) = self.constants.get(&key) {
            return value;
        }
        let tensor = TensorType { dtype, shape: shape.iter().map(|&dim| dim.into()).collect() };
        let name = format!("constant_{}", self.constants.len());
        let value = self.push(name, tensor, Origin::Constant(key.2.clone()));
        self.constants.insert(key, value);
        value
    }

    /// Adds an operator.
    ///
    /// # Errors
    /// Its inputs' number, types or shapes do not fit.
    pub fn apply(&mut self, op: impl Op + 'static, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        self.apply_shared(Rc::new(op), inputs)
    }

    pub(crate) fn apply_shared(&mut self, op: Rc<dyn Op>, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let outputs = self.inferred(&*op, &self.scope, inputs)?;
        let name = node_name(&self.scope, &*op, self.nodes.len());
        let single = outputs.len() == 1;
        let outputs: Vec<Value> = outputs
            .into_iter()
            .enumerate()
            .map(|(i, tensor)| {
                self.push(if single { name.clone() } else { format!("{name}.{i}") }, tensor, Origin::Node)
            })
            .collect();
        let scope = self.scope.clone();
        self.nodes.push(Node { op, name, scope, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }

    /// Adds an operator of one output.
    ///
    /// # Errors
    /// As [`Graph::apply`].
    pub fn apply_one(&mut self, op: impl Op + 'static, inputs: &[Value]) -> Result<Value, GraphError> {
        Ok(self.apply(op, inputs)?[0])
    }

    /// Adds all nodes of another graph, those of other domains than `domains` as their bodies ([`Op::body`]), and says which values
    /// here are those there. `given` makes or names what stands for an input or a weight that nodes take.
    ///
    /// # Errors
    /// An operator has no body.
    pub(crate) fn repeat(
        &mut self,
        other: &Self,
        domains: &[Domain],
        mut given: impl FnMut(&mut Self, Value) -> Option<Value>,
    ) -> Result<BTreeMap<Value, Value>, GraphError> {
        let mut new = BTreeMap::new();
        for value in other.handles() {
            let ValueData { tensor, origin, .. } = other.data(value);
            let made = match origin {
                Origin::Constant(bytes) => {
                    let fixed = |dim: &Dim| if let Dim::Fixed(size) = dim { *size } else { 0 };
                    let shape: Vec<usize> = tensor.shape.iter().map(fixed).collect();
                    Some(self.constant(tensor.dtype, &shape, bytes.clone()))
                }
                Origin::Input | Origin::Weight(_) => given(self, value),
                Origin::Node => None,
            };
            new.extend(made.map(|made| (value, made)));
        }
        for node in &other.nodes {
            self.set_scope(node.scope.clone());
            let inputs: Vec<Value> = node.inputs.iter().map(|input| new[input]).collect();
            let outputs = match domains.contains(&node.op.domain()) {
                true => self.apply_shared(node.op.clone(), &inputs)?,
                false => node.op.body(self, &inputs)?,
            };
            new.extend(node.outputs.iter().copied().zip(outputs));
        }
        Ok(new)
    }

    fn inferred(&self, op: &dyn Op, scope: &str, inputs: &[Value]) -> Result<Vec<TensorType>, GraphError> {
        let types: Vec<&TensorType> = inputs.iter().map(|&value| self.tensor(value)).collect();
        op.infer(&types).map_err(|problem| GraphError::Invalid {
            operator: op.name(),
            scope: scope.to_owned(),
            inputs: types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            problem,
        })
    }

    /// Puts another operator in the place of a node of one output, which keeps its type. What it takes stands before it.
    ///
    /// # Errors
    /// The inputs do not fit, or give another type.
    pub(crate) fn replace(&mut self, index: usize, op: impl Op + 'static, inputs: &[Value]) -> Result<(), GraphError> {
        let node = &self.nodes[index];
        let (output, scope) = (node.outputs[0], node.scope.clone());
        let types = self.inferred(&op, &scope, inputs)?;
        if types != [self.tensor(output).clone()] {
            let problem = format!("expected a result of {}", self.tensor(output));
            return Err(GraphError::Invalid { operator: op.name(), scope, inputs: String::new(), problem });
        }
        let name = node_name(&scope, &op, index);
        if !self.outputs.contains(&output) {
            self.values[output.0].name.clone_from(&name);
        }
        self.nodes[index] = Node { op: Rc::new(op), name, scope, inputs: inputs.to_vec(), outputs: vec![output] };
        Ok(())
    }

    fn push(&mut self, name: String, tensor: TensorType, origin: Origin) -> Value {
        let value = Value(self.values.len());
        for (axis, &dim) in tensor.shape.iter().enumerate() {
            if !matches!(dim, Dim::Fixed(_)) {
                self.dimensions.entry(dim).or_insert((value, axis));
            }
        }
        self.values.push(ValueData { name, tensor, origin });
        value
    }

    /// The type of a value.
    pub fn tensor(&self, value: Value) -> &TensorType {
        &self.values[value.0].tensor
    }

    /// The shape of a value.
    pub fn shape(&self, value: Value) -> &[Dim] {
        &self.values[value.0].tensor.shape
    }

    /// The name of a value.
    pub fn name(&self, value: Value) -> &str {
        &self.values[value.0].name
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = Value> + use<> {
        (0..self.values.len()).map(Value)
    }

    pub(crate) fn data(&self, value: Value) -> &ValueData {
        &self.values[value.0]
    }
}

fn node_name(scope: &str, op: &dyn Op, index: usize) -> String {
    let separator = if scope.is_empty() { "" } else { "/" };
    format!("{scope}{separator}{}_{index}", op.name())
}
