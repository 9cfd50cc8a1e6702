//! Memory of a device for the buffers of one kernel alone, each with a margin behind it that nobody may write.

use super::CudaError;
use super::driver::{DeviceBytes, Event, Gpu, Pinned, Stream};
use super::error::describe;
use super::kernels::Loaded;
use super::memory::ALIGN;
use cudarc::driver::sys::CUdeviceptr;
use std::sync::Arc;

/// What margins hold.
const MARGIN: u8 = 0xa5;

/// Buffers of a kernel's parameters on a device.
pub(super) struct Room {
    stream: Stream,
    staged: Pinned,
    memory: DeviceBytes,
    /// For each parameter, where its buffer begins, and its bytes.
    places: Vec<(usize, usize)>,
    events: [Event; 2],
}

impl Room {
    /// Buffers of so many bytes; parameter `k` has that of parameter `shared[k]`.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: &[usize], shared: &[usize]) -> Result<Room, CudaError> {
        let (mut end, mut places) = (0, Vec::new());
        for (k, &n) in bytes.iter().enumerate() {
            if shared[k] < k {
                places.push(places[shared[k]]);
            } else {
                places.push((end, n));
                end = (end + n).next_multiple_of(ALIGN) + ALIGN;
            }
        }
        Ok(Room {
            stream: Stream::new(gpu)?,
            staged: Pinned::new(gpu, end)?,
            memory: DeviceBytes::new(gpu, end, "the buffers of one kernel")?,
            places,
            events: [Event::new(gpu)?, Event::new(gpu)?],
        })
    }

    /// Copies contents of all parameters' buffers to the device.
    ///
    /// # Errors
    /// If the driver fails.
    pub(super) fn fill(&mut self, contents: &[Vec<u8>]) -> Result<(), CudaError> {
        self.stream.gpu().enter()?;
        let all = self.staged.bytes_mut();
        all.fill(MARGIN);
        for ((start, n), content) in self.places.iter().zip(contents) {
            all[*start..start + n].copy_from_slice(content);
        }
        let bytes = all.len();
        // SAFETY: both have so many bytes, and the buffer is not written before the stream was waited for.
        unsafe { self.stream.upload(self.memory.at, &self.staged, bytes) }?;
        self.wait("copying buffers to the device")
    }

    /// Runs a kernel `times` times over the buffers. Returns the nanoseconds that all took together.
    ///
    /// # Errors
    /// If it breaks.
    ///
    /// # Safety
    /// The kernel takes as many pointers as there are buffers, and stays in them.
    pub(super) unsafe fn run(&self, kernel: &Loaded, times: usize) -> Result<u64, CudaError> {
        self.stream.gpu().enter()?;
        let args: Vec<CUdeviceptr> =
            self.places.iter().map(|(start, _)| self.memory.at + *start as CUdeviceptr).collect();
        self.stream.record(&self.events[0])?;
        for _ in 0..times {
            // SAFETY: see the function's own condition; memory lives until the stream is waited for.
            unsafe { kernel.launch(&self.stream, &args) }?;
        }
        self.stream.record(&self.events[1])?;
        self.stream
            .wait()
            .map_err(|e| CudaError::Kernel { kernel: kernel.name.clone(), what: describe(e) })?;
        self.events[1].ns_since(&self.events[0])
    }

    /// What is in the buffers of all parameters; `None` if a margin was written.
    ///
    /// # Errors
    /// If the driver fails.
    pub(super) fn read(&mut self) -> Result<Option<Vec<Vec<u8>>>, CudaError> {
        self.stream.gpu().enter()?;
        let bytes = self.staged.bytes().len();
        // SAFETY: both have so many bytes, and the buffer is read after waiting.
        unsafe { self.stream.download(&self.staged, 0, self.memory.at, bytes) }?;
        self.wait("copying buffers from the device")?;
        let all = self.staged.bytes();
        let mut end = 0;
        for (start, n) in &self.places {
            if *start >= end {
                end = (start + n).next_multiple_of(ALIGN) + ALIGN;
                if all[start + n..end].iter().any(|b| *b != MARGIN) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(self.places.iter().map(|(start, n)| all[*start..start + n].to_vec()).collect()))
    }

    fn wait(&self, doing: &'static str) -> Result<(), CudaError> {
        use super::error::Doing;
        self.stream.wait().doing(doing)
    }
}
