//! Kernels of a plan timed alone on a device, by events, beside what the device could do.
//!
//! A kernel runs over random buffers of its own sizes, again and again: what fits in the device's caches stays there, which in a
//! step it may not.

use super::driver::{DeviceBytes, Event, Gpu, Stream};
use super::room::Room;
use super::{check, kernels};
use crate::edited::{self, Edit};
use crate::error::{Result, RunError};
use crate::triton::Python;
use kfc_kernels::tile::ir::{Access, Elem, Inst, Program, Stmt};
use kfc_kernels::tile::lower::Lowered;
use kfc_kernels::tile::trial::Trial;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The most launches between two events.
const MOST: u64 = 2000;

/// Launches before the clock starts, and copies of memory that are timed.
const WARM_UP: usize = 2;
const COPIES: usize = 5;

/// Bytes that are copied to see how fast the device's memory is: more than its caches hold.
const COPIED: usize = 512 << 20;

/// A kernel alone, and the edited one beside it.
pub struct Alone {
    room: Room,
    /// kfc's own, then the edited one.
    kernels: Vec<kernels::Loaded>,
    /// What the edited one's trial said, if there is one.
    pub said: Option<String>,
    /// Bytes of all buffers, once for each way that they are used.
    pub bytes: u64,
    /// Multiplications and additions of dot products.
    pub flops: u64,
    /// Bytes a second that the device copies, read and written.
    pub bandwidth: f64,
    /// Multiplications and additions a second in dot products like the kernel's, by the device's clocks; `None` if its driver
    /// does not tell them.
    pub peak: Option<f64>,
}

impl Alone {
    /// Time of `n` launches of kfc's own kernel, or of the edited one.
    ///
    /// # Errors
    /// If the kernel breaks, or there is no edited one.
    pub fn run(&self, is_edited: bool, n: u64) -> Result<Duration> {
        let Some(kernel) = self.kernels.get(usize::from(is_edited)) else {
            return Err(RunError::Failed("there is no edited kernel".into()));
        };
        let (mut left, mut ns) = (n, 0);
        while left > 0 {
            let some = left.min(MOST);
            // SAFETY: all are kernels of the program that the room was made for; an edited one has been tried.
            ns += unsafe { self.room.run(kernel, some as usize) }?;
            left -= some;
        }
        Ok(Duration::from_nanos(ns))
    }

    /// Time of a launch, after some.
    ///
    /// # Errors
    /// As [`Alone::run`].
    pub fn one(&self, is_edited: bool) -> Result<Duration> {
        let mut one = Duration::ZERO;
        for _ in 0..WARM_UP {
            one = self.run(is_edited, 1)?;
        }
        Ok(one)
    }

    /// The least time, nanoseconds: all bytes at the device's bandwidth, or all products at its peak.
    pub fn limit(&self) -> f64 {
        let products = self.peak.map_or(0.0, |peak| self.flops as f64 / peak);
        1e9 * products.max(self.bytes as f64 / self.bandwidth)
    }

    /// Whether products decide the limit.
    pub fn is_limited_by_products(&self) -> bool {
        self.limit() > 1e9 * self.bytes as f64 / self.bandwidth
    }
}

/// Readies kernel `name` of `lowered` to be timed, and beside it the one of `file`. Kernels come from `folder` if that is
/// given.
///
/// # Errors
/// If there is no such kernel, it cannot be had, or the edited one is wrong.
pub fn alone(
    gpu: &Arc<Gpu>,
    lowered: &Lowered,
    name: &str,
    file: Option<&Path>,
    folder: Option<&Path>,
    python: &Python,
) -> Result<Alone> {
    let Some(k) = lowered.kernels.iter().position(|k| k.name == name) else {
        let what = edited::no_such_kernel(name, &lowered.kernels);
        return Err(RunError::Input(format!("--kernel {name}: {what}")));
    };
    let (kernel, origin) = (&lowered.kernels[k], &lowered.origins[k]);
    let only = std::slice::from_ref(kernel);
    let mut both = kernels::load(gpu, only, folder)?;
    if let Some(from) = both.iter().find_map(|loaded| loaded.edited.as_ref()) {
        return Err(RunError::Input(format!(
            "{from}: it is edited, and would stand for kfc's own; leave --kernels out"
        )));
    }
    let mut said = None;
    if let Some(file) = file {
        let edit = Edit { kernel: name.into(), file: file.into() };
        let from = edit.to_string();
        for loaded in kernels::load_edited(gpu, only, None, &[edit], python)? {
            said = Some(check::check(gpu, kernel, origin, &loaded, &from)?);
            both.push(loaded);
        }
    }
    let p = &kernel.program;
    let apart: Vec<usize> = (0..p.params.len()).collect();
    let shared = origin.shared.first().unwrap_or(&apart);
    let trial = Trial::new(p, shared).map_err(|e| RunError::Failed(e.to_string()))?;
    let sizes: Vec<usize> = p.params.iter().map(|b| b.len * b.elem.bytes()).collect();
    let mut room = Room::new(gpu, &sizes, trial.shared())?;
    room.fill(&apart.iter().map(|&k| trial.bytes(k)).collect::<Vec<_>>())?;
    let bytes = p
        .params
        .iter()
        .zip(&sizes)
        .map(|(b, n)| (*n as u64) * if b.access == Access::ReadWrite { 2 } else { 1 });
    Ok(Alone {
        room,
        kernels: both,
        said,
        bytes: bytes.sum(),
        flops: trial.dot_flops(),
        bandwidth: bandwidth(gpu)?,
        peak: gpu.info.rates().map(|r| if is_16_bit(p, &p.body) { r.flops_16 } else { r.flops_f32 }),
    })
}

/// Bytes a second that the device reads and writes when it copies.
fn bandwidth(gpu: &Arc<Gpu>) -> Result<f64> {
    let half = (COPIED.min(gpu.info.memory as usize / 8) / 2).max(1);
    let memory = DeviceBytes::new(gpu, 2 * half, "a copy of memory")?;
    let stream = Stream::new(gpu)?;
    let (before, after) = (Event::new(gpu)?, Event::new(gpu)?);
    let mut best = u64::MAX;
    for _ in 0..COPIES {
        stream.record(&before)?;
        // SAFETY: both halves have so many bytes.
        unsafe { stream.copy(memory.at + half as u64, memory.at, half) }?;
        stream.record(&after)?;
        after.wait()?;
        best = best.min(after.ns_since(&before)?);
    }
    Ok(2.0 * half as f64 / best.max(1) as f64 * 1e9)
}

/// Whether a program multiplies 16-bit tiles.
fn is_16_bit(p: &Program, body: &[Stmt]) -> bool {
    body.iter().any(|s| match &s.inst {
        Inst::Dot { a, .. } => p.ty(*a).elem != Elem::F32,
        Inst::For { body, .. } => is_16_bit(p, body),
        _ => false,
    })
}
