//! CUDA kernels compiled by NVRTC, or found in the user's cache: a machine that has compiled them before needs no compiler.

use crate::kernel_cache;
use kfc_kernels::cuda::{self, Arch, CompileError, Nvrtc};
use kfc_kernels::tile::cuda::Source;
use serde_json::json;

/// A compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// Whether it was in the cache.
    pub found: bool,
}

/// Compiles a source, or finds it. A kernel of another version of the compiler than the one that is there is made again.
///
/// # Errors
/// If it is not in the cache, and NVRTC cannot be loaded or rejects it.
pub fn compile(source: &Source, arch: Arch) -> Result<Object, CompileError> {
    let key = cuda::cache_key(source, arch);
    let nvrtc = Nvrtc::load();
    let version = nvrtc.as_ref().ok().map(Nvrtc::version);
    if let Some((cubin, figures)) = kernel_cache::load(&key)
        && version.as_deref().is_none_or(|v| figures["compiler"] == v)
    {
        return Ok(Object { cubin, found: true });
    }
    let cubin = nvrtc?.compile(&source.text, arch)?.cubin;
    kernel_cache::keep(&key, &cubin, &json!({"compiler": version, "target": arch.name()}));
    Ok(Object { cubin, found: false })
}
