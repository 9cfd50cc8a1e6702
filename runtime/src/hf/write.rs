//! Writing safetensors files: streamed tensor by tensor, never a whole model in memory.
//!
//! The bytes depend on the content alone: header fields are ordered, tensors lie by descending alignment and then by name
//! (so that a mapping can be read in place), and the header is padded so that data starts at a multiple of 64.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use kfc_graph::DType;
use serde_json::{Value, json};

use super::header::{FileDType, file_dtype};
use crate::files::{AtomicFile, FileError, Result, Written, write_json};

/// Largest shard, in bytes, that `write_sharded` callers use by default.
pub const MAX_SHARD: u64 = 5_000_000_000;

/// Data starts at a multiple of this.
const DATA_ALIGNMENT: usize = 64;

/// Name, type and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type in the file.
    pub dtype: FileDType,
    /// Shape, row-major.
    pub dims: Vec<usize>,
}

impl TensorSpec {
    /// A spec.
    pub fn new(name: impl Into<String>, dtype: FileDType, dims: impl Into<Vec<usize>>) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, dims: dims.into() }
    }

    /// Length in bytes; `None` if that is no whole number or does not fit.
    fn len(&self) -> Option<u64> {
        let elements = self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
        let bits = elements.checked_mul(self.dtype.bitsize() as u64)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// What hands over a tensor's bytes when its turn comes.
type Producer<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

/// A tensor to be written: its spec and what produces its bytes, little-endian and row-major.
pub struct TensorOut<'a> {
    /// Name, type, shape.
    pub spec: TensorSpec,
    producer: Producer<'a>,
}

impl fmt::Debug for TensorOut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TensorOut").field(&self.spec).finish()
    }
}

impl<'a> TensorOut<'a> {
    /// A tensor whose bytes `produce` writes, in as many pieces as it likes, when its turn comes.
    pub fn new(
        spec: TensorSpec,
        produce: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> TensorOut<'a> {
        TensorOut { spec, producer: Box::new(produce) }
    }

    /// A tensor that is in memory.
    pub fn bytes(
        name: impl Into<String>,
        dtype: FileDType,
        dims: &[usize],
        bytes: &'a [u8],
    ) -> TensorOut<'a> {
        TensorOut::new(TensorSpec::new(name, dtype, dims), move |w| w.write_all(bytes))
    }

    /// A tensor of one of kfc's types that is in memory.
    pub fn typed(name: impl Into<String>, dtype: DType, dims: &[usize], bytes: &'a [u8]) -> TensorOut<'a> {
        TensorOut::bytes(name, file_dtype(dtype), dims, bytes)
    }

    /// An f32 tensor that is in memory.
    pub fn f32(name: impl Into<String>, dims: &[usize], values: &'a [f32]) -> TensorOut<'a> {
        TensorOut::bytes(name, FileDType::F32, dims, bytemuck::cast_slice(values))
    }
}

/// The lowest level: header first, then the bytes of all tensors in the order of the specs.
#[derive(Debug)]
pub struct TensorFileWriter {
    file: AtomicFile,
    end: u64,
}

impl TensorFileWriter {
    /// Starts a file and writes its header. `specs` are in the order in which their bytes will come.
    pub fn create(
        path: &Path,
        specs: &[TensorSpec],
        metadata: &BTreeMap<String, String>,
    ) -> Result<TensorFileWriter> {
        let header = header(specs, metadata).map_err(|message| FileError::invalid(path, message))?;
        let data: u64 = specs.iter().filter_map(TensorSpec::len).sum();
        let mut file = AtomicFile::create(path)?;
        let end = data.saturating_add(header.len() as u64);
        file.expect_bytes(end);
        file.put(&header)?;
        Ok(TensorFileWriter { file, end })
    }

    /// Appends bytes of the current tensor, or of several; more than the header announced is an error.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.end - self.file.written() {
            return Err(self.mismatch("more"));
        }
        self.file.put(bytes)
    }

    /// Lets a producer append one tensor and checks that it wrote as many bytes as its spec says.
    fn tensor(&mut self, tensor: TensorOut<'_>) -> Result<()> {
        let start = self.file.written();
        (tensor.producer)(&mut self.file).map_err(|e| self.file.error("write", e))?;
        let (wrote, needed) = (self.file.written() - start, tensor.spec.len().unwrap_or_default());
        if wrote == needed {
            return Ok(());
        }
        let spec = tensor.spec;
        Err(FileError::invalid(
            self.file.path(),
            format!(
                "tensor `{}` ({} {:?}) has {needed} bytes, {wrote} were written",
                spec.name, spec.dtype, spec.dims
            ),
        ))
    }

    /// Completes the file; fewer bytes than announced are an error.
    pub fn finish(self) -> Result<Written> {
        if self.file.written() < self.end {
            return Err(self.mismatch("fewer"));
        }
        self.file.finish()
    }

    fn mismatch(&self, how: &str) -> FileError {
        FileError::invalid(
            self.file.path(),
            format!("{how} tensor bytes were written than its header announces"),
        )
    }
}

/// Length, JSON and padding.
fn header(specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> std::result::Result<Vec<u8>, String> {
    let quoted = |text: &str| Value::from(text).to_string();
    let mut fields = Vec::with_capacity(specs.len() + 1);
    if !metadata.is_empty() {
        fields.push(format!("\"__metadata__\":{}", json!(metadata)));
    }
    let mut names: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two tensors have the name `{}`", twice[0]));
    }
    if names.contains(&"__metadata__") {
        return Err("a tensor cannot have the name `__metadata__`".into());
    }
    let mut offset = 0u64;
    for spec in specs {
        let end = spec.len().and_then(|len| offset.checked_add(len)).ok_or_else(|| {
            format!("tensor `{}` ({} {:?}) has no size in whole bytes", spec.name, spec.dtype, spec.dims)
        })?;
        let info =
            json!({"dtype": spec.dtype.to_string(), "shape": spec.dims, "data_offsets": [offset, end]});
        fields.push(format!("{}:{info}", quoted(&spec.name)));
        offset = end;
    }
    let mut json = format!("{{{}}}", fields.join(",")).into_bytes();
    json.resize((json.len() + 8).next_multiple_of(DATA_ALIGNMENT) - 8, b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

/// Descending alignment, then name.
fn in_file_order(tensors: &mut [TensorOut<'_>]) {
    tensors.sort_by(|a, b| {
        let key = |t: &TensorSpec| std::cmp::Reverse(t.dtype.bitsize());
        key(&a.spec).cmp(&key(&b.spec)).then_with(|| a.spec.name.cmp(&b.spec.name))
    });
}

/// Writes one safetensors file, atomically. Producers are called one after the other, in file order.
pub fn write_safetensors(
    path: &Path,
    mut tensors: Vec<TensorOut<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<Written> {
    in_file_order(&mut tensors);
    let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.spec.clone()).collect();
    let mut file = TensorFileWriter::create(path, &specs, metadata)?;
    for tensor in tensors {
        file.tensor(tensor)?;
    }
    file.finish()
}

/// Writes a model into a folder: `model.safetensors`, or, where that would exceed `max_shard` bytes,
/// `model-00001-of-0000N.safetensors` and `model.safetensors.index.json`. Tensors fill shards in the given order; one
/// that is larger than a shard has a shard of its own. Every file is atomic; for all or nothing give the folder of an
/// [`crate::files::AtomicDir`].
pub fn write_sharded(
    dir: &Path,
    tensors: Vec<TensorOut<'_>>,
    metadata: &BTreeMap<String, String>,
    max_shard: u64,
) -> Result<()> {
    let mut shards: Vec<(Vec<TensorOut<'_>>, u64)> = Vec::new();
    let mut total = 0u64;
    for tensor in tensors {
        let len = tensor.spec.len().unwrap_or_default();
        total = total.saturating_add(len);
        match shards.last_mut() {
            Some((shard, bytes)) if bytes.saturating_add(len) <= max_shard => {
                shard.push(tensor);
                *bytes += len;
            }
            _ => shards.push((vec![tensor], len)),
        }
    }
    if shards.len() <= 1 {
        let all = shards.pop().map(|(shard, _)| shard).unwrap_or_default();
        return write_safetensors(&dir.join("model.safetensors"), all, metadata).map(|_| ());
    }
    let count = shards.len();
    let mut weight_map: BTreeMap<String, String> = BTreeMap::new();
    for (i, (shard, _)) in shards.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        for tensor in &shard {
            if weight_map.insert(tensor.spec.name.clone(), name.clone()).is_some() {
                return Err(FileError::invalid(
                    dir,
                    format!("two tensors have the name `{}`", tensor.spec.name),
                ));
            }
        }
        write_safetensors(&dir.join(&name), shard, metadata)?;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_json(&dir.join("model.safetensors.index.json"), &index).map(|_| ())
}

/// Writes `logits`, f32 `[N, T, V]`, piece by piece: the file may be larger than memory.
#[derive(Debug)]
pub struct LogitsWriter<'a> {
    file: TensorFileWriter,
    /// Tensors that lie behind the logits, in file order.
    behind: Vec<TensorOut<'a>>,
    left: u64,
}

impl<'a> LogitsWriter<'a> {
    /// Starts a file with `logits` of shape `dims` and the `extra` tensors.
    pub fn create(path: &Path, dims: [usize; 3], mut extra: Vec<TensorOut<'a>>) -> Result<LogitsWriter<'a>> {
        in_file_order(&mut extra);
        let behind = extra.split_off(extra.partition_point(|t| t.spec.dtype.bitsize() >= 32));
        let logits = TensorSpec::new("logits", FileDType::F32, dims);
        let left = logits.len().unwrap_or_default() / 4;
        let mut specs: Vec<TensorSpec> = extra.iter().map(|t| t.spec.clone()).collect();
        specs.push(logits);
        specs.extend(behind.iter().map(|t| t.spec.clone()));
        let mut file = TensorFileWriter::create(path, &specs, &BTreeMap::new())?;
        for tensor in extra {
            file.tensor(tensor)?;
        }
        Ok(LogitsWriter { file, behind, left })
    }

    /// Appends logits, row-major: any number of them at a time.
    pub fn push(&mut self, logits: &[f32]) -> Result<()> {
        let count = logits.len() as u64;
        if count > self.left {
            let (path, left) = (self.file.file.path(), self.left);
            return Err(FileError::invalid(
                path,
                format!("{count} logits were given where {left} are left to write"),
            ));
        }
        self.left -= count;
        self.file.put(bytemuck::cast_slice(logits))
    }

    /// Completes the file; an error if logits are missing.
    pub fn finish(mut self) -> Result<Written> {
        if self.left > 0 {
            let (path, left) = (self.file.file.path(), self.left);
            return Err(FileError::invalid(path, format!("{left} logits were never given")));
        }
        for tensor in self.behind {
            self.file.tensor(tensor)?;
        }
        self.file.finish()
    }
}
