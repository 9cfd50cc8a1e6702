//! The one error type of this crate.

use thiserror::Error;

/// What can go wrong while a graph is built, read, checked or transformed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum GraphError {
    /// Operand types, shapes or attributes do not fit an operation.
    #[error("{op}: {message}")]
    Type {
        /// Name of the operation.
        op: String,
        /// What does not fit.
        message: String,
    },
    /// A `.kir` text does not parse.
    #[error("line {line}, column {column}: {message}")]
    Parse {
        /// 1-based line.
        line: usize,
        /// 1-based column.
        column: usize,
        /// What was expected and what was found.
        message: String,
    },
    /// A graph breaks an invariant of the IR.
    #[error("invalid graph: {0}")]
    Verify(String),
    /// A gradient was asked for through an operation that has none.
    #[error("no gradient: {0}")]
    Gradient(String),
    /// The interpreter was given inputs that do not fit the graph.
    #[error("interpreter: {0}")]
    Interp(String),
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, GraphError>;

impl GraphError {
    /// A [`GraphError::Type`].
    pub fn ty(op: impl Into<String>, message: impl Into<String>) -> Self {
        GraphError::Type { op: op.into(), message: message.into() }
    }
}
