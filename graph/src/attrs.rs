//! Attributes of operations: a short list of named constants, read when a graph is built, never while it runs.

use crate::error::{GraphError, Result};
use std::fmt;

/// One attribute value.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    /// Integer.
    Int(i64),
    /// Finite float; printed so that it reads back bit for bit.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// A word (letters, digits, `_`, `.`, `-`).
    Str(String),
    /// List of integers.
    Ints(Vec<i64>),
}

impl fmt::Display for AttrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttrValue::Int(v) => write!(f, "{v}"),
            AttrValue::Float(v) => write!(f, "{v:?}"),
            AttrValue::Bool(v) => write!(f, "{v}"),
            AttrValue::Str(v) => write!(f, "\"{v}\""),
            AttrValue::Ints(v) => {
                f.write_str("[")?;
                for (i, x) in v.iter().enumerate() {
                    if i > 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{x}")?;
                }
                f.write_str("]")
            }
        }
    }
}

impl From<i64> for AttrValue {
    fn from(v: i64) -> Self {
        AttrValue::Int(v)
    }
}
impl From<usize> for AttrValue {
    fn from(v: usize) -> Self {
        AttrValue::Int(v as i64)
    }
}
impl From<f64> for AttrValue {
    fn from(v: f64) -> Self {
        AttrValue::Float(v)
    }
}
impl From<bool> for AttrValue {
    fn from(v: bool) -> Self {
        AttrValue::Bool(v)
    }
}
impl From<&str> for AttrValue {
    fn from(v: &str) -> Self {
        AttrValue::Str(v.to_string())
    }
}
impl From<&[usize]> for AttrValue {
    fn from(v: &[usize]) -> Self {
        AttrValue::Ints(v.iter().map(|&x| x as i64).collect())
    }
}

/// Attributes sorted by name, so that equal sets compare and print equal.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Attrs(Vec<(String, AttrValue)>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Self {
        Attrs::default()
    }

    /// The same attributes with `name` set to `value`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<AttrValue>) -> Self {
        self.set(name, value);
        self
    }

    /// Sets `name` to `value`.
    pub fn set(&mut self, name: &str, value: impl Into<AttrValue>) {
        let value = value.into();
        match self.0.binary_search_by(|(n, _)| n.as_str().cmp(name)) {
            Ok(i) => self.0[i].1 = value,
            Err(i) => self.0.insert(i, (name.to_string(), value)),
        }
    }

    /// The value of `name`, if set.
    pub fn get(&self, name: &str) -> Option<&AttrValue> {
        self.0.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok().map(|i| &self.0[i].1)
    }

    /// All attributes in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &AttrValue)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A required integer that is not negative.
    pub fn usize(&self, name: &str) -> Result<usize> {
        match self.get(name) {
            Some(AttrValue::Int(v)) if *v >= 0 => Ok(*v as usize),
            other => Err(wrong(name, "a non-negative integer", other)),
        }
    }

    /// A required float (an integer reads as one).
    pub fn f64(&self, name: &str) -> Result<f64> {
        match self.get(name) {
            Some(AttrValue::Float(v)) => Ok(*v),
            Some(AttrValue::Int(v)) => Ok(*v as f64),
            other => Err(wrong(name, "a number", other)),
        }
    }

    /// A boolean; absent means false.
    pub fn bool(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(AttrValue::Bool(v)) => Ok(*v),
            other => Err(wrong(name, "a boolean", other)),
        }
    }

    /// A required string.
    pub fn str(&self, name: &str) -> Result<&str> {
        match self.get(name) {
            Some(AttrValue::Str(v)) => Ok(v),
            other => Err(wrong(name, "a string", other)),
        }
    }

    /// A required list of non-negative integers.
    pub fn usizes(&self, name: &str) -> Result<Vec<usize>> {
        match self.get(name) {
            Some(AttrValue::Ints(v)) if v.iter().all(|&x| x >= 0) => {
                Ok(v.iter().map(|&x| x as usize).collect())
            }
            other => Err(wrong(name, "a list of non-negative integers", other)),
        }
    }
}

fn wrong(name: &str, expected: &str, found: Option<&AttrValue>) -> GraphError {
    let found = found.map_or("nothing".to_string(), |v| v.to_string());
    GraphError::ty("attribute", format!("`{name}` must be {expected}, found {found}"))
}
