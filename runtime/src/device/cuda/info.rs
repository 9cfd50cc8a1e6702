//! Devices as their driver describes them, and what they can do at best: from clocks, multiprocessors and the memory's bus.

use super::CudaError;
use super::driver::start;
use super::error::{Doing, arch_of};
use crate::calibration::Rates;
use crate::profile::Machine;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use kfc_kernels::cuda::Arch;

type Result<T> = std::result::Result<T, CudaError>;

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Memory, bytes.
    pub memory: u64,
    /// Multiprocessors.
    pub processors: i32,
    /// Most shared memory of a block, bytes.
    pub shared: usize,
    /// Clock of the multiprocessors at best, in kHz; 0 if the driver does not say.
    pub clock: i32,
    /// Clock of the memory at best, in kHz; 0 if the driver does not say.
    pub memory_clock: i32,
    /// Width of the memory's bus in bits; 0 if the driver does not say.
    pub memory_bits: i32,
}

impl Info {
    /// Whether kernels are compiled for devices like this.
    pub fn is_supported(&self) -> bool {
        Arch::of_capability(self.capability.0, self.capability.1).is_some()
    }

    /// What times of its kernels depend on.
    pub fn machine(&self) -> Machine {
        let arch = Arch::of_capability(self.capability.0, self.capability.1);
        Machine {
            cpu: self.name.clone(),
            isa: arch.map_or("unknown", Arch::name).into(),
            threads: self.processors.max(0) as usize,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Its limits, from its clocks; `None` if the driver does not tell them or the architecture is not known.
    ///
    /// A multiprocessor makes so many `f32` multiplications and additions a cycle outside of tensor cores, and so many with
    /// 16-bit factors in them (from the tables of NVIDIA's architecture papers, dense). Memory moves two words a cycle.
    pub fn rates(&self) -> Option<Rates> {
        let (lanes, tensor) = match self.capability {
            (8, 0) => (64.0, 1024.0),
            (8, _) => (128.0, 512.0),
            (9, 0) => (128.0, 2048.0),
            (10, 0) => (128.0, 4096.0),
            _ => return None,
        };
        let known = |n: i32| (n > 0).then_some(f64::from(n));
        let cycles = known(self.clock)? * 1e3 * known(self.processors)?;
        let bytes = known(self.memory_clock)? * 1e3 * 2.0 * known(self.memory_bits)? / 8.0;
        Some(Rates { flops_f32: 2.0 * lanes * cycles, flops_16: 2.0 * tensor * cycles, bytes })
    }
}

/// All devices.
///
/// # Errors
/// As [`start`].
pub fn devices() -> Result<Vec<Info>> {
    start()?;
    let count = result::device::get_count().doing("counting devices")?;
    (0..count.max(0) as usize).map(|i| Ok(describe_device(i)?.1)).collect()
}

/// A device in the driver, and what it is. The driver is started.
///
/// # Errors
/// If the driver does not say.
pub(super) fn describe_device(index: usize) -> Result<(sys::CUdevice, Info)> {
    let doing = "looking at a device";
    let device = result::device::get(index as i32).doing(doing)?;
    let name = result::device::get_name(device).doing(doing)?;
    // SAFETY: the device comes from the driver.
    let memory = unsafe { result::device::total_mem(device) }.doing(doing)? as u64;
    let attribute = |a| {
        // SAFETY: as above.
        unsafe { result::device::get_attribute(device, a) }.doing(doing)
    };
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    // What predictions alone need: a driver that does not tell is no reason to stop.
    let told = |a| attribute(a).unwrap_or(0);
    let info = Info {
        index,
        name,
        capability,
        memory,
        processors,
        shared: shared.max(0) as usize,
        clock: told(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
        memory_clock: told(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE),
        memory_bits: told(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH),
    };
    Ok((device, info))
}

/// What device number `index` is. No context is made.
///
/// # Errors
/// If there is no usable driver or device.
pub fn describe_one(index: usize) -> Result<Info> {
    let all = match devices() {
        Err(CudaError::NoDevice { .. }) => Vec::new(),
        other => other?,
    };
    let count = all.len();
    let info = all.into_iter().nth(index).ok_or(CudaError::NoDevice { index, count })?;
    arch_of(index, &info.name, info.capability)?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_h100_is_as_fast_as_its_clocks_say() {
        let mut info = Info {
            index: 0,
            name: "H100".into(),
            capability: (9, 0),
            memory: 80 << 30,
            processors: 132,
            shared: 232_448,
            clock: 1_830_000,
            memory_clock: 2_619_000,
            memory_bits: 5120,
        };
        let near = |is: f64, expected: f64| (is / expected - 1.0).abs() < 0.01;
        let rates = info.rates().unwrap();
        // The maker's figures: 989 TFLOP/s dense, 67 TFLOP/s at the higher clock that goes without tensor cores, 3.35 TB/s.
        assert!(near(rates.flops_16, 989e12) && near(rates.flops_f32, 61.8e12), "{rates:?}");
        assert!(near(rates.bytes, 3.35e12), "{rates:?}");
        assert_eq!((info.machine().isa.as_str(), info.machine().threads), ("sm_90a", 132));
        info.memory_clock = 0;
        assert_eq!(info.rates(), None);
    }
}
