//! Loops that do nothing but what limits a kernel: multiply-adds in registers, and copies through memory.
//!
//! What they reach is the roof under which kernels of this machine stand. They run with the threads that kernels use, or on
//! one; results are consumed, so that no compiler drops the work.

use super::par;
use std::hint::black_box;
use std::time::Instant;

/// Accumulators of the register loops: more than latency × units of any core, fewer than registers.
const CHAINS: usize = 12;

/// Multiply-adds of each accumulator in one measurement: milliseconds, beside which waking a thread is nothing.
const STEPS: usize = 1 << 22;

/// Measurements of which the fastest counts.
const RUNS: usize = 10;

/// Bytes that a thread copies: with the source and that of other threads, more than caches hold.
const COPIED: usize = 64 << 20;

/// The best that this machine can do with some number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Threads that it was measured with.
    pub threads: usize,
    /// Floating-point operations a second of `f32` multiply-adds in registers; one multiply-add is two operations.
    pub flops_f32: f64,
    /// The same with `bf16` operands and `f32` sums; that of `f32` where the CPU has no such instruction.
    pub flops_bf16: f64,
    /// Bytes a second of a copy that fits no cache, read and written bytes together.
    pub copy_bytes: f64,
}

/// Measures the limits of one thread.
pub fn one_thread() -> Limits {
    measure(1)
}

/// Measures the limits of all threads of the pool together.
pub fn all_threads() -> Limits {
    measure(rayon::current_num_threads())
}

fn measure(threads: usize) -> Limits {
    let (fma, fma_flops) = fma_loop();
    let flops_f32 = best(threads, fma_flops, &fma);
    let flops_bf16 = match dot_loop() {
        Some((dot, flops)) => best(threads, flops, &dot).max(flops_f32),
        None => flops_f32,
    };
    Limits { threads, flops_f32, flops_bf16, copy_bytes: copy(threads) }
}

/// Work a second when each of `threads` tasks does `work` of it, at best.
fn best(threads: usize, work: f64, task: &(impl Fn() -> f32 + Sync + Send)) -> f64 {
    let seconds = (0..RUNS).map(|_| {
        let start = Instant::now();
        par::tasks(threads, |_| {
            black_box(task());
        });
        start.elapsed().as_secs_f64()
    });
    work * threads as f64 / seconds.fold(f64::INFINITY, f64::min)
}

/// Bytes a second that `threads` copies at once read and write.
fn copy(threads: usize) -> f64 {
    let mut memory: Vec<_> = (0..threads).map(|_| (vec![1u8; COPIED], vec![0u8; COPIED])).collect();
    let seconds = (0..RUNS).map(|_| {
        let parts = par::Shared::new(&mut memory);
        let start = Instant::now();
        par::tasks(threads, |i| {
            // SAFETY: each task has a part of its own.
            let (from, to) = &mut unsafe { parts.slice(i, 1) }[0];
            black_box(to).copy_from_slice(black_box(from));
        });
        start.elapsed().as_secs_f64()
    });
    (2 * COPIED * threads) as f64 / seconds.fold(f64::INFINITY, f64::min)
}

/// The widest multiply-add of `f32` of this CPU, and the operations of one call.
fn fma_loop() -> (Loop, f64) {
    let flops = |lanes: usize| (2 * lanes * CHAINS * STEPS) as f64;
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") {
            // SAFETY: the CPU has the instruction set.
            return (Box::new(|| unsafe { x86::fma_512() }), flops(16));
        }
        if has!("avx2") && has!("fma") {
            // SAFETY: as above.
            return (Box::new(|| unsafe { x86::fma_256() }), flops(8));
        }
    }
    (Box::new(portable), flops(LANES))
}

/// The `bf16` dot instruction, if this CPU has one.
fn dot_loop() -> Option<(Loop, f64)> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the CPU has the instruction set.
        return Some((Box::new(|| unsafe { x86::dot_512() }), (4 * 16 * CHAINS * STEPS) as f64));
    }
    None
}

/// A loop that returns something of its sums.
type Loop = Box<dyn Fn() -> f32 + Sync + Send>;

/// Lanes of an accumulator of [`portable`].
const LANES: usize = 4;

/// What compilers make of multiplying and adding arrays on any CPU. Fused where every CPU of the architecture can.
fn portable() -> f32 {
    let (x, y) = (black_box([0.999f32; LANES]), black_box([1e-3f32; LANES]));
    let mut acc = black_box([[1.0f32; LANES]; CHAINS]);
    for _ in 0..STEPS {
        for sums in &mut acc {
            for lane in 0..LANES {
                sums[lane] = if cfg!(target_arch = "aarch64") {
                    sums[lane].mul_add(x[lane], y[lane])
                } else {
                    sums[lane] * x[lane] + y[lane]
                };
            }
        }
    }
    // As the loops below: one lane of each, and what they start from.
    black_box(acc).iter().fold(1.0, |sum, lanes| sum + lanes[0])
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{CHAINS, STEPS, black_box};
    use std::arch::x86_64::*;

    /// Sums of the accumulators of a loop that keeps all of them in registers.
    macro_rules! register_loop {
        ($name:ident, $features:literal, $start:expr, |$acc:ident| $step:expr, $add:ident, $first:ident) => {
            /// # Safety
            /// The CPU has the features.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name() -> f32 {
                let mut acc = [$start; CHAINS];
                for _ in 0..STEPS {
                    for $acc in &mut acc {
                        *$acc = $step;
                    }
                }
                $first(acc.iter().fold($start, |sum, a| $add(sum, *a)))
            }
        };
    }

    register_loop!(
        fma_512,
        "avx512f",
        _mm512_set1_ps(black_box(1.0)),
        |acc| _mm512_fmadd_ps(*acc, _mm512_set1_ps(0.999), _mm512_set1_ps(1e-3)),
        _mm512_add_ps,
        _mm512_cvtss_f32
    );
    register_loop!(
        fma_256,
        "avx2,fma",
        _mm256_set1_ps(black_box(1.0)),
        |acc| _mm256_fmadd_ps(*acc, _mm256_set1_ps(0.999), _mm256_set1_ps(1e-3)),
        _mm256_add_ps,
        _mm256_cvtss_f32
    );

    /// # Safety
    /// The CPU has AVX-512 F and BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn dot_512() -> f32 {
        // Two bf16 ones in each 32 bits; sums grow by two each time, exactly, far below where f32 ends.
        // SAFETY: both types are 512 plain bits.
        let ones: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(black_box(0x3f80_3f80))) };
        let mut acc = [_mm512_set1_ps(black_box(1.0)); CHAINS];
        for _ in 0..STEPS {
            for acc in &mut acc {
                *acc = _mm512_dpbf16_ps(*acc, ones, ones);
            }
        }
        _mm512_cvtss_f32(acc.iter().fold(_mm512_setzero_ps(), |sum, a| _mm512_add_ps(sum, *a)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_plausible() {
        let (one, all) = (one_thread(), all_threads());
        for l in [one, all] {
            assert!((1e8..1e15).contains(&l.flops_f32), "{l:?}");
            assert!(l.flops_bf16 >= l.flops_f32, "{l:?}");
            assert!((1e7..1e14).contains(&l.copy_bytes), "{l:?}");
        }
        assert_eq!(one.threads, 1);
    }

    #[test]
    fn loops_do_the_arithmetic_that_is_counted() {
        // x = 0.999 x + 0.001 stays at 1, whatever is fused; a sum of CHAINS of them plus the start.
        let (fma, _) = fma_loop();
        assert!((fma() - (CHAINS + 1) as f32).abs() < 1.5, "{}", fma());
        if let Some((dot, _)) = dot_loop() {
            // Each accumulator gets 2 a step.
            let expected = (CHAINS * (2 * STEPS + 1)) as f32;
            assert!((dot() / expected - 1.0).abs() < 1e-6, "{} {expected}", dot());
        }
    }
}
