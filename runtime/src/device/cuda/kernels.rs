//! The binaries of plans' kernels, loaded into the driver.

use super::CudaError;
use super::driver::{Function, Gpu, LaunchShape, Stream};
use super::folder::{Folder, Found};
use super::library::LibraryProduct;
use super::maps::{self, Encoded};
use crate::edited::{self, Edit};
use crate::error::RunError;
use crate::nvrtc;
use crate::triton::{self, Compiler, HIDDEN, Python};
use cudarc::driver::sys::CUdeviceptr;
use kfc_kernels::tile::TileError;
use kfc_kernels::tile::cuda::{self, TensorMap};
use kfc_kernels::tile::header::{Language, STAGES};
use kfc_kernels::tile::lower::Kernel;
use kfc_kernels::tile::plain::{Algorithm, Plain};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What a launch starts.
enum Started {
    Function {
        function: Function,
        /// Null pointers after its parameters.
        hidden: usize,
        /// Tensor maps between them.
        maps: Vec<TensorMap>,
    },
    Library(LibraryProduct),
}

/// A kernel in the driver, or what the library does in its place.
pub(crate) struct Loaded {
    started: Started,
    /// What messages call it.
    pub(super) name: String,
    /// Where it comes from, if people wrote it.
    pub(super) edited: Option<String>,
}

/// Most parameters of a kernel: a launch carries 4 KiB of them.
const MOST_PARAMETERS: usize = 512;

/// What hidden parameters are given.
const NULL: CUdeviceptr = 0;

impl Loaded {
    /// Starts it.
    ///
    /// # Errors
    /// If the driver refuses the launch.
    ///
    /// # Safety
    /// The arguments are as many as its program has parameters, point to buffers of their sizes, and the memory lives until the
    /// stream has passed this.
    pub(super) unsafe fn launch(&self, stream: &Stream, args: &[CUdeviceptr]) -> Result<(), CudaError> {
        let (function, hidden, maps) = match &self.started {
            Started::Function { function, hidden, maps } => (function, *hidden, maps),
            // SAFETY: see the function's own condition.
            Started::Library(product) => return unsafe { product.launch(stream, args) },
        };
        let mut pointers = [std::ptr::null_mut::<c_void>(); MOST_PARAMETERS];
        // The driver copies parameters when it is called, and a graph keeps them: maps may be made for each launch.
        let encode = |m: &TensorMap| maps::encode(m, args[m.param]);
        let maps = maps.iter().map(encode).collect::<Result<Vec<Encoded>, CudaError>>()?;
        let given = args.iter().map(|a| std::ptr::from_ref(a).cast_mut().cast());
        let given = given.chain(maps.iter().map(|m| std::ptr::from_ref(m).cast_mut().cast()));
        let nulls = std::iter::repeat_n(std::ptr::from_ref(&NULL).cast_mut().cast(), hidden);
        pointers.iter_mut().zip(given.chain(nulls)).for_each(|(p, a)| *p = a);
        let count = args.len() + maps.len() + hidden;
        // SAFETY: the binary has as many parameters (`place`); see the function's own condition.
        unsafe { stream.launch(function, &mut pointers[..count]) }
    }
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
    load_others(gpu, kernels, folder, &BTreeMap::new(), &Python::default())
}

/// [`load`], but for the kernels of `edits`, which come from their files.
///
/// # Errors
/// As there; and if a file cannot be read, or is no such kernel.
pub(super) fn load_edited(
    gpu: &Arc<Gpu>,
    kernels: &[Kernel],
    folder: Option<&Path>,
    edits: &[Edit],
    python: &Python,
) -> Result<Vec<Loaded>, RunError> {
    let sources = edited::read(edits, kernels)?;
    let mut compiler = Compiler::new(python.clone());
    let mut edited: BTreeMap<usize, Found> = BTreeMap::new();
    for source in &sources {
        let compiled = source.compile(&kernels[source.kernel].program, gpu.arch, &mut compiler)?;
        edited.insert(source.kernel, Found::of_edit(compiled, source.edit.to_string()));
    }
    Ok(load_others(gpu, kernels, folder, &edited, python)?)
}

/// Loads kernels, those in `edited` from there.
fn load_others(
    gpu: &Arc<Gpu>,
    kernels: &[Kernel],
    folder: Option<&Path>,
    edited: &BTreeMap<usize, Found>,
    python: &Python,
) -> Result<Vec<Loaded>, CudaError> {
    let folder = folder.map(|path| Folder::open(path, gpu.arch)).transpose()?;
    let triton = Triton::new(python);
    let binary = |(k, kernel): (usize, &Kernel)| match (edited.get(&k), &folder) {
        (Some(found), _) => Ok(Made::Binary(found.clone())),
        (None, Some(folder)) => folder.find(kernel).map(Made::Binary),
        (None, None) => compile(gpu, kernel, &triton).map(|c| c.made),
    };
    let found = kernels.par_iter().enumerate().map(binary).collect::<Result<Vec<Made>, CudaError>>()?;
    let place = |(kernel, made): (&Kernel, &Made)| place(gpu, kernel, made);
    kernels.iter().zip(&found).map(place).collect()
}

/// What a kernel is made as.
enum Made {
    Binary(Found),
    /// The library does this product.
    Library(Plain, Algorithm),
}

/// A kernel compiled, or found in the cache, and what the compiler said of it; not in the driver yet.
pub(crate) struct Compiled {
    made: Made,
    /// Registers of a thread.
    pub(crate) registers: u64,
    /// Bytes of a block's shared memory.
    pub(crate) shared_bytes: u64,
    /// Bytes that a thread spills.
    pub(super) spill_bytes: u64,
    /// Threads of a block.
    pub(super) threads: usize,
}

impl Compiled {
    /// What tells it from others.
    pub(crate) fn binary(&self) -> Vec<u8> {
        match &self.made {
            Made::Binary(found) => found.cubin.clone(),
            Made::Library(_, algorithm) => algorithm.to_string().into_bytes(),
        }
    }
}

/// Triton's compiler for kernels of several threads, one after the other; Python is started when it is first needed.
pub(crate) struct Triton(Mutex<Compiler>);

impl Triton {
    /// The one of this Python.
    pub(crate) fn new(python: &Python) -> Triton {
        Triton(Mutex::new(Compiler::new(python.clone())))
    }

    /// Why there is none, if it was needed.
    pub(crate) fn missing(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).missing().map(String::from)
    }
}

/// Loads what [`compile`] gave.
///
/// # Errors
/// If it does not fit the device.
pub(crate) fn load_one(gpu: &Arc<Gpu>, kernel: &Kernel, compiled: &Compiled) -> Result<Loaded, CudaError> {
    place(gpu, kernel, &compiled.made)
}

/// Compiles a kernel in its language, or finds it in the cache.
///
/// # Errors
/// If the compiler is missing or fails.
pub(super) fn compile(gpu: &Gpu, kernel: &Kernel, triton: &Triton) -> Result<Compiled, CudaError> {
    if let Some(algorithm) = kernel.library {
        return by_library(kernel, algorithm);
    }
    match kernel.language {
        Language::Cuda => by_nvrtc(gpu, kernel),
        Language::Triton => by_triton(gpu, kernel, triton),
    }
}

fn by_library(kernel: &Kernel, algorithm: Algorithm) -> Result<Compiled, CudaError> {
    let what = || "it is no plain product, which a library could do".to_string();
    let not_plain = || CudaError::Kernel { kernel: kernel.name.clone(), what: what() };
    let plain = Plain::of(&kernel.program).ok_or_else(not_plain)?;
    Ok(Compiled {
        made: Made::Library(plain, algorithm),
        registers: 0,
        shared_bytes: 0,
        spill_bytes: 0,
        threads: 0,
    })
}

fn by_nvrtc(gpu: &Gpu, kernel: &Kernel) -> Result<Compiled, CudaError> {
    let failed = |e: TileError| CudaError::Kernel { kernel: kernel.name.clone(), what: e.to_string() };
    let source = cuda::print(&kernel.program, gpu.arch).map_err(failed)?;
    // A missing compiler is said as it is: it concerns no kernel.
    let object = nvrtc::compile(&source, &kernel.program.name, gpu.arch)
        .map_err(|e| CudaError::Source(e.to_string()))?;
    let shape =
        LaunchShape { grid: source.grid, threads: source.threads, dynamic_shared: source.dynamic_shared };
    Ok(Compiled {
        registers: object.registers,
        shared_bytes: object.shared_bytes,
        spill_bytes: object.spill_bytes,
        threads: source.threads,
        made: Made::Binary(Found { cubin: object.cubin, shape, hidden: 0, maps: source.maps, edited: None }),
    })
}

fn by_triton(gpu: &Gpu, kernel: &Kernel, triton: &Triton) -> Result<Compiled, CudaError> {
    let p = &kernel.program;
    let source = kfc_kernels::tile::triton::print(p);
    let types: Vec<&str> = p.params.iter().map(|b| b.elem.name()).collect();
    let stages = (p.stages != STAGES).then_some(p.stages);
    let arch = gpu.arch.number();
    let request =
        triton::Request { function: &p.name, source: &source, types: &types, warps: p.warps, stages, arch };
    let mut compiler = triton.0.lock().unwrap_or_else(PoisonError::into_inner);
    let cubin = compiler.compile(&request).map_err(|e| match e {
        // No Python with Triton: it concerns no kernel.
        RunError::Input(what) => CudaError::Source(what),
        other => CudaError::Kernel { kernel: kernel.name.clone(), what: other.to_string() },
    })?;
    let threads = p.warps * 32;
    let shape = LaunchShape { grid: p.grid, threads, dynamic_shared: cubin.shared_bytes as usize };
    Ok(Compiled {
        registers: cubin.registers,
        shared_bytes: cubin.shared_bytes,
        spill_bytes: cubin.spill_bytes,
        threads,
        made: Made::Binary(Found {
            cubin: cubin.bytes,
            shape,
            hidden: HIDDEN,
            maps: Vec::new(),
            edited: None,
        }),
    })
}

fn place(gpu: &Arc<Gpu>, kernel: &Kernel, made: &Made) -> Result<Loaded, CudaError> {
    let found = match made {
        Made::Binary(found) => found,
        Made::Library(plain, algorithm) => {
            let started = Started::Library(LibraryProduct::new(gpu, *plain, *algorithm)?);
            return Ok(Loaded { started, name: kernel.name.clone(), edited: None });
        }
    };
    let function = Function::load(gpu, &found.cubin, &kernel.name, &kernel.program.name, found.shape)?;
    let buffers = kernel.program.params.len();
    let takes_none = found.edited.is_some() && function.parameters == buffers;
    let maps = if takes_none { Vec::new() } else { found.maps.clone() };
    let expected = buffers + maps.len() + found.hidden;
    if function.parameters != expected || expected > MOST_PARAMETERS {
        let what =
            format!("its binary takes {} parameters, its launch gives {expected}", function.parameters);
        return Err(CudaError::Kernel { kernel: kernel.name.clone(), what });
    }
    let (name, edited) = (kernel.name.clone(), found.edited.clone());
    Ok(Loaded { started: Started::Function { function, hidden: found.hidden, maps }, name, edited })
}
