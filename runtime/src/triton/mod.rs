//! Triton kernels compiled ahead of time. Compiled ones are kept in the user's cache by what they were made of: a machine
//! that has them all needs no Python.

pub mod interpret;
mod python;
mod worker;

pub use python::Python;

use crate::{Result, RunError, kernel_cache};
use serde_json::{Map, Value, json};
use worker::Worker;

/// The version of Triton that compiles, without its last part.
pub const VERSION: &str = "3.6";

/// Parameters that Triton adds to a kernel's own: pointers to scratch memory and to that of a profiler, null where there is
/// none. The compiler's PTX is checked for them.
pub const HIDDEN: usize = 2;

/// A kernel to be compiled.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Name of the function.
    pub function: &'a str,
    /// The module that it stands in.
    pub source: &'a str,
    /// Element types of its arguments, all pointers to multiples of 16 bytes.
    pub types: &'a [&'static str],
    /// Warps that run one program.
    pub warps: usize,
    /// Stages of pipelined loops; as many as Triton takes by itself without.
    pub stages: Option<usize>,
    /// Compute capability, such as 90.
    pub arch: u32,
}

impl Request<'_> {
    /// All that decides what comes out.
    fn key(&self) -> String {
        let stages = self.stages.map_or(String::new(), |n| format!(" stages {n}"));
        format!(
            "triton {VERSION}\nsm_{}\nwarps {}{stages}\n{}\n{}\n{}",
            self.arch,
            self.warps,
            self.types.join(","),
            self.function,
            self.source
        )
    }
}

/// A compiled kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Cubin {
    /// The binary.
    pub bytes: Vec<u8>,
    /// Registers of a thread.
    pub registers: u64,
    /// Bytes that a thread stores and loads because registers do not suffice.
    pub spill_bytes: u64,
    /// Bytes of a thread's stack.
    pub stack_bytes: u64,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u64,
    /// Numbers of tensor-core instructions by name; `None` if no disassembler was found.
    pub sass: Option<Map<String, Value>>,
}

impl Cubin {
    /// From the worker's answer.
    fn from_answer(v: &Value) -> Option<Cubin> {
        let bytes = base64(v["cubin"].as_str()?)?;
        Cubin::from_json(v, bytes)
    }

    /// From what [`Cubin::to_json`] wrote.
    fn from_json(v: &Value, bytes: Vec<u8>) -> Option<Cubin> {
        let number = |name: &str| v[name].as_u64();
        Some(Cubin {
            bytes,
            registers: number("registers")?,
            spill_bytes: number("spill_bytes")?,
            stack_bytes: number("stack_bytes")?,
            shared_bytes: number("shared_bytes")?,
            sass: v["sass"].as_object().cloned(),
        })
    }

    /// Everything but the binary.
    pub fn to_json(&self) -> Value {
        json!({
            "registers": self.registers, "spill_bytes": self.spill_bytes, "stack_bytes": self.stack_bytes,
            "shared_bytes": self.shared_bytes, "sass": self.sass,
        })
    }
}

/// Compiles kernels, or finds them in the cache.
pub struct Compiler {
    python: Python,
    worker: Option<Worker>,
    /// Why there is none, if it was needed.
    missing: Option<String>,
    /// Kernels that were in the cache.
    pub found: usize,
}

impl Compiler {
    /// Python is started when it is first needed.
    pub fn new(python: Python) -> Compiler {
        Compiler { python, worker: None, missing: None, found: 0 }
    }

    /// Why there is no Python with Triton, if one was needed.
    pub fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// The compiled kernel.
    ///
    /// # Errors
    /// If it is not in the cache and there is no Python with Triton, or if it cannot be compiled.
    pub fn compile(&mut self, request: &Request<'_>) -> Result<Cubin> {
        let key = request.key();
        let kept = kernel_cache::load(&key);
        if let Some(cubin) = kept.and_then(|(bytes, figures)| Cubin::from_json(&figures, bytes)) {
            self.found += 1;
            return Ok(cubin);
        }
        let worker = match &mut self.worker {
            Some(worker) => worker,
            none => {
                if let Some(why) = &self.missing {
                    return Err(RunError::Input(why.clone()));
                }
                let started = Worker::start(&self.python);
                none.insert(started.inspect_err(|e| self.missing = Some(e.to_string()))?)
            }
        };
        let cubin = worker.compile(request)?;
        kernel_cache::keep(&key, &cubin.bytes, &cubin.to_json());
        Ok(cubin)
    }
}

/// Decodes base64 with padding; `None` if it is none.
fn base64(text: &str) -> Option<Vec<u8>> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for four in text.chunks_exact(4) {
        let padding = four.iter().rev().take_while(|&&c| c == b'=').count();
        let mut word = 0u32;
        for &c in &four[..4 - padding] {
            word = word << 6 | u32::from(value(c)?);
        }
        word <<= 6 * padding;
        let bytes = word.to_be_bytes();
        out.extend_from_slice(&bytes[1..4usize.checked_sub(padding)?]);
    }
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(base64(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(base64("+/+/").unwrap(), [0xfb, 0xff, 0xbf]);
        for wrong in ["Zg", "Zg=", "Z!==", "Zm=v"] {
            assert_eq!(base64(wrong), None, "{wrong}");
        }
    }
}
