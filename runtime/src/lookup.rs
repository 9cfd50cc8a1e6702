//! Embedding tables that stay in their files: a step reads the rows of its tokens, and no more.
//!
//! Rows are read, not mapped: what the system keeps of the file is its own to give away, and the process holds the rows of one
//! micro-batch, whatever the vocabulary.

use crate::error::{Result, RunError};
use crate::hf::{TensorView, Weights};
use crate::models::load_from;
use kfc_graph::DType;
use rayon::prelude::*;
use std::sync::Arc;

/// Rows that one task reads.
const ROWS: usize = 16;

/// A table `[V,H]` in a file.
pub struct Lookup {
    weights: Arc<Weights>,
    name: &'static str,
    rows: usize,
    width: usize,
}

impl Lookup {
    /// The table of this name and shape.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(weights: &Arc<Weights>, name: &'static str, [rows, width]: [usize; 2]) -> Result<Lookup> {
        weights.require(name, &[rows, width])?;
        Ok(Lookup { weights: Arc::clone(weights), name, rows, width })
    }

    /// The table's name in its file.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Reads the rows that `ids` name as `dtype`, rounded as a table in memory would be, into `out`, which has their size.
    /// Allocates nothing.
    ///
    /// # Errors
    /// If an id is not one of the table's, or its file cannot be read.
    pub fn read(&self, ids: &[i32], dtype: DType, out: &mut [u8]) -> Result<()> {
        let table = self.weights.require(self.name, &[self.rows, self.width])?;
        let row = self.width * dtype.size();
        let tasks = ids.par_chunks(ROWS).zip(out.par_chunks_mut(ROWS * row));
        tasks.try_for_each(|(ids, out)| {
            ids.iter()
                .zip(out.chunks_exact_mut(row))
                .try_for_each(|(id, out)| self.row(&table, *id, dtype, out))
        })
    }

    fn row(&self, table: &TensorView<'_>, id: i32, dtype: DType, out: &mut [u8]) -> Result<()> {
        match usize::try_from(id).ok().filter(|row| *row < self.rows) {
            Some(row) => load_from(table, row * self.width, dtype, out),
            None => Err(RunError::Failed(format!(
                "token {id} has no row among the {} of {}",
                self.rows, self.name
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::data::testing::TempDir;
    use crate::hf::{FileDType, TensorOut, write_safetensors};
    use crate::models::load_as;
    use crate::random;

    /// Rows are those of the whole table as it would be in memory, in every pair of types, also where a row is longer than
    /// what is converted at once.
    #[test]
    fn rows_are_those_of_a_table_in_memory() {
        let types =
            [(FileDType::F32, DType::F32), (FileDType::BF16, DType::Bf16), (FileDType::F16, DType::F16)];
        for ((stored, from), width) in types.into_iter().flat_map(|t| [(t, 3), (t, 2500)]) {
            let (dir, rows) = (TempDir::new("lookup"), 9);
            let path = dir.path().join("model.safetensors");
            let values = random::normal_tensor(3, "table", rows * width, 1.0);
            let mut bytes = vec![0; rows * width * from.size()];
            crate::models::write_f32(&values, from, &mut bytes);
            let before = TensorOut::bytes("a", stored, &[width], &bytes[..width * from.size()]);
            let table = TensorOut::bytes("table", stored, &[rows, width], &bytes);
            write_safetensors(&path, vec![before, table], &std::collections::BTreeMap::new()).unwrap();
            let weights = Arc::new(Weights::open_file(&path).unwrap());
            let lookup = Lookup::open(&weights, "table", [rows, width]).unwrap();
            let ids: Vec<i32> = (0..37).map(|i| (i * i) % rows as i32).collect();
            for to in [DType::F32, DType::Bf16, DType::F16] {
                let mut all = vec![0; rows * width * to.size()];
                load_as(&weights.get("table").unwrap(), to, &mut all).unwrap();
                let row = width * to.size();
                let expected: Vec<u8> =
                    ids.iter().flat_map(|i| &all[*i as usize * row..][..row]).copied().collect();
                let mut got = vec![0xee; expected.len()];
                lookup.read(&ids, to, &mut got).unwrap();
                assert!(got == expected, "{from:?} as {to:?}, {width} wide");
            }
            for id in [-1, rows as i32] {
                let error = lookup.read(&[0, id], from, &mut vec![0; 2 * width * from.size()]).unwrap_err();
                assert!(error.to_string().contains(&format!("token {id} has no row among the 9")), "{error}");
            }
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            let error = lookup.read(&[8], from, &mut vec![0; width * from.size()]).unwrap_err();
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
    }
}
