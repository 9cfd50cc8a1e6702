//! Kernels from a folder that `kfc compile --target cuda:ARCH|triton:ARCH --emit DIR` wrote: what a machine without
//! compilers runs. A kernel is known by the hash of its source, so that one of another job, or of another version of kfc, is
//! never taken for it.

use super::CudaError;
use super::driver::LaunchShape;
use crate::edited::Compiled;
use crate::files;
use crate::kernel_cache::hash;
use kfc_kernels::cuda::Arch;
use kfc_kernels::tile::cuda::{self, TensorMap};
use kfc_kernels::tile::lower::Kernel;
use kfc_kernels::tile::triton;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What `kfc compile` says of a source in `NAME.json`.
pub fn source_hash(text: &str) -> String {
    hash(text.as_bytes())
}

/// Largest binary of a kernel.
const MOST: u64 = 1 << 28;

/// The kernels of a folder.
pub(super) struct Folder {
    path: PathBuf,
    arch: Arch,
    is_triton: bool,
    /// By the hash of the source: what stands about it, and the file without its ending.
    kernels: HashMap<String, (Value, PathBuf)>,
}

/// The binary of a kernel, and how it is launched.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) cubin: Vec<u8>,
    pub(super) shape: LaunchShape,
    /// Null pointers that it takes after its parameters: Triton's scratch memory.
    pub(super) hidden: usize,
    /// Matrices that it copies boxes of, each a parameter; an edited kernel may take none of them.
    pub(super) maps: Vec<TensorMap>,
    /// Where it comes from, if people wrote it.
    pub(super) edited: Option<String>,
}

impl Found {
    /// A kernel that was compiled here; `from` says of what.
    pub(super) fn of_edit(compiled: Compiled, from: String) -> Found {
        let Compiled { cubin, grid, threads, dynamic_shared, hidden, maps, .. } = compiled;
        let shape = LaunchShape { grid, threads, dynamic_shared };
        Found { cubin, shape, hidden, maps, edited: Some(from) }
    }
}

impl Folder {
    /// Reads what is in the folder, which must be compiled for `arch`.
    ///
    /// # Errors
    /// If it is not such a folder, or of another architecture.
    pub(super) fn open(path: &Path, arch: Arch) -> Result<Folder, CudaError> {
        let wrong = |what: String| CudaError::Source(format!("--kernels {}: {what}", path.display()));
        let plan = files::read_json(&path.join("plan.json")).map_err(|e| {
            wrong(format!(
                "{e}; name a folder that `kfc compile JOB.toml --target cuda:{arch} --emit DIR` wrote"
            ))
        })?;
        let target = plan["target"].as_str().unwrap_or_default();
        let is_triton = target == format!("triton:sm_{}", arch.number());
        if !is_triton && target != format!("cuda:{arch}") {
            return Err(wrong(format!(
                "its kernels are for {target}, the device needs cuda:{arch} or triton:sm_{}",
                arch.number()
            )));
        }
        let folder = path.join("kernels");
        let entries = std::fs::read_dir(&folder).map_err(|e| wrong(format!("kernels: {e}")))?;
        let mut kernels = HashMap::new();
        for file in entries.filter_map(Result::ok).map(|e| e.path()) {
            if file.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let about = files::read_json(&file).map_err(|e| wrong(e.to_string()))?;
            if let Some(hash) = about["source_hash"].as_str() {
                kernels.insert(hash.to_string(), (about.clone(), file.with_extension("")));
            }
        }
        Ok(Folder { path: path.into(), arch, is_triton, kernels })
    }

    /// The binary of a kernel.
    ///
    /// # Errors
    /// If it is not there.
    pub(super) fn find(&self, kernel: &Kernel) -> Result<Found, CudaError> {
        let wrong = |what: &str| {
            CudaError::Source(format!(
                "--kernels {}: {what} {}; compile this job again with this version of kfc: kfc compile JOB.toml --target \
                 … --emit DIR, with the same --set and --mem-budget",
                self.path.display(),
                kernel.name
            ))
        };
        let (text, maps) = match self.is_triton {
            true => (triton::print(&kernel.program), Vec::new()),
            false => {
                let source = cuda::print(&kernel.program, self.arch);
                let source = source.map_err(|e| CudaError::Source(e.to_string()))?;
                (source.text, source.maps)
            }
        };
        let (about, file) =
            self.kernels.get(&source_hash(&text)).ok_or_else(|| wrong("there is no kernel"))?;
        let number = |name: &str| about[name].as_u64().map(|n| n as usize);
        let shape = || {
            let grid: Vec<usize> =
                about["grid"].as_array()?.iter().filter_map(Value::as_u64).map(|n| n as usize).collect();
            let grid = grid.try_into().ok()?;
            Some(match self.is_triton {
                true => LaunchShape {
                    grid,
                    threads: number("warps")? * 32,
                    dynamic_shared: number("shared_bytes")?,
                },
                false => LaunchShape {
                    grid,
                    threads: number("threads")?,
                    dynamic_shared: number("dynamic_shared_bytes")?,
                },
            })
        };
        let shape = shape().ok_or_else(|| wrong("grid, threads or shared memory are missing of"))?;
        let cubin = files::read_limited(&file.with_extension("cubin"), MOST)
            .map_err(|e| wrong(&format!("{e}: no binary of")))?;
        let from = |file: &str| format!("--kernels {}: {} ({file})", self.path.display(), kernel.name);
        let edited = about["edited"].as_str().map(from);
        let hidden = if self.is_triton { crate::triton::HIDDEN } else { 0 };
        Ok(Found { cubin, shape, hidden, maps, edited })
    }
}
