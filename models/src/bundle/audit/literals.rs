//! Shapes that are written into a graph as numbers, and how large what is made by them would be.

use std::collections::HashMap;

use crate::onnx::{NodeProto, TensorProto, data_type};

/// Known whole numbers of a value; `None` for one that is known only when the graph runs.
type Numbers = Vec<Option<i64>>;

/// Refuses nodes that make a tensor of more than `most` elements, as far as numbers in the graph say so: dimensions that are known only when
/// it runs count as 1.
///
/// # Errors
/// The node, and how many elements it would make.
pub(super) fn check<'a>(
    constants: impl Iterator<Item = &'a TensorProto>,
    nodes: &'a [NodeProto],
    most: u64,
) -> Result<(), (&'a NodeProto, String)> {
    let mut known: HashMap<&str, Numbers> = HashMap::new();
    known.extend(constants.filter_map(|tensor| Some((tensor.name.as_str(), numbers(tensor)?))));
    for node in nodes {
        let input = |index: usize| node.input.get(index).and_then(|name| known.get(name.as_str()));
        let elements = match node.op_type.as_str() {
            "ConstantOfShape" => input(0).map(product),
            "Expand" | "Reshape" => input(1).map(product),
            "Range" => {
                let number = |index: usize| input(index).and_then(|numbers| numbers.first().copied().flatten());
                let (start, delta) = (number(0).unwrap_or(0), number(2).unwrap_or(1));
                number(1).map(|limit| limit.abs_diff(start) / delta.unsigned_abs().max(1))
            }
            _ => None,
        };
        if let Some(elements) = elements.filter(|&elements| elements > most) {
            return Err((node, format!("makes {elements} elements, the largest of such a model has {most}")));
        }
        let result: Option<Numbers> = match node.op_type.as_str() {
            "Constant" => node.attribute.first().and_then(|attribute| numbers(attribute.t.as_ref()?)),
            // Of a part that is not known, how many numbers it has is not known either: it counts as one.
            "Concat" => Some(
                node.input.iter().flat_map(|name| known.get(name.as_str()).cloned().unwrap_or(vec![None])).collect(),
            ),
            // Of a few numbers; their order and whether they are a list makes no difference here.
            "Reshape" => input(0).cloned(),
            _ => None,
        };
        // Numbers that are shapes are few.
        if let (Some(numbers), Some(output)) = (result.filter(|numbers| numbers.len() <= 64), node.output.first()) {
            known.insert(output, numbers);
        }
    }
    Ok(())
}

/// The elements of a shape: 0 and −1 stand for a dimension that is there already.
fn product(shape: &Numbers) -> u64 {
    let known = shape.iter().flatten().filter(|&&dim| dim > 0);
    known.fold(1, |product: u64, dim| product.saturating_mul(dim.unsigned_abs()))
}

/// The numbers of a small constant.
fn numbers(tensor: &TensorProto) -> Option<Numbers> {
    let bytes = tensor.raw_data.as_ref().filter(|_| tensor.data_type == data_type::INT64)?;
    Some(bytes.as_chunks::<8>().0.iter().map(|bytes| Some(i64::from_le_bytes(*bytes))).collect())
}
