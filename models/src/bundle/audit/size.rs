//! How large a graph is, seen before it is made: a message of two bytes takes a hundred once it is parsed.

use prost::encoding::{WireType, decode_key, decode_varint};

/// The kinds of messages of [`crate::onnx`] that hold others, or lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    Tensor,
    Value,
    Type,
    TensorType,
    Shape,
    /// One whose fields are counted, and nothing in them.
    Flat,
}

impl Kind {
    /// What a field of this message is, where it is a message.
    fn of_field(self, field: u32) -> Option<Self> {
        Some(match (self, field) {
            (Self::Model, 7) => Self::Graph,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) => Self::Tensor,
            (Self::Graph, 11..=13) => Self::Value,
            (Self::Node, 5) => Self::Attribute,
            (Self::Value, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            (Self::TensorType, 2) => Self::Shape,
            (Self::Shape, 1) | (Self::Tensor, 13) | (Self::Model, 8) | (Self::Function, 9) => Self::Flat,
            _ => return None,
        })
    }
}

/// Counts the fields of a message and of those in it, and takes them from `left`.
///
/// # Errors
/// There are more; or the bytes are no message.
pub(super) fn count(kind: Kind, mut bytes: &[u8], left: &mut usize) -> Result<(), String> {
    let cut = || "is no ONNX model: it is cut".to_owned();
    while !bytes.is_empty() {
        *left = left.checked_sub(1).ok_or("holds more than any graph of such a model needs")?;
        let (field, wire) = decode_key(&mut bytes).map_err(|error| format!("is no ONNX model: {error}"))?;
        match wire {
            WireType::Varint => drop(decode_varint(&mut bytes).map_err(|_| cut())?),
            WireType::SixtyFourBit | WireType::ThirtyTwoBit => {
                let size = if wire == WireType::SixtyFourBit { 8 } else { 4 };
                bytes = bytes.get(size..).ok_or_else(cut)?;
            }
            WireType::LengthDelimited => {
                let length = decode_varint(&mut bytes).map_err(|_| cut())?;
                let length = usize::try_from(length).ok().filter(|&length| length <= bytes.len()).ok_or_else(cut)?;
                let (inner, rest) = bytes.split_at(length);
                match kind.of_field(field) {
                    Some(kind) => count(kind, inner, left)?,
                    // Numbers side by side; bytes and texts are held once.
                    None if matches!((kind, field), (Kind::Tensor, 1) | (Kind::Attribute, 7 | 8)) => {
                        *left = left.checked_sub(length).ok_or("holds more than any graph of such a model needs")?;
                    }
                    None => {}
                }
                bytes = rest;
            }
            WireType::StartGroup | WireType::EndGroup => return Err("is no ONNX model: it holds a group".to_owned()),
        }
    }
    Ok(())
}
