//! What integers are rounded for: the rows that each matrix is multiplied with, as the model in f32 computes
//! them of dialogues. An error in a value then counts as much as it changes products (Frantar et al. 2022, "GPTQ").

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use marionette_kernels::quantise::Compensation;
use marionette_models::bundle::{Operators, Precision};
use ndarray::{Array2, ArrayView2};

use crate::error::ExportError;
use crate::graph::{Graph, Origin, Value};
use crate::graphs;
use crate::interpreter::Interpreter;
use crate::rows;
use crate::source::Source;
use crate::weights::Weights;

/// What is added to the moments' diagonal, in parts of its mean. The paper has 0.01; but the head's matrix may be the
/// embedding too, where every error counts alike, and some hundred rows tell little of directions that they hardly
/// have.
const DAMPING: f64 = 0.3;
/// The same where the rows are no dialogues.
const DAMPING_WITHOUT_DIALOGUES: f64 = 3.0;

/// Rows by matrix. By default there are none, and each block of a matrix is rounded for itself.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    /// \[positions, K\] each.
    inputs: BTreeMap<String, Array2<f32>>,
    damping: f64,
}

impl Calibration {
    /// Computes the rows for a plan of weights: for each matrix whose rounding is worth making up for
    /// (of 4 bits those that the integers cannot hold as they are, of 8 the head), or none.
    ///
    /// # Errors
    /// The graph cannot be built; the user has interrupted.
    pub fn new(source: &Source, weights: &Weights, interrupted: &AtomicBool) -> Result<Self, ExportError> {
        let names: BTreeSet<&str> = weights.rounded_names(&source.base.tensors).collect();
        if names.is_empty() {
            return Ok(Self::default());
        }
        let (rows, damping) = match rows::of_dialogues(source) {
            Ok(rows) => (rows.calibration, DAMPING),
            Err(_) => (vec![rows::fixed(source)], DAMPING_WITHOUT_DIALOGUES),
        };
        let config = &source.base.config;
        let exact = Weights::new(config, Precision::Fp32, Operators::Ort)?;
        let graph = graphs::logits(config, &source.adapter, &exact)?;
        let (names, wanted): (Vec<&str>, Vec<Value>) = multiplied(&graph, &names).into_iter().unzip();
        let interpreter = Interpreter::new(&graph, |part, _| rows::exact_values(source, part))?;
        let mut inputs = rows::adapters(source);
        let mut found: Vec<Vec<f32>> = vec![Vec::new(); names.len()];
        let mut count = 0;
        for row in &rows {
            if interrupted.load(Ordering::SeqCst) {
                return Err(ExportError::Interrupted);
            }
            let length = row.ids.len();
            count += length;
            inputs.insert("input_ids".into(), rows::row(&row.ids));
            // Positions without a target tell of directions as well.
            inputs.insert("rows".into(), rows::list((0..length).map(|at| at as f64)));
            for (found, array) in found.iter_mut().zip(interpreter.values(&inputs, &wanted)) {
                found.extend(array.iter().map(|&value| value as f32));
            }
        }
        let shaped = |values: Vec<f32>| Array2::from_shape_vec((count, values.len() / count.max(1)), values).ok();
        let named = names.into_iter().zip(found);
        let inputs = named.filter_map(|(name, values)| Some((name.to_owned(), shaped(values)?))).collect();
        Ok(Self { inputs, damping })
    }

    /// How errors of a matrix are made up for, where there are rows for it.
    pub(crate) fn compensation(&self, name: &str) -> Option<Compensation> {
        Compensation::new(&moments(self.inputs.get(name)?.view()), self.damping)
    }
}

/// Of the named matrices those that products are made with, and the left sides.
fn multiplied<'a>(graph: &Graph, names: &BTreeSet<&'a str>) -> Vec<(&'a str, Value)> {
    let products = graph.nodes.iter().filter(|node| node.op.name() == "Gemm");
    let named = products.filter_map(|node| match &graph.data(node.inputs[1]).origin {
        Origin::Weight(part) => Some((*names.get(part.as_str())?, node.inputs[0])),
        _ => None,
    });
    named.collect()
}

/// Σ x xᵀ.
fn moments(rows: ArrayView2<'_, f32>) -> Array2<f64> {
    let rows = rows.mapv(f64::from);
    rows.t().dot(&rows)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use marionette_models::params::names::WTE;

    use super::*;
    use crate::source::FreshAdapters;

    fn tiny() -> Source {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
        Source::read(&folder, FreshAdapters::default(), None).unwrap()
    }

    fn calibrated(source: &Source, precision: Precision) -> Calibration {
        let weights = Weights::new(&source.base.config, precision, Operators::Ort).unwrap();
        Calibration::new(source, &weights, &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn every_matrix_has_the_rows_that_it_is_multiplied_with() {
        let source = tiny();
        let found = calibrated(&source, Precision::Int4);
        let weights = Weights::new(&source.base.config, Precision::Int4, Operators::Ort).unwrap();
        let names: Vec<&str> = weights.rounded_names(&source.base.tensors).collect();
        let mut known: Vec<&str> = found.inputs.keys().map(String::as_str).collect();
        known.sort_by_key(|name| names.iter().position(|other| other == name));
        assert_eq!(known, names);
        assert!(names.contains(&WTE) && names.len() == 1 + 4 * source.base.config.n_layer, "{names:?}");
        for (name, rows) in &found.inputs {
            let shape = &source.base.tensors[name].shape;
            let inner = if name == WTE { shape[1] } else { shape[0] };
            assert_eq!(rows.shape(), [rows::fixed(&source).ids.len(), inner], "{name}");
            assert!(found.compensation(name).is_some(), "{name}");
        }
        // What goes into the first layer is normal but for its scale and shift.
        let of = |part: &str| &source.base.tensors[&format!("h.0.ln_1.{part}")].values;
        let first = found.inputs[&marionette_models::params::names::Block::new(0).attn_qkv.weight].row(3);
        let normal = first.iter().zip(of("weight")).zip(of("bias")).map(|((x, scale), shift)| (x - shift) / scale);
        let normal: Vec<f32> = normal.collect();
        let mean = normal.iter().sum::<f32>() / normal.len() as f32;
        let square = normal.iter().map(|x| x * x).sum::<f32>() / normal.len() as f32;
        assert!(mean.abs() < 1e-3 && (square - 1.0).abs() < 1e-2, "{mean} {square}");
    }

    #[test]
    fn what_rounds_nothing_needs_no_rows() {
        let mut source = tiny();
        for precision in [Precision::Fp32, Precision::Fp16] {
            assert!(calibrated(&source, precision).inputs.is_empty(), "{precision}");
        }
        // Of 8 bits the head alone.
        assert!(calibrated(&source, Precision::Int8).inputs.keys().eq([WTE]));
        let weights = Weights::new(&source.base.config, Precision::Int4, Operators::Ort).unwrap();
        source.base.tensors = weights.rounded(source.base.tensors, &Calibration::default());
        assert!(calibrated(&source, Precision::Int4).inputs.is_empty());
    }

    #[test]
    fn an_interrupt_ends_it() {
        let source = tiny();
        let weights = Weights::new(&source.base.config, Precision::Int4, Operators::Ort).unwrap();
        let result = Calibration::new(&source, &weights, &AtomicBool::new(true));
        assert!(matches!(result, Err(ExportError::Interrupted)), "{result:?}");
    }
}
