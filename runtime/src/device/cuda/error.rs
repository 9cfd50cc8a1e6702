//! What can go wrong on a CUDA device.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use kfc_kernels::cuda::Arch;
use thiserror::Error;

/// Why a device cannot be used, or a step failed on it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CudaError {
    /// The driver's library cannot be loaded.
    #[error(
        "no NVIDIA driver: libcuda.so.1 cannot be loaded; install driver {} or later, or use --device cpu (`kfc doctor` \
         shows what is there)",
        super::DRIVER
    )]
    NoDriver,
    /// The driver knows too old a version of CUDA.
    #[error(
        "the NVIDIA driver is too old: it supports CUDA {}.{}, kernels need {}.{} (driver {} or later); update it, or use \
         --device cpu",
        has / 1000, has % 1000 / 10, super::CUDA / 1000, super::CUDA % 1000 / 10, super::DRIVER
    )]
    OldDriver {
        /// What it supports, as the driver counts: 12040 is 12.4.
        has: i32,
    },
    /// The driver cannot start.
    #[error("the NVIDIA driver does not start: {0}; `nvidia-smi` may say more, --device cpu needs none")]
    Init(String),
    /// There is no device of this number.
    #[error("there is no device cuda:{index}: {}", present(*count))]
    NoDevice {
        /// The number asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// Kernels are not compiled for devices like this.
    #[error(
        "cuda:{index} is {name} of compute capability {}.{}; kernels are compiled for 8.x, 9.0 and 10.0; use another device",
        capability.0, capability.1
    )]
    Unsupported {
        /// Its number.
        index: usize,
        /// Its name.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// The device has not that much memory.
    #[error(
        "out of memory on cuda:{index}: the plan needs {} MiB and {} MiB of {} MiB are free; it holds {items}; lower \
         train.batch or data.seq_len, or set --mem-budget {}MiB with train.recompute = \"auto\"",
        mib(*needs), free >> 20, total >> 20, free >> 20
    )]
    OutOfMemory {
        /// Number of the device.
        index: usize,
        /// What the plan needs, bytes.
        needs: u64,
        /// What is free, bytes.
        free: u64,
        /// What the device has, bytes.
        total: u64,
        /// What the plan holds, in words.
        items: String,
    },
    /// A kernel does not fit the device or cannot be loaded.
    #[error("kernel {kernel}: {what}")]
    Kernel {
        /// Its name.
        kernel: String,
        /// What is wrong.
        what: String,
    },
    /// No kernel was found or made.
    #[error("{0}")]
    Source(String),
    /// A kernel broke.
    #[error("{kernel} failed in step {step}: {what}{}", hint(kernel))]
    Fault {
        /// Which kernel of which operation, or only which plan.
        kernel: String,
        /// The optimiser step.
        step: usize,
        /// What the driver says.
        what: String,
    },
    /// Another call of the driver failed.
    #[error("the NVIDIA driver failed {doing}: {what}")]
    Call {
        /// What was being done.
        doing: &'static str,
        /// What the driver says.
        what: String,
    },
}

/// How a fault that is not known to be one kernel's begins.
pub(super) const SOME_KERNEL: &str = "a kernel of";

fn present(count: usize) -> String {
    match count {
        0 => "there is none; use --device cpu".into(),
        1 => "there is one, --device cuda:0".into(),
        n => format!("there are cuda:0 to cuda:{}", n - 1),
    }
}

fn hint(kernel: &str) -> &'static str {
    if kernel.starts_with(SOME_KERNEL) {
        "; with KFC_CUDA_SYNC=1 kernels run one by one, and the message names the one"
    } else {
        ""
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl CudaError {
    /// Whether what the user gave is at fault.
    pub fn is_input(&self) -> bool {
        matches!(self, CudaError::NoDevice { .. } | CudaError::Source(_))
    }

    /// The same with the optimiser step in which it happened.
    pub fn at_step(self, step: usize) -> CudaError {
        match self {
            CudaError::Fault { kernel, what, .. } => CudaError::Fault { kernel, step, what },
            other => other,
        }
    }
}

/// What the driver says about an error: its number and its text.
pub(super) fn describe(e: DriverError) -> String {
    // The driver is loaded: it gave the error.
    let text = e.error_string().map_or_else(|_| "unknown error".into(), |t| t.to_string_lossy().into_owned());
    format!("{text} (error {})", e.0 as u32)
}

/// Names what was being done when a call failed.
pub(super) trait Doing<T> {
    /// # Errors
    /// [`CudaError::Call`] with what was being done.
    fn doing(self, what: &'static str) -> Result<T, CudaError>;
}

impl<T> Doing<T> for Result<T, DriverError> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError> {
        self.map_err(|e| CudaError::Call { doing, what: describe(e) })
    }
}

/// Whether a call failed for want of memory.
pub(super) fn is_out_of_memory(e: DriverError) -> bool {
    e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}

/// What kernels are compiled for on a device.
pub(super) fn arch_of(index: usize, name: &str, capability: (i32, i32)) -> Result<Arch, CudaError> {
    Arch::of_capability(capability.0, capability.1).ok_or_else(|| CudaError::Unsupported {
        index,
        name: name.into(),
        capability,
    })
}
