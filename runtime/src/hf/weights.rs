//! Reading weights: safetensors files and folders of them, mapped into memory.
//!
//! A tensor is a slice of the mapping. Data is little-endian as in the format, and so are the hosts kfc runs on. Files
//! must not be changed in place while they are mapped; every writer of kfc renames, which leaves a mapping intact.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytemuck::AnyBitPattern;
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::Value;

use super::header::{Entry, FileDType, Header};
use crate::files::{FileError, Result, read_json};
use crate::mapped::MappedFile;

/// Bytes of one piece of a parallel scan.
const SCAN: usize = 4 << 20;

/// One tensor, as it lies in its file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Element type in the file; [`super::dtype_of`] gives kfc's.
    pub dtype: FileDType,
    /// Shape, row-major; empty for a scalar.
    pub dims: &'a [usize],
    /// The elements, little-endian. They are mapped: what is looked at becomes part of what this process holds in memory, for as
    /// long as the file is open. [`TensorView::read`] is for what is looked at once.
    pub bytes: &'a [u8],
    /// The file it lies in.
    pub file: &'a Path,
    /// The same, open, and where the elements begin.
    open: &'a File,
    start: usize,
}

impl<'a> TensorView<'a> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether the data can be read in place as elements; safetensors does not promise it. If not, copy.
    pub fn aligned(&self) -> bool {
        let size = (self.dtype.bitsize() / 8).max(1);
        (self.bytes.as_ptr() as usize).is_multiple_of(size)
    }

    /// Copies bytes from `at` on, read from the file and not through the mapping.
    ///
    /// # Errors
    /// If the tensor has not so many, or the file cannot be read.
    pub fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        if self.bytes.len().checked_sub(at).is_none_or(|left| left < out.len()) {
            return Err(self.error(format!(
                "has {} bytes, {} from byte {at} on are wanted",
                self.bytes.len(),
                out.len()
            )));
        }
        self.open
            .read_exact_at(out, (self.start + at) as u64)
            .map_err(|e| FileError::io("read", self.file, e))
    }

    /// The elements in place as f32; `None` if they are of another type or misaligned.
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        self.slice(FileDType::F32)
    }

    /// The elements in place as bf16; `None` if they are of another type or misaligned.
    pub fn as_bf16(&self) -> Option<&'a [bf16]> {
        self.slice(FileDType::BF16)
    }

    /// The elements in place as f16; `None` if they are of another type or misaligned.
    pub fn as_f16(&self) -> Option<&'a [f16]> {
        self.slice(FileDType::F16)
    }

    fn slice<T: AnyBitPattern>(&self, dtype: FileDType) -> Option<&'a [T]> {
        if self.dtype != dtype {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes).ok()
    }

    /// A copy as f32, exact for f32, bf16 and f16, aligned or not; an error for other types.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype {
            FileDType::F32 => Ok(self.decode(f32::from_le_bytes)),
            FileDType::BF16 => Ok(self.decode(|b| bf16::from_le_bytes(b).to_f32())),
            FileDType::F16 => Ok(self.decode(|b| f16::from_le_bytes(b).to_f32())),
            _ => Err(self.wrong_dtype("F32, BF16 or F16")),
        }
    }

    /// A copy as i64 (token ids, labels): from I64, I32, U8, I16, U16, U32 and U64; an error for other types and for
    /// values that do not fit.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        match self.dtype {
            FileDType::I64 => Ok(self.decode(i64::from_le_bytes)),
            FileDType::I32 => Ok(self.decode(|b| i32::from_le_bytes(b).into())),
            FileDType::I16 => Ok(self.decode(|b| i16::from_le_bytes(b).into())),
            FileDType::U8 => Ok(self.decode(|b: [u8; 1]| b[0].into())),
            FileDType::U16 => Ok(self.decode(|b| u16::from_le_bytes(b).into())),
            FileDType::U32 => Ok(self.decode(|b| u32::from_le_bytes(b).into())),
            FileDType::U64 => self
                .decode(u64::from_le_bytes)
                .into_iter()
                .map(|x| {
                    i64::try_from(x).map_err(|_| self.error(format!("{x} is too large for a signed integer")))
                })
                .collect(),
            _ => Err(self.wrong_dtype("an integer type")),
        }
    }

    fn decode<const N: usize, T>(&self, one: impl Fn([u8; N]) -> T) -> Vec<T> {
        self.bytes.as_chunks::<N>().0.iter().map(|b| one(*b)).collect()
    }

    /// The view itself if its type is one that kfc computes weights with.
    pub fn expect_float(self) -> Result<Self> {
        match self.dtype {
            FileDType::F32 | FileDType::BF16 | FileDType::F16 => Ok(self),
            _ => Err(self.wrong_dtype("F32, BF16 or F16 (convert the model to BF16 first)")),
        }
    }

    /// The view itself if its shape is `dims`.
    pub fn expect_dims(self, dims: &[usize]) -> Result<Self> {
        if self.dims == dims {
            return Ok(self);
        }
        Err(self.error(format!(
            "has shape {:?}, {dims:?} is needed; do config and weights belong together?",
            self.dims
        )))
    }

    fn wrong_dtype(&self, wanted: &str) -> FileError {
        self.error(format!("is {}, kfc needs {wanted}", self.dtype))
    }

    fn error(&self, message: String) -> FileError {
        FileError::invalid(self.file, format!("tensor `{}` {message}", self.name))
    }

    /// Index of the first element of `self.bytes[from..to]` that is NaN or infinite. Both bounds are multiples of the
    /// element size; other than float types have none.
    fn non_finite_in(&self, from: usize, to: usize) -> Option<usize> {
        let bytes = &self.bytes[from..to];
        match self.dtype {
            FileDType::F32 => {
                first(bytes, |b| u32::from_le_bytes(b) & 0x7F80_0000 == 0x7F80_0000).map(|i| from / 4 + i)
            }
            FileDType::BF16 => {
                first(bytes, |b| u16::from_le_bytes(b) & 0x7F80 == 0x7F80).map(|i| from / 2 + i)
            }
            FileDType::F16 => {
                first(bytes, |b| u16::from_le_bytes(b) & 0x7C00 == 0x7C00).map(|i| from / 2 + i)
            }
            _ => None,
        }
    }

    /// Index of the first NaN or infinity, in parallel.
    fn non_finite(&self) -> Option<usize> {
        let pieces = self.bytes.len().div_ceil(SCAN);
        (0..pieces)
            .into_par_iter()
            .find_map_first(|p| self.non_finite_in(p * SCAN, ((p + 1) * SCAN).min(self.bytes.len())))
    }
}

/// Position of the first element that is bad. Whole blocks are judged without a branch, so that clean data is scanned at
/// the speed of memory.
fn first<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let (elements, _) = bytes.as_chunks::<N>();
    let block = elements.chunks(BLOCK).position(|block| block.iter().fold(false, |any, b| any | bad(*b)))?;
    let start = block * BLOCK;
    elements[start..].iter().position(|b| bad(*b)).map(|i| start + i)
}

/// One safetensors file, mapped.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    file: File,
    map: MappedFile,
    header: Header,
}

impl WeightFile {
    /// Maps a file and checks its header against its length.
    pub fn open(path: &Path) -> Result<WeightFile> {
        let file = File::open(path).map_err(|e| FileError::io("open", path, e))?;
        let kind = file.metadata().map_err(|e| FileError::io("read", path, e))?;
        if !kind.is_file() {
            return Err(FileError::invalid(path, "is no regular file; a safetensors file is needed"));
        }
        if kind.len() == 0 {
            return Err(FileError::invalid(path, "is empty; download or copy the file again"));
        }
        let map = MappedFile::new(&file, path).map_err(|e| FileError::io("map", path, e))?;
        let header = Header::from_file_bytes(&map).map_err(|message| FileError::invalid(path, message))?;
        Ok(WeightFile { path: path.to_path_buf(), file, map, header })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Free text that the writer left.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// A tensor of any type, if there is one of that name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, entry) = self.header.tensors.get_key_value(name)?;
        Some(self.view(name, entry))
    }

    /// A tensor of any type; its absence is an error that lists the names there are.
    pub fn expect(&self, name: &str) -> Result<TensorView<'_>> {
        self.get(name).ok_or_else(|| missing(&self.path, name, self.names()))
    }

    fn view<'a>(&'a self, name: &'a str, entry: &'a Entry) -> TensorView<'a> {
        let bytes = self.map.get(entry.start..entry.start + entry.len).unwrap_or_default();
        let (file, open) = (self.path.as_path(), &self.file);
        TensorView { name, dtype: entry.dtype, dims: &entry.dims, bytes, file, open, start: entry.start }
    }

    /// Names the first NaN or infinity of the file, by name order, with element index.
    pub fn find_non_finite(&self) -> Option<String> {
        self.header.tensors.iter().find_map(|(name, entry)| report_non_finite(&self.view(name, entry)))
    }
}

/// The weights of a model folder: one `model.safetensors`, or the shards that `model.safetensors.index.json` names.
#[derive(Debug)]
pub struct Weights {
    dir: PathBuf,
    files: Vec<WeightFile>,
    /// Tensor name to index into `files`.
    place: BTreeMap<String, usize>,
}

impl Weights {
    /// Opens all files of a model folder. Every missing, truncated or contradictory file is an error here, not later.
    pub fn open(dir: &Path) -> Result<Weights> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        match (index.exists(), single.exists()) {
            (true, _) => Weights::open_sharded(dir, &index),
            (false, true) => Weights::open_file(&single),
            (false, false) => Err(FileError::invalid(dir, no_weights(dir))),
        }
    }

    /// Opens one safetensors file of any name as the weights.
    pub fn open_file(path: &Path) -> Result<Weights> {
        let file = WeightFile::open(path)?;
        let place = file.names().map(|name| (name.to_string(), 0)).collect();
        Ok(Weights {
            dir: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            files: vec![file],
            place,
        })
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Weights> {
        let map = weight_map(index)?;
        let shards: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let absent: Vec<&str> = shards.iter().copied().filter(|shard| !dir.join(shard).exists()).collect();
        if let Some(first) = absent.first() {
            return Err(FileError::invalid(
                dir.join(first),
                format!(
                    "missing: {} of the {} shards that {} names are not there; download the rest of the model",
                    absent.len(),
                    shards.len(),
                    index.display()
                ),
            ));
        }
        let files =
            shards.iter().map(|shard| WeightFile::open(&dir.join(shard))).collect::<Result<Vec<_>>>()?;
        let number: BTreeMap<&str, usize> = shards.iter().enumerate().map(|(i, shard)| (*shard, i)).collect();
        let mut place = BTreeMap::new();
        for (name, shard) in &map {
            let i = number.get(shard.as_str()).copied().unwrap_or_default();
            if files[i].get(name).is_none() {
                return Err(FileError::invalid(
                    index,
                    format!(
                        "says that tensor `{name}` lies in {shard}, but it does not; index and shards are not of \
                        the same model, download both again"
                    ),
                ));
            }
            place.insert(name.clone(), i);
        }
        Ok(Weights { dir: dir.to_path_buf(), files, place })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files, sorted by name.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// A tensor of any type, if there is one of that name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.files.get(*self.place.get(name)?)?.get(name)
    }

    /// A weight: a tensor that has to be there, in f32, bf16 or f16, with this shape.
    pub fn require(&self, name: &str, dims: &[usize]) -> Result<TensorView<'_>> {
        let Some(view) = self.get(name) else { return Err(missing(&self.dir, name, self.names())) };
        view.expect_float()?.expect_dims(dims)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.names().filter_map(|name| self.get(name)).map(|view| view.bytes.len() as u64).sum()
    }

    /// Names the first NaN or infinity, by name order, with element index and file. Scans in parallel; the answer does
    /// not depend on the number of threads.
    pub fn find_non_finite(&self) -> Option<String> {
        self.names().filter_map(|name| self.get(name)).find_map(|view| report_non_finite(&view))
    }
}

fn report_non_finite(view: &TensorView<'_>) -> Option<String> {
    let index = view.non_finite()?;
    let mut rest = index;
    let mut coordinates: Vec<usize> = view
        .dims
        .iter()
        .rev()
        .map(|&d| {
            let c = rest % d;
            rest /= d;
            c
        })
        .collect();
    coordinates.reverse();
    let file = view.file.display();
    Some(format!(
        "tensor `{}` is not finite (NaN or infinity) at {coordinates:?} (element {index}) in {file}",
        view.name
    ))
}

/// Tensor name to shard file name.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_json(index)?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(FileError::invalid(
            index,
            "has no object `weight_map`; it is no index of sharded weights",
        ));
    };
    if map.is_empty() {
        return Err(FileError::invalid(index, "its `weight_map` is empty; download the file again"));
    }
    map.iter()
        .map(|(name, shard)| match shard.as_str() {
            // A shard lies beside its index: a path would let a model read files elsewhere.
            Some(shard) if is_file_name(shard) => Ok((name.clone(), shard.to_string())),
            _ => Err(FileError::invalid(
                index,
                format!("the shard of `{name}` is {shard}, which is no file name"),
            )),
        })
        .collect()
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0'])
}

fn missing<'a>(place: &Path, name: &str, names: impl Iterator<Item = &'a str>) -> FileError {
    let names: Vec<&str> = names.collect();
    let last = |s: &str| s.rsplit('.').take(2).map(str::to_string).collect::<Vec<_>>();
    let similar = names.iter().filter(|n| last(n) == last(name));
    let shown: Vec<String> = similar.chain(&names).take(3).map(|n| format!("`{n}`")).collect();
    let shown = if shown.is_empty() { "none".into() } else { shown.join(", ") };
    FileError::invalid(
        place,
        format!("has no tensor `{name}`; it has {} tensors, such as {shown}", names.len()),
    )
}

fn no_weights(dir: &Path) -> String {
    let has = |ending: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.file_name()).any(|name| name.to_string_lossy().ends_with(ending))
    };
    let base = "has neither model.safetensors nor model.safetensors.index.json";
    if has(".bin") || has(".pth") {
        format!(
            "{base}, only PyTorch files; convert them with `save_pretrained(DIR, safe_serialization=True)`"
        )
    } else {
        format!("{base}; give the folder of a downloaded model")
    }
}
