//! Embedding tables that stay in their files: a step reads the rows of its tokens, and no more.
//!
//! Rows are read, not mapped: what the system keeps of the file is its own to give away, and the process holds the rows of one
//! micro-batch, whatever the vocabulary.

use crate::error::{Result, RunError};
use crate::hf::{Weights, dtype_of};
use crate::models::convert_block;
use kfc_graph::DType;
use rayon::prelude::*;
use std::sync::Arc;

/// Rows that one task reads.
const ROWS: usize = 16;

/// Bytes that are converted at once.
const PIECE: usize = 4096;

/// A table `[V,H]` in a file.
pub struct Lookup {
    weights: Arc<Weights>,
    name: &'static str,
    /// The number of its file, and its first byte there.
    place: (usize, usize),
    /// Its element type in the file.
    stored: DType,
    rows: usize,
    width: usize,
}

impl Lookup {
    /// The table of this name and shape.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(weights: &Arc<Weights>, name: &'static str, [rows, width]: [usize; 2]) -> Result<Lookup> {
        let stored = dtype_of(weights.require(name, &[rows, width])?.dtype).unwrap_or(DType::F32);
        let place = weights.locate(name)?;
        Ok(Lookup { weights: Arc::clone(weights), name, place, stored, rows, width })
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
        let row = self.width * dtype.size();
        let tasks = ids.par_chunks(ROWS).zip(out.par_chunks_mut(ROWS * row));
        tasks.try_for_each(|(ids, out)| {
            ids.iter().zip(out.chunks_exact_mut(row)).try_for_each(|(id, out)| self.row(*id, dtype, out))
        })
    }

    fn row(&self, id: i32, dtype: DType, out: &mut [u8]) -> Result<()> {
        let file = self.weights.files().get(self.place.0);
        let row = usize::try_from(id).ok().filter(|row| *row < self.rows);
        let (Some(file), Some(row)) = (file, row) else {
            return Err(RunError::Failed(format!(
                "token {id} has no row among the {} of {}",
                self.rows, self.name
            )));
        };
        let size = self.stored.size();
        let start = self.place.1 + row * self.width * size;
        if dtype == self.stored {
            return Ok(file.read(start, out)?);
        }
        let mut piece = [0; PIECE];
        let count = PIECE / size;
        for (i, out) in out.chunks_mut(count * dtype.size()).enumerate() {
            let piece = &mut piece[..out.len() / dtype.size() * size];
            file.read(start + i * count * size, piece)?;
            convert_block(piece, self.stored, dtype, out);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::data::testing::TempDir;
    use crate::hf::{FileDType, TensorOut, write_safetensors};
    use crate::models::convert;
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
                convert(&weights.get("table").unwrap(), to, &mut all);
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
