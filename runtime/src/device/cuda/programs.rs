//! Tile programs alone on a device, over buffers of the host: how kernels are checked against the interpreter.

use super::CudaError;
use super::driver::Gpu;
use super::kernels::{self, Loaded};
use super::room::Room;
use crate::error::Result;
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
        let kernels: Vec<Kernel> = programs.into_iter().map(Kernel::of).collect();
        Ok(Programs { gpu: Arc::clone(gpu), loaded: kernels::load(gpu, &kernels, None)? })
    }

    /// Runs a program over the contents of its parameters, which it may change. Returns the nanoseconds that it took.
    ///
    /// # Errors
    /// If it breaks, writes behind the end of a buffer, or memory does not suffice.
    pub fn run(&self, program: usize, buffers: &mut [Vec<u8>]) -> Result<u64> {
        let bytes: Vec<usize> = buffers.iter().map(Vec::len).collect();
        let apart: Vec<usize> = (0..buffers.len()).collect();
        let mut room = Room::new(&self.gpu, &bytes, &apart)?;
        room.fill(buffers)?;
        let loaded = &self.loaded[program];
        // SAFETY: the program takes as many pointers as it has parameters, and the buffers have their sizes, as its launch on the
        // interpreter has shown.
        let ns = unsafe { room.run(loaded, 1) }?;
        let after = room.read()?.ok_or_else(|| CudaError::Kernel {
            kernel: loaded.name.clone(),
            what: "it writes behind the end of a buffer".into(),
        })?;
        buffers.iter_mut().zip(after).for_each(|(b, a)| *b = a);
        Ok(ns)
    }
}
