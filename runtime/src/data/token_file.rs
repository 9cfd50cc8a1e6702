//! Token files: safetensors with `input_ids` `[N,T]` and, where not every token is trained, `labels` `[N,T]` (-100 where not),
//! both i64, i32 or u32. Rows are documents as they are: nothing is added, packed or left out. Documents of any length are in
//! [token shards](super::token_shard) instead.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::documents::{Documents, IGNORE};
use super::error::{DataError, Result};
use crate::hf::header::Header;
use crate::mapped::MappedFile;

/// What a safetensors file of tokens holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `input_ids`: training rows, all of one length.
    Rows,
    /// `tokens` and `offsets`: documents of any length (a token shard).
    Documents,
}

impl Layout {
    /// The layout of a file's content; what is neither is left to the readers to complain of.
    pub fn of(bytes: &[u8], path: &Path) -> Result<Layout> {
        let header = Header::from_file_bytes(bytes);
        let header = header.map_err(|reason| DataError::Tokens { path: path.to_path_buf(), reason })?;
        let documents = header.tensors.contains_key("offsets") && !header.tensors.contains_key("input_ids");
        Ok(if documents { Layout::Documents } else { Layout::Rows })
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Layout::Rows => "rows of one length (input_ids)",
            Layout::Documents => "documents (tokens, offsets)",
        }
    }
}

/// Maps a file; nothing of it is read yet.
pub(crate) fn map(path: &Path) -> Result<MappedFile> {
    let file = File::open(path).map_err(DataError::io(path))?;
    MappedFile::new(&file, path).map_err(DataError::io(path))
}

/// Tensors that an error names, of those that are there instead.
const NAMED: usize = 3;

/// Rows of a token file that are read before those that were read are let go.
const ROWS_AT_ONCE: usize = 4096;

/// Appends the rows of a token file to `into` and returns (N, T). Ids must be below `vocab`. The file is not held beside the rows.
pub fn read_token_file(path: &Path, vocab: usize, into: &mut Documents) -> Result<(usize, usize)> {
    let map = map(path)?;
    let mut start = 0;
    loop {
        let end = start + ROWS_AT_ONCE;
        let shape = append_tokens(&map, path, vocab, start..end, into)?;
        if end >= shape.0 {
            return Ok(shape);
        }
        start = end;
        map.let_go();
    }
}

/// The same for the content of a file, and those of its rows that are in a range; `path` is what errors name.
pub fn append_tokens(
    bytes: &[u8],
    path: &Path,
    vocab: usize,
    only: Range<usize>,
    into: &mut Documents,
) -> Result<(usize, usize)> {
    let wrong = |reason: String| DataError::Tokens { path: path.to_path_buf(), reason };
    let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
    let Ok(ids) = file.tensor("input_ids") else {
        let mut names = file.names();
        names.sort_unstable();
        let more = if names.len() > NAMED { ", …" } else { "" };
        names.truncate(NAMED);
        return Err(wrong(format!(
            "there is no tensor \"input_ids\", only [{}{more}]; save the token ids under that name",
            names.join(", ")
        )));
    };
    let &[rows, columns] = ids.shape() else {
        return Err(wrong(format!("input_ids has the shape {:?}; it must be [rows, tokens]", ids.shape())));
    };
    if rows == 0 || columns < 2 {
        return Err(wrong(format!(
            "input_ids is [{rows}, {columns}]; there must be a row, and two tokens in it"
        )));
    }
    let labels = file.tensor("labels").ok();
    if let Some(l) = &labels
        && l.shape() != ids.shape()
    {
        return Err(wrong(format!(
            "labels has the shape {:?}, input_ids {:?}; make them equal",
            l.shape(),
            ids.shape()
        )));
    }
    let integers = |name: &str, dtype: Dtype| match dtype {
        Dtype::I64 | Dtype::I32 | Dtype::U32 => Ok(dtype),
        other => Err(wrong(format!("{name} is {other:?}; save it as int64 or int32"))),
    };
    let id_type = integers("input_ids", ids.dtype())?;
    let label_type = labels.as_ref().map(|l| integers("labels", l.dtype())).transpose()?;
    let (mut tokens, mut targets) = (Vec::with_capacity(columns), Vec::with_capacity(columns));
    for row in only.start.min(rows)..only.end.min(rows) {
        read_row(&mut tokens, ids.data(), id_type, row, columns);
        match (&labels, label_type) {
            (Some(l), Some(dtype)) => read_row(&mut targets, l.data(), dtype, row, columns),
            _ => targets.clone_from(&tokens),
        }
        let known = |value: i64| usize::try_from(value).is_ok_and(|v| v < vocab);
        let bad_id =
            tokens.iter().position(|&t| !known(t)).map(|column| ("input_ids", column, tokens[column]));
        let bad = bad_id.or_else(|| {
            let column = targets.iter().position(|&t| t != i64::from(IGNORE) && !known(t))?;
            Some(("labels", column, targets[column]))
        });
        if let Some((tensor, column, value)) = bad {
            return Err(DataError::TokenRange {
                path: path.to_path_buf(),
                tensor,
                row,
                column,
                value,
                vocab,
            });
        }
        let narrow = |values: &[i64]| values.iter().map(|&v| v as i32).collect::<Vec<i32>>();
        into.push(&narrow(&tokens), &narrow(&targets));
    }
    Ok((rows, columns))
}

/// Row `row` of a [_, columns] tensor. Safetensors has checked that the data are as long as the shape says.
fn read_row(out: &mut Vec<i64>, data: &[u8], dtype: Dtype, row: usize, columns: usize) {
    out.clear();
    let size = if dtype == Dtype::I64 { 8 } else { 4 };
    let bytes = &data[row * columns * size..(row + 1) * columns * size];
    if dtype == Dtype::I64 {
        out.extend(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)));
    } else if dtype == Dtype::I32 {
        out.extend(bytes.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))));
    } else {
        out.extend(bytes.as_chunks::<4>().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use safetensors::tensor::TensorView;

    fn i64s(values: &[i64]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
        let views = tensors.iter().map(|&(name, dtype, shape, data)| {
            (name.to_owned(), TensorView::new(dtype, shape.to_vec(), data).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Documents> {
        let mut docs = Documents::new();
        append_tokens(bytes, Path::new("t.safetensors"), 10, 0..usize::MAX, &mut docs).map(|_| docs)
    }

    fn check_error(tensors: &[(&str, Dtype, &[usize], &[u8])], part: &str) {
        let error = read(&file(tensors)).unwrap_err().to_string();
        assert!(error.starts_with("t.safetensors: ") && error.contains(part), "{error}");
    }

    #[test]
    fn rows_as_they_are() {
        let (ids, labels) = (i64s(&[1, 2, 3, 4, 5, 6]), i64s(&[-100, 2, 3, -100, -100, 9]));
        let docs = read(&file(&[("input_ids", Dtype::I64, &[2, 3], &ids)])).unwrap();
        assert_eq!((docs.tokens(1), docs.labels(1)), (&[4, 5, 6][..], &[4, 5, 6][..]));
        let docs = read(&file(&[
            ("input_ids", Dtype::I64, &[2, 3], &ids),
            ("labels", Dtype::I64, &[2, 3], &labels),
        ]))
        .unwrap();
        assert_eq!(
            (docs.len(), docs.labels(0), docs.labels(1)),
            (2, &[-100, 2, 3][..], &[-100, -100, 9][..])
        );
        for dtype in [Dtype::I32, Dtype::U32] {
            let narrow: Vec<u8> = [7i32, 8, 9].iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(read(&file(&[("input_ids", dtype, &[1, 3], &narrow)])).unwrap().tokens(0), [7, 8, 9]);
        }
    }

    #[test]
    fn errors_name_the_place() {
        let ids = i64s(&[1, 2, 3, 4, 5, 6]);
        check_error(&[("ids", Dtype::I64, &[2, 3], &ids)], "only [ids]");
        check_error(&[("input_ids", Dtype::I64, &[6], &ids)], "[6]; it must be [rows, tokens]");
        check_error(&[("input_ids", Dtype::F64, &[2, 3], &ids)], "F64");
        check_error(&[("input_ids", Dtype::I64, &[6, 1], &ids)], "two tokens");
        let out = i64s(&[1, 2, 3, 4, 10, 6]);
        check_error(
            &[("input_ids", Dtype::I64, &[2, 3], &out)],
            "input_ids[1, 1] is 10, outside the model's vocabulary of 10",
        );
        let two = [("input_ids", Dtype::I64, &[2, 3][..], &ids[..]), ("labels", Dtype::I64, &[3, 2], &ids)];
        check_error(&two, "labels has the shape [3, 2]");
        let negative = i64s(&[-100, 2, 3, -1, 5, 6]);
        let two =
            [("input_ids", Dtype::I64, &[2, 3][..], &ids[..]), ("labels", Dtype::I64, &[2, 3], &negative)];
        check_error(&two, "labels[1, 0] is -1");
        let wide = i64s(&[1 << 33, 2, 3, 4, 5, 6]);
        check_error(&[("input_ids", Dtype::I64, &[2, 3], &wide)], "is 8589934592");
        assert!(read(b"junk").unwrap_err().to_string().contains("not a safetensors file"));
    }
}
