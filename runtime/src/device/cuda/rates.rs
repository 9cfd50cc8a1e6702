//! How fast a device multiplies and streams at best, with our kernels: the products and the long sum that the CPU is measured
//! with, large enough to fill a device and to be in no cache.

use super::CudaError;
use super::driver::{DeviceBytes, Event, Gpu, Pinned, Stream};
use super::error::describe;
use super::kernels::{self, Loaded};
use super::memory::ALIGN;
use crate::calibration::Rates;
use cudarc::driver::sys::CUdeviceptr;
use kfc_graph::{DType, Op, Prim, TensorType};
use kfc_kernels::tile::lower::Kernel;
use kfc_kernels::tile::programs::{Arg, Emitted, Launch, emit};
use std::sync::Arc;

/// Runs before the clock starts, and runs of which the fastest counts: other programs only ever slow them.
const WARM_UP: usize = 2;
const RUNS: usize = 10;

/// Tiles of a product for each multiprocessor: enough that the last ones to finish matter little.
const TILES: usize = 8;
/// Extent of a tile, as products have it.
const TILE: usize = 128;

/// Share of the free memory that the operands of the sum take at most, and most elements of each: more than caches hold.
const SHARE: u64 = 64;
const MOST: u64 = 1 << 26;

/// Bytes of random operands that are repeated.
const PATTERN: usize = 1 << 20;

/// A primitive with its operands' types and its programs.
struct Work {
    inputs: [TensorType; 2],
    output: TensorType,
    emitted: Emitted,
}

impl Work {
    fn new(prim: Prim, ty: TensorType) -> Result<Work, CudaError> {
        let (inputs, output) = ([ty.clone(), ty.clone()], ty);
        let emitted = emit(&Op::Prim(prim), &inputs, std::slice::from_ref(&output))
            .map_err(|e| CudaError::Source(format!("measuring the device: {e}")))?;
        Ok(Work { inputs, output, emitted })
    }

    fn kernels(&self) -> impl Iterator<Item = Kernel> {
        self.emitted.launches.iter().map(|l| Kernel {
            name: format!("{} of {}", l.program.name, self.output),
            ..Kernel::of(l.program.clone())
        })
    }
}

/// Measures a device.
///
/// # Errors
/// If kernels cannot be had, memory does not suffice, or the driver fails.
pub(crate) fn measure(gpu: &Arc<Gpu>) -> Result<Rates, CudaError> {
    let n = TILE * (TILES * gpu.info.processors.max(1) as usize).isqrt();
    let elements = (gpu.free_memory()?.0 / SHARE / 12).clamp(1 << 10, MOST) as usize;
    let product = |dtype: DType| {
        Work::new(Prim::MatMul { ta: false, tb: true, out: dtype }, TensorType::new(dtype, [n, n]))
    };
    let sum = Work::new(Prim::Add, TensorType::new(DType::F32, [elements]))?;
    let all = [product(DType::F32)?, product(DType::Bf16)?, sum];
    let kernels: Vec<Kernel> = all.iter().flat_map(Work::kernels).collect();
    let mut loaded = kernels::load(gpu, &kernels, None)?.into_iter();
    let mut seconds = [0.0; 3];
    for (work, seconds) in all.iter().zip(&mut seconds) {
        let own: Vec<Loaded> = loaded.by_ref().take(work.emitted.launches.len()).collect();
        *seconds = best(gpu, work, &own)?;
    }
    let flops = 2.0 * (n as f64).powi(3);
    let bytes = 12.0 * elements as f64;
    Ok(Rates { flops_f32: flops / seconds[0], flops_16: flops / seconds[1], bytes: bytes / seconds[2] })
}

/// Seconds of the fastest run.
fn best(gpu: &Arc<Gpu>, work: &Work, loaded: &[Loaded]) -> Result<f64, CudaError> {
    let places = Places::of(&work.emitted, &work.inputs, &work.output);
    let memory = DeviceBytes::new(gpu, places.bytes, "operands to measure the device with")?;
    let stream = Stream::new(gpu)?;
    let operands = places.inputs.iter().zip(&work.inputs);
    operands.clone().try_for_each(|(start, ty)| fill(gpu, &stream, memory.at + *start as u64, ty))?;
    let (before, after) = (Event::new(gpu)?, Event::new(gpu)?);
    let mut best = f64::INFINITY;
    for run in 0..WARM_UP + RUNS {
        stream.record(&before)?;
        for (launch, kernel) in work.emitted.launches.iter().zip(loaded) {
            let args: Vec<CUdeviceptr> = places.args(launch, memory.at);
            // SAFETY: `places` gives each argument the bytes that the program was emitted for; memory lives until the stream is
            // waited for below.
            unsafe { kernel.launch(&stream, &args) }?;
        }
        stream.record(&after)?;
        let kernel = || loaded.first().map_or_else(String::new, |l| l.name.clone());
        stream.wait().map_err(|e| CudaError::Kernel { kernel: kernel(), what: describe(e) })?;
        if run >= WARM_UP {
            best = best.min(after.ns_since(&before)? as f64 * 1e-9);
        }
    }
    Ok(best.max(1e-9))
}

/// Where the buffers of a primitive begin in one allocation.
struct Places {
    inputs: Vec<usize>,
    output: usize,
    works: Vec<usize>,
    bytes: usize,
}

impl Places {
    fn of(emitted: &Emitted, inputs: &[TensorType], output: &TensorType) -> Places {
        let mut end = 0;
        let mut place = |bytes: usize| {
            let start = end;
            end = (end + bytes).next_multiple_of(ALIGN);
            start
        };
        let inputs = inputs.iter().map(|ty| place(ty.bytes())).collect();
        let output = place(output.bytes());
        let (starts, bytes) = emitted.workspace_starts();
        let work = place(bytes);
        Places { inputs, output, works: starts.iter().map(|s| work + s).collect(), bytes: end }
    }

    fn args(&self, launch: &Launch, base: CUdeviceptr) -> Vec<CUdeviceptr> {
        let starts = launch.starts.iter().zip(&launch.program.params).map(|(s, p)| s * p.elem.bytes());
        let at = |(arg, start): (&Arg, usize)| {
            let place = match *arg {
                Arg::Input(i) => self.inputs[i],
                Arg::Output(_) => self.output,
                Arg::Work(k) => self.works[k],
            };
            base + (place + start) as u64
        };
        launch.args.iter().zip(starts).map(at).collect()
    }
}

/// Writes numbers between -1 and 1 over a tensor: products of zeros take less power, and are faster, than others.
fn fill(gpu: &Arc<Gpu>, stream: &Stream, at: CUdeviceptr, ty: &TensorType) -> Result<(), CudaError> {
    let mut pattern = Pinned::new(gpu, PATTERN.min(ty.bytes()))?;
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(state >> 8) / f64::from(1u32 << 23) - 1.0) as f32
    };
    for element in pattern.bytes_mut().chunks_exact_mut(ty.bytes() / ty.elements().max(1)) {
        let bits = next().to_bits();
        match element.len() {
            2 => element.copy_from_slice(&((bits >> 16) as u16).to_ne_bytes()),
            _ => element.copy_from_slice(&bits.to_ne_bytes()),
        }
    }
    for start in (0..ty.bytes()).step_by(PATTERN) {
        let bytes = PATTERN.min(ty.bytes() - start);
        // SAFETY: the tensor has so many bytes there; the pattern lives, unchanged, until the stream is waited for.
        unsafe { stream.upload(at + start as u64, &pattern, bytes) }?;
    }
    stream.wait().map_err(|e| CudaError::Call { doing: "copying operands to the device", what: describe(e) })
}
