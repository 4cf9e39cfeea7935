//! Rewrites of a graph that is built: nodes that are computed faster as one.

use std::collections::BTreeMap;

use crate::error::GraphError;
use crate::graph::{Graph, Node, Value};
use crate::ops::{AddProduct, Transposed};
use crate::shape::Dim;

/// Makes one node of a sum and its second part, where that is a product which nothing else needs, of the kind that a narrow layer gives
/// back (K < N: an adapter's bottleneck): the end of an adapter's gradient.
///
/// # Errors
/// The graph does not fit together.
pub fn adapter_gradients(graph: &mut Graph) -> Result<(), GraphError> {
    let mut uses: BTreeMap<Value, usize> = BTreeMap::new();
    for value in graph.nodes.iter().flat_map(|node| &node.inputs).chain(&graph.outputs) {
        *uses.entry(*value).or_default() += 1;
    }
    let made_by: BTreeMap<Value, usize> = (0..)
        .zip(&graph.nodes)
        .flat_map(|(index, node)| node.outputs.iter().map(move |&value| (value, index)))
        .collect();
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let [before, part] = node.inputs[..] else { continue };
        let same_shape = graph.shape(before) == graph.shape(part);
        if node.op.name() != "Add" || !same_shape || uses.get(&part) != Some(&1) {
            continue;
        }
        let Some(product) = made_by.get(&part).map(|&index| &graph.nodes[index]) else { continue };
        if gives_back_a_narrow_layer(graph, product) {
            let inputs = [product.inputs[0], product.inputs[1], before];
            graph.replace(index, AddProduct::AdapterDownGradient, &inputs)?;
        }
    }
    Ok(())
}

/// Whether a node is A Bᵀ, with B \[N, K\] and K < N.
fn gives_back_a_narrow_layer(graph: &Graph, node: &Node) -> bool {
    node.op.name() == "Gemm"
        && node.op.attributes() == Transposed { a: false, b: true }.attributes()
        && node.inputs.len() == 2
        && matches!(graph.shape(node.inputs[1]), [Dim::Fixed(n), Dim::Fixed(k)] if k < n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::float;

    /// What becomes of x + A Bᵀ, with B \[4, `inner`\]; `again` uses the product a second time.
    fn fused(inner: usize, again: bool) -> &'static str {
        let mut graph = Graph::new();
        let before = graph.input("before", float(&[3, 4]).tensor_type());
        let a = graph.input("a", float(&[3, inner]).tensor_type());
        let b = graph.input("b", float(&[4, inner]).tensor_type());
        let product = graph.gemm(a, b, None, Transposed { a: false, b: true }).unwrap();
        let sum = graph.add(before, product).unwrap();
        if again {
            graph.mul(sum, product).unwrap();
        }
        adapter_gradients(&mut graph).unwrap();
        let node = graph.nodes.iter().find(|node| node.outputs == [sum]).unwrap();
        assert_eq!(graph.name(sum), format!("{}_1", node.op.name()));
        node.op.name()
    }

    #[test]
    fn only_what_a_narrow_layer_gives_back_is_one_operator_with_the_sum() {
        assert_eq!(fused(2, false), "AdapterDownGradient");
        // Queries, keys and values apart give back products as wide as what they are added to.
        assert_eq!(fused(4, false), "Add");
        assert_eq!(fused(6, false), "Add");
        // It has to be computed anyway.
        assert_eq!(fused(2, true), "Add");
    }
}
