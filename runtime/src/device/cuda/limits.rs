//! What a device can do at best, computed from what its driver says of it: clocks, multiprocessors, the memory's bus.

use super::Info;
use crate::calibration::Rates;
use crate::profile::Machine;
use kfc_kernels::cuda::Arch;

impl Info {
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
