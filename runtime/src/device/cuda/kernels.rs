//! The binaries of plans' kernels, loaded into the driver.

use super::CudaError;
use super::driver::{Function, Gpu, LaunchShape};
use super::folder::{Folder, Found};
use crate::nvrtc;
use kfc_kernels::tile::cuda;
use kfc_kernels::tile::lower::Kernel;
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// A kernel in the driver.
pub(super) struct Loaded {
    pub(super) function: Function,
    /// Null pointers after its parameters.
    pub(super) hidden: usize,
}

/// Loads kernels: from `folder`, or else compiled here, several at a time, or found in the cache.
///
/// # Errors
/// If one is not in the folder, cannot be compiled, or does not fit the device.
pub(super) fn load(
    gpu: &Arc<Gpu>,
    kernels: &[Kernel],
    folder: Option<&Path>,
) -> Result<Vec<Loaded>, CudaError> {
    let folder = folder.map(|path| Folder::open(path, gpu.arch)).transpose()?;
    let binary = |kernel: &Kernel| match &folder {
        Some(folder) => folder.find(kernel),
        None => compile(gpu, kernel),
    };
    let found = kernels.par_iter().map(binary).collect::<Result<Vec<Found>, CudaError>>()?;
    kernels.iter().zip(found).map(|(kernel, found)| place(gpu, kernel, &found)).collect()
}

fn compile(gpu: &Gpu, kernel: &Kernel) -> Result<Found, CudaError> {
    let failed = |e: String| CudaError::Kernel { kernel: kernel.name.clone(), what: e };
    let source = cuda::print(&kernel.program).map_err(|e| failed(e.to_string()))?;
    // A missing compiler is said as it is: it concerns no kernel.
    let object = nvrtc::compile(&source, gpu.arch).map_err(|e| CudaError::Source(e.to_string()))?;
    let shape =
        LaunchShape { grid: source.grid, threads: source.threads, dynamic_shared: source.dynamic_shared };
    Ok(Found { cubin: object.cubin, shape, hidden: 0 })
}

fn place(gpu: &Arc<Gpu>, kernel: &Kernel, found: &Found) -> Result<Loaded, CudaError> {
    let function = Function::load(gpu, &found.cubin, &kernel.name, &kernel.program.name, found.shape)?;
    let expected = kernel.program.params.len() + found.hidden;
    if function.parameters != expected {
        let what =
            format!("its binary takes {} parameters, its launch gives {expected}", function.parameters);
        return Err(CudaError::Kernel { kernel: kernel.name.clone(), what });
    }
    Ok(Loaded { function, hidden: found.hidden })
}
