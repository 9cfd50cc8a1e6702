//! Tile programs compiled for CUDA devices. Needs NVRTC, found at run time, and no GPU.

mod nvrtc;
mod report;

pub use nvrtc::{Nvrtc, NvrtcError, Object};
pub use report::{Report, SassCounts};

use crate::tile::{Program, TileError, cuda};
use std::fmt;
use std::str::FromStr;

/// A GPU architecture that kernels are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Arch {
    /// Ampere (A100).
    Sm80,
    /// Hopper (H100, H200), with what only it has.
    Sm90a,
    /// Blackwell (B200), with what only it has.
    Sm100a,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 3] = [Arch::Sm80, Arch::Sm90a, Arch::Sm100a];

    /// That of devices of this compute capability; `None` if nothing is compiled for them.
    pub const fn of_capability(major: i32, minor: i32) -> Option<Arch> {
        match (major, minor) {
            (8, _) => Some(Arch::Sm80),
            (9, 0) => Some(Arch::Sm90a),
            (10, 0) => Some(Arch::Sm100a),
            _ => None,
        }
    }

    /// Compute capability as one number: 90 for 9.0.
    pub const fn number(self) -> u32 {
        match self {
            Arch::Sm80 => 80,
            Arch::Sm90a => 90,
            Arch::Sm100a => 100,
        }
    }

    /// Its name, such as `sm_90a`.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
            Arch::Sm100a => "sm_100a",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(s: &str) -> Result<Arch, String> {
        let known = || Arch::ALL.map(Arch::name).join(", ");
        Arch::ALL
            .into_iter()
            .find(|a| a.name() == s)
            .ok_or_else(|| format!("no architecture `{s}`; known are {}", known()))
    }
}

/// All that decides what comes out of compiling a source, but for the compiler's version: what a cache knows it by.
pub fn cache_key(source: &cuda::Source, arch: Arch) -> String {
    format!("cuda {arch}\n{}\n{}\n{}", nvrtc::OPTIONS.join(" "), cuda::HEADER, source.text)
}

/// A kernel for one architecture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compiled {
    /// Its source and how it is launched.
    pub source: cuda::Source,
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// Registers of a thread.
    pub registers: usize,
    /// Bytes that a thread spills from registers to memory and reads back.
    pub spill_bytes: usize,
    /// Bytes of a thread's stack.
    pub stack_bytes: usize,
    /// Bytes of a block's shared memory, with those that are asked for at launch.
    pub shared_bytes: usize,
    /// Warnings of the compiler.
    pub warnings: Vec<String>,
    /// Tensor core instructions in the machine code; `None` where there is no `cuobjdump` to see them.
    pub sass: Option<SassCounts>,
}

/// Why a program was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It cannot be printed.
    #[error(transparent)]
    Program(#[from] TileError),
    /// NVRTC is missing or rejects the source.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
}

/// Prints a program and compiles it.
///
/// # Errors
/// If the program cannot be printed, NVRTC cannot be loaded, or the compiler reports errors.
pub fn compile(program: &Program, arch: Arch) -> Result<Compiled, CompileError> {
    let source = cuda::print(program)?;
    let nvrtc = Nvrtc::load()?;
    let object = nvrtc.compile(&source.text, arch)?;
    let report = object.reports.into_iter().find(|r| r.kernel == program.name).unwrap_or_default();
    let sass = nvrtc.sass_counts(&object.cubin).and_then(|mut all| all.remove(&program.name));
    Ok(Compiled {
        shared_bytes: report.shared_bytes + source.dynamic_shared,
        source,
        cubin: object.cubin,
        registers: report.registers,
        spill_bytes: report.spill_bytes,
        stack_bytes: report.stack_bytes,
        warnings: object.warnings,
        sass,
    })
}
