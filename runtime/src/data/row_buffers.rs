//! One row as the model reads it.

use super::pack::{RowSet, RowSlices};

/// A row's tokens, shifted labels, positions and segments, each of the row length.
#[derive(Clone, Debug, PartialEq)]
pub struct RowBuffers {
    /// Token ids.
    pub tokens: Vec<i32>,
    /// Target of each position; -100 is none.
    pub labels: Vec<i32>,
    /// Position in the document.
    pub positions: Vec<i32>,
    /// Document in the row; -1 is padding.
    pub segments: Vec<i32>,
}

impl RowBuffers {
    /// Buffers for rows of `seq_len` tokens.
    pub fn new(seq_len: usize) -> RowBuffers {
        let zeros = || vec![0; seq_len];
        RowBuffers { tokens: zeros(), labels: zeros(), positions: zeros(), segments: zeros() }
    }

    /// Takes over a row.
    pub fn fill(&mut self, rows: &RowSet, row: usize) {
        let RowBuffers { tokens, labels, positions, segments } = self;
        rows.fill(row, RowSlices { tokens, labels, positions, segments });
    }

    /// Positions that have a target.
    pub fn labelled(&self) -> usize {
        self.labels.iter().filter(|l| **l >= 0).count()
    }
}
