//! What the reverse walk refuses, and what it leaves out.

use super::gradients;
use crate::GraphError;
use crate::graph::Graph;
use crate::shape::{Dim, TensorType};

fn vector(graph: &mut Graph, name: &str) -> crate::graph::Value {
    graph.input(name, TensorType::f32([3.into()]))
}

#[test]
fn an_operator_without_gradient_is_named() {
    let graph = &mut Graph::new();
    let x = vector(graph, "x");
    graph.set_scope("block");
    let y = graph.exp(x).unwrap();
    let loss = graph.reduce_sum(y, &[0], false).unwrap();
    let error = gradients(graph, loss, &[x]).unwrap_err();
    assert!(matches!(&error, GraphError::NoGradient { operator: "Exp", scope, .. } if scope == "block"), "{error}");
}

#[test]
fn an_operator_without_gradient_beside_the_path_is_no_obstacle() {
    let graph = &mut Graph::new();
    let (x, other) = (vector(graph, "x"), vector(graph, "other"));
    let frozen = graph.exp(other).unwrap();
    let y = graph.mul(x, frozen).unwrap();
    let loss = graph.reduce_sum(y, &[0], false).unwrap();
    assert_eq!(gradients(graph, loss, &[x]).unwrap().len(), 1);
}

#[test]
fn a_loss_must_be_a_scalar_that_depends_on_the_parameters() {
    let graph = &mut Graph::new();
    let (x, other) = (vector(graph, "x"), vector(graph, "other"));
    assert!(matches!(gradients(graph, x, &[x]), Err(GraphError::NotALoss(_))));
    let loss = graph.reduce_sum(x, &[0], false).unwrap();
    assert_eq!(gradients(graph, loss, &[x, other]), Err(GraphError::Unreached("other".into())));
}

#[test]
fn names_and_dimensions_are_checked() {
    let graph = &mut Graph::new();
    let x = vector(graph, "x");
    assert!(matches!(graph.output(x, "y"), Err(GraphError::DuplicateName(_))));
    let y = graph.add(x, x).unwrap();
    graph.output(y, "y").unwrap();
    assert!(matches!(graph.output(y, "z"), Err(GraphError::DuplicateName(_))));
    assert!(matches!(graph.zeros(&[Dim::Symbol("nowhere")]), Err(GraphError::UnknownDimension(_))));
}
