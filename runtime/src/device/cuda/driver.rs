//! The driver's objects with owners: device and context, stream, events, memory, modules, graphs.
//!
//! Each object keeps what it needs alive, and is destroyed once, in the context that it was made in. Handles may be used by
//! any thread in which the context is current: [`Gpu::enter`] comes first.

use super::error::{Doing, arch_of, describe, is_out_of_memory};
use super::info::{Info, describe_device};
use super::{CUDA, CudaError};
use cudarc::driver::sys::{self, CUdeviceptr};
use cudarc::driver::{DriverError, result};
use kfc_kernels::cuda::Arch;
use std::ffi::{CString, c_void};
use std::sync::Arc;

type Result<T> = std::result::Result<T, CudaError>;

/// The driver, loaded and started, and the version of CUDA that it supports (13000 is 13.0).
///
/// # Errors
/// If there is none, it is too old, or it does not start.
pub fn start() -> Result<i32> {
    // SAFETY: opening the driver's library runs its initialisers, which do not depend on this program's state.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the library is there, and the place for the number is valid. This function is in drivers of all versions.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|e| CudaError::Init(describe(e)))?;
    if version < CUDA {
        return Err(CudaError::OldDriver { has: version });
    }
    match result::init() {
        Ok(()) => Ok(version),
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            Err(CudaError::NoDevice { index: 0, count: 0 })
        }
        Err(e) => Err(CudaError::Init(describe(e))),
    }
}

/// A device and its context.
pub struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// What it is.
    pub info: Info,
    /// What kernels are compiled for.
    pub arch: Arch,
}

// SAFETY: the driver's handles may be used by any thread; the context is made current before (`enter`).
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver locks what threads share.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens device number `index`.
    ///
    /// # Errors
    /// If there is no usable driver or device.
    pub fn open(index: usize) -> Result<Arc<Gpu>> {
        let none = |count| Err(CudaError::NoDevice { index, count });
        match start() {
            Err(CudaError::NoDevice { .. }) => return none(0),
            other => other?,
        };
        let count = result::device::get_count().doing("counting devices")?.max(0) as usize;
        if index >= count {
            return none(count);
        }
        let (device, info) = describe_device(index)?;
        let arch = arch_of(index, &info.name, info.capability)?;
        // SAFETY: the device comes from the driver; `drop` releases what is retained here.
        let context = unsafe { result::primary_ctx::retain(device) }.doing("making a context")?;
        let gpu = Gpu { device, context, info, arch };
        gpu.enter()?;
        Ok(Arc::new(gpu))
    }

    /// Makes the context current in this thread.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained while `self` lives.
        unsafe { result::ctx::set_current(self.context) }.doing("entering the context")
    }

    /// Bytes that are free, and all.
    ///
    /// # Errors
    /// If the driver does not say.
    pub fn free_memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (free, total) = result::mem_get_info().doing("asking for free memory")?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: retained once, in `open`; all objects of the context are gone, since each keeps this alive.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory of the device from one allocation.
pub(super) struct DeviceBytes {
    gpu: Arc<Gpu>,
    /// Its address.
    pub at: CUdeviceptr,
    /// Its size.
    pub bytes: usize,
}

impl DeviceBytes {
    /// `bytes` of memory of any content. `items` says what for, if there is not so much.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize, items: &str) -> Result<DeviceBytes> {
        gpu.enter()?;
        let too_much = |(free, total)| CudaError::OutOfMemory {
            index: gpu.info.index,
            needs: bytes as u64,
            free,
            total,
            items: items.into(),
        };
        let memory = gpu.free_memory()?;
        if bytes as u64 > memory.0 {
            return Err(too_much(memory));
        }
        // SAFETY: nothing reads it before it is written.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(at) => Ok(DeviceBytes { gpu: Arc::clone(gpu), at, bytes }),
            Err(e) if is_out_of_memory(e) => Err(too_much(gpu.free_memory()?)),
            Err(e) => Err(e).doing("allocating memory"),
        }
    }
}

impl Drop for DeviceBytes {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        // SAFETY: allocated once, in `new`; bound plans, which use it, keep it alive.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

/// Page-locked memory of the host, which the device copies from and to on its own.
pub(super) struct Pinned {
    gpu: Arc<Gpu>,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: owned memory without thread affinity.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `bytes` of it, zeroed.
    ///
    /// # Errors
    /// If the system has not so much.
    pub(super) fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Pinned> {
        gpu.enter()?;
        // SAFETY: freed in `drop`.
        let at = unsafe { result::malloc_host(bytes.max(1), 0) }.doing("allocating page-locked memory")?;
        let at = at.cast::<u8>();
        // SAFETY: that many bytes were allocated.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Pinned { gpu: Arc::clone(gpu), at, bytes })
    }

    /// Its content. The device must be done with it: copies are asynchronous.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: initialised in `new`.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    /// Its content, writable; the same holds.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        // SAFETY: allocated in `new`; its users wait for their copies.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// A point in a stream.
pub(super) struct Event {
    gpu: Arc<Gpu>,
    handle: sys::CUevent,
}

// SAFETY: see `Gpu`.
unsafe impl Send for Event {}

impl Event {
    /// One that is not recorded.
    ///
    /// # Errors
    /// If the driver fails.
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Event> {
        gpu.enter()?;
        let handle = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).doing("making an event")?;
        Ok(Event { gpu: Arc::clone(gpu), handle })
    }

    /// Waits until the stream has come to where the event was recorded last.
    ///
    /// # Errors
    /// If work before it failed.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.handle) }.doing("waiting for an event")
    }

    /// Nanoseconds between two events that have passed.
    ///
    /// # Errors
    /// If one was not recorded.
    pub(super) fn ns_since(&self, earlier: &Event) -> Result<u64> {
        // SAFETY: both live.
        let ms = unsafe { result::event::elapsed(earlier.handle, self.handle) }.doing("reading a time")?;
        Ok((f64::from(ms.max(0.0)) * 1e6) as u64)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        // SAFETY: made once, in `new`.
        let _ = unsafe { result::event::destroy(self.handle) };
    }
}

/// Work in order.
pub(super) struct Stream {
    gpu: Arc<Gpu>,
    handle: sys::CUstream,
}

// SAFETY: see `Gpu`.
unsafe impl Send for Stream {}
// SAFETY: see `Gpu`.
unsafe impl Sync for Stream {}

impl Stream {
    /// An empty one.
    ///
    /// # Errors
    /// If the driver fails.
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Stream> {
        gpu.enter()?;
        let handle =
            result::stream::create(result::stream::StreamKind::NonBlocking).doing("making a stream")?;
        Ok(Stream { gpu: Arc::clone(gpu), handle })
    }

    /// Its device.
    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The driver's handle, for other libraries.
    pub(super) fn raw(&self) -> *mut c_void {
        self.handle.cast()
    }

    /// Copies the first `bytes` of page-locked memory to the device.
    ///
    /// # Errors
    /// If the driver fails.
    ///
    /// # Safety
    /// `to` has so many bytes, and `from` is not written before the stream has passed this.
    pub(super) unsafe fn upload(&self, to: CUdeviceptr, from: &Pinned, bytes: usize) -> Result<()> {
        // SAFETY: see the function's own condition.
        unsafe { result::memcpy_htod_async(to, &from.bytes()[..bytes], self.handle) }
            .doing("copying to the device")
    }

    /// Copies from the device to page-locked memory, from byte `start` on.
    ///
    /// # Errors
    /// If the driver fails.
    ///
    /// # Safety
    /// `from` has so many bytes, and `to` is not read before the stream has passed this.
    pub(super) unsafe fn download(
        &self,
        to: &Pinned,
        start: usize,
        from: CUdeviceptr,
        bytes: usize,
    ) -> Result<()> {
        assert!(start + bytes <= to.bytes, "a copy ends outside its buffer");
        // SAFETY: inside the buffer, as just checked; see the function's own condition.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.at.add(start).cast(), from, bytes, self.handle) }
            .result()
            .doing("copying from the device")
    }

    /// Copies on the device.
    ///
    /// # Errors
    /// If the driver fails.
    ///
    /// # Safety
    /// Both places have so many bytes.
    pub(super) unsafe fn copy(&self, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Result<()> {
        // SAFETY: see the function's own condition.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.handle) }.doing("copying on the device")
    }

    /// Zeroes memory of the device.
    ///
    /// # Errors
    /// If the driver fails.
    ///
    /// # Safety
    /// `at` has so many bytes.
    pub(super) unsafe fn zero(&self, at: CUdeviceptr, bytes: usize) -> Result<()> {
        // SAFETY: see the function's own condition.
        unsafe { result::memset_d8_async(at, 0, bytes, self.handle) }.doing("zeroing memory")
    }

    /// Starts a kernel.
    ///
    /// # Errors
    /// If the driver refuses the launch.
    ///
    /// # Safety
    /// The arguments are what the function takes, and the memory that they point to lives until the stream has passed this.
    pub(super) unsafe fn launch(&self, f: &Function, args: &mut [*mut c_void]) -> Result<()> {
        let [x, y, z] = f.grid;
        // SAFETY: see the function's own condition.
        unsafe { result::launch_kernel(f.handle, (x, y, z), (f.threads, 1, 1), f.shared, self.handle, args) }
            .doing("starting a kernel")
    }

    /// Records an event.
    ///
    /// # Errors
    /// If the driver fails.
    pub(super) fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both live.
        unsafe { result::event::record(event.handle, self.handle) }.doing("recording an event")
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// If work failed.
    pub(super) fn wait(&self) -> std::result::Result<(), DriverError> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.handle) }
    }

    /// What `work` does to the stream, as a graph; nothing of it runs.
    ///
    /// # Errors
    /// If `work` fails or does what cannot be in a graph.
    pub(super) fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives, and `end_capture` follows whatever `work` does.
        unsafe { result::stream::begin_capture(self.handle, mode) }.doing("beginning a graph")?;
        let worked = work();
        // SAFETY: as above.
        let graph = unsafe { result::stream::end_capture(self.handle) }.doing("ending a graph");
        worked?;
        let graph = graph?;
        // SAFETY: the graph is valid, and destroyed once it is instantiated.
        let handle = unsafe {
            let handle = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            handle
        };
        Ok(Graph { gpu: Arc::clone(&self.gpu), handle: handle.doing("making a graph")? })
    }

    /// Runs a graph.
    ///
    /// # Errors
    /// If the driver fails.
    ///
    /// # Safety
    /// What its work points to lives until the stream has passed this.
    pub(super) unsafe fn run(&self, graph: &Graph) -> Result<()> {
        // SAFETY: both live; see the function's own condition.
        unsafe { result::graph::launch(graph.handle, self.handle) }.doing("starting a graph")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        let _ = self.wait();
        // SAFETY: made once, in `new`, and idle.
        let _ = unsafe { result::stream::destroy(self.handle) };
    }
}

/// A stream's work, ready to run at once.
pub(super) struct Graph {
    gpu: Arc<Gpu>,
    handle: sys::CUgraphExec,
}

// SAFETY: see `Gpu`.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        // SAFETY: made once, in `capture`.
        let _ = unsafe { result::graph::exec_destroy(self.handle) };
    }
}

/// A kernel in the driver, and how it is launched.
pub(super) struct Function {
    gpu: Arc<Gpu>,
    module: sys::CUmodule,
    handle: sys::CUfunction,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory that are asked for at launch.
    pub shared: u32,
    /// Number of parameters.
    pub parameters: usize,
}

// SAFETY: see `Gpu`.
unsafe impl Send for Function {}
// SAFETY: see `Gpu`; it is only read.
unsafe impl Sync for Function {}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaunchShape {
    /// Blocks.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of shared memory that are asked for at launch.
    pub dynamic_shared: usize,
}

impl Function {
    /// Loads the function `entry` of a binary; errors call it by `name`.
    ///
    /// # Errors
    /// [`CudaError::Kernel`] if it is not in the binary or needs more shared memory than there is.
    pub(super) fn load(
        gpu: &Arc<Gpu>,
        cubin: &[u8],
        name: &str,
        entry: &str,
        shape: LaunchShape,
    ) -> Result<Function> {
        gpu.enter()?;
        let wrong = |what: String| CudaError::Kernel { kernel: name.into(), what };
        let failed = |e: DriverError| wrong(format!("it cannot be loaded: {}", describe(e)));
        let small = |n: usize| u32::try_from(n).map_err(|_| wrong(format!("{n} is too many blocks")));
        let [x, y, z] = shape.grid;
        if y.max(z) > 65_535 {
            return Err(wrong(format!("{y} by {z} blocks are more than a device takes")));
        }
        if shape.dynamic_shared > gpu.info.shared {
            return Err(wrong(format!(
                "it needs {} bytes of shared memory, {} has {} for a block; use another device",
                shape.dynamic_shared, gpu.info.name, gpu.info.shared
            )));
        }
        // SAFETY: a binary says its own size; one that is damaged is refused.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.map_err(failed)?;
        let text = CString::new(entry).map_err(|e| wrong(e.to_string()))?;
        let mut f = Function {
            gpu: Arc::clone(gpu),
            module,
            handle: std::ptr::null_mut(),
            grid: [small(x)?, small(y)?, small(z)?],
            threads: small(shape.threads)?,
            shared: small(shape.dynamic_shared)?,
            parameters: 0,
        };
        // SAFETY: the module is loaded, and unloaded when `f` goes.
        f.handle = unsafe { result::module::get_function(module, text) }.map_err(failed)?;
        if shape.dynamic_shared > 48 << 10 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            unsafe { result::function::set_function_attribute(f.handle, attribute, f.shared as i32) }
                .map_err(failed)?;
        }
        f.parameters = f.count_parameters();
        Ok(f)
    }

    /// Number of parameters, as the driver reads them in the binary.
    fn count_parameters(&self) -> usize {
        let (mut offset, mut size) = (0, 0);
        let has = |i: &usize| {
            // SAFETY: the function is loaded, and the places for the numbers are valid.
            unsafe { sys::cuFuncGetParamInfo(self.handle, *i, &raw mut offset, &raw mut size) }
                .result()
                .is_ok()
        };
        (0..).take_while(has).count()
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        // SAFETY: loaded once, in `load`.
        let _ = unsafe { result::module::unload(self.module) };
    }
}
