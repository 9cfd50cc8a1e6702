//! Tile programs alone on a device, over buffers of the host: how kernels are checked against the interpreter.

use super::CudaError;
use super::driver::{DeviceBytes, Event, Gpu, Pinned, Stream};
use super::kernels::{self, Loaded};
use super::memory::ALIGN;
use crate::error::Result;
use cudarc::driver::sys::CUdeviceptr;
use kfc_kernels::tile::Program;
use kfc_kernels::tile::lower::Kernel;
use std::sync::Arc;

/// Programs that are loaded on a device.
pub struct Programs {
    gpu: Arc<Gpu>,
    loaded: Vec<Loaded>,
}

impl Programs {
    /// Compiles programs, or finds them in the cache, and loads them.
    ///
    /// # Errors
    /// If one cannot be compiled or does not fit the device.
    pub fn load(gpu: &Arc<Gpu>, programs: Vec<Program>) -> Result<Programs> {
        let kernel = |program: Program| Kernel { name: program.name.clone(), program, launches: 1 };
        let kernels: Vec<Kernel> = programs.into_iter().map(kernel).collect();
        Ok(Programs { gpu: Arc::clone(gpu), loaded: kernels::load(gpu, &kernels, None)? })
    }

    /// Runs a program over the contents of its parameters, which it may change. Returns the nanoseconds that it took.
    ///
    /// # Errors
    /// If it breaks, or memory does not suffice.
    pub fn run(&self, program: usize, buffers: &mut [Vec<u8>]) -> Result<u64> {
        let gpu = &self.gpu;
        let mut end = 0;
        let place = |b: &Vec<u8>| {
            let start = end;
            end = (end + b.len()).next_multiple_of(ALIGN);
            start
        };
        let starts: Vec<usize> = buffers.iter().map(place).collect();
        let memory = DeviceBytes::new(gpu, end, "the buffers of one kernel")?;
        let mut staged = Pinned::new(gpu, end)?;
        for (start, b) in starts.iter().zip(buffers.iter()) {
            staged.bytes_mut()[*start..start + b.len()].copy_from_slice(b);
        }
        let stream = Stream::new(gpu)?;
        let (before, after) = (Event::new(gpu)?, Event::new(gpu)?);
        let args: Vec<CUdeviceptr> = starts.iter().map(|s| memory.at + *s as CUdeviceptr).collect();
        // SAFETY: memory and buffer have `end` bytes and live until the stream is waited for; the program takes as many pointers
        // as it has parameters, and the buffers have their sizes, as its launch on the interpreter has shown.
        unsafe {
            stream.upload(memory.at, &staged, end)?;
            stream.record(&before)?;
            self.loaded[program].launch(&stream, &args)?;
            stream.record(&after)?;
            stream.download(&staged, 0, memory.at, end)?;
        }
        let name = &self.loaded[program].name;
        stream
            .wait()
            .map_err(|e| CudaError::Kernel { kernel: name.clone(), what: super::error::describe(e) })?;
        for (start, b) in starts.iter().zip(buffers) {
            let bytes = b.len();
            b.copy_from_slice(&staged.bytes()[*start..start + bytes]);
        }
        Ok(after.ns_since(&before)?)
    }
}
