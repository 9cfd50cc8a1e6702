//! CUDA kernels compiled by NVRTC, or found in the user's cache: a machine that has compiled them before needs no compiler.

use crate::kernel_cache;
use kfc_kernels::cuda::{self, Arch, Nvrtc, NvrtcError, SassCounts};
use kfc_kernels::tile::cuda::Source;
use serde_json::{Value, json};

/// A compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// Registers of a thread.
    pub registers: u64,
    /// Bytes that a thread spills from registers to memory and reads back.
    pub spill_bytes: u64,
    /// Bytes of a thread's stack.
    pub stack_bytes: u64,
    /// Bytes of a block's shared memory, with those that are asked for at launch.
    pub shared_bytes: u64,
    /// Whether it was in the cache.
    pub found: bool,
}

impl Object {
    fn from_json(v: &Value, cubin: Vec<u8>) -> Option<Object> {
        let number = |name: &str| v[name].as_u64();
        Some(Object {
            cubin,
            registers: number("registers")?,
            spill_bytes: number("spill_bytes")?,
            stack_bytes: number("stack_bytes")?,
            shared_bytes: number("shared_bytes")?,
            found: true,
        })
    }

    /// Everything but the binary.
    pub fn to_json(&self) -> Value {
        json!({
            "registers": self.registers, "spill_bytes": self.spill_bytes, "stack_bytes": self.stack_bytes,
            "shared_bytes": self.shared_bytes,
        })
    }

    /// Instructions of the kernel `entry` in machine code; `None` where there is no `cuobjdump` to see them.
    pub fn sass(&self, entry: &str) -> Option<SassCounts> {
        Nvrtc::load().ok()?.sass_counts(&self.cubin)?.remove(entry)
    }
}

/// Compiles a source whose kernel is `entry`, or finds it. What another version of the compiler made than the one that is
/// there is made again.
///
/// # Errors
/// If it is not in the cache, and NVRTC cannot be loaded or rejects it.
pub fn compile(source: &Source, entry: &str, arch: Arch) -> Result<Object, NvrtcError> {
    let key = cuda::cache_key(source, arch);
    let nvrtc = Nvrtc::load();
    let version = nvrtc.as_ref().ok().map(Nvrtc::version);
    if let Some((cubin, figures)) = kernel_cache::load(&key)
        && version.as_deref().is_none_or(|v| figures["compiler"] == v)
        && let Some(object) = Object::from_json(&figures, cubin)
    {
        return Ok(object);
    }
    let compiled = nvrtc?.compile(&source.text, arch)?;
    let report = compiled.reports.into_iter().find(|r| r.kernel == entry).unwrap_or_default();
    let object = Object {
        cubin: compiled.cubin,
        registers: report.registers as u64,
        spill_bytes: report.spill_bytes as u64,
        stack_bytes: report.stack_bytes as u64,
        shared_bytes: (report.shared_bytes + source.dynamic_shared) as u64,
        found: false,
    };
    let mut figures = object.to_json();
    figures["compiler"] = json!(version);
    figures["target"] = json!(arch.name());
    kernel_cache::keep(&key, &object.cubin, &figures);
    Ok(object)
}
