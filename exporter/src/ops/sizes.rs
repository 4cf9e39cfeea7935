//! Dimensions as values: what tells `Reshape`, `Expand` and others their shapes when the graph runs.

use crate::error::GraphError;
use crate::graph::{Graph, Value};
use crate::shape::{Dim, elements};

impl Graph {
    /// A dimension's number when the graph runs, i64\[1\].
    ///
    /// # Errors
    /// No value has the dimension.
    pub fn size(&mut self, dim: Dim) -> Result<Value, GraphError> {
        if let Dim::Fixed(value) = dim {
            return Ok(self.integers(&[value as i64]));
        }
        if let Some(&size) = self.sizes.get(&dim) {
            return Ok(size);
        }
        let &(value, axis) = self.dimensions.get(&dim).ok_or_else(|| GraphError::UnknownDimension(dim.to_string()))?;
        let size = self.length(value, axis)?;
        self.sizes.insert(dim, size);
        Ok(size)
    }

    /// A shape's numbers when the graph runs, i64\[rank\]; one node a graph for each different shape.
    ///
    /// # Errors
    /// No value has one of the dimensions.
    pub fn shape_tensor(&mut self, shape: &[Dim]) -> Result<Value, GraphError> {
        self.shape_with_gap(&shape.iter().copied().map(Some).collect::<Vec<_>>())
    }

    /// What `Reshape` is told to get from one shape to another of as many elements: the number that is not fixed is left
    /// to it, so that nothing has to be computed where there is only one.
    pub(crate) fn reshape_target(&mut self, to: &[Dim]) -> Result<Value, GraphError> {
        let mut target: Vec<Option<Dim>> = to.iter().copied().map(Some).collect();
        let gap = |product: bool| {
            to.iter().rposition(|dim| match dim {
                Dim::Fixed(_) => false,
                Dim::Symbol(_) => !product,
                Dim::Product(..) => product,
            })
        };
        // A product is the harder one to know.
        if let Some(index) = gap(true).or_else(|| gap(false)) {
            // Zero elements would leave the gap undetermined.
            if elements(to).0 > 0 {
                target[index] = None;
            }
        }
        self.shape_with_gap(&target)
    }

    fn shape_with_gap(&mut self, shape: &[Option<Dim>]) -> Result<Value, GraphError> {
        let known: Option<Vec<i64>> = shape
            .iter()
            .map(|dim| match dim {
                None => Some(-1),
                Some(Dim::Fixed(value)) => Some(*value as i64),
                Some(_) => None,
            })
            .collect();
        if let Some(values) = known {
            return Ok(self.integers(&values));
        }
        if let Some(&tensor) = self.shapes.get(shape) {
            return Ok(tensor);
        }
        let mut parts = Vec::with_capacity(shape.len());
        for dim in shape {
            parts.push(match dim {
                None => self.integers(&[-1]),
                Some(dim) => self.size(*dim)?,
            });
        }
        let tensor = if let [only] = parts[..] { only } else { self.concat(&parts, 0)? };
        self.shapes.insert(shape.to_vec(), tensor);
        Ok(tensor)
    }
}
