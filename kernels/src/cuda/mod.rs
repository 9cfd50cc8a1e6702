//! Tile programs compiled for CUDA devices. Needs NVRTC, found at run time, and no GPU.

mod nvrtc;
mod report;

pub use nvrtc::{Nvrtc, NvrtcError, Object};
pub use report::{Report, SassCounts};

use crate::tile::cuda;
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

    /// Bytes of shared memory that a block can have.
    pub const fn shared_memory(self) -> usize {
        match self {
            Arch::Sm80 => 163 << 10,
            Arch::Sm90a | Arch::Sm100a => 227 << 10,
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
    let headers: String = cuda::HEADERS.iter().map(|(_, text)| *text).collect();
    format!("cuda {arch}\n{}\n{headers}\n{}", nvrtc::OPTIONS.join(" "), source.text)
}
