//! Kernels of a plan timed alone on a device, by events, beside what the device could do.
//!
//! A kernel runs over random buffers of its own sizes, again and again: what fits in the device's caches stays there, which in a
//! step it may not. Two kernels of one program take turns, so that neither has the better clock.

use super::driver::{DeviceBytes, Event, Gpu, Stream};
use super::room::Room;
use super::{check, kernels};
use crate::alone::Times;
use crate::calibration::median;
use crate::edited::{self, Edit};
use crate::error::{Result, RunError};
use kfc_kernels::tile::ir::{Access, Elem, Inst, Program, Stmt};
use kfc_kernels::tile::lower::Lowered;
use kfc_kernels::tile::trial::Trial;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Nanoseconds that a batch of launches between two events should take, and the most launches of one.
const BATCH: u64 = 500_000;
const MOST: u64 = 2000;

/// Batches before the clock starts, and the fewest that are timed.
const WARM_UP: usize = 2;
const LEAST: usize = 5;

/// Bytes that are copied to see how fast the device's memory is: more than its caches hold.
const COPIED: usize = 512 << 20;

/// What a kernel alone came to.
#[derive(Clone, Debug)]
pub struct Alone {
    /// Times of kfc's own kernel.
    pub built_in: Times,
    /// Times of the edited one, and what its trial said.
    pub edited: Option<(Times, String)>,
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

/// Times kernel `name` of `lowered`, and beside it the one of `file`, for about `budget` each. Kernels come from `folder` if
/// that is given.
///
/// # Errors
/// If there is no such kernel, it cannot be had, or the edited one is wrong.
pub fn time(
    gpu: &Arc<Gpu>,
    lowered: &Lowered,
    name: &str,
    file: Option<&Path>,
    folder: Option<&Path>,
    budget: Duration,
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
        for loaded in kernels::load_edited(gpu, only, None, &[edit])? {
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
    let mut times = in_turns(&room, &both, budget)?.into_iter();
    let none = || RunError::Failed("a kernel was not timed".into());
    let built_in = times.next().ok_or_else(none)?;
    let bytes = p
        .params
        .iter()
        .zip(&sizes)
        .map(|(b, n)| (*n as u64) * if b.access == Access::ReadWrite { 2 } else { 1 });
    Ok(Alone {
        built_in,
        edited: times.next().zip(said),
        bytes: bytes.sum(),
        flops: trial.dot_flops(),
        bandwidth: bandwidth(gpu)?,
        peak: gpu.info.rates().map(|r| if is_16_bit(p, &p.body) { r.flops_16 } else { r.flops_f32 }),
    })
}

/// Batches of each kernel in turn.
fn in_turns(room: &Room, kernels: &[kernels::Loaded], budget: Duration) -> Result<Vec<Times>> {
    // SAFETY: here and below, all are kernels of the program that the room was made for; an edited one has been tried.
    let once = |kernel: &kernels::Loaded, n: u64| unsafe { room.run(kernel, n as usize) };
    let mut counts = Vec::new();
    for kernel in kernels {
        let mut one = 0;
        for _ in 0..WARM_UP {
            one = once(kernel, 1)?;
        }
        counts.push((BATCH / one.max(1)).clamp(1, MOST));
    }
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); kernels.len()];
    let (start, budget) = (Instant::now(), budget * kernels.len() as u32);
    while all[0].len() < LEAST || start.elapsed() < budget {
        for ((kernel, n), times) in kernels.iter().zip(&counts).zip(&mut all) {
            times.push(once(kernel, *n)? as f64 / *n as f64);
        }
    }
    let of = |(mut times, n): (Vec<f64>, &u64)| {
        let middle = median(&mut times).unwrap_or(0.0);
        Times {
            runs: times.len() * *n as usize,
            best: times[0],
            median: middle,
            most: times[(times.len() - 1) * 9 / 10],
        }
    };
    Ok(all.into_iter().zip(&counts).map(of).collect())
}

/// Bytes a second that the device reads and writes when it copies.
fn bandwidth(gpu: &Arc<Gpu>) -> Result<f64> {
    let half = (COPIED.min(gpu.info.memory as usize / 8) / 2).max(1);
    let memory = DeviceBytes::new(gpu, 2 * half, "a copy of memory")?;
    let stream = Stream::new(gpu)?;
    let (before, after) = (Event::new(gpu)?, Event::new(gpu)?);
    let mut best = u64::MAX;
    for _ in 0..LEAST {
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
