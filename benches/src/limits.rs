//! How close a benchmark comes to what this machine can do.
//!
//! [`limits`] measures the roofs once a process, in the same run as the kernels; [`bench`] times a routine with criterion
//! and says which share of its roof it reached. A roof is the larger of two times: arithmetic at the rate of multiply-adds
//! in registers, and memory at the rate of a long copy.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Throughput};
use kfc_graph::{Cost, DType};
use kfc_kernels::cpu::limits::{Limits, all_threads, one_thread};
use std::sync::OnceLock;
use std::time::Instant;

/// The limits of one thread, and of all threads of kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofs {
    /// Of one thread.
    pub one: Limits,
    /// Of all.
    pub all: Limits,
}

/// What a routine does in one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes that it must read and write at least: every operand and result once.
    pub bytes: u64,
    /// Element type of its products.
    pub dtype: DType,
}

/// Which roof is the lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Arithmetic.
    Arithmetic,
    /// Memory.
    Memory,
}

impl Bound {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Bound::Arithmetic => "arithmetic",
            Bound::Memory => "memory",
        }
    }
}

impl Work {
    /// The work of an operation.
    pub fn of(cost: Cost, dtype: DType) -> Work {
        Work { flops: cost.flops, bytes: cost.bytes, dtype }
    }

    /// A matrix product `[m, k] · [k, n]`.
    pub fn product(m: usize, n: usize, k: usize, dtype: DType) -> Work {
        let elements = m * k + k * n + m * n;
        Work { flops: (2 * m * n * k) as u64, bytes: (elements * dtype.size()) as u64, dtype }
    }

    /// The least seconds that this can take under `limits`, and why.
    pub fn least(&self, limits: &Limits) -> (f64, Bound) {
        let rate = if self.dtype == DType::Bf16 { limits.flops_bf16 } else { limits.flops_f32 };
        let (arithmetic, memory) = (self.flops as f64 / rate, self.bytes as f64 / limits.copy_bytes);
        if arithmetic >= memory { (arithmetic, Bound::Arithmetic) } else { (memory, Bound::Memory) }
    }

    /// What `seconds` for this work come to, in words.
    pub fn describe(&self, seconds: f64, limits: &Limits) -> String {
        let (least, bound) = self.least(limits);
        format!(
            "{:.1} GFLOP/s, {:.1} GB/s: {:.0} % of the {} limit ({})",
            self.flops as f64 / seconds * 1e-9,
            self.bytes as f64 / seconds * 1e-9,
            least / seconds * 100.0,
            bound.name(),
            milliseconds(least)
        )
    }
}

/// The limits of this machine, measured when first asked for; about a second.
pub fn limits() -> &'static Roofs {
    static ROOFS: OnceLock<Roofs> = OnceLock::new();
    ROOFS.get_or_init(|| {
        let roofs = Roofs { one: one_thread(), all: all_threads() };
        println!("{}", roofs.describe());
        roofs
    })
}

impl Roofs {
    /// One line a thread count.
    pub fn describe(&self) -> String {
        let line = |l: &Limits| {
            format!(
                "limits, {} thread{}: f32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s, copy {:.1} GB/s",
                l.threads,
                if l.threads == 1 { "" } else { "s" },
                l.flops_f32 * 1e-9,
                l.flops_bf16 * 1e-9,
                l.copy_bytes * 1e-9
            )
        };
        let all = if self.all.threads > 1 { format!("\n{}", line(&self.all)) } else { String::new() };
        format!("{}{all}", line(&self.one))
    }
}

/// Times `run`, which does `work`, and prints the share of the limit that its fastest sample reached. Throughput is shown
/// in operations a second, or bytes where memory is what limits. Returns the seconds of the fastest sample; none where a
/// filter left this one out.
pub fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    work: Work,
    mut run: impl FnMut(),
) -> Option<f64> {
    let limits = &limits().all;
    group.throughput(match work.least(limits).1 {
        Bound::Arithmetic => Throughput::Elements(work.flops),
        Bound::Memory => Throughput::Bytes(work.bytes),
    });
    let mut best = f64::INFINITY;
    group.bench_function(id, |b| {
        b.iter_custom(|n| {
            let start = Instant::now();
            (0..n).for_each(|_| run());
            let elapsed = start.elapsed();
            best = best.min(elapsed.as_secs_f64() / n as f64);
            elapsed
        });
    });
    let best = Some(best).filter(|b| b.is_finite())?;
    println!("                        best {}, {}", milliseconds(best), work.describe(best, limits));
    Some(best)
}

/// A time in a unit that suits it.
pub fn milliseconds(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.1} µs", seconds * 1e6) } else { format!("{:.2} ms", seconds * 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { threads: 1, flops_f32: 1e9, flops_bf16: 2e9, copy_bytes: 1e9 };

    #[test]
    fn the_slower_of_two_roofs_limits() {
        let work = |flops, bytes, dtype| Work { flops, bytes, dtype }.least(&LIMITS);
        assert_eq!(work(4_000, 1_000, DType::F32), (4e-6, Bound::Arithmetic));
        assert_eq!(work(4_000, 1_000, DType::Bf16), (2e-6, Bound::Arithmetic));
        assert_eq!(work(4_000, 8_000, DType::F32), (8e-6, Bound::Memory));
    }

    #[test]
    fn shares_are_of_the_least_time() {
        let work = Work::product(10, 10, 10, DType::F32);
        assert_eq!((work.flops, work.bytes), (2_000, 1_200));
        let text = work.describe(4e-6, &LIMITS);
        assert!(text.contains("0.5 GFLOP/s, 0.3 GB/s: 50 % of the arithmetic limit (2.0 µs)"), "{text}");
    }
}
