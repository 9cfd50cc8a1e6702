//! The header of a safetensors file: which tensor lies where.
//!
//! Layout: length of the header (u64, little-endian), the header (JSON), then the tensors' bytes without gaps.
//!
//! Invariant: every range in a [`Header`] lies inside the file it was parsed from.

use std::collections::BTreeMap;

use kfc_graph::DType;
use safetensors::tensor::Metadata;

/// Element type in a file; more than kfc computes with.
pub use safetensors::Dtype as FileDType;

/// Where a header starts: after its length.
pub(crate) const LENGTH: usize = 8;

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// The element type kfc computes with, if it has one for this type of file.
pub fn dtype_of(dtype: FileDType) -> Option<DType> {
    match dtype {
        FileDType::F32 => Some(DType::F32),
        FileDType::BF16 => Some(DType::Bf16),
        FileDType::F16 => Some(DType::F16),
        FileDType::I32 => Some(DType::I32),
        _ => None,
    }
}

/// How a type of kfc is stored.
pub fn file_dtype(dtype: DType) -> FileDType {
    match dtype {
        DType::F32 => FileDType::F32,
        DType::Bf16 => FileDType::BF16,
        DType::F16 => FileDType::F16,
        DType::I32 => FileDType::I32,
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Element type.
    pub dtype: FileDType,
    /// Shape, row-major; empty for a scalar.
    pub dims: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub start: usize,
    /// Length in bytes.
    pub len: usize,
}

/// All tensors of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// By name.
    pub tensors: BTreeMap<String, Entry>,
    /// Free text that the writer left, such as `format: pt`.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Parses the header of a whole file given as bytes and checks it against the file's length. The error says what is
    /// wrong, without the file's name. Safe on hostile input.
    pub fn from_file_bytes(file: &[u8]) -> Result<Header, String> {
        if file.starts_with(b"version https://git-lfs") {
            return Err(
                "is a Git LFS pointer, not the weights; run `git lfs pull` in the model's repository".into(),
            );
        }
        let Some((length, rest)) = file.split_first_chunk::<LENGTH>() else {
            return Err(format!(
                "{} bytes are too few for a safetensors file; is the download complete?",
                file.len()
            ));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER {
            return Err(format!(
                "its header claims {length} bytes, more than the format allows: not a safetensors file"
            ));
        }
        let json = usize::try_from(length).ok().and_then(|n| rest.get(..n)).ok_or_else(|| {
            let have = rest.len();
            format!(
                "truncated: its header has {length} bytes, {have} are there; download or copy the file again"
            )
        })?;
        let parsed: Metadata =
            serde_json::from_slice(json).map_err(|e| format!("its safetensors header is damaged: {e}"))?;
        Header::checked(&parsed, LENGTH + json.len(), file.len())
    }

    /// `parsed` is known to be free of gaps and overlaps, and its sizes fit its shapes.
    fn checked(parsed: &Metadata, data: usize, file: usize) -> Result<Header, String> {
        let needed = parsed.data_len();
        let have = file - data;
        if needed > have {
            return Err(format!(
                "truncated: its header describes {needed} bytes of tensors, {have} are there; download or copy the \
                 file again"
            ));
        }
        if needed < have {
            return Err(format!(
                "{} bytes follow the last tensor of its header; the file is damaged or not complete",
                have - needed
            ));
        }
        let tensors = parsed
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (start, end) = info.data_offsets;
                let entry = Entry {
                    dtype: info.dtype,
                    dims: info.shape.clone(),
                    start: data + start,
                    len: end - start,
                };
                (name, entry)
            })
            .collect();
        let metadata = parsed.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Header { tensors, metadata })
    }
}
