//! One binary for all CPUs: inner loops are compiled for several instruction sets and chosen at run time.
//!
//! A process uses one level from its first kernel to its last: the best of its CPU, or the one that [`VARIABLE`] names.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::sync::OnceLock;
use thiserror::Error;

/// Instruction sets that loops are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// What every CPU of the target architecture has.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same with BF16.
    Avx512Bf16,
    /// NEON, which every 64-bit Arm CPU has: loops are compiled for it anyway, matrix products have kernels of their own.
    Neon,
    /// The same with BF16.
    NeonBf16,
}

/// The environment variable that forces a level.
pub const VARIABLE: &str = "KFC_ISA";

impl Level {
    /// All of them.
    pub const ALL: [Level; 6] =
        [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Neon, Level::NeonBf16];

    /// What [`VARIABLE`] calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
            Level::Neon => "neon",
            Level::NeonBf16 => "neonbf16",
        }
    }

    /// Whether it has AVX-512.
    pub(crate) fn has_avx512(self) -> bool {
        matches!(self, Level::Avx512 | Level::Avx512Bf16)
    }

    /// The level of that name.
    pub fn named(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|l| l.name() == name)
    }
}

/// [`VARIABLE`] names no level of this CPU.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{VARIABLE}={found}: {why}; this CPU has {}", names(&available()))]
pub struct LevelError {
    found: String,
    why: &'static str,
}

/// Names of levels in a sentence.
pub fn names(levels: &[Level]) -> String {
    levels.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ")
}

/// The level of this process. Where [`requested`] is an error, the best; no kernel is built then.
pub fn level() -> Level {
    match choice() {
        Ok(level) => *level,
        Err(_) => best(),
    }
}

/// The level of this process.
///
/// # Errors
/// If [`VARIABLE`] names none that this CPU has.
pub fn requested() -> Result<Level, LevelError> {
    choice().clone()
}

/// The environment is read once.
fn choice() -> &'static Result<Level, LevelError> {
    static CHOICE: OnceLock<Result<Level, LevelError>> = OnceLock::new();
    CHOICE.get_or_init(|| match std::env::var_os(VARIABLE) {
        Some(name) => find(&name.to_string_lossy()),
        None => Ok(best()),
    })
}

/// The level of that name, if this CPU has it.
fn find(name: &str) -> Result<Level, LevelError> {
    let fails = |why| Err(LevelError { found: name.to_string(), why });
    match Level::named(name) {
        Some(level) if available().contains(&level) => Ok(level),
        Some(_) => fails("this CPU lacks it"),
        None => fails("there is no such level"),
    }
}

/// The last of [`available`].
fn best() -> Level {
    available().last().copied().unwrap_or(Level::Portable)
}

/// The levels of this CPU, from the lowest to the best.
#[cfg(target_arch = "x86_64")]
pub fn available() -> Vec<Level> {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma") && has!("f16c");
    let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
    let has = |level: &Level| match level {
        Level::Portable => true,
        Level::Avx2 => avx2,
        Level::Avx512 => avx512,
        Level::Avx512Bf16 => avx512 && has!("avx512bf16"),
        Level::Neon | Level::NeonBf16 => false,
    };
    Level::ALL.into_iter().filter(has).collect()
}

/// The levels of this CPU, from the lowest to the best.
#[cfg(target_arch = "aarch64")]
pub fn available() -> Vec<Level> {
    let bf16 = std::arch::is_aarch64_feature_detected!("bf16").then_some(Level::NeonBf16);
    [Level::Portable, Level::Neon].into_iter().chain(bf16).collect()
}

/// The levels of this CPU, from the lowest to the best.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn available() -> Vec<Level> {
    vec![Level::Portable]
}

/// The quarters of two vectors in turn: the first two of each, and the last two.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn quarters(a: __m512i, b: __m512i) -> [__m512i; 2] {
    [
        _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b),
        _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b),
    ]
}

/// Asks for a cache line that is needed soon, but not next: the address need not be valid.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    // SAFETY: a prefetch never faults.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Declares functions whose body is compiled once for each [`Level`] and dispatched on entry. The body must be plain
/// loops that LLVM vectorises; what it calls must be `#[inline(always)]`. Where instructions fuse multiplications and
/// additions, `math` in the body is [`crate::cpu::math::fused`].
macro_rules! simd {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($t:ident: $bound:ident),+>)? ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block)+) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx512 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    #[allow(unused_imports)]
                    use $crate::cpu::math::fused as math;
                    $body
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn avx2 $(<$($t: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    #[allow(unused_imports)]
                    use $crate::cpu::math::fused as math;
                    $body
                }
                match $crate::cpu::simd::level() {
                    $crate::cpu::simd::Level::Avx512 | $crate::cpu::simd::Level::Avx512Bf16 => {
                        // SAFETY: `level` found these instruction sets on this CPU.
                        return unsafe { avx512($($arg),*) };
                    }
                    // SAFETY: as above.
                    $crate::cpu::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            #[allow(unreachable_code)]
            $body
        }
    )+};
}
pub(crate) use simd;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_found_by_name_and_others_refused_with_what_there_is() {
        for level in available() {
            assert_eq!(find(level.name()), Ok(level));
        }
        let there = names(&available());
        let lacks = Level::ALL.into_iter().find(|l| !available().contains(l)).map(Level::name);
        for name in ["", "AVX2", "best"].into_iter().chain(lacks) {
            let error = find(name).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.starts_with(&format!("KFC_ISA={name}: ")) && error.ends_with(&there), "{error:?}");
        }
    }

    #[test]
    fn the_environment_decides() {
        match std::env::var(VARIABLE) {
            Ok(name) => assert_eq!(level().name(), name),
            Err(_) => assert_eq!(Some(&level()), available().last()),
        }
    }
}
