//! The metadata of a GGUF file, by name and type.

use marionette_models::FileError;

use super::gguf::{Gguf, Value};

/// Reads metadata and says what is wrong with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a Gguf);

impl<'a> Fields<'a> {
    pub(super) fn refuse(&self, key: &str, problem: &str) -> FileError {
        FileError::new(self.0.path(), problem).at(key)
    }

    fn there<T>(&self, key: &str, value: Option<T>, expected: &str) -> Result<T, FileError> {
        value.ok_or_else(|| {
            let found = if self.0.get(key).is_some() { "is of another type" } else { "is missing" };
            self.refuse(key, &format!("{found}, expected {expected}"))
        })
    }

    /// A number of things.
    pub(super) fn count(&self, key: &str) -> Result<usize, FileError> {
        let count = match self.0.get(key) {
            Some(Value::Integer(count)) => usize::try_from(*count).ok(),
            _ => None,
        };
        self.there(key, count, "a number of things")
    }

    pub(super) fn count_or(&self, key: &str, missing: usize) -> Result<usize, FileError> {
        if self.0.get(key).is_some() { self.count(key) } else { Ok(missing) }
    }

    pub(super) fn number(&self, key: &str) -> Result<f32, FileError> {
        let number = match self.0.get(key) {
            Some(Value::Float(number)) => Some(*number as f32),
            Some(Value::Integer(number)) => Some(*number as f32),
            _ => None,
        };
        self.there(key, number, "a number")
    }

    pub(super) fn number_or(&self, key: &str, missing: f32) -> Result<f32, FileError> {
        if self.0.get(key).is_some() { self.number(key) } else { Ok(missing) }
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str, FileError> {
        let text = match self.0.get(key) {
            Some(Value::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        self.there(key, text, "a text")
    }

    pub(super) fn text_or(&self, key: &str, missing: &'a str) -> Result<&'a str, FileError> {
        if self.0.get(key).is_some() { self.text(key) } else { Ok(missing) }
    }

    pub(super) fn texts(&self, key: &str) -> Result<Vec<&'a str>, FileError> {
        let text = |value: &'a Value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        };
        let texts = match self.0.get(key) {
            Some(Value::Array(values)) => values.iter().map(text).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        self.there(key, texts, "texts")
    }

    pub(super) fn integers(&self, key: &str) -> Result<Vec<i128>, FileError> {
        let integer = |value: &Value| match value {
            Value::Integer(integer) => Some(*integer),
            _ => None,
        };
        let integers = match self.0.get(key) {
            Some(Value::Array(values)) => values.iter().map(integer).collect::<Option<Vec<_>>>(),
            _ => None,
        };
        self.there(key, integers, "integers")
    }

    pub(super) fn truth_or(&self, key: &str, missing: bool) -> Result<bool, FileError> {
        match self.0.get(key) {
            None => Ok(missing),
            Some(Value::Bool(truth)) => Ok(*truth),
            Some(_) => Err(self.refuse(key, "is of another type, expected true or false")),
        }
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.0.shape(name).is_some()
    }

    /// The rows of a matrix.
    pub(super) fn rows(&self, name: &str) -> Result<usize, FileError> {
        match self.0.shape(name) {
            Some(&[rows, _]) => Ok(rows),
            _ => Err(self.refuse(name, "is missing or no matrix")),
        }
    }
}
